"""From a folder of images to a bundle.

The trunk is exported first, and the head is fitted on the features that the exported graph produces: what is trained
on is what is deployed (design, idea 4).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tlkit import files
from tlkit.data import folder
from tlkit.data.folder import Dataset, Sample
from tlkit.data.images import load
from tlkit.deploy import export
from tlkit.deploy.progress import Progress, silent
from tlkit.deploy.score import Scores, score
from tlkit.errors import DataError
from tlkit.learn.features import Features, extract
from tlkit.learn.loop import Examples, check_phases, fit
from tlkit.model import bundle as bundles
from tlkit.model import trunk as trunks
from tlkit.plugin.contract import FEATURES, LOGITS, Backbone, Facts, Head, Phase, Strategy
from tlkit.plugin.settings import to_json

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to train: the three offers, each with the (distribution, version) of the plugin it comes from."""

    backbone: Backbone
    strategy: Strategy
    head: Head
    origins: Mapping[str, tuple[str, str]]  # by kind
    cut: str | None = None
    val: float = 0.2
    max_bad: float = 0.01
    golden: int = 8
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Trained:
    """What came of it. `rejected` maps the names of images that could not be used to the reasons."""

    root: Path
    digest: str
    cut: str
    images: Mapping[str, int]  # by split
    decoded: int
    rejected: Mapping[str, str]
    ignored: Sequence[str]
    scores: Scores
    report: Mapping[str, Any] = field(default_factory=dict)


def train(source: Path, out: Path, recipe: Recipe, progress: Progress = silent) -> Trained:
    """Train and write the bundle `out`."""
    files.check_new(out)
    files.check_writable(out)
    dataset = folder.read(source, val=recipe.val)
    train_samples, val_samples = dataset.of("train"), dataset.of("val")
    samples = (*train_samples, *val_samples)

    torch.manual_seed(recipe.seed)
    trunk = trunks.build(recipe.backbone)
    facts = _facts(dataset, train_samples)
    cut = trunks.check_cut(recipe.cut or recipe.strategy.cut(trunk.names, facts), trunk.names)
    stages = trunk.upto(cut).names
    phases = tuple(recipe.strategy.phases(stages, facts))
    check_phases(phases, stages)

    graph = export.taps_graph(trunk)
    tick = progress("features", len(samples))
    features = extract([s.path for s in samples], graph, trunk.pixels, trunk.names, cut, tick)
    _check_rejects(features, samples, recipe.max_bad)

    labels = np.array([s.label for s in samples], np.int64)
    in_train = np.arange(len(samples)) < len(train_samples)
    train_set, val_set = (
        Examples(features.array[rows], labels[rows])
        for rows in (in_train & features.usable, ~in_train & features.usable)
    )
    head, history = _head(recipe, phases, train_set, val_set, len(dataset.labels), progress)
    scores = score(_probabilities(head, val_set.features), val_set.labels)

    kept = _golden(val_samples, features.usable[len(train_samples) :], recipe.golden)
    contents = [val_samples[index].path.read_bytes() for index in kept]
    expected = features.array[[len(train_samples) + index for index in kept]]
    report = dict(getattr(head, "report", {}))
    record = bundles.Record(
        labels=dataset.labels,
        pixels=trunk.pixels,
        backbone=_made(recipe, recipe.backbone),
        source=asdict(recipe.backbone.source),
        stages=stages,
        width=features.array.shape[1],
        head=_made(recipe, recipe.head, report),
        strategy=_made(recipe, recipe.strategy),
        phases=tuple(asdict(phase) for phase in phases),
        seed=recipe.seed,
        data=_data(source, dataset, features, samples, recipe),
        scores={"val": scores.to_json()},
        golden=tuple(
            bundles.Golden(
                file=f"{bundles.GOLDEN}/{number}{val_samples[index].path.suffix.lower()}",
                name=val_samples[index].name,
                label=val_samples[index].label,
                pixels=hashlib.sha256(load(content, trunk.pixels).tobytes()).hexdigest(),
            )
            for number, (index, content) in enumerate(zip(kept, contents, strict=True))
        ),
    )
    digest = bundles.write(
        out,
        record,
        trunk=trunks.tensors(trunk.upto(cut)),
        head=trunks.tensors(head),
        history=history,
        golden=contents,
        expected={FEATURES: expected, LOGITS: _logits(head, expected)},
    )
    export.keep_cut(trunk, cut)
    return Trained(
        root=out,
        digest=digest,
        cut=cut,
        images={split: len(dataset.of(split)) for split in ("train", "val", "test")},
        decoded=features.decoded,
        rejected={samples[index].name: reason for index, reason in features.rejected.items()},
        ignored=dataset.ignored,
        scores=scores,
        report=report,
    )


