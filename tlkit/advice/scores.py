"""Transferability scores: separability of classes by features, without training, each as in its paper.

Features are `(N, width)`, labels `(N,)` in 0..classes-1. The higher, the better the transfer to expect. Their
reliability is measured in benchmarks/advise.py; the advice follows the probes, not these.
"""

from __future__ import annotations

import numpy as np
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
    spectrum, left = left_singular(rows)
    targets = one_hot(labels, classes)
    within = left.T @ targets  # (rank, classes)
    evidences = [
        _evidence(len(rows), rows.shape[1], spectrum, within[:, label] ** 2, float(targets[:, label].sum()))
        for label in range(classes)
    ]
    return float(np.mean(evidences))


def _evidence(images: int, width: int, spectrum: Rows, along: Rows, total: float) -> float:
    """Return the evidence of one class, from squared singular values and the target's squared projections `along`."""
    outside = max(total - float(along.sum()), 0.0)  # unreachable by any weights
    alpha, beta = 1.0, 1.0
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
    spectrum, left = left_singular(rows)
    # With F = U S V', the class means are sums of rows of U S V', so that (mean V / S) are sums of rows of U.
    present, sizes = np.unique(labels, return_counts=True)
    sums = left.T @ one_hot(np.searchsorted(present, labels), len(present))  # (rank, classes): sums of U's rows
    return float((sums**2 / sizes).sum()) if len(spectrum) else 0.0


def left_singular(rows: Rows, tolerance: float | None = None) -> tuple[Rows, Rows]:
    """Return squared singular values `(rank,)` of rows and their left singular vectors `(N, rank)`.

    From the smaller of the two Gram matrices. Values up to `tolerance` times the greatest count as rounding errors.
    """
    images, width = rows.shape
    if tolerance is None:
        tolerance = max(images, width) * np.finfo(np.float64).eps
    values, vectors = np.linalg.eigh(rows @ rows.T if images <= width else rows.T @ rows)
    kept = values > max(float(values.max(initial=0.0)) * tolerance, 1e-300)
    values, vectors = values[kept], vectors[:, kept]
    return values, vectors if images <= width else rows @ (vectors / np.sqrt(values))
