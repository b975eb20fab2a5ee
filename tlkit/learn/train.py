"""From a folder of images to a bundle.

The trunk is exported first, and the head is fitted on the features that the exported graph produces: what is trained
on is what is deployed (design, idea 4). Where stages move, the trunk that comes of it is exported again, and the head
is fitted on its features, and all that the bundle says is measured on them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tlkit import files
from tlkit.data import folder
from tlkit.data.folder import Dataset, Sample
from tlkit.data.images import load
from tlkit.deploy import export
from tlkit.deploy.score import Scores, score
from tlkit.errors import DataError
from tlkit.learn.features import Features, extract
from tlkit.learn.loop.heads import logits, probabilities, refit, report, solve_or_fit
from tlkit.learn.loop.inputs import Examples, Images
from tlkit.learn.loop.phases import check_phases, most_moving, provenance
from tlkit.learn.loop.tune import Split, tune
from tlkit.model import bundle as bundles
from tlkit.model import trunk as trunks
from tlkit.model.trunk import Trunk
from tlkit.plugin.contract import FEATURES, LOGITS, Backbone, Facts, Head, Pixels, Strategy
from tlkit.plugin.settings import to_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

Progress = Callable[[str, int], Callable[[int], None]]  # (what, how many) -> tick(n more)


def silent(_what: str, _total: int) -> Callable[[int], None]:
    """The progress that nobody watches."""
    return lambda _more: None


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
    refit: bool = True  # solve the head again on a trunk that moved, where that loses nothing


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
    provenance: Mapping[str, str]  # of each stage: "original", "moved" or "new"
    report: Mapping[str, Any] = field(default_factory=dict)


def train(source: Path, out: Path, recipe: Recipe, progress: Progress = silent) -> Trained:
    """Train and write the bundle `out`.

    Where the loss ended as no number, the bundle holds the best weights before that, and then a DataError is raised.
    """
    files.check_new(out)
    files.check_writable(out)
    dataset = folder.read(source, val=recipe.val)
    train_samples, val_samples = dataset.of("train"), dataset.of("val")
    samples = (*train_samples, *val_samples)

    torch.manual_seed(recipe.seed)
    whole = trunks.build(recipe.backbone)
    facts = _facts(dataset, train_samples)
    cut = trunks.check_cut(recipe.cut or recipe.strategy.cut(whole.names, facts), whole.names)
    trunk = whole.upto(cut)
    phases = tuple(recipe.strategy.phases(trunk.names, facts))
    check_phases(phases, trunk.names)
    moving, classes = most_moving(phases), len(dataset.labels)
    head = recipe.head.module(trunk.width, classes) if moving else None  # one that can't learn is refused at once

    features = _extract(whole, cut, samples, recipe.max_bad, progress("features", len(samples)))
    decoded = features.decoded
    train_set, val_set = _splits(features, samples, trunk.pixels)
    changed: tuple[str, ...] = ()
    watch = partial(progress, "epochs", sum(phase.epochs for phase in phases))
    if head is None:
        head, fitted = solve_or_fit(
            recipe.head, phases, train_set.features, val_set.features, classes, seed=recipe.seed, watch=watch
        )
    else:
        fitted, changed = tune(trunk, head, phases, recipe.backbone, train_set, val_set, seed=recipe.seed, tick=watch())
        tick = progress("features of the moved trunk", len(samples))
        features = _extract(trunk, cut, samples, recipe.max_bad, tick)
        train_set, val_set = _splits(features, samples, trunk.pixels)
        if recipe.refit:
            head, more = refit(recipe.head, head, train_set.features, val_set.features, classes, recipe.seed)
            fitted.history.extend(more)
    scores = score(probabilities(head, val_set.features.features), val_set.features.labels)

    kept = _golden(val_samples, features.usable[len(train_samples) :], recipe.golden)
    contents = [val_samples[index].path.read_bytes() for index in kept]
    expected = features.array[[len(train_samples) + index for index in kept]]
    record = bundles.Record(
        labels=dataset.labels,
        pixels=trunk.pixels,
        backbone=_made(recipe, recipe.backbone),
        source=asdict(recipe.backbone.source),
        stages=trunk.names,
        width=features.array.shape[1],
        head=_made(recipe, recipe.head, report(head)),
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
        provenance=provenance(trunk.names, phases, changed),
    )
    digest = bundles.write(
        out,
        record,
        trunk=trunks.tensors(trunk),
        head=trunks.tensors(head),
        history=fitted.history,
        golden=contents,
        expected={FEATURES: expected, LOGITS: logits(head, expected)},
    )
    if not moving:
        export.keep_cut(whole, cut)
    if fitted.diverged is not None:
        what = f"{fitted.diverged}; the bundle holds the best weights before that"
        raise DataError(what, file=out, do="train again with smaller learning rates")
    return Trained(
        root=out,
        digest=digest,
        cut=cut,
        images={split: len(dataset.of(split)) for split in ("train", "val", "test")},
        decoded=decoded,
        rejected={samples[index].name: reason for index, reason in features.rejected.items()},
        ignored=dataset.ignored,
        scores=scores,
        provenance=record.provenance,
        report=report(head),
    )


def _facts(dataset: Dataset, samples: Sequence[Sample]) -> Facts:
    counts = np.bincount([sample.label for sample in samples], minlength=len(dataset.labels))
    return Facts(len(samples), len(dataset.labels), int(counts.min()), int(counts.max()))


def _extract(
    trunk: Trunk, cut: str, samples: Sequence[Sample], max_bad: float, tick: Callable[[int], None]
) -> Features:
    """The features of all samples from the deployed graph of a trunk, which ends at the cut or goes on behind it."""
    graph = export.taps_graph(trunk)
    features = extract([sample.path for sample in samples], graph, trunk.pixels, trunk.names, cut, tick)
    _check_rejects(features, samples, max_bad)
    return features


def _splits(features: Features, samples: Sequence[Sample], pixels: Pixels) -> tuple[Split, Split]:
    """What there is to learn from, and what to validate on: the images that can be used, with their features."""

    def split(name: str) -> Split:
        rows = [row for row, sample in enumerate(samples) if sample.split == name and features.usable[row]]
        labels = np.array([samples[row].label for row in rows], np.int64)
        images = Images([samples[row].path for row in rows], labels, pixels)
        return Split(images, Examples(features.array[rows], labels))

    return split("train"), split("val")


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
