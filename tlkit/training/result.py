"""The result of a training: metrics on the validation images, and the bundle."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tlkit.data.dataset import SHOWN
from tlkit.data.decoding import PNG, UnreadableImage, read_file
from tlkit.data.preprocessing import load
from tlkit.data.scan import FileCounts
from tlkit.data.stripping import without_metadata
from tlkit.errors import DataError
from tlkit.evaluation import conformal
from tlkit.evaluation.metrics import Metrics, score
from tlkit.model import bundle as bundles
from tlkit.model import trunk as trunks
from tlkit.model.modules import head_outputs
from tlkit.model.novelty import detector_line, head_tensors, with_novelty
from tlkit.model.reference_images import remember
from tlkit.plugin.contract import FEATURES, Backbone, Head, Preprocessing, Strategy
from tlkit.plugin.detection import NOVELTY
from tlkit.plugin.licenses import described_license, license_class
from tlkit.plugin.options import to_json
from tlkit.runtime.features import Features
from tlkit.training.config import Plan, TrainingConfig
from tlkit.training.freezing import provenance
from tlkit.training.heads import THRESHOLDS, VAL_TEMPERATURE, check_restored, head_report, probabilities
from tlkit.training.history import draw_curves
from tlkit.training.trainer import FitResult
from tlkit.util.text import counted, listed, table

SPLITS = ("train", "val", "test")
FEW = 5  # validation images of a class, below which its recall says little


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """A trained bundle and its metrics. A result can be used wherever a path to a bundle can."""

    bundle: Path
    digest: str
    backbone: str
    strategy: str
    head: str
    cut: str
    counts: Mapping[str, Mapping[str, int]]  # images of each class, by split
    images: Mapping[str, int]  # by split; of train and val the readable ones
    decoded: int  # images decoded for it; features of the others were cached
    rejected: Mapping[str, str]  # unreadable images: reasons by name
    skipped: Mapping[str, str]  # files that are no labeled images: reasons by path
    metrics: Metrics  # on the readable validation images
    provenance: Mapping[str, str]  # of each stage: "original", "fine-tuned" or "reinitialized"
    correct: NDArray[np.bool_]  # of each readable validation image, in order
    truth: NDArray[np.int64]  # their labels
    duplicates: Mapping[str, Sequence[Sequence[str]]]  # pairs of identical files: leakage, label_conflicts
    report: Mapping[str, Any] = field(default_factory=dict)  # of the head
    epochs: Sequence[Mapping[str, Any]] = ()  # of this run: loss, accuracy, rates, seconds and images per second
    diverged: str | None = None  # where training diverged; the weights are the best before that
    license: str = ""  # of the pretrained weights, with its class
    golden: int = 0  # validation images that the bundle holds copies of
    advice: Any = None  # that led to it, with strategy auto
    novelty: Mapping[str, Any] = field(default_factory=dict)  # the detector, and how it was chosen

    @property
    def files(self) -> FileCounts:
        """All files of the source, counted; images of the test split are not read."""
        return FileCounts.of(
            self.images["train"] + self.images["val"], self.rejected, self.skipped, self.images["test"]
        )

    @property
    def few_validation(self) -> dict[str, int]:
        """Classes with fewer than `FEW` validation images, and their numbers."""
        return {label: count for label, count in self.counts["val"].items() if count < FEW}

    def __fspath__(self) -> str:
        return str(self.bundle)

    def __repr__(self) -> str:
        metrics, splits = self.metrics, [split for split, count in self.images.items() if count]
        (low, high), (least, most) = metrics.interval, metrics.balanced_interval
        labels = list(self.counts["train"])
        recalls = ["" if recall is None else f"{recall:.1%}" for recall in metrics.recall]
        rows = [
            [label, *(self.counts[split][label] for split in splits), recall]
            for label, recall in zip(labels[:SHOWN], recalls, strict=False)
        ]
        more = [f"and {len(labels) - SHOWN} more classes"] if len(labels) > SHOWN else []
        rows.append([counted(len(labels), "class", "classes"), *(self.images[split] for split in splits), ""])
        changed = [f"{stage} {state}" for stage, state in self.provenance.items() if state != bundles.ORIGINAL]
        lines = [
            f"{self.backbone} up to {self.cut}, strategy {self.strategy}, head {self.head}",
            *table(rows, ["images", *splits, "recall"]),
            *more,
            f"{counted(self.decoded, 'image')} decoded, the features of the others were cached",
            f"validation accuracy {metrics.accuracy:.1%} (95 %: {low:.1%} to {high:.1%})",
            f"the most frequent class is {metrics.majority:.1%} of the images",
            f"balanced accuracy {metrics.balanced_accuracy:.1%} (95 %: {least:.1%} to {most:.1%})",
            f"macro-F1 {metrics.macro_f1:.3f}, ECE {metrics.ece:.3f}",
            f"license of the pretrained weights: {self.license}",
        ]
        if self.golden:
            copies = counted(self.golden, "validation image")
            lines.append(f"the bundle holds copies of {copies} for verify; --golden 0 leaves them out")
        if self.few_validation:
            few = listed((f"{label} {count}" for label, count in self.few_validation.items()), SHOWN)
            lines.append(f"classes with too few validation images to judge them by: {few}")
        if self.novelty:
            lines.append(f"unknown images: {detector_line(self.novelty)}")
        if changed:
            lines.append(f"{len(changed)} of {len(self.provenance)} stages changed: {', '.join(changed)}")
        return "\n".join(lines if self.advice is None else [*lines, "", str(self.advice.recommendation)])

    def to_json(self) -> dict[str, Any]:
        """Return everything but the predictions."""
        facts = {
            each.name: getattr(self, each.name)
            for each in fields(self)
            if each.name not in ("correct", "truth", "advice")
        }
        advice = None if self.advice is None else self.advice.recommendation.to_json()
        return {
            **facts,
            "bundle": str(self.bundle),
            "metrics": self.metrics.to_json(),
            "advice": advice,
            "files": asdict(self.files),
            "few_validation": self.few_validation,
        }

    @classmethod
    def from_json(
        cls, facts: Mapping[str, Any], correct: Sequence[bool], truth: Sequence[int], bundle: Path
    ) -> TrainingResult:
        """Return the result whose `to_json` is given, with its predictions, for a bundle at this place."""
        metrics = Metrics.from_json(facts["metrics"])
        given: dict[str, Any] = {each.name: facts.get(each.name) for each in fields(cls)}
        arrays = {"correct": np.array(correct, np.bool_), "truth": np.array(truth, np.int64)}
        return cls(**{**given, "bundle": bundle, "metrics": metrics, **arrays})


def write_bundle(
    plan: Plan,
    features: Features,
    head: nn.Module,
    fitted: FitResult,
    epochs: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any] | None = None,
) -> TrainingResult:
    """Score the head on the features of the deployed trunk, and write the bundle.

    `settings` are those of the fine-tuning. The folder of the images is remembered on this machine, not in the bundle.
    """
    train, val = plan.examples(features)
    check_restored(plan.config.head, head, val.features[:2], plan.classes)
    record = _record(plan, features, head_report(plan.config.head, head))
    config = plan.config
    head, novelty = with_novelty(config.detectors, config.head, head, train, val, config.seed)
    predicted = probabilities(head, val.features, plan.config.head.activation)
    metrics = score(predicted, val.labels)
    rows = _golden_rows(plan, features)
    golden = [_golden(plan, number, row) for number, row in enumerate(rows)]
    record = replace(
        record,
        novelty=novelty,
        coverage=_coverage(plan, predicted, val.labels, fitted.history),
        scores=(*record.scores, *([NOVELTY] if novelty else [])),
        metrics={"val": metrics.to_json()},
        golden=tuple(image for image, _ in golden),
        provenance=provenance(plan.trunk.names, plan.phases, fitted.changed),
        training=settings or {},
    )
    contents, known = [content for _, content in golden], _hashes(plan, features)
    digest = _write(plan, features.array[rows], record, head, fitted.history, contents, known)
    return TrainingResult(
        bundle=plan.out,
        digest=digest,
        backbone=record.backbone.name,
        strategy=record.strategy.name,
        head=record.head.name,
        counts={split: plan.dataset.counts(split) for split in SPLITS},
        cut=plan.trunk.cut,
        images=record.data["images"],
        decoded=features.decoded,
        rejected=_rejected(plan, features),
        skipped=plan.dataset.skipped,
        metrics=metrics,
        provenance=record.provenance,
        correct=predicted.argmax(axis=1) == val.labels,
        truth=val.labels,
        duplicates=asdict(plan.duplicates),
        report=record.head.report,
        epochs=epochs,
        diverged=fitted.diverged,
        golden=len(golden),
        license=described_license(plan.config.backbone.weights),
        novelty=novelty,
    )


def _write(
    plan: Plan,
    expected: NDArray[np.float32],
    record: bundles.BundleRecord,
    head: nn.Module,
    history: Sequence[Mapping[str, Any]],
    golden: Sequence[bytes],
    trained_on: Sequence[str],
) -> str:
    """Write the bundle, and return its digest; `expected` are the features of the golden images."""
    digest = bundles.write(
        plan.out,
        record,
        trunk=trunks.tensors(plan.trunk),
        head=head_tensors(head),
        history=history,
        golden=golden,
        expected={FEATURES: expected, **head_outputs(head, expected, record.scores)},
        trained_on=trained_on,
    )
    remember(digest, plan.source)
    draw_curves(history, plan.out)
    return digest


def _record(plan: Plan, features: Features, head_report: Mapping[str, Any]) -> bundles.BundleRecord:
    """Return what configuration and data say of the bundle; metrics and golden images are still missing."""
    config, dataset, weights = plan.config, plan.dataset, plan.config.backbone.weights
    return bundles.BundleRecord(
        labels=dataset.labels,
        preprocessing=plan.trunk.preprocessing,
        backbone=_component(config, config.backbone),
        weights=asdict(weights) | {"license_class": license_class(weights)},
        stages=plan.trunk.names,
        cut=plan.trunk.cut,
        width=features.array.shape[1],
        head=_component(config, config.head, head_report),
        scores=tuple(config.head.scores),
        activation=config.head.activation,
        strategy=_component(config, config.strategy, config.advice),
        phases=tuple(asdict(phase) for phase in plan.phases),
        seed=config.seed,
        data={
            "given_split": dataset.given_split,
            "val": config.val,
            **({} if config.group is None else {"group": config.group}),
            "images": {split: len(dataset.of(split)) for split in SPLITS},
            "rejected": {
                _stored(plan, name, row): reason for row, (name, reason) in enumerate(_rejected(plan, features).items())
            },
        },
        metrics={},
        golden=(),
    )


def _coverage(
    plan: Plan, probabilities: NDArray[np.float32], labels: NDArray[np.int64], history: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the thresholds of sets of labels by the validation images, and the coverage that they achieve there.

    Images that a temperature was fitted to are left out.
    """
    if plan.config.head.activation != "softmax":
        return {}
    if any(line.get(VAL_TEMPERATURE, 1.0) != 1.0 for line in history):
        probabilities, labels = probabilities[THRESHOLDS], labels[THRESHOLDS]
    achieved = [asdict(each) for each in conformal.cross_validated(probabilities, labels, plan.config.seed)]
    return {"thresholds": conformal.fit(probabilities, labels).to_json(), "achieved": achieved}


