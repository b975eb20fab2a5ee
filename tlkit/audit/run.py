"""The audit of a dataset: duplicates, leakage, label issues, class imbalance and shortcuts, over all splits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlkit.audit.fingerprints import fingerprints
from tlkit.audit.labels import FOLDS, LabelIssue, cross_validated_probabilities, suspects
from tlkit.audit.near_duplicates import NearDuplicate, described, find_pairs, groups
from tlkit.audit.shortcuts import Shortcut, shortcuts
from tlkit.data.dataset import Dataset, groups_of
from tlkit.graph import trace
from tlkit.model.trunk import Trunk
from tlkit.plugin.contract import Progress, silent
from tlkit.runtime.features import extract

SHOWN = 10  # findings of a kind that the text lists
MIN_IMBALANCE = 3.0  # times as many images in the largest class as in the smallest
MIN_IMAGES = 40  # distinct images that label issues and shortcuts need


@dataclass(frozen=True, slots=True)
class Audit:
    """Findings of an audit; printed, a summary.

    `class_imbalance` holds the images per class if the classes are imbalanced, otherwise nothing. Without
    `enough_images` neither label issues nor shortcuts were looked for.
    """

    images: int
    near_duplicates: Sequence[NearDuplicate]
    label_issues: Sequence[LabelIssue]
    class_imbalance: Mapping[str, int]
    shortcuts: Sequence[Shortcut]
    enough_images: bool

    @property
    def leakage(self) -> list[NearDuplicate]:
        """Images that are in two splits."""
        return [each for each in self.near_duplicates if each.leakage]

    def to_json(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "near_duplicates": [
                {**asdict(each), "leakage": each.leakage, "label_conflict": each.label_conflict}
                for each in self.near_duplicates
            ],
            "label_issues": [asdict(each) for each in self.label_issues],
            "class_imbalance": dict(self.class_imbalance),
            "shortcuts": [asdict(each) for each in self.shortcuts],
            "enough_images": self.enough_images,
        }

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"audit of {self.images} images"
        for kind, exact in (("exact duplicates", True), ("near-duplicates", False)):
            found = [each for each in self.near_duplicates if each.exact is exact]
            leakage, conflicts = sum(each.leakage for each in found), sum(each.label_conflict for each in found)
            yield f"{kind}: {len(found)}, {leakage} across splits (leakage), {conflicts} across classes"
            yield from _first([f"{each.first} = {each.second}" for each in found])
        if self.enough_images:
            yield f"label issues: {len(self.label_issues)}"
            yield from _first(self.label_issues)
            yield f"shortcuts: {len(self.shortcuts)}"
            yield from _first(self.shortcuts)
        else:
            yield f"label issues and shortcuts: inconclusive, fewer than {MIN_IMAGES} distinct images"
        if self.class_imbalance:
            counts = sorted(self.class_imbalance.items(), key=lambda each: each[1])
            yield f"class imbalance: {counts[-1][0]} has {counts[-1][1]} images, {counts[0][0]} has {counts[0][1]}"
        else:
            yield "class imbalance: none"


def _first(findings: Sequence[object]) -> Iterator[str]:
    for finding in findings[:SHOWN]:
        yield f"  {finding}"
    if len(findings) > SHOWN:
        yield f"  and {len(findings) - SHOWN} more (--json lists all)"


def audit(dataset: Dataset, trunk: Trunk, progress: Progress = silent, seed: int = 0) -> Audit:
    """Audit all splits of a dataset; label issues are found by the deepest features of a pretrained trunk."""
    paths = [sample.path for sample in dataset.samples]
    tick = progress("features", len(paths))
    features = extract(paths, trace.stage_graph(trunk), trunk.preprocessing, trunk.names, trunk.cut, tick)
    progress("files", len(paths))
    files = fingerprints(paths)
    pairs = find_pairs(files, paths)
    labels = np.array([sample.label for sample in dataset.samples], np.int64)
    usable = np.flatnonzero(features.usable)
    counts = np.bincount(labels[usable], minlength=len(dataset.labels))
    same_image = groups(pairs, np.arange(len(paths)))[usable]
    given = groups_of(dataset.samples)
    together = same_image if given is None else groups(pairs, given)[usable]
    enough = len(np.unique(same_image)) >= MIN_IMAGES and len(dataset.labels) > 1 and counts.max(initial=0) >= FOLDS
    imbalanced = bool(counts.max() >= MIN_IMBALANCE * max(1, counts.min()))
    return Audit(
        images=len(paths),
        near_duplicates=described(pairs, dataset),
        label_issues=_label_issues(dataset, features.array, usable, together, seed) if enough else [],
        class_imbalance=dict(zip(dataset.labels, counts.tolist(), strict=True)) if imbalanced else {},
        shortcuts=shortcuts(files, labels, dataset.labels, seed) if enough else [],
        enough_images=bool(enough),
    )


def _label_issues(
    dataset: Dataset,
    features: NDArray[np.float32],
    usable: NDArray[np.int64],
    together: NDArray[np.int64],
    seed: int,
) -> list[LabelIssue]:
    """Return the label issues among the samples `usable`, of which those with the same number are held out together."""
    samples, labels = [dataset.samples[row] for row in usable], dataset.labels
    given = np.array([sample.label for sample in samples], np.int64)
    probabilities = cross_validated_probabilities(features[usable], given, len(labels), seed, together)
    return [
        LabelIssue(samples[row].name, samples[row].split, labels[samples[row].label], labels[likely])
        for row, likely in suspects(probabilities, given)
    ]
