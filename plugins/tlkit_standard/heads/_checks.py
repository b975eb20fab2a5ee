"""What a head refuses to be fitted to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tlkit.errors import DataError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def check(features: NDArray[np.float32], labels: NDArray[np.int64], classes: int) -> None:
    """Raise DataError for features `(N, width)` and labels `(N,)` that nothing can be learnt from.

    Raises UsageError for arrays that don't fit together.
    """
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise UsageError(f"features {features.shape} and labels {labels.shape} must be (N, width) and (N,)")
    if classes < 2:
        raise DataError(f"a classifier needs at least two classes, not {classes}")
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise DataError(f"labels must lie in 0..{classes - 1}; these run from {labels.min()} to {labels.max()}")
    counts = np.bincount(labels, minlength=classes)
    if empty := np.flatnonzero(counts == 0).tolist():
        listed = ", ".join(map(str, empty[:5])) + (", ..." if len(empty) > 5 else "")
        raise DataError(
            f"{len(empty)} of {classes} classes have no training image (numbers {listed})",
            do="add images or remove the class",
        )
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        first = int(np.argmin(finite))
        raise DataError(f"the features of {np.sum(~finite)} of {len(features)} images are not finite (row {first})")
