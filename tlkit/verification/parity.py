"""Compare a session with expected output on real images: parity, with a tolerance for each precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlkit.graph.metadata import score_names
from tlkit.plugin.contract import FEATURES, LOGITS, PROBABILITIES, Session
from tlkit.plugin.detection import NOVELTY
from tlkit.util.statistics import activated

BATCHES = (1, 2, 7, 16)
SOFTMAX_ERROR = 1e-3  # of probabilities, whatever the precision: they are computed from the logits in float32
# Errors of the novelty are relative to its spread on held-out images, the way from a typical one to the threshold: it
# is 0 for the former, so that a few golden images that are all typical give a largest value near 0 to divide by.
SPREAD = 1.0
HEAD_ERROR = 5e-3  # of logits, from what the head gives for the same features: both in float32, or a GPU's TF32

HeadOf = Callable[["NDArray[np.float32]"], Mapping[str, "NDArray[np.float32]"]]  # features to logits and scores


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Lowest cosine and largest error that pass; errors are relative to the largest expected value."""

    cosine: float
    error: float


# float32 sums in another order differ in the last digits, and a deep network adds that up.
# fp16 keeps eleven bits of every value. int8 is judged by its accuracy (see `precision_search`): here it is only told
# from a graph that computes something else.
TOLERANCES = {
    "fp32": Tolerance(cosine=0.9999, error=1e-3),
    "fp16": Tolerance(cosine=0.999, error=3e-2),
    "int8": Tolerance(cosine=0.8, error=0.5),
    "int8-symmetric": Tolerance(cosine=0.8, error=0.5),
}
# The same graph on another machine: sums in another order round to an adjacent value of what was recorded.
REPLAYS = {
    "fp16": Tolerance(cosine=0.9999, error=1e-2),
    "int8": Tolerance(cosine=0.999, error=5e-2),
    "int8-symmetric": Tolerance(cosine=0.999, error=5e-2),
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """One session at one batch size. `flips` counts flipped labels: those that changed although they were no tie.

    Where `head_error` is known, logits are judged by it and `logit_error` is only reported: below fp32 a head may
    amplify or damp the rounding of its features, and neither is a fault.
    """

    batch_size: int
    images: int
    flips: int
    passed: bool
    cosine: float | None = None  # the lowest over images, where there are features
    feature_error: float | None = None  # the largest, relative
    logit_error: float | None = None
    head_error: float | None = None  # of the logits, relative, from what the head gives for the features beside them
    score_error: float | None = None  # of the head's scores, relative: from the head's own where `head_error` is known
    probability_error: float | None = None  # the largest, from the softmax or sigmoid of its own logits
    agreement: float | None = None  # share of images with the same label


FIGURES = tuple(each.name for each in fields(Comparison)[4:])


@dataclass(frozen=True, slots=True)
class Verdict:
    """The comparisons of one graph with what is expected; `passed` is the verdict."""

    tolerance: Tolerance
    comparisons: tuple[Comparison, ...]

    @property
    def passed(self) -> bool:
        """The verdict: every comparison lies within the tolerance."""
        return all(comparison.passed for comparison in self.comparisons)

    def to_json(self) -> dict[str, Any]:
        return {"passed": self.passed, **asdict(self)}

    def summary(self) -> str:
        """Return the worst of each figure in one line."""
        parts = [f"{max(c.images for c in self.comparisons)} images"]
        for name in FIGURES:
            worst = max if name.endswith("error") else min
            if known := [value for c in self.comparisons if (value := getattr(c, name)) is not None]:
                parts.append(f"{name.replace('_', ' ')} {worst(known):.6g}")
        flips = max(c.flips for c in self.comparisons)
        return ", ".join(parts) + (f", {flips} flipped" if flips else "")


def compare(
    expected: Mapping[str, NDArray[np.float32]],
    session: Session,
    inputs: NDArray[Any],
    *,
    tolerance: Tolerance = TOLERANCES["fp32"],
    batches: Sequence[int] = BATCHES,
    head: HeadOf | None = None,
    activation: str = "softmax",
) -> Verdict:
    """Run `inputs` `(N, ...)` through a session at several batch sizes and compare the output with `expected`.

    `expected` has `features` `(N, width)`, `logits` `(N, classes)` with the scores `(N,)` of the head, or all; those
    that the session gives are compared, and beside logits it has to give all scores that are expected. Probabilities
    have to be the `activation` of the logits. With `head`, below fp32, logits and scores have to be what it gives for
    the features that the session gives.
    Batch sizes above N are replaced by N, so that every size run is a real one; one of them always leaves a smaller
    last batch.
    """
    names = [name for name in (FEATURES, LOGITS) if name in session.outputs and name in expected]
    if LOGITS in names:
        beside = (*score_names(expected), PROBABILITIES)
        names += [name for name in beside if name in session.outputs]
    comparisons = []
    for batch in _sizes(batches, len(inputs)):
        parts = [session.run(inputs[start : start + batch], names) for start in range(0, len(inputs), batch)]
        got = {name: np.concatenate([part[name] for part in parts]) for name in names}
        comparisons.append(compared(batch, len(inputs), expected, got, tolerance, head, activation))
    return Verdict(tolerance, tuple(comparisons))


def _sizes(batches: Sequence[int], images: int) -> list[int]:
    sizes = {min(size, images) for size in batches}
    if images > 2 and all(images % size == 0 for size in sizes):
        sizes.add(images - 1)
    return sorted(sizes)


def compared(
    batch_size: int,
    images: int,
    expected: Mapping[str, NDArray[np.float32]],
    got: Mapping[str, NDArray[np.float32]],
    tolerance: Tolerance,
    head: HeadOf | None = None,
    activation: str = "softmax",
) -> Comparison:
    """Compare the output of a session for so many images, at one batch size, with what is expected."""
    figures, flips, scores = dict[str, float](), 0, score_names(expected) if LOGITS in got else ()
    if not got.keys() >= set(scores) or any(
        got[name].shape != expected[LOGITS if name == PROBABILITIES else name].shape for name in got
    ):  # a dropped score or row, or another width
        return Comparison(batch_size, images, flips, passed=False)
    if PROBABILITIES in got:
        figures["probability_error"] = float(np.abs(got[PROBABILITIES] - activated(got[LOGITS], activation)).max())
    if FEATURES in got:
        figures["cosine"] = float(cosines(expected[FEATURES], got[FEATURES]).min())
        figures["feature_error"] = relative_error(expected[FEATURES], got[FEATURES])
    if LOGITS in got:
        want, have = expected[LOGITS], got[LOGITS]
        figures["logit_error"] = relative_error(want, have)
        same = want.argmax(1) == have.argmax(1)
        figures["agreement"] = float(same.mean())
        reference = expected
        if head is not None and FEATURES in got:
            reference = head(got[FEATURES])
            figures["head_error"] = relative_error(reference[LOGITS], have)
        if scores:
            least = {NOVELTY: SPREAD}
            errors = [relative_error(reference[name], got[name], least.get(name, 0.0)) for name in scores]
            figures["score_error"] = float(np.max(errors))
        flips = int((~same & ~ties(want, 2 * tolerance.error * float(np.abs(want).max()))).sum())
    own_head = "head_error" in figures
    limits = {"feature_error": tolerance.error, "score_error": tolerance.error, "probability_error": SOFTMAX_ERROR}
    limits |= dict.fromkeys(("head_error", "score_error"), HEAD_ERROR) if own_head else {"logit_error": tolerance.error}
    # Written so that a NaN anywhere fails: no comparison with it is true.
    passed = all(figures.get(name, 0.0) <= limit for name, limit in limits.items())
    passed = passed and figures.get("cosine", 1.0) >= tolerance.cosine and (own_head or not flips)
    return Comparison(batch_size, images, flips, passed, **figures)


def head_of(session: Session) -> HeadOf:
    """Return the logits and scores of an opened head as a function of features."""
    return session.run


def cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """The cosine of each pair of rows; two rows of zeros have cosine 1."""
    norms = np.linalg.norm(a.astype(np.float64), axis=1) * np.linalg.norm(b.astype(np.float64), axis=1)
    dots = np.einsum("nw,nw->n", a, b, dtype=np.float64)
    both_zero = ~a.any(1) & ~b.any(1)
    return np.where(both_zero, 1.0, dots / np.where(norms == 0, 1.0, norms))


def relative_error(expected: NDArray[np.float32], got: NDArray[np.float32], least: float = 0.0) -> float:
    """The largest difference, as a share of the largest expected value, or of `least` if that is larger."""
    scale = max(float(np.abs(expected).max()), float(np.finfo(np.float32).tiny), least)
    return float(np.abs(expected - got).max()) / scale


def ties(logits: NDArray[np.float32], margin: float) -> NDArray[np.bool_]:
    """Return the rows whose two largest logits are closer than `margin`."""
    top = np.partition(logits, -2, axis=1)[:, -2:]
    result: NDArray[np.bool_] = (top[:, 1] - top[:, 0]) < margin
    return result
