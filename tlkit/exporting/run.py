"""From a bundle to its exports: the order of an export, top to bottom, and its result."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tlkit.errors import UsageError
from tlkit.exporting.candidates import Candidate
from tlkit.exporting.gate import ExportResult, Gate, check_half_precision
from tlkit.exporting.precision_search import PrecisionSearch, PrecisionSearchResult
from tlkit.exporting.targets import build_target, graphs_for, graphs_of, write_graphs
from tlkit.model import exports
from tlkit.model.exports import Exports
from tlkit.model.reference_images import ParityImages, parity_images
from tlkit.plugin.contract import FEATURES, OptimizationProfile, Progress, Target, silent
from tlkit.runtime.session import OnnxSession
from tlkit.util.resources import processor_kind
from tlkit.verification.trained import TrainedModules

LAYERS_SHOWN = 10  # all of them are in the manifest and in the JSON
MEASURED = 0.3  # seconds that the speed of int8 is measured for, beside fp32
NOTICEABLE = 1e-3  # seconds per image


@dataclass(frozen=True, slots=True)
class ExportReport:
    """The exports that were written, the last one what was asked for, and the precision searches by precision."""

    exports: tuple[ExportResult, ...]
    searches: Mapping[str, PrecisionSearchResult] = field(default_factory=dict)
    golden: int = 0  # golden images of the bundle, which `verify` replays
    int8_speed: float | None = None  # relative to fp32 on this processor; None where it was not measured

    @property
    def folders(self) -> tuple[Path, ...]:
        return tuple(each.folder for each in self.exports)

    def to_json(self) -> dict[str, Any]:
        return {
            "exports": [each.to_json() for each in self.exports],
            "searches": {precision: search.to_json() for precision, search in self.searches.items()},
            "int8_speed": self.int8_speed,
        }

    def __repr__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        """Yield the verdicts, and how each precision was searched for, for people."""
        for each in self.exports:
            if each.unproven is not None:
                yield f"{each.folder}: built, but not proven here: {each.unproven}"
            elif not each.verdicts:
                yield f"{each.folder}: no lower precision stays within --max-drop"
            else:
                yield f"{each.folder}: checked on {each.images} images from {each.drawn_from}"
                yield from (f"  {name}: {verdict.summary()}" for name, verdict in each.verdicts.items())
        for search in self.searches.values():
            yield from _search_lines(search)
        if self.int8_speed is not None and self.int8_speed < 1:
            yield f"int8 is slower than fp32 on this processor ({processor_kind()}): {self.int8_speed:.2f}x its speed"


def export(  # noqa: PLR0913  # the options of the verb
    modules: TrainedModules,
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
    """Write the ONNX graphs of a bundle, where they are missing or asked for, and from these every other target.

    With `max_drop`, an accuracy drop in percentage points, precisions are tried from `precision` upwards.
    """
    _check(precision, max_drop, fallback, refit_head)
    wanted = {target.name: graphs_for(target, precision) for target in targets}
    bundle, found = modules.bundle, Exports.of(modules.bundle)
    parity = parity_images(bundle, data)
    written: list[ExportResult] = []
    searches: dict[str, PrecisionSearchResult] = {}
    if (exports.TARGET in wanted and precision == exports.PRECISION) or not found.has():
        gate = Gate(bundle, parity, modules.run(parity.images))
        written.append(write_graphs(found, gate, graphs_of(bundle, modules.trunk_graph(), modules.head_graph())))
    reached = {exports.PRECISION: exports.PRECISION}  # the precision that the search for each ended at
    for flavor in dict.fromkeys(wanted.values()):
        if flavor != exports.PRECISION:
            search = PrecisionSearch(modules, found, parity, refit_head=refit_head, data=data, progress=progress)
            chosen, searches[flavor] = search.run(flavor, max_drop=max_drop, fallback=fallback)
            written.append(_write_candidate(found, search, chosen, searches[flavor]))
            reached[flavor] = exports.plain(chosen.precision)
    for target in targets:
        if target.name != exports.TARGET:
            at = reached[wanted[target.name]]
            written.append(build_target(modules, found, target, parity, at, profile, progress))
    speed = _speed(found, parity) if reached.get("int8") == "int8" else None
    return ExportReport(tuple(written), searches, len(bundle.record.golden), speed)


def _speed(found: Exports, parity: ParityImages) -> float | None:
    """Return the speed of int8 relative to fp32 for one image, each at its fastest; None if fp32 takes no time."""
    image = parity.images[:1]
    sessions = [OnnxSession(found.get(exports.TARGET, precision).file()) for precision in ("int8", exports.PRECISION)]
    seconds, end = [math.inf, math.inf], time.monotonic() + MEASURED
    while time.monotonic() < end or math.inf in seconds:
        for index, session in enumerate(sessions):
            started = time.perf_counter()
            session.run(image)
            seconds[index] = min(seconds[index], time.perf_counter() - started)
        if seconds[1] < NOTICEABLE:
            return None
    return seconds[1] / seconds[0]


def _write_candidate(
    found: Exports, search: PrecisionSearch, chosen: Candidate, result: PrecisionSearchResult
) -> ExportResult:
    """Write the graphs that a search ended at; of fp32, which is there, only the manifest is amended."""
    more, bundle, parity = {"precision_search": result.to_json()}, search.modules.bundle, search.parity
    if chosen.precision == exports.PRECISION:
        fp32 = found.get()
        fp32.amend(more)
        return ExportResult(fp32.folder, len(parity.images), parity.drawn_from, {})
    head, head_from, expected = search.head, exports.FROM_BUNDLE, search.expected
    if chosen.precision == "fp16" and result.max_drop is None:  # within a budget the search has judged it
        check_half_precision(search.modules, parity.images, expected[FEATURES])
    if chosen.head is not None:
        head, head_from = chosen.head.graph(), exports.FROM_EXPORT
        expected = {**expected, **chosen.head.outputs(expected[FEATURES])}
    graphs = graphs_of(bundle, chosen.trunk, head, chosen.precision, head_from)
    gate = Gate(bundle, parity, expected, precision=chosen.precision)
    return write_graphs(found, gate, graphs, refitted=chosen.head, more=more)


def _check(precision: str, max_drop: float | None, fallback: bool, refit_head: bool) -> None:
    """Refuse options that contradict each other."""
    if precision not in exports.PRECISIONS:
        raise UsageError(f"there is no precision {precision!r}", do=f"choose one of {', '.join(exports.PRECISIONS)}")
    if max_drop is not None and not max_drop >= 0:
        raise UsageError(f"max_drop must be 0 or more percentage points, not {max_drop}")
    if max_drop is not None and precision == exports.PRECISION:
        raise UsageError("--max-drop is for --precision int8 or fp16: fp32 loses nothing")
    if not fallback and max_drop is None:
        raise UsageError("--no-fallback needs --max-drop")
    if refit_head and precision != "int8":
        raise UsageError("--refit-head is for --precision int8")


def _search_lines(search: PrecisionSearchResult) -> Iterator[str]:
    """Yield a table of the candidates, the last of which was chosen, and the most sensitive layers."""
    if not search.candidates:
        yield "accuracy was not measured: the images it was trained on are not on this machine any more"
        return
    width = max(len(each.name) for each in search.candidates)
    pairs = search.candidates[0].pairs
    more = f" and {pairs.cross_validated} of the training split, cross-validated" if pairs.cross_validated else ""
    yield f"measured on {pairs.images - pairs.cross_validated} validation images{more}, against fp32:"
    for each in search.candidates:
        yield f"  {each.name:<{width}}  {each}"
        if each.head is not None:
            yield f"  {'':<{width}}  refitted head: {each.head}"
    if search.undecided is not None:
        yield search.undecided
    if search.sensitivity:
        yield "error of the logits with one layer alone in int8, the most sensitive first:"
        yield from (f"  {layer.error:7.2%}  {layer.name}" for layer in search.sensitivity[:LAYERS_SHOWN])
