"""A head with a detector of unknown images beside it: one module, whose last score is `novelty`; and its choice.

No detector is the best everywhere. Each class in turn is left out of the training images: a detector is as good as it
tells that class from held-out images of the others (area under the ROC curve).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tlkit import defaults
from tlkit.errors import ArtifactError, DataError, PluginError
from tlkit.model.trunk import shape_of, tensors
from tlkit.plugin.blame import calling, described
from tlkit.plugin.contract import Head
from tlkit.plugin.detection import NOVELTY, ROUNDING, Detector
from tlkit.plugin.options import to_json
from tlkit.util.arrays import slices
from tlkit.util.statistics import roc_area

# Of tensors in a bundle; those of the head have their own names.
DETECTOR, MIDDLE, SCALE = "novelty.detector.", "novelty.middle", "novelty.scale"

MAX_LEFT_OUT = 4  # classes
MAX_FITTED, MAX_KEPT = 200, 2000  # images that detectors are chosen on, and that the chosen one is fitted on
MIN_PER_CLASS = 10  # images that a class is left out with
KEPT = 0.95  # share of the validation images that stay known
MARGIN = 1e-3  # of the novelty, about the rounding of another runtime: none makes the image at the threshold unknown
NOISE = 3e-6  # of features, relative to the largest of an image, between runtimes


class Rows(Protocol):
    """Images with features `(N, width)` and labels `(N,)`."""

    @property
    def features(self) -> NDArray[np.float32]: ...
    @property
    def labels(self) -> NDArray[np.int64]: ...


class NovelHead(nn.Module):
    """A head whose scores end with `(detector(features) - middle) / scale`; `scored` says that it has some of its own.

    A detector may hold the head.
    """

    middle: Tensor
    scale: Tensor

    def __init__(
        self, head: nn.Module, detector: nn.Module, middle: float = 0.0, scale: float = 1.0, *, scored: bool = False
    ) -> None:
        super().__init__()
        self.head, self.detector, self.scored = head, detector, scored
        self.register_buffer("middle", torch.tensor(middle))
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.head(features)
        return logits

    def scores(self, features: Tensor) -> tuple[Tensor, ...]:
        """Return the scores `(N,)` of the head, and the novelty."""
        own = self.head.scores(features) if self.scored else ()  # type: ignore[operator]
        return (*own, (self.detector(features) - self.middle) / self.scale)

    def scaled(self, known: NDArray[np.float32]) -> NovelHead:
        """Return the head with a novelty of 0 for the median of held-out images `(N, width)` of known classes.

        It is below 1 for the share `KEPT` of them, or for more if they hardly differ: differences by `ROUNDING` are
        none, and those that follow from the rounding of features have to change the novelty by less than `MARGIN`.
        """
        values, chance, moved = raw_scores(self.detector, known), np.random.default_rng(0), np.empty(len(known))
        for part in slices(len(known)):
            rows = known[part]
            noise = chance.normal(0, NOISE, rows.shape) * np.abs(rows).max(1, keepdims=True)
            moved[part] = np.abs(raw_scores(self.detector, rows + noise.astype(np.float32)) - values[part])
        middle = float(np.median(values))
        apart = float(np.quantile(values, KEPT, method="higher")) - middle
        scale = max((1 + MARGIN) * apart, float(np.quantile(moved, 0.9)) / MARGIN, ROUNDING)
        return NovelHead(self.head, self.detector, middle, scale, scored=self.scored).eval()


class DetectingHead(Head):
    """A head and a detector as one component, for whom fits, stores and exports heads."""

    def __init__(self, head: Head, detector: Detector) -> None:
        self.head, self.detector = head, detector
        self.name, self.scores, self.activation = head.name, (*head.scores, NOVELTY), head.activation  # type: ignore[misc]

    def module(self, width: int, classes: int) -> nn.Module:
        return self.head.module(width, classes)

    def solve(
        self, features: NDArray[np.float32], labels: NDArray[np.int64], classes: int, seed: int
    ) -> nn.Module | None:
        return self._beside(self.head.solve(features, labels, classes, seed), features, labels, seed)

    def solve_grouped(
        self,
        features: NDArray[np.float32],
        labels: NDArray[np.int64],
        classes: int,
        seed: int,
        groups: NDArray[np.int64],
    ) -> nn.Module | None:
        solved = self.head.solve_grouped(features, labels, classes, seed, groups)
        return self._beside(solved, features, labels, seed)

    def _beside(
        self, solved: nn.Module | None, features: NDArray[np.float32], labels: NDArray[np.int64], seed: int
    ) -> nn.Module | None:
        """Return a solved head with the detector, whose scale is still its own: see `NovelHead.scaled`."""
        if solved is None:
            return None
        fitted = fit(self.detector, features, labels, solved.eval(), seed)
        return NovelHead(solved, fitted, scored=bool(self.head.scores)).eval()

    def restore(self, width: int, classes: int, tensors: Mapping[str, Any]) -> nn.Module:
        if MIDDLE not in tensors or SCALE not in tensors:
            raise ArtifactError("the tensors of its detector are missing", do="train again")
        own = without_detector(tensors)
        rest = {name.removeprefix(DETECTOR): tensor for name, tensor in tensors.items() if name.startswith(DETECTOR)}
        head = self.head.restore(width, classes, own).eval()
        middle, scale, scored = float(tensors[MIDDLE]), float(tensors[SCALE]), bool(self.head.scores)
        return NovelHead(head, self.detector.restore(rest, head), middle, scale, scored=scored).eval()


def without_detector(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the tensors of a bundle's head that are its own."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("novelty.")}


def head_tensors(head: nn.Module) -> dict[str, NDArray[np.generic]]:
    """Return the state of a head, and of a detector beside it; the tensors of a head that this holds are there once."""
    if not isinstance(head, NovelHead):
        return tensors(head)
    beside = {DETECTOR + name: tensor for name, tensor in _of_detector(head).items()}
    return {**tensors(head.head), **beside, MIDDLE: head.middle.numpy().copy(), SCALE: head.scale.numpy().copy()}


def _of_detector(head: NovelHead) -> dict[str, NDArray[np.generic]]:
    """Return the state of the detector beside a head, without that of the head."""
    held = tuple(f"{name}." for name, module in head.detector.named_modules() if module is head.head)
    return {name: each for name, each in tensors(head.detector).items() if not (held and name.startswith(held))}


def fit(
    detector: Detector, features: NDArray[np.float32], labels: NDArray[np.int64], head: nn.Module, seed: int
) -> nn.Module:
    """Return a detector fitted on an even draw of training images. Raises PluginError unless it gives scores `(N,)`."""
    rows = evenly(labels, MAX_KEPT, seed)
    fitted = detector.fit(features[rows], labels[rows], head, seed).eval()
    _scores(detector, "fit()", fitted, features[:2])
    return fitted


def _scores(detector: Detector, where: str, module: nn.Module, features: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.no_grad(), calling(detector, f"the module of {where}"):
        given = module(torch.from_numpy(np.array(features)))
        if (shown := shape_of(given)) == (expected := f"torch.float32 ({len(features)},)"):
            shown = shown if given.isfinite().all() else "values that are not finite"
        if shown != expected:
            raise ValueError(f"it gives {shown}, not {expected}")
        return np.asarray(given.numpy())


def raw_scores(detector: nn.Module, features: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return what a detector gives for features `(N, width)`, as `(N,)`."""
    with torch.inference_mode():
        parts = [detector.eval()(torch.from_numpy(features[part])).double() for part in slices(len(features))]
        return torch.cat(parts).numpy()


