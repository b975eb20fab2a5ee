"""Cut of a network: the stage whose features the head gets, or several stages whose features are joined.

`stage4+stage7+last` names three: the pooled features of each are scaled to norm 1 and put side by side (Evci et al.,
"Head2Toe", ICML 2022), so that a stage of many or large features does not outweigh the others. The trunk ends at the
deepest of them, and each image still passes it once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tlkit.errors import UsageError

JOINT = "+"
LEAST_NORM = 1e-12  # features that are all zero stay zero


def blocks_of(cut: str) -> tuple[str, ...]:
    """Return the names of the stages of a cut, shallow to deep."""
    return tuple(cut.split(JOINT))


def check_cut(cut: str, names: Sequence[str], who: str = "") -> str:
    """Return the cut with its stages in the order of `names`, each once.

    Raises UsageError, beginning with `who`, if it names what is no stage.
    """
    blocks = blocks_of(cut)
    for block in blocks:
        if block not in names:
            do = f"choose one of {', '.join(names)}, or several joined by {JOINT}"
            raise UsageError(f"{who}there is no stage {block!r} to cut at", do=do)
    return JOINT.join(name for name in names if name in blocks)


def select(features: NDArray[np.float32], cut: str, names: Sequence[str], widths: Sequence[int]) -> NDArray[np.float32]:
    """Return the features `(N, width)` at a cut from those of all stages side by side, `(N, sum(widths))`."""
    ends = np.cumsum(widths)
    parts = [features[:, ends[index] - widths[index] : ends[index]] for index in map(names.index, blocks_of(cut))]
    if len(parts) == 1:
        return parts[0]
    norms = [np.linalg.norm(part, axis=1, keepdims=True) for part in parts]
    return np.concatenate([part / np.maximum(norm, LEAST_NORM) for part, norm in zip(parts, norms, strict=True)], 1)
