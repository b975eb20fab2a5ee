"""Solve a head: check, transform, choose by cross-validation, fit to all rows, calibrate."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from tlkit import TlkitWarning
from tlkit.plugin.support import DataError, UsageError, cores, fit_temperature, listed
from tlkit_standard.heads._base import Candidates, Scorer
from tlkit_standard.heads._modules import Affine, Front

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from tlkit_standard.heads._base import Labels, Report, Rows, SolvedHead

    Fold = tuple[NDArray[np.int64], NDArray[np.int64]]  # rows to fit to, held-out rows

FOLDS = 5
MEMORY = 2**29  # bytes of float64 rows that a head is fitted to
CHUNK = 16_384  # rows that are transformed at once
MAX_ROWS = 3000  # in cross-validation: more change the choice by less than a step of the grids
MIN_GAIN = 0.005  # relative decrease of the log loss that justifies weaker regularization; less is a tie
NOISE = 1e-6  # float32 features vary this much less than in the first direction: that is their rounding

# (rows to fit to, their labels, held-out rows) -> Scorer. Everything is fitted in there, scales included.
OpenFold = Callable[["Rows", "Labels", "Rows"], Scorer]

# The grid for C in half decades, times the mean squared distance of the rows from their mean: so one grid suits rows
# of any scale and width.
C_GRID = tuple(10.0 ** (step / 2) for step in range(-4, 9))


@dataclass(frozen=True)
class Evidence:
    """Cross-validated metrics of the chosen candidate, at its temperature."""

    folds: int
    images: int
    accuracy: float
    balanced_accuracy: float
    log_loss: float


@dataclass(frozen=True)
class Selection:
    """Chosen candidate and its temperature; without evidence if nothing could be held out."""

    choice: float
    temperature: float = 1.0
    evidence: Evidence | None = None


def solve(
    head: SolvedHead,
    features: NDArray[np.float32],
    labels: Labels,
    classes: int,
    seed: int,
    *,
    groups: Labels | None = None,
    threads: int | None = None,
) -> nn.Module:
    """Return the fitted module, in eval mode. Its plain attribute `report` has the choice and the evidence.

    Cross-validation holds out whole `groups` `(N,)`. Of more images than `head.max_rows`, or than float64 rows fit into
    `MEMORY`, those are fitted that `draw_rows` draws, with a warning.

    Raises what `check` raises. The result does not depend on the number of threads (default: cores).
    """
    import scipy.linalg  # noqa: F401 - its BLAS is limited below only if it is loaded before

    check(features, labels, classes)
    power = default_power(features) if head.power is None else head.power
    front, images = Front(power, head.l2), len(labels)
    drawn = draw_rows(labels, seed, limit(head, *features.shape))
    labels, groups = labels[drawn], None if groups is None else groups[drawn]
    raw = np.empty((len(drawn), features.shape[1]))
    with torch.inference_mode():
        for start in range(0, len(drawn), CHUNK):
            part = slice(start, start + CHUNK)
            raw[part] = front(torch.from_numpy(features[drawn[part]].astype(np.float64))).numpy()

    def fit_affine(rows: Rows) -> Affine:
        affine = transform(rows, standardize=head.standardize, pca=head.pca, whiten=head.whiten)
        return rotate(affine, rows) if head.rotates else affine

    def open_fold(fitted: Rows, fitted_labels: Labels, held: Rows) -> Scorer:
        affine = fit_affine(fitted)
        return head.scorer(affine(fitted), fitted_labels, affine(held))

    # One thread for each product: the solvers alternate between NumPy's BLAS and SciPy's, whose threads spin while they
    # wait for each other. 60 iterations on 6,000 x 1,280 rows take two threads 3 times as long as one, and 10 times
    # on a machine that has other work. Folds run side by side instead.
    with threadpool_limits(1, user_api="blas"):
        affine = fit_affine(raw)
        rows = affine(raw)
        candidates = head.grid(rows)
        if len(candidates.values) == 1 and not head.calibrate:
            selection = Selection(candidates.expected)
        else:
            # Rows that are rotated, and nothing else, leave each fold less to rotate.
            given = raw if head.standardize or head.pca or head.whiten else rows
            selection = select(candidates, open_fold, given, labels, seed, groups=groups, threads=threads)
        temperature = selection.temperature if head.calibrate else 1.0
        module, report = head.fit(front, affine, rows, labels, selection.choice, temperature)
    evidence = {} if selection.evidence is None else asdict(selection.evidence)
    report = {"power": power, **report, "temperature": temperature}
    report |= {"fitted_images": len(drawn)} if len(drawn) < images else {}
    report |= {f"cv_{name}": value for name, value in evidence.items()}
    module.__dict__["report"] = report  # not by assignment: to mypy, a module holds tensors and modules only
    return module.eval()


def check(features: NDArray[np.float32], labels: Labels, classes: int) -> None:
    """Raise DataError for features `(N, width)` and labels `(N,)` that no head can be fitted to.

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
        numbers = listed(empty, 5)
        raise DataError(
            f"{len(empty)} of {classes} classes have no training image (numbers {numbers})",
            do="add images or remove the class",
        )
    starts = range(0, len(features), CHUNK)
    parts = [np.isfinite(features[start : start + CHUNK]).all(axis=1) for start in starts]
    finite = np.concatenate(parts) if parts else np.ones(0, bool)
    if not finite.all():
        first = int(np.argmin(finite))
        raise DataError(f"the features of {np.sum(~finite)} of {len(features)} images are not finite (row {first})")


