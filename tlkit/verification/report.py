"""Everything that was exported from a bundle, verified: the order of a verification and its result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlkit.errors import ArtifactError, ResourceError
from tlkit.model import exports
from tlkit.plugin.contract import Backbone, Head, Progress, Session, silent
from tlkit.runtime.engine import IncompatibleEngine
from tlkit.verification.replay import Replay, replay, replay_file

if TYPE_CHECKING:
    from tlkit.model.bundle import Bundle
    from tlkit.verification.dataset import Survey

Opener = Callable[[Path], Session]


@dataclass(frozen=True, slots=True)
class Verification:
    """By export ("onnx/fp32"): the replay, the comparison on a dataset, or why it was skipped on this machine."""

    replays: Mapping[str, Replay]
    surveys: Mapping[str, Survey] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    rejected: Mapping[str, str] = field(default_factory=dict)  # unreadable images of the dataset

    @property
    def failed(self) -> tuple[str, ...]:
        """The exports that do not give what was trained."""
        return tuple(
            name
            for name, each in self.replays.items()
            if not (each.passed and (name not in self.surveys or self.surveys[name].passed))
        )

    @property
    def passed(self) -> bool:
        """The verdict: at least one export was replayed, and none failed."""
        return bool(self.replays) and not self.failed

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON knows it."""
        facts = {name: each.to_json() for name, each in self.replays.items()}
        for name, each in self.surveys.items():
            facts[name]["data"] = each.to_json()
        return {**facts, **{name: {"passed": None, "why": why} for name, why in self.skipped.items()}}


def verify_file(file: Path, bundle: Bundle, opener: Opener) -> Verification:
    """Replay the golden images on one graph, wherever it lies now."""
    return Verification({str(file): replay_file(bundle, exports.graph_file(file, "model"), opener)})


def verify(
    bundle: Bundle,
    made_with: Callable[[Bundle], tuple[Backbone, Head]],
    opener: Callable[[str], Opener],
    target: str | None = None,
    precision: str | None = None,
    *,
    data: Path | None = None,
    split: str | None = None,
    progress: Progress = silent,
) -> Verification:
    """Replay the golden images on the exports of a target and precision, or on all; with `data` compare on images."""
    found = [
        place for place in exports.found(bundle.root) if target in (None, place[0]) and precision in (None, place[1])
    ]
    if not found:
        asked = "".join(f" {each}" for each in (target, precision) if each)
        do = exports.command(bundle.root, target or exports.TARGET, precision or exports.PRECISION)
        raise ArtifactError(
            f"nothing was exported from it{' for' if asked else ''}{asked} yet", file=bundle.root, do=do
        )
    replays, skipped = {}, {}
    for name, chosen in found:
        try:
            replays[f"{name}/{chosen}"] = replay(bundle, name, chosen, opener(name))
        except (ResourceError, IncompatibleEngine) as error:
            if target is not None or len(found) == 1:
                raise
            skipped[f"{name}/{chosen}"] = error.what
    if data is None:
        return Verification(replays, skipped=skipped)
    surveys, rejected = _survey(bundle, made_with, list(replays), data, split, opener, progress)
    return Verification(replays, surveys, skipped, rejected)


def _survey(
    bundle: Bundle,
    made_with: Callable[[Bundle], tuple[Backbone, Head]],
    places: list[str],
    data: Path,
    split: str | None,
    opener: Callable[[str], Opener],
    progress: Progress,
) -> tuple[dict[str, Survey], dict[str, str]]:
    """Compare each export with the trained modules, image by image; returns the unreadable images as well."""
    from tlkit.evaluation.evaluate import answers, labelled
    from tlkit.model.modules import head_logits, load_head
    from tlkit.runtime.model import Model
    from tlkit.verification.dataset import OUTPUTS, survey
    from tlkit.verification.parity import TOLERANCES
    from tlkit.verification.trained import TrainedSession

    _, samples = labelled(data, bundle.record.labels, split)
    backbone, head = made_with(bundle)
    model = Model(TrainedSession(bundle, backbone, head), bundle.root)
    trained = answers(model, samples, progress("trained modules", len(samples)), OUTPUTS)
    found = {}
    for place in places:
        target, precision = place.split("/")
        file = exports.graph_file(bundle.root, "model", target, precision)
        deployed = answers(Model(opener(target)(file), file), samples, progress(place, len(samples)), OUTPUTS)
        its_head = None
        if precision != exports.PRECISION:
            refitted = exports.refitted(bundle.root / target / precision)
            module = load_head(bundle, head, bundle.head if refitted is None else refitted)
            its_head = partial(head_logits, module)
        found[place] = survey(trained, deployed, TOLERANCES[precision], its_head)
    return found, dict(trained.rejected)
