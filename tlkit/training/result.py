"""What came of a training: its scores, and the bundle."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlkit.data.dataset import Dataset, Sample
from tlkit.data.preprocessing import load
from tlkit.evaluation.metrics import Metrics, score
from tlkit.model import bundle as bundles
from tlkit.model import trunk as trunks
from tlkit.model.modules import head_logits
from tlkit.model.reference_images import remember
from tlkit.plugin.contract import FEATURES, LOGITS, Backbone, Head, Strategy
from tlkit.plugin.options import to_json
from tlkit.runtime.features import Features
from tlkit.training.config import Plan, TrainingConfig
from tlkit.training.curves import draw
from tlkit.training.heads import probabilities, report
from tlkit.training.inputs import Examples
from tlkit.training.phases import provenance
from tlkit.training.trainer import FitResult
from tlkit.util.text import counted, table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

SHOWN = 20  # classes whose images are counted, in text for people


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What came of it. `rejected` maps the names of images that could not be used to the reasons."""

    bundle: Path
    digest: str
    backbone: str
    strategy: str
    head: str
    cut: str
    counts: Mapping[str, Mapping[str, int]]  # images of each class, by split
    images: Mapping[str, int]  # by split
    decoded: int
    rejected: Mapping[str, str]
    skipped: Sequence[str]
    metrics: Metrics
    provenance: Mapping[str, str]  # of each stage: "original", "fine-tuned" or "reinitialized"
    right: NDArray[np.bool_]  # which of the images to validate on that can be used, in order
    report: Mapping[str, Any] = field(default_factory=dict)
    epochs: Sequence[Mapping[str, Any]] = ()  # of this run: loss, accuracy, rates, seconds and images a second
    diverged: str | None = None  # where the loss ended as no number; the weights are the best before that
    advice: Any = None  # what led to it, where the strategy was auto

    def __fspath__(self) -> str:
        """The bundle: a result stands wherever a path to one does."""
        return str(self.bundle)

    def __str__(self) -> str:
        metrics, splits = self.metrics, [split for split, count in self.images.items() if count]
        low, high = metrics.interval
        labels = list(self.counts["train"])
        rows = [[label, *(self.counts[split][label] for split in splits)] for label in labels[:SHOWN]]
        more = [f"and {len(labels) - SHOWN} more classes"] if len(labels) > SHOWN else []
        rows.append([counted(len(labels), "class", "classes"), *(self.images[split] for split in splits)])
        changed = [f"{stage} {state}" for stage, state in self.provenance.items() if state != "original"]
        lines = [
            f"{self.backbone} up to {self.cut}, strategy {self.strategy}, head {self.head}",
            *table(rows, ["images", *splits]),
            *more,
            f"{counted(self.decoded, 'image')} decoded, the features of the others were cached",
            f"validation accuracy {metrics.accuracy:.1%} (95 %: {low:.1%} to {high:.1%})",
            f"macro-F1 {metrics.macro_f1:.3f}, ECE {metrics.ece:.3f}",
        ]
        if changed:
            lines.append(f"{len(changed)} of {len(self.provenance)} stages changed: {', '.join(changed)}")
        return "\n".join(lines if self.advice is None else [*lines, "", str(self.advice.recommendation)])

    def to_json(self) -> dict[str, Any]:
        """Everything but the predictions, as JSON knows it."""
        names = ("digest", "backbone", "strategy", "head", "cut", "counts", "images", "decoded", "rejected", "skipped")
        facts = {name: getattr(self, name) for name in (*names, "provenance", "report", "epochs")}
        advice = None if self.advice is None else self.advice.recommendation.to_json()
        return {"bundle": str(self.bundle), **facts, "metrics": self.metrics.to_json(), "advice": advice}


