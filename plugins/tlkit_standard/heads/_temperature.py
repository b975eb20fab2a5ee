"""Temperature: one number that makes softmax probabilities mean what they say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SHARPEST, _FLATTEST = 1e-3, 1e4  # the range searched; scores in votes and in squared distances both fit inside


def fit(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> tuple[float, float]:
    """The temperature T that makes softmax(scores / T) likeliest, and the mean negative log-likelihood at it.

    `scores` `(n, classes)` must be of rows the classifier was not fitted to. Guo, Pleiss, Sun & Weinberger, "On
    Calibration of Modern Neural Networks", ICML 2017, section 4.2, with the targets of Platt 1999 carried
    over to several classes (rule of succession): where every row is classified right, the bare likelihood has no
    optimum but T = 0.
    """
    from scipy.optimize import minimize_scalar

    rows, classes = scores.shape
    right = scores[np.arange(rows), labels]
    expected = float(np.mean(rows * right + scores.sum(axis=1))) / (rows + classes)

    def smoothed(log_beta: float) -> float:
        beta = np.exp(log_beta)
        return float(np.mean(_log_sum_exp(beta * scores)) - beta * expected)

    bounds = (-np.log(_FLATTEST), -np.log(_SHARPEST))
    beta = float(np.exp(minimize_scalar(smoothed, bounds=bounds, method="bounded").x))
    return 1.0 / beta, float(np.mean(_log_sum_exp(beta * scores) - beta * right))


def _log_sum_exp(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    top = scores.max(axis=1)
    return np.asarray(top + np.log(np.exp(scores - top[:, None]).sum(axis=1)))
