"""A set of images looked over: what is there twice, in two splits or two classes, wrong, rare, or given away."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tlkit.advice.run import Advice
from tlkit.audit import labels as wrong
from tlkit.audit.near_duplicates import groups, pairs
from tlkit.audit.shortcuts import Suspect, look_at, shortcuts
from tlkit.data.dataset import Sample
from tlkit.graph import trace
from tlkit.plugin.contract import Progress, silent
from tlkit.runtime.features import extract

SHOWN = 10  # of each kind, in lines
IMBALANCED = 3.0  # times as many images in the largest class as in the smallest
FEWEST = 40  # images to say anything of labels and shortcuts


@dataclass(frozen=True, slots=True)
class Twin:
    """Two names of the same picture, and what about that is wrong."""

    one: str
    other: str
    exact: bool
    splits: tuple[str, str]
    labels: tuple[str, str]

    @property
    def leak(self) -> bool:
        """Whether one is learnt from and the other measured on."""
        return self.splits[0] != self.splits[1]

    @property
    def contradiction(self) -> bool:
        """Whether the two have different labels."""
        return self.labels[0] != self.labels[1]


@dataclass(frozen=True, slots=True)
class Mislabelled:
    """An image whose label is likely wrong, and the class that it looks like."""

    name: str
    split: str
    label: str
    looks: str


@dataclass(frozen=True, slots=True)
class Audit:
    """What was found. `imbalance` holds the counts of the classes where they differ much, otherwise nothing."""

    images: int
    twins: Sequence[Twin]
    mislabelled: Sequence[Mislabelled]
    imbalance: Mapping[str, int]
    shortcuts: Sequence[Suspect]
    too_few: bool

    @property
    def leaks(self) -> list[Twin]:
        """Pictures in two splits."""
        return [twin for twin in self.twins if twin.leak]

    def to_json(self) -> dict[str, Any]:
        """As JSON knows it."""
        return {
            "images": self.images,
            "duplicates": [
                {**asdict(twin), "leak": twin.leak, "contradiction": twin.contradiction} for twin in self.twins
            ],
            "mislabelled": [asdict(each) for each in self.mislabelled],
            "imbalance": dict(self.imbalance),
            "shortcuts": [asdict(each) for each in self.shortcuts],
            "enough_for_labels_and_shortcuts": not self.too_few,
        }

    def lines(self) -> list[str]:
        """For a terminal."""
        return list(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"audit of {self.images} images"
        for what, exact in (("exact duplicates", True), ("near duplicates", False)):
            found = [twin for twin in self.twins if twin.exact is exact]
            leaks, contradictions = sum(twin.leak for twin in found), sum(twin.contradiction for twin in found)
            yield f"{what}: {len(found)}, {leaks} across splits, {contradictions} across classes"
            found.sort(key=lambda twin: (not twin.leak, not twin.contradiction))
            yield from _some([f"{twin.one} = {twin.other}" for twin in found])
        if self.too_few:
            yield f"labels and shortcuts: fewer than {FEWEST} distinct images are not enough to tell"
        else:
            yield f"likely wrong labels: {len(self.mislabelled)}"
            yield from _some([f"{e.name} ({e.split}): is {e.label}, looks like {e.looks}" for e in self.mislabelled])
            yield f"shortcuts: {len(self.shortcuts)}"
            yield from _some([each.line() for each in self.shortcuts])
        if self.imbalance:
            counts = sorted(self.imbalance.items(), key=lambda each: each[1])
            yield f"imbalance: {counts[-1][0]} has {counts[-1][1]} images, {counts[0][0]} has {counts[0][1]}"
        else:
            yield "imbalance: none to speak of"


def _some(lines: Sequence[str]) -> Iterator[str]:
    for line in lines[:SHOWN]:
        yield f"  {line}"
    if len(lines) > SHOWN:
        yield f"  and {len(lines) - SHOWN} more (--json lists all)"


def audit(advice: Advice, progress: Progress = silent, seed: int = 0) -> Audit:
    """Look over all splits of the data that was advised on, through the backbone that was recommended."""
    samples, labels = advice.dataset.samples, advice.dataset.labels
    trunk = advice.sight.trunk
    paths = [sample.path for sample in samples]
    tick = progress("features", len(paths))
    features = extract(paths, trace.taps_graph(trunk), trunk.preprocessing, trunk.names, trunk.names[-1], tick)
    progress("files", len(paths))
    looks = look_at(paths)
    found = pairs(looks)
    twins = [_twin(samples[pair.one], samples[pair.other], labels, exact=pair.exact) for pair in found]
    truth = np.array([sample.label for sample in samples], np.int64)
    usable = np.flatnonzero(features.usable)
    counts = np.bincount(truth[usable], minlength=len(labels))
    same = groups(found, len(samples))[usable]
    distinct = len(np.unique(same))
    too_few = distinct < FEWEST or len(labels) < 2 or counts.max(initial=0) < wrong.FOLDS
    mislabelled = []
    if not too_few:
        shares = wrong.left_out_probabilities(features.array[usable], truth[usable], len(labels), seed, same)
        for place, looks_like in wrong.suspects(shares, truth[usable]):
            sample = samples[usable[place]]
            mislabelled.append(Mislabelled(sample.name, sample.split, labels[sample.label], labels[looks_like]))
    uneven = bool(counts.max() >= IMBALANCED * max(1, counts.min()))
    return Audit(
        images=len(samples),
        twins=twins,
        mislabelled=mislabelled,
        imbalance={label: int(count) for label, count in zip(labels, counts, strict=True)} if uneven else {},
        shortcuts=[] if too_few else shortcuts(looks, truth, labels, seed),
        too_few=too_few,
    )


def _twin(one: Sample, other: Sample, labels: Sequence[str], *, exact: bool) -> Twin:
    return Twin(one.name, other.name, exact, (one.split, other.split), (labels[one.label], labels[other.label]))