def with_novelty(
    detectors: Mapping[Detector, tuple[str, str]],
    component: Head,
    head: nn.Module,
    train: Rows,
    held_out: Rows,
    seed: int,
) -> tuple[nn.Module, dict[str, Any]]:
    """Return the `head` of a `component` with the chosen detector beside it, and what the bundle says of it.

    Without detectors the head as it was, and nothing.

    `detectors` have distribution and version of their plugins. The threshold keeps 95 % of the images `held_out`, which
    fitted neither head nor detector.
    """
    if not detectors:
        return head, {}
    detector, report = choose(detectors, component, train, seed)
    fitted = fit(detector, train.features, train.labels, head, seed)
    novel = NovelHead(head, fitted, scored=bool(component.scores)).scaled(held_out.features)
    stored = {name: torch.from_numpy(each) for name, each in _of_detector(novel).items()}
    restored, few = detector.restore(stored, head).eval(), held_out.features[:2]
    given, expected = _scores(detector, "restore()", restored, few), _scores(detector, "fit()", fitted, few)
    if not np.allclose(given, expected, rtol=1e-3, atol=ROUNDING):
        raise PluginError(
            f"{described(detector)} failed in restore(): its module gives other scores than the fitted one"
        )
    distribution, version = detectors[detector]
    facts = {
        "name": detector.name,
        "distribution": distribution,
        "version": version,
        "options": to_json(detector),
        "threshold": 1.0,
        "kept": KEPT,
        "images": len(held_out.labels),
        **report,
    }
    return novel, facts


