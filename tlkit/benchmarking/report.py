"""Everything that was exported from a bundle, measured: the order of a benchmark and its result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from tlkit.benchmarking.run import Speed, Stage
from tlkit.benchmarking.run import benchmark as measure
from tlkit.benchmarking.tuning import Tuned, tune
from tlkit.errors import ArtifactError, TlkitError, UsageError
from tlkit.model import exports
from tlkit.plugin.contract import Backbone, Head, Progress, Session, Target, option_fields, silent
from tlkit.runtime.engine import IncompatibleEngine, open_target

if TYPE_CHECKING:
    from tlkit.model.bundle import Bundle

TORCH = "torch"  # no target: the trained modules themselves

OnDevice = Callable[[Callable[[str], Session]], Session]


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """What comes before inference, stage by stage; inference of each export; what was tuned; and what was skipped."""

    stages: tuple[Stage, ...]
    speeds: tuple[Speed, ...]
    tuned: Mapping[str, Tuned] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def fastest(self) -> str | None:
        """The export ("onnx/int8") with the highest throughput; None where only the trained modules were measured."""
        exported = [speed for speed in self.speeds if not speed.name.startswith(TORCH)]
        return max(exported, key=lambda speed: speed.rate).name.split(",")[0] if exported else None

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON knows it."""
        return {
            "tuned": {place: tuning.to_json() for place, tuning in self.tuned.items()},
            "stages": [stage.to_json() for stage in self.stages],
            "speeds": [speed.to_json() for speed in self.speeds],
            "skipped": dict(self.skipped),
        }


def benchmark(  # noqa: PLR0913  # the options of the verb
    bundle: Bundle,
    made_with: Callable[[Bundle], tuple[Backbone, Head]],
    target_of: Callable[[str], Target],
    where: OnDevice,
    *,
    targets: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    batch_sizes: Sequence[int] = (1, 8, 32),
    threads: Sequence[int] = (),
    tuning: bool = False,
    trust: bool = False,
    progress: Progress = silent,
) -> BenchmarkResult:
    """Measure the exports of these targets and precisions, or all that run here; `where` opens on a device."""
    found = _asked_for(bundle, targets, precisions)
    tunable = [precision for target, precision in found if target == exports.TARGET] if tuning else []
    if tuning and not tunable:
        raise UsageError("tuning is for ONNX graphs, and none of them is among what was asked for")
    openers = dict(_openers(bundle, made_with, target_of, where, found, threads, trust))
    skipped: dict[str, str] = {}

    def skip(name: str, error: TlkitError) -> None:
        skipped[name] = error.what

    explicit = targets is not None or len(openers) == 1
    result = measure(bundle, openers, batch_sizes, lacking=None if explicit else skip, progress=progress)
    # Last, as memory that it has used would be told of none of the sides.
    tuned = {f"{exports.TARGET}/{precision}": tune(bundle, precision, progress=progress) for precision in tunable}
    return BenchmarkResult(result.stages, result.speeds, tuned, skipped)


def _asked_for(
    bundle: Bundle, targets: Sequence[str] | None, precisions: Sequence[str] | None
) -> list[tuple[str, str]]:
    """The target and precision of each export that was asked for, and PyTorch's."""
    known = exports.found(bundle.root)
    if TORCH in (targets or ()):
        known.insert(0, (TORCH, exports.PRECISION))
    wanted = [place for place in known if place[0] in (targets or place) and place[1] in (precisions or place)]
    for name in targets or ():
        if name not in {place[0] for place in wanted}:
            do = exports.command(bundle.root, target=name)
            raise ArtifactError(f"nothing was exported from it for {name} yet", file=bundle.root, do=do)
    for name in precisions or ():
        if name not in {place[1] for place in wanted}:
            do = exports.command(bundle.root)
            raise ArtifactError(f"nothing was exported from it for {name} yet", file=bundle.root, do=do)
    if not wanted:
        raise ArtifactError("nothing was exported from it yet", file=bundle.root, do=exports.command(bundle.root))
    return wanted


def _openers(
    bundle: Bundle,
    made_with: Callable[[Bundle], tuple[Backbone, Head]],
    target_of: Callable[[str], Target],
    where: OnDevice,
    found: Sequence[tuple[str, str]],
    threads: Sequence[int],
    trust: bool,
) -> Iterator[tuple[str, Callable[[], Session]]]:
    """What opens the model of each export, by the export's name."""
    for target, precision in found:
        if target == TORCH:
            from tlkit.verification.trained import TrainedSession

            yield f"{TORCH}/{precision}", partial(TrainedSession, bundle, *made_with(bundle))
            continue
        file = exports.graph_file(bundle.root, "model", target, precision)
        try:
            component: Any = target_of(target)  # a dataclass, whose fields depend on the target
        except IncompatibleEngine as error:
            yield f"{target}/{precision}", partial(_refuse, error)
            continue
        options = {field.name for field in option_fields(component)}

        def opened(device: str, component: Any, file: Any = file) -> Session:
            on = replace(component, device=device) if component.name == exports.TARGET else component
            return open_target(on, file, trust=trust)

        for number in threads if threads and "threads" in options else (0,):
            name = f"{target}/{precision}" + (f", {number} thread{'s' if number > 1 else ''}" if number else "")
            chosen = replace(component, threads=number) if number else component
            yield name, partial(where, partial(opened, component=chosen))


def _refuse(error: TlkitError) -> Session:
    raise error