def write(
    plan: Plan,
    features: Features,
    val_set: Examples,
    head: nn.Module,
    fitted: FitResult,
    changed: Sequence[str],
    epochs: Sequence[Mapping[str, Any]],
    conditions: Mapping[str, Any],
) -> TrainingResult:
    """Score the head on the features of the deployed trunk, `val_set` those of val, and write the bundle."""
    recipe, trunk, dataset, samples, phases = plan.recipe, plan.trunk, plan.dataset, plan.samples, plan.phases
    train_samples, val_samples = dataset.of("train"), dataset.of("val")
    given = probabilities(head, val_set.features)
    scores = score(given, val_set.labels)

    kept = _golden(val_samples, features.usable[len(train_samples) :], recipe.golden)
    contents = [val_samples[index].path.read_bytes() for index in kept]
    expected = features.array[[len(train_samples) + index for index in kept]]
    record = bundles.BundleRecord(
        labels=dataset.labels,
        preprocessing=trunk.preprocessing,
        backbone=_made(recipe, recipe.backbone),
        weights=asdict(recipe.backbone.weights),
        stages=trunk.names,
        width=features.array.shape[1],
        head=_made(recipe, recipe.head, report(head)),
        strategy=_made(recipe, recipe.strategy, recipe.advice),
        phases=tuple(asdict(phase) for phase in phases),
        seed=recipe.seed,
        data=_data(dataset, features, samples, recipe),
        metrics={"val": scores.to_json()},
        golden=tuple(
            bundles.Golden(
                file=f"{bundles.GOLDEN}/{number}{val_samples[index].path.suffix.lower()}",
                name=val_samples[index].name,
                label=val_samples[index].label,
                pixels_sha256=hashlib.sha256(load(content, trunk.preprocessing).tobytes()).hexdigest(),
            )
            for number, (index, content) in enumerate(zip(kept, contents, strict=True))
        ),
        provenance=provenance(trunk.names, phases, changed),
        training=conditions,
    )
    digest = bundles.write(
        plan.out,
        record,
        trunk=trunks.tensors(trunk),
        head=trunks.tensors(head),
        history=fitted.history,
        golden=contents,
        expected={FEATURES: expected, LOGITS: head_logits(head, expected)},
    )
    remember(digest, plan.source)
    draw(fitted.history, plan.out)
    return TrainingResult(
        bundle=plan.out,
        digest=digest,
        backbone=recipe.backbone.name,
        strategy=recipe.strategy.name,
        head=recipe.head.name,
        counts={split: dataset.counts(split) for split in ("train", "val", "test")},
        cut=trunk.names[-1],
        images={split: len(dataset.of(split)) for split in ("train", "val", "test")},
        decoded=features.decoded,
        rejected={samples[index].name: reason for index, reason in features.rejected.items()},
        skipped=dataset.skipped,
        metrics=scores,
        provenance=record.provenance,
        right=given.argmax(axis=1) == val_set.labels,
        report=report(head),
        epochs=epochs,
        diverged=fitted.diverged,
    )


def _golden(samples: Sequence[Sample], usable: NDArray[np.bool_], count: int) -> list[int]:
    """Which validation images to keep: by turns from each class, in the order of their names."""
    queues: dict[int, list[int]] = {}
    for index, sample in enumerate(samples):
        if usable[index]:
            queues.setdefault(sample.label, []).append(index)
    turns = [queue[turn] for turn in range(count) for _, queue in sorted(queues.items()) if turn < len(queue)]
    return turns[:count]


def _made(
    recipe: TrainingConfig, component: Backbone | Head | Strategy, report: Mapping[str, Any] | None = None
) -> bundles.ComponentRecord:
    distribution, version = recipe.origins[component.kind]
    return bundles.ComponentRecord(component.name, distribution, version, to_json(component), report or {})


def _data(dataset: Dataset, features: Features, samples: Sequence[Sample], recipe: TrainingConfig) -> dict[str, Any]:
    return {
        "given_split": dataset.given_split,
        "val": recipe.val,
        "images": {split: len(dataset.of(split)) for split in ("train", "val", "test")},
        "rejected": {samples[index].name: reason for index, reason in features.rejected.items()},
    }