def detector_line(facts: Mapping[str, Any]) -> str:
    """Return the detector of a bundle, with how it was chosen, for people."""
    if why := facts.get("not_chosen"):
        return f"detector {facts['name']}; {why}"
    if areas := facts.get("areas"):
        area, classes = areas[facts["name"]], facts["left_out"]
        return f"detector {facts['name']}, area under the ROC curve {area:.3f} with {classes} classes left out in turn"
    return f"detector {facts['name']}"


def choose(
    detectors: Mapping[Detector, tuple[str, str]], component: Head, train: Rows, seed: int
) -> tuple[Detector, dict[str, Any]]:
    """Return the detector with the largest mean area under the ROC curve over classes that are left out, and the areas.

    The head is solved without the class as well: one that has seen it keeps its other logits low. The most even
    detector over data sets is taken if it is behind by no more than a standard error, and with two classes, too few
    images, or a head that can't be solved.
    """
    counts = np.bincount(train.labels)
    enough = [int(label) for label in np.argsort(-counts, kind="stable") if counts[label] >= MIN_PER_CLASS]
    even = next((each for each in detectors if each.name == defaults.DEFAULT_DETECTOR), next(iter(detectors)))
    if len(detectors) == 1:
        return even, {}
    if len(enough) < 3:
        reason = "two classes" if len(counts) < 3 else f"too few classes of at least {MIN_PER_CLASS} images"
        return even, {"not_chosen": f"{reason}: none can be left out to choose by"}
    areas: dict[str, list[float]] = {each.name: [] for each in detectors}
    for label in enough[:MAX_LEFT_OUT]:
        try:
            found = _areas(detectors, component, train, label, seed)
        except DataError as problem:
            return even, {"not_chosen": f"without a class the head {component.name} can't be solved: {problem.what}"}
        if found is None:
            return even, {"not_chosen": f"the head {component.name} learns by gradient: no class is left out of it"}
        for name, area in found.items():
            areas[name].append(area)
    means = {name: float(np.mean(each)) for name, each in areas.items()}
    best = max(detectors, key=lambda each: means[each.name])
    behind = np.subtract(areas[best.name], areas[even.name])
    if behind.mean() <= behind.std(ddof=1) / len(behind) ** 0.5:
        best = even
    return best, {"areas": means, "left_out": len(enough[:MAX_LEFT_OUT])}


def _areas(
    detectors: Iterable[Detector], component: Head, train: Rows, label: int, seed: int
) -> dict[str, float] | None:
    """Return the area of each detector for images of a class that it and the head were not fitted on."""
    others = np.flatnonzero(train.labels != label)
    drawn = others[evenly(train.labels[others], 2 * MAX_FITTED, seed)]
    fitted_on, known = drawn[::2], drawn[1::2]
    present, labels = np.unique(train.labels[fitted_on], return_inverse=True)
    features = train.features[fitted_on]
    head = component.solve(features, labels, len(present), seed)
    if head is None:
        return None
    rows = train.features[np.concatenate([known, np.flatnonzero(train.labels == label)[:MAX_FITTED]])]
    areas = {}
    for each in detectors:
        scores = raw_scores(each.fit(features, labels, head.eval(), seed), rows)
        areas[each.name] = roc_area(scores[len(known) :], scores[: len(known)])
    return areas


def evenly(labels: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    """Return up to so many rows at random, the same number of each class as far as there are."""
    order = np.random.default_rng(seed).permutation(len(labels))
    turn = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        turn[rows] = np.arange(len(rows))
    chosen: NDArray[np.int64] = order[np.argsort(turn[order], kind="stable")][:most]
    return chosen