def limit(head: SolvedHead, images: int, width: int) -> int:
    """Return the number of images to fit a head to; warn, with what all of them would take, if that is not all."""
    most = head.max_rows or MEMORY // (8 * width)
    if images > most:
        needed = f"all of them take {8 * images * width / 1e9:.1f} GB, and several times that while it is fitted"
        what = f"the head {head.name} is fitted to {most:,} of {images:,} images, drawn by class; {needed}"
        warnings.warn(
            f"{what}: set head.max_rows to fit more, or take mlp, which reads all", TlkitWarning, stacklevel=2
        )
    return most


def default_power(features: NDArray[np.float32]) -> float:
    """Return 0.5, the square root, for features behind a ReLU, else 1.

    Logistic regression on features of EfficientNet-Lite0 that are never negative gained 1.4 % accuracy and
    0.03 of log loss from the square root, and lost 0.9 and 0.03 on those of its last block, which have both signs
    (means over ants/bees, digits, CIFAR-10 and Fashion-MNIST with 200 to 500 images).
    """
    return 0.5 if features.min() >= 0.0 else 1.0


def transform(rows: Rows, *, standardize: bool, pca: int, whiten: bool) -> Affine:
    """Return the affine map that standardizes, then projects to `pca` components (0: keeps all), then whitens.

    A column that never varies becomes zero, as in `StandardScaler`. PCA keeps no direction in which the rows do not
    vary, where whitening would magnify rounding errors: there may be fewer components than asked for.
    """
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    affine = Affine(np.ones(rows.shape[1]), np.zeros(rows.shape[1]))
    if standardize:
        scaler = StandardScaler().fit(rows)
        affine = Affine(1.0 / scaler.scale_, -scaler.mean_ / scaler.scale_)
    if not (pca or whiten):
        return affine
    image = affine(rows)
    # Both solvers are exact and deterministic; "auto" may draw random projections.
    fitted = PCA(svd_solver="full" if len(image) < image.shape[1] else "covariance_eigh").fit(image)
    deviations = np.sqrt(fitted.explained_variance_)
    rank = int(np.sum(deviations > NOISE * deviations[0]))
    if rank == 0:  # all rows are the same: one component that is always zero
        return affine.then(np.zeros((1, image.shape[1])))
    kept = min(pca or rank, rank)
    components = fitted.components_[:kept]
    return affine.plus(-fitted.mean_).then(components / deviations[:kept, None] if whiten else components)


def rotate(affine: Affine, rows: Rows) -> Affine:
    """Return `affine` followed by a rotation into the span of its images of `rows`, if that has fewer dimensions.

    With fewer rows than features, a linear classifier with an L2 penalty has no weight outside the span of its
    training rows (the representer theorem: Schölkopf, Herbrich & Smola, COLT 2001), and neither have differences
    of class means. Solving there gives the same classifier from n x n numbers instead of n x width. QR is exact to
    rounding however close to each other the rows are; an eigendecomposition of the Gram matrix is not.
    """
    image = affine(rows)
    if len(image) >= image.shape[1]:
        return affine
    basis, _ = np.linalg.qr(image.T)
    return affine.then(basis.T)