def _component(
    config: TrainingConfig, component: Backbone | Head | Strategy, report: Mapping[str, Any] | None = None
) -> bundles.ComponentRecord:
    distribution, version = config.origins[component.kind]
    return bundles.ComponentRecord(component.name, distribution, version, to_json(component), report or {})


def _golden_rows(plan: Plan, features: Features) -> list[int]:
    """Return the rows of the validation images to keep: one of each class in turn, in the order of their names."""
    queues: dict[int, list[int]] = {}
    for row, sample in enumerate(plan.samples):
        if sample.split == "val" and features.usable[row]:
            queues.setdefault(sample.label, []).append(row)
    count = plan.config.golden
    rows = [queue[turn] for turn in range(count) for _, queue in sorted(queues.items()) if turn < len(queue)]
    return rows[:count]


def _golden(plan: Plan, number: int, row: int) -> tuple[bundles.Golden, bytes]:
    """Return a golden image and its bytes: without metadata, unless it is known only with them."""
    sample, preprocessing = plan.samples[row], plan.trunk.preprocessing
    original = read_file(sample.path)
    pixels = load(original, preprocessing)
    stripped = (each for each in without_metadata(original) if _gives(each, pixels, preprocessing))
    content = next(stripped, original)
    if content is original and plan.config.golden_strip:
        what = "its metadata can't be removed without a change of its pixels"
        raise DataError(what, file=sample.path, do="train with --golden 0, or without --golden-strip")
    suffix = ".png" if content.startswith(PNG) else sample.path.suffix.lower()
    name = f"golden image {number}" if plan.config.golden_strip else _stored(plan, sample.name, row)
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    return bundles.Golden(f"{bundles.GOLDEN}/{number}{suffix}", name, sample.label, digest), content


def _gives(content: bytes, pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> bool:
    try:
        return np.array_equal(load(content, preprocessing), pixels)
    except UnreadableImage:
        return False


def _hashes(plan: Plan, features: Features) -> list[str]:
    """Return the SHA-256 of each image that was trained on."""
    usable = zip(plan.samples, features.sha256, features.usable, strict=True)
    return [sha256 for sample, sha256, good in usable if good and sample.split == "train"]


def _rejected(plan: Plan, features: Features) -> dict[str, str]:
    """Return the reasons of the unreadable images, and of those that the fine-tuned trunk can't compute, by name."""
    samples = plan.samples
    later = {samples[row].name: reason for row, reason in features.rejected.items()}
    return {**plan.rejected, **later}


def _stored(plan: Plan, name: str, row: int) -> str:
    """Return the name of an image in the bundle: never the place of its folder, and with `golden_strip` a number."""
    if plan.config.golden_strip:
        return f"image {row}"
    return PurePath(name).name if PurePath(name).is_absolute() else name
