"""Shortcuts: properties of the files, not of their content, that predict the class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tlkit.audit.fingerprints import Fingerprint
from tlkit.util.statistics import class_shares

Labels = NDArray[np.int64]
Probabilities = NDArray[np.float64]

MIN_EXPLAINED = 0.15  # share of the classes' entropy that a shortcut explains at least,
MIN_CLASS_EXPLAINED = 0.5  # or of one class against the rest: among ten, knowing one of them explains little
FOLDS = 5


@dataclass(frozen=True, slots=True)
class Shortcut:
    """A property of the files that predicts the class: the share of the classes' entropy that it explains.

    `accuracy` is the balanced accuracy of its predictions on held-out files. `revealed_class` is the class that it
    separates from all others, if it does, and `class_explained` the share of the entropy of that class against the
    rest.
    """

    property: str
    explained: float
    accuracy: float
    revealed_class: str | None = None
    class_explained: float = 0.0

    def __str__(self) -> str:
        text = f"{self.property} alone explains {self.explained:.0%} of the entropy of the classes"
        text += f" and predicts them with a balanced accuracy of {self.accuracy:.0%}"
        if self.revealed_class is None:
            return text
        return (
            f"{text}; it explains {self.class_explained:.0%} of the entropy of {self.revealed_class} against the rest"
        )

    def warning(self) -> str:
        """Return what a recommendation says of it."""
        return (
            f"the {self.property} of a file alone predicts its class with a balanced accuracy of {self.accuracy:.0%}: "
            f"the expected accuracy may be that of the {self.property}, not of what the images show"
        )


def shortcuts(fingerprints: Sequence[Fingerprint], labels: Labels, classes: Sequence[str], seed: int) -> list[Shortcut]:
    """Return the properties of files that predict the class on held-out files, each alone."""
    known = [index for index, each in enumerate(fingerprints) if each.header is not None]
    if len(known) < 4 * FOLDS:
        return []
    headers = [each.header for each in fingerprints if each.header is not None]
    properties = {
        "file format": [each.format for each in headers],
        "width and height": [f"{each.width} x {each.height}" for each in headers],
        "color mode": [each.mode for each in headers],
        "EXIF": [each.exif for each in headers],
    }
    found = [_shortcut(name, values, labels[known], classes, seed) for name, values in properties.items()]
    return [each for each in found if each is not None]


def _shortcut(name: str, values: Sequence[str], labels: Labels, classes: Sequence[str], seed: int) -> Shortcut | None:
    """Return the shortcut if the values of held-out files explain enough of the entropy of their classes."""
    prior, given = _held_out(values, labels, len(classes), seed)
    own = np.arange(len(labels)), labels
    explained = _explained(prior[own], given[own])
    accuracy = float((class_shares(labels) * (given.argmax(axis=1) == labels)).sum())
    per_class = np.zeros(len(classes))
    for label, count in enumerate(np.bincount(labels, minlength=len(classes))):
        if count >= 2 * FOLDS:
            is_class = (labels == label)[:, None] == [[False, True]]
            binary = [np.stack([1 - each[:, label], each[:, label]], axis=1)[is_class] for each in (prior, given)]
            per_class[label] = _explained(*binary)
    revealed = int(per_class.argmax())
    if per_class[revealed] > MIN_CLASS_EXPLAINED:
        return Shortcut(name, explained, accuracy, classes[revealed], float(per_class[revealed]))
    return Shortcut(name, explained, accuracy) if explained > MIN_EXPLAINED else None


def _explained(before: Probabilities, after: Probabilities) -> float:
    """Return the share of the cross-entropy `before` that the probabilities `after` of the true classes save."""
    entropy = -float(np.log(before).sum())
    return 1.0 + float(np.log(after).sum()) / entropy if entropy > 0 else 0.0


def _held_out(values: Sequence[str], labels: Labels, classes: int, seed: int) -> tuple[Probabilities, Probabilities]:
    """Return probabilities `(N, classes)` from the other folds: without the value of a file's property, and given it.

    Each value's class frequencies are smoothed towards those of all files, as if by one more file of it, so that a
    value seen once or never says nothing.
    """
    _, codes = np.unique(values, return_inverse=True)
    fold = np.random.default_rng(seed).permutation(len(labels)) % FOLDS
    prior, given = np.zeros((2, len(labels), classes))
    for each in range(FOLDS):
        fitted, held_out = fold != each, fold == each
        prior[held_out] = (np.bincount(labels[fitted], minlength=classes) + 1e-3) / (fitted.sum() + 1e-3 * classes)
        counts = np.zeros((int(codes.max()) + 1, classes))
        np.add.at(counts, (codes[fitted], labels[fitted]), 1)
        known = counts[codes[held_out]]
        given[held_out] = (known + prior[held_out]) / (known.sum(axis=1, keepdims=True) + 1.0)
    return prior, given