def select(
    candidates: Candidates,
    open_fold: OpenFold,
    rows: Rows,
    labels: Labels,
    seed: int,
    *,
    groups: Labels | None = None,
    threads: int | None = None,
) -> Selection:
    """Return the candidate with the lowest cross-validated log loss, each at its own best temperature.

    The log loss, not the accuracy: on 200 to 6,000 images it is a smooth curve with one minimum, where the accuracy
    is flat within its noise, and its choice was never more than 0.5 % accuracy below the best. One
    minimum also allows to walk from the expected candidate as long as it gets better, three or four candidates
    instead of all, and to skip the weakest, which take longest.

    A class with a single row can be fitted or held out, not both, and is left out. A class with fewer rows than there
    are folds is not: its rows fall into different folds, so every fit sees some. If no two classes are left,
    nothing can be held out and the expected candidate is returned. With `groups` `(n,)` the same holds of groups.
    """
    drawn = draw_rows(labels, seed, MAX_ROWS)
    drawn = drawn[np.bincount(labels)[labels[drawn]] > 1]
    numbers = None if groups is None else group_folds(labels[drawn], groups[drawn], seed)
    if numbers is not None:
        apart = np.array([len(np.unique(numbers[labels[drawn] == label])) > 1 for label in labels[drawn]], bool)
        drawn, numbers = drawn[apart], numbers[apart]
    rows, labels = rows[drawn], np.unique(labels[drawn], return_inverse=True)[1]
    counts = np.bincount(labels)
    if len(counts) < 2:
        return Selection(candidates.expected)
    if numbers is None:
        folds = _split(labels, min(FOLDS, int(counts.max())), seed)
    else:
        folds = [(np.flatnonzero(numbers != fold), np.flatnonzero(numbers == fold)) for fold in np.unique(numbers)]
    with ThreadPoolExecutor(min(len(folds), threads or cores())) as pool:
        scorers = list(pool.map(lambda fold: open_fold(rows[fold[0]], labels[fold[0]], rows[fold[1]]), folds))

        def evaluate(index: int) -> tuple[float, Selection]:
            value = candidates.values[index]
            scores = np.empty((len(labels), len(counts)))
            for (_, held), of_fold in zip(folds, pool.map(lambda scorer: scorer(value), scorers), strict=True):
                scores[held] = of_fold
            temperature, log_loss = fit_temperature(scores, labels)
            right = scores.argmax(axis=1) == labels
            accuracy, balanced = float(np.mean(right)), float(np.mean(np.bincount(labels, right) / counts))
            evidence = Evidence(len(folds), len(labels), accuracy, balanced, log_loss)
            return log_loss, Selection(value, temperature, evidence)

        return _walk(candidates, evaluate)


def _walk(candidates: Candidates, evaluate: Callable[[int], tuple[float, Selection]]) -> Selection:
    """Return the best candidate downhill from the start: towards the weaker or, if that is no better, the stronger."""
    lowest, best = evaluate(candidates.start)
    for step, factor in ((1, 1.0 - MIN_GAIN), (-1, 1.0)):
        index = candidates.start + step
        while 0 <= index < len(candidates.values):
            loss, selection = evaluate(index)
            if loss > factor * lowest:
                break
            lowest, best, index = loss, selection, index + step
        if best.choice != candidates.expected:
            break
    return best


def _split(labels: Labels, folds: int, seed: int) -> list[Fold]:
    from sklearn.model_selection import StratifiedKFold

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)  # see `select`
        return list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(labels, labels))


def group_folds(labels: Labels, groups: Labels, seed: int) -> Labels:
    """Return the fold `(n,)` of each row: a group lies in one fold, and the groups of a class in several.

    Groups of the rarest classes are dealt first, each to the fold with the fewest rows of its class.
    """
    folds, numbers = np.zeros((FOLDS, int(labels.max()) + 1), int), np.full(len(labels), -1)
    order = np.random.default_rng(seed).permutation(np.unique(groups))
    held = {group: np.flatnonzero(groups == group) for group in order.tolist()}
    of_class = {label: set(groups[labels == label].tolist()) for label in np.unique(labels).tolist()}
    for label, mine in sorted(of_class.items(), key=lambda each: (len(each[1]), each[0])):
        for group in order.tolist():
            if group in mine and numbers[held[group][0]] < 0:
                fold = min(range(FOLDS), key=lambda each: (folds[each, label], folds[each].sum(), each))
                numbers[held[group]] = fold
                folds[fold] += np.bincount(labels[held[group]], minlength=folds.shape[1])
    return numbers


def draw_rows(labels: Labels, seed: int, most: int) -> NDArray[np.int64]:
    """Return rows, in order: about `most`, stratified, but `FOLDS` of a class if it has them."""
    if len(labels) <= most:
        return np.arange(len(labels))
    counts = np.bincount(labels)
    wanted = np.maximum(FOLDS, counts * (most / len(labels)))
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    rank = np.arange(len(labels)) - (np.cumsum(counts) - counts)[labels[by_class]]
    return np.sort(by_class[rank < wanted[labels[by_class]]])


def spread(rows: Rows) -> float:
    """Return the mean squared distance of the rows from their mean; 1 if all are the same."""
    return float(np.sum(rows.var(axis=0))) or 1.0


def fit_estimator(model: Any, rows: NDArray[Any], labels: Labels) -> Report:
    """Fit a scikit-learn estimator with a parameter C; return the report, convergence included, instead of warning."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(rows, labels)
    iterations = int(np.max(model.n_iter_))
    return {"c": float(model.C), "iterations": iterations, "converged": iterations < model.max_iter}


def decision_scores(model: Any, rows: NDArray[Any]) -> Rows:
    """Return the scores `(n, classes)` of a fitted scikit-learn classifier."""
    values = np.asarray(model.decision_function(rows), np.float64)
    return both_classes(values[None]).T if values.ndim == 1 else values


def both_classes(decision: Rows) -> Rows:
    """Return logits `(classes, ...)` from scikit-learn's decision values: of two classes, d becomes -d/2, d/2.

    Their softmax is the sigmoid of d.
    """
    return np.concatenate([-decision, decision]) / 2.0 if len(decision) == 1 else decision
