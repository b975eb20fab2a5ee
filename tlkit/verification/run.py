"""Verify the exports of a bundle: the order of a verification, top to bottom, and its result."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlkit.errors import ResourceError
from tlkit.evaluation.evaluate import ModelOutputs, run_samples, select_samples, trained_on_line
from tlkit.model import exports
from tlkit.model.bundle import Bundle, count_trained_on
from tlkit.model.exports import Export, Exports, graph_file
from tlkit.plugin.contract import Progress, Session, silent
from tlkit.runtime.engine import CPU, IncompatibleEngine, Opener
from tlkit.runtime.model import Model
from tlkit.verification.dataset import OUTPUTS, DatasetComparison, compare_on_dataset
from tlkit.verification.parity import TOLERANCES
from tlkit.verification.replay import Replay, replay, replay_file

if TYPE_CHECKING:  # not at runtime: an exported graph is verified without PyTorch
    from tlkit.verification.trained import TrainedModules


@dataclass(frozen=True, slots=True)
class Verification:
    """By export ("onnx/fp32"): the replay, the comparison on a dataset, or why it was skipped on this machine."""

    replays: Mapping[str, Replay]
    comparisons: Mapping[str, DatasetComparison] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    rejected: Mapping[str, str] = field(default_factory=dict)  # unreadable images of the dataset
    trained_on: int | None = None  # images of the dataset that the bundle was trained on

    @property
    def failed(self) -> tuple[str, ...]:
        """The exports whose output is not that of the training."""
        return tuple(
            name
            for name, each in self.replays.items()
            if not (each.passed and (name not in self.comparisons or self.comparisons[name].passed))
        )

    @property
    def passed(self) -> bool:
        """The verdict: at least one export was replayed, and none failed."""
        return bool(self.replays) and not self.failed

    def to_json(self) -> dict[str, Any]:
        facts = {name: each.to_json() for name, each in self.replays.items()}
        for name, each in self.comparisons.items():
            facts[name]["data"] = {**each.to_json(), "trained_on": self.trained_on}
        return {**facts, **{name: {"passed": None, "why": why} for name, why in self.skipped.items()}}

    def __repr__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        """Yield every verdict for people."""
        yield from (f"{name}: skipped here: {why}" for name, why in self.skipped.items())
        for name, each in self.replays.items():
            yield from each.lines(name)
        for name, comparison in self.comparisons.items():
            yield from comparison.lines(name)
            yield from (f"  {line}" for line in trained_on_line(self.trained_on, comparison.images))


def verify_file(path: Path, bundle: Bundle, opener: Opener) -> Verification:
    """Replay the golden images on one graph of any target, wherever it lies now."""
    opened = opener.open_path(path)
    if opened is None:
        file = graph_file(path, "model")
        opened = opener.open_file(file), file, exports.TARGET
    return Verification({str(path): replay_file(bundle, *opened)})


def verify(
    bundle: Bundle,
    opener: Opener,
    *,
    targets: Collection[str] = (),
    precisions: Collection[str] = (),
    trained: TrainedModules | None = None,
    data: Path | None = None,
    split: str | None = None,
    progress: Progress = silent,
) -> Verification:
    """Replay the golden images on the exports of these targets and precisions, or on all of them.

    With `trained` and `data`, every image of a labelled folder goes through the trained modules and through each export
    as well. An export that can't run on this machine is skipped, or raises where its target or device was asked for.
    """
    found = Exports.of(bundle)
    opener.check(targets, found)
    names = found.select(targets, precisions)
    replays, skipped, opened = dict[str, Replay](), dict[str, str](), list[Export]()
    for place in names:
        export = found.get(*place)
        try:
            replays[export.name] = replay(bundle, export, opener.open)
        except (ResourceError, IncompatibleEngine) as error:
            if targets or len(names) == 1 or (opener.device != CPU and export.target == exports.TARGET):
                raise  # what was asked for can't be had
            skipped[export.name] = error.what
        else:
            opened.append(export)
    if data is None or trained is None:
        return Verification(replays, skipped=skipped)
    comparisons, expected = _compare(opened, opener, trained, data, split, progress)
    known = count_trained_on(bundle.root, expected.sha256)
    return Verification(replays, comparisons, skipped, expected.rejected, known)


def _compare(
    opened: list[Export], opener: Opener, trained: TrainedModules, data: Path, split: str | None, progress: Progress
) -> tuple[dict[str, DatasetComparison], ModelOutputs]:
    """Compare each export with the trained modules; also returns what these give."""
    bundle = trained.bundle
    samples = select_samples(data, bundle.record.labels, split).samples

    def run(session: Session, place: Path, name: str) -> Any:
        outputs = (*OUTPUTS, *bundle.record.scores)
        return run_samples(Model(session, place), samples, progress(name, len(samples)), outputs)

    expected = run(trained.session(), bundle.root, "trained modules")
    comparisons = {}
    for export in opened:
        got = run(opener.open(export), export.file(), export.name)
        below = export.precision != exports.PRECISION
        head = trained.head_outputs(export.refitted()) if below else None
        comparisons[export.name] = compare_on_dataset(
            expected, got, TOLERANCES[export.precision], head, bundle.record.activation
        )
    return comparisons, expected