def _facts(dataset: Dataset, samples: Sequence[Sample]) -> Facts:
    counts = np.bincount([sample.label for sample in samples], minlength=len(dataset.labels))
    return Facts(len(samples), len(dataset.labels), int(counts.min()), int(counts.max()))


def _head(
    recipe: Recipe, phases: Sequence[Phase], train_set: Examples, val_set: Examples, classes: int, progress: Progress
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """The head, solved where it can be, otherwise trained by gradient; and the history of that."""
    solved = recipe.head.solve(train_set.features, train_set.labels, classes, recipe.seed)
    if solved is not None:
        return solved.eval(), [{"phase": 1, "solved": recipe.head.name, **getattr(solved, "report", {})}]
    module = recipe.head.module(train_set.features.shape[1], classes)
    tick = progress("epochs", sum(phase.epochs for phase in phases))
    return fit(module, phases, train_set, val_set, seed=recipe.seed, tick=tick)


def _check_rejects(features: Features, samples: Sequence[Sample], max_bad: float) -> None:
    rejected = features.rejected
    if len(rejected) > max_bad * len(samples):
        first, reason = next(iter(rejected.items()))
        raise DataError(
            f"{len(rejected)} of {len(samples)} images can't be used, the first because: {reason}",
            file=samples[first].path,
            do=f"mend or remove them, or allow more than {max_bad:.1%} with --max-bad",
        )
    for split in ("train", "val"):
        usable = {s.label for s, good in zip(samples, features.usable, strict=True) if good and s.split == split}
        lost = {s.label for s in samples if s.split == split} - usable
        if lost:
            example = next(s for s in samples if s.split == split and s.label in lost)
            raise DataError(f"no usable {split} image is left of its class", file=example.path, do="add some")


def _golden(samples: Sequence[Sample], usable: NDArray[np.bool_], count: int) -> list[int]:
    """Which validation images to keep: by turns from each class, in the order of their names."""
    queues: dict[int, list[int]] = {}
    for index, sample in enumerate(samples):
        if usable[index]:
            queues.setdefault(sample.label, []).append(index)
    turns = [queue[turn] for turn in range(count) for _, queue in sorted(queues.items()) if turn < len(queue)]
    return turns[:count]


def _logits(head: nn.Module, features: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.inference_mode():
        logits: NDArray[np.float32] = head(torch.from_numpy(features)).numpy()
    return logits


def _probabilities(head: nn.Module, features: NDArray[np.float32]) -> NDArray[np.float32]:
    probabilities: NDArray[np.float32] = torch.from_numpy(_logits(head, features)).softmax(1).numpy()
    return probabilities


def _made(recipe: Recipe, offer: Backbone | Head | Strategy, report: Mapping[str, Any] | None = None) -> bundles.Made:
    distribution, version = recipe.origins[offer.kind]
    return bundles.Made(offer.name, distribution, version, to_json(offer), report or {})


def _data(
    source: Path, dataset: Dataset, features: Features, samples: Sequence[Sample], recipe: Recipe
) -> dict[str, Any]:
    return {
        "source": str(source.absolute()),
        "given_split": dataset.given_split,
        "val": recipe.val,
        "images": {split: len(dataset.of(split)) for split in ("train", "val", "test")},
        "rejected": {samples[index].name: reason for index, reason in features.rejected.items()},
    }
