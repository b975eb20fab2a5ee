"""Transferability scores: separability of classes by features, without training, each as in its paper.

Features are `(N, width)`, labels `(N,)` in 0..classes-1. The higher, the better the transfer to expect. Their
reliability is measured in benchmarks/advise.py; the advice follows the probes, not these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Rows = NDArray[np.float64]
    Labels = NDArray[np.int64]

_ROUNDS, _TOLERANCE = 100, 1e-3  # of LogME's fixed point
_MIN, _MAX = 1e-9, 1e9  # precisions: without a signal, or without noise, the fixed point lies at infinity


def one_hot(labels: Labels, classes: int) -> Rows:
    """Return the one-hot encoding `(N, classes)` of labels."""
    return np.eye(classes)[labels]


def logme(features: NDArray[np.floating], labels: Labels, classes: int) -> float:
    """Return LogME: the log maximum evidence of linear regression from features to each class, per image, averaged.

    You, Liu, Wang and Long, "LogME: Practical Assessment of Pre-trained Models for Transfer Learning", ICML 2021,
    algorithm 1: alpha and beta of each class are the fixed point of the evidence's maximum (MacKay 1992).
    """
    rows = np.asarray(features, np.float64)
    spectrum, project = _spectrum(rows)
    targets = one_hot(labels, classes)
    within = project(targets)  # the targets along the left singular vectors: (rank, classes)
    evidences = [
        _evidence(len(rows), rows.shape[1], spectrum, within[:, label] ** 2, float(targets[:, label].sum()))
        for label in range(classes)
    ]
    return float(np.mean(evidences))


def _evidence(images: int, width: int, spectrum: Rows, along: Rows, total: float) -> float:
    """Return the evidence of one class, from squared singular values and the target's squared projections `along`."""
    outside = max(total - float(along.sum()), 0.0)  # unreachable by any weights
    alpha, beta = 1.0, 1.0
    gamma, residual, norm = 0.0, outside, 0.0
    for _ in range(_ROUNDS):
        gamma = float((beta * spectrum / (alpha + beta * spectrum)).sum())
        norm = float((beta**2 * spectrum * along / (alpha + beta * spectrum) ** 2).sum())  # |m|^2
        residual = float((alpha**2 * along / (alpha + beta * spectrum) ** 2).sum()) + outside  # |Fm - y|^2
        ratio = alpha / beta
        alpha, beta = _within(gamma / max(norm, _MIN)), _within((images - gamma) / max(residual, _MIN))
        if abs(alpha / beta - ratio) <= _TOLERANCE * ratio:
            break
    norm = float((beta**2 * spectrum * along / (alpha + beta * spectrum) ** 2).sum())
    residual = float((alpha**2 * along / (alpha + beta * spectrum) ** 2).sum()) + outside
    log_determinant = float(np.log(alpha + beta * spectrum).sum()) + (width - len(spectrum)) * np.log(alpha)
    evidence = images * np.log(beta) + width * np.log(alpha) - images * np.log(2 * np.pi)
    return float(evidence - beta * residual - alpha * norm - log_determinant) / (2 * images)


def _within(precision: float) -> float:
    return min(max(precision, _MIN), _MAX)


def h_score(features: NDArray[np.floating], labels: Labels) -> float:
    """Return the H-score, the trace of cov(f)^-1 cov(E[f | y]): distances of class means per spread of the features.

    Bao, Li, Huang, Zhang, Zheng, Zamir and Guibas, "An Information-Theoretic Approach to Transferability in Task
    Transfer Learning", ICIP 2019, definition 2, with the pseudo-inverse where features outnumber images.
    """
    rows = np.asarray(features, np.float64)
    rows = rows - rows.mean(axis=0)
    spectrum, project = _spectrum(rows)
    # With F = U S V', the class means are sums of rows of U S V', so that (mean V / S) are sums of rows of U.
    present, sizes = np.unique(labels, return_counts=True)
    sums = project(one_hot(np.searchsorted(present, labels), len(present)))  # (rank, classes): sums of U's rows
    return float((sums**2 / sizes).sum()) if len(spectrum) else 0.0


def leep(probabilities: NDArray[np.floating], labels: Labels, classes: int) -> float:
    """Return LEEP: the mean log-likelihood of labels predicted through a pretrained classifier's own classes.

    `probabilities` `(N, Z)` are the pretrained classifier's. Nguyen, Hassner, Seeger and Archambeau, "LEEP: A New
    Measure to Evaluate Transferability of Learned Representations", ICML 2020, section 3.
    """
    shares = np.asarray(probabilities, np.float64)
    joint = one_hot(labels, classes).T @ shares / len(labels)  # P(y, z)
    given = joint / np.maximum(joint.sum(axis=0), np.finfo(np.float64).tiny)  # P(y | z)
    expected = (shares * given[labels]).sum(axis=1)
    return float(np.log(np.maximum(expected, np.finfo(np.float64).tiny)).mean())


def nce(source: Labels, labels: Labels) -> float:
    """Return NCE: minus the conditional entropy (nats) of the labels given a classifier's own predictions `(N,)`.

    Tran, Nguyen and Hassner, "Transferability and Hardness of Supervised Classification Tasks", ICCV 2019, section 3.
    """
    _, chosen = np.unique(source, return_inverse=True)
    joint = np.zeros((int(chosen.max()) + 1, int(labels.max()) + 1))
    np.add.at(joint, (chosen, labels), 1.0 / len(labels))
    given = joint / joint.sum(axis=1, keepdims=True)
    return float((joint[joint > 0] * np.log(given[joint > 0])).sum())


def _spectrum(rows: Rows) -> tuple[Rows, Callable[[Rows], Rows]]:
    """Return squared singular values above rounding, and the projection of targets `(N, k)` on left singular vectors.

    From the smaller of the two Gram matrices: `rows` = U S V', and the projection is U' times the targets.
    """
    images, width = rows.shape
    if images <= width:
        values, left = np.linalg.eigh(rows @ rows.T)
        kept = _above_rounding(values, max(images, width))
        return values[kept], lambda targets: left[:, kept].T @ targets
    values, right = np.linalg.eigh(rows.T @ rows)
    kept = _above_rounding(values, max(images, width))
    directions = right[:, kept] / np.sqrt(values[kept])
    return values[kept], lambda targets: directions.T @ (rows.T @ targets)


def _above_rounding(values: Rows, size: int) -> NDArray[np.bool_]:
    return values > max(float(values.max(initial=0.0)), 0.0) * size * np.finfo(np.float64).eps
