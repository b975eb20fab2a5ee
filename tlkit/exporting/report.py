"""From a bundle to its exports: the order of an export, top to bottom, and its result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlkit.exporting.head_refit import fit
from tlkit.exporting.precision import publish_precision
from tlkit.exporting.run import Published, graphs_for, half_trunk, publish_onnx, publish_target
from tlkit.model import exports
from tlkit.plugin.contract import Backbone, Head, OptimizationProfile, Progress, Target, silent

if TYPE_CHECKING:
    from tlkit.exporting.precision_search import Climbed
    from tlkit.model.bundle import Bundle


@dataclass(frozen=True, slots=True)
class ExportReport:
    """The exports that were written, the last one what was asked for, and by precision how it was searched for."""

    exports: tuple[Published, ...]
    searches: Mapping[str, Climbed] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON knows it."""
        return {
            "exports": [
                {
                    "place": str(each.place),
                    "images": each.images,
                    "drawn_from": each.drawn_from,
                    "parity": {name: verdict.to_json() for name, verdict in each.verdicts.items()},
                    "unproven": each.unproven,
                }
                for each in self.exports
            ],
            "searches": {precision: search.to_json() for precision, search in self.searches.items()},
        }


def export(  # noqa: PLR0913  # the options of the verb
    bundle: Bundle,
    made_with: Callable[[Bundle], tuple[Backbone, Head]],
    targets: Sequence[Target],
    *,
    precision: str = exports.PRECISION,
    max_drop: float | None = None,
    fallback: bool = True,
    refit_head: bool = False,
    profile: OptimizationProfile | None = None,
    data: Path | None = None,
    progress: Progress = silent,
) -> ExportReport:
    """Write the ONNX graphs of a bundle, where they are missing or asked for, and from these every other target."""
    wanted = {target.name: graphs_for(target, precision) for target in targets}
    published: list[Published] = []
    searches: dict[str, Climbed] = {}
    if (exports.TARGET in wanted and precision == exports.PRECISION) or not exports.current(bundle):
        published.append(publish_onnx(bundle, *made_with(bundle), data=data))
    taken = {exports.PRECISION: exports.PRECISION}  # for each that was asked for, where the search ended
    for flavor in dict.fromkeys(wanted.values()):
        if flavor != exports.PRECISION:
            one, searches[flavor] = publish_precision(
                bundle,
                flavor,
                lambda: half_trunk(bundle, *made_with(bundle)),
                max_drop=max_drop,
                fallback=fallback,
                data=data,
                progress=progress,
                fit=partial(fit, bundle, made_with(bundle)[1]) if refit_head else None,
            )
            published.append(one)
            taken[flavor] = exports.plain(one.place.name)
    published += [
        publish_target(
            bundle, target, precision=taken[wanted[target.name]], profile=profile, data=data, progress=progress
        )
        for target in targets
        if target.name != exports.TARGET
    ]
    return ExportReport(tuple(published), searches)
