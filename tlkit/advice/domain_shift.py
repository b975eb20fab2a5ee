"""Domain shift: the distance of images from the pretraining data, stage by stage.

A batch norm keeps the mean and the variance that each channel had on the pretraining images. The distance of a channel
is the symmetric Kullback-Leibler divergence between the Gaussians of these two moments and of those on the images at
hand; that of a layer the median over its channels, that of a stage or of the network the median over layers. AdaBN
rests on such statistics telling one domain from another (Li et al., "Revisiting Batch Normalization For Practical
Domain Adaptation", 2016). A network without batch norm is judged by the confidence of its own classifier.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from tlkit.graph.moments import MEAN, SQUARE, watched
from tlkit.model.modules import head_logits
from tlkit.plugin.contract import Preprocessing
from tlkit.runtime.pipeline import stream
from tlkit.runtime.session import OnnxSession
from tlkit.util.resources import cores
from tlkit.util.statistics import log_sum_exp, softmax

if TYPE_CHECKING:
    from torch import nn

    from tlkit.model.batchnorm import BatchNormStatistics

Channels = NDArray[np.float64]

Domain = Literal["similar", "unclear", "different", "unknown"]

DRAWS = 60  # of the bootstrap
MIN_FOUND = 0.5  # share of the batch norms that must be found in the graph


@dataclass(frozen=True, slots=True)
class ShiftPolicy:
    """Thresholds of the domain shift, and the number of images that it is measured on.

    By benchmarks/advise.py photographs of insects lie at 0.03, hands, garments and upscaled thumbnails above 0.26; in a
    first trial everyday photographs of textures and objects reached 0.12. Between the thresholds the domain is unclear.
    Those of the classifier's mean maximum probability are far apart because they rest on little: photographs of insects
    have 0.73 with EfficientNet-Lite0, and no network without batch norm has been measured.
    """

    similar_below: float = 0.15
    different_above: float = 0.22
    confident_above: float = 0.5
    unconfident_below: float = 0.35
    # An eighth of all images is measured, as each costs two or three times what its features do, but no fewer than the
    # first, of which another draw differs by a tenth or so, and no more than the second.
    min_measured: int = 32
    max_measured: int = 96
    min_images: int = 16

    def measured(self, images: int) -> int:
        """Return the number of images to measure, of so many."""
        return min(self.max_measured, max(self.min_measured, images // 8))

    def judge(self, overall: float, interval: tuple[float, float], images: int) -> tuple[Domain, str]:
        """Return the domain of images at that distance from the pretraining data, and the reason."""
        low, high = interval
        if images < self.min_images:
            return "unclear", f"{images} images are too few"
        if high < self.similar_below:
            return "similar", f"at most {high:.2f}, where similar is below {self.similar_below}"
        if low > self.different_above:
            return "different", f"at least {low:.2f}, where different is above {self.different_above}"
        limits = f"similar (below {self.similar_below}) and different (above {self.different_above})"
        return "unclear", f"{overall:.2f} lies between {limits}, or too close to either"


@dataclass(frozen=True, slots=True)
class DomainShift:
    """Distance from the pretraining data in nats, with its 90 % interval over draws of images, and what it means.

    `stages` has the distance within each stage that has batch norms.
    """

    overall: float | None
    interval: tuple[float, float] | None
    stages: Mapping[str, float]
    images: int
    domain: Domain
    reason: str

    @property
    def location(self) -> str:
        """Depth at which the shift is greatest, and what differs there; empty if the domain is not known to differ."""
        if self.domain not in ("different", "unclear") or len(self.stages) < 3:
            return ""
        values = list(self.stages.values())
        third = max(1, len(values) // 3)
        first, last = float(np.mean(values[:third])), float(np.mean(values[-third:]))
        if first > 1.5 * last:
            return "greatest at the first stages: low-level statistics differ (sharpness, contrast, color)"
        if last > 1.5 * first:
            return "greatest at the last stages: the content differs"
        return "about the same at all depths: low-level statistics and content differ"


def shift_at(
    overall: float, interval: tuple[float, float], stages: Mapping[str, float], images: int, policy: ShiftPolicy
) -> DomainShift:
    """Return the shift of that distance, judged by the policy."""
    return DomainShift(overall, interval, stages, images, *policy.judge(overall, interval, images))


def unknown(reason: str, images: int = 0) -> DomainShift:
    """Return a shift without a distance, for a reason."""
    return DomainShift(None, None, {}, images, "unknown", reason)


class ActivationMoments:
    """Moments of the batch norms' outputs per image, collected from the graph of `graph.moments`."""

    def __init__(self, norms: Sequence[BatchNormStatistics]) -> None:
        self.norms = norms
        self._parts: dict[int, list[tuple[NDArray[np.float32], NDArray[np.float32]]]] = {}

    def collect(self, graph: Path, preprocessing: Preprocessing, files: Sequence[Path]) -> None:
        """Run images through such a graph; unreadable ones are skipped."""
        session = OnnxSession(graph, workers=cores())
        wanted = [name for name in session.outputs if name.startswith((MEAN, SQUARE))]
        for batch in stream(session, preprocessing, files, wanted):
            if batch.readable():
                self.add(batch.arrays)

    def add(self, arrays: Mapping[str, NDArray[np.float32]]) -> None:
        """Add the graph's outputs for some images."""
        for index in watched(tuple(arrays)):
            means, squares = arrays[f"{MEAN}{index}"], arrays[f"{SQUARE}{index}"]
            self._parts.setdefault(index, []).append((means, squares))

    def shift(self, seed: int = 0, policy: ShiftPolicy | None = None) -> DomainShift:
        """Return the domain shift of all images added."""
        moments = {
            index: tuple(np.concatenate(side).astype(np.float64) for side in zip(*parts, strict=True))
            for index, parts in self._parts.items()
        }
        images = len(next(iter(moments.values()))[0]) if moments else 0
        if not self.norms:
            return unknown("the network has no batch norm", images)
        if len(moments) < MIN_FOUND * len(self.norms):
            return unknown(f"only {len(moments)} of {len(self.norms)} batch norms were found in its graph", images)
        layers = [
            (self.norms[index].stage, _Layer(self.norms[index], means, squares))
            for index, (means, squares) in sorted(moments.items())
        ]
        random = np.random.default_rng(seed)
        draws = np.concatenate([np.ones((1, images)), random.multinomial(images, np.ones(images) / images, DRAWS)])
        # (layers, draws), of which the first are all images, once each.
        distances = np.stack([layer.distances(draws / images) for _, layer in layers])
        stages = {
            name: float(np.median([row[0] for (stage, _), row in zip(layers, distances, strict=True) if stage == name]))
            for name in dict.fromkeys(stage for stage, _ in layers)
        }
        overall, *redrawn = np.median(distances, axis=0).tolist()
        # A draw with repetitions is less diverse than the images themselves, which shifts all draws: only their spread
        # is used, around the figure.
        low, high = (overall * value / np.median(redrawn) for value in np.quantile(redrawn, [0.05, 0.95]).tolist())
        return shift_at(overall, (low, high), stages, images, policy or ShiftPolicy())


class _Layer:
    """Moments of one batch norm's channels, in units in which those of the pretraining data are 0 and 1."""

    def __init__(self, norm: BatchNormStatistics, means: Channels, squares: Channels) -> None:
        # A channel without weight is constant.
        alive = np.abs(norm.weight) > 1e-6 * np.abs(norm.weight).max(initial=1e-12)
        weight, bias = norm.weight[alive], norm.bias[alive]
        self.means = (means[:, alive] - bias) / weight
        self.squares = (squares[:, alive] - 2 * bias * means[:, alive] + bias**2) / weight**2
        self.epsilon = 1.0 - norm.share[alive]

    def distances(self, draws: Channels) -> Channels:
        """Return for each draw `(draws, images)`, which weighs image i by `draws[:, i]`, the median over channels."""
        if not self.means.shape[1]:
            return np.zeros(len(draws))
        mean, square = draws @ self.means, draws @ self.squares
        variance = np.maximum(square - mean**2, 0.0) + self.epsilon
        medians: Channels = np.median(divergence(mean, variance), axis=1)
        return medians


def divergence(mean: Channels, variance: Channels) -> Channels:
    """Return the symmetric Kullback-Leibler divergence KL(p|q) + KL(q|p) of p = N(mean, variance) and q = N(0, 1)."""
    variance = np.maximum(variance, 1e-12)
    total: Channels = (variance + mean**2 + (1.0 + mean**2) / variance) / 2 - 1.0
    return total


@dataclass(frozen=True, slots=True)
class ClassifierConfidence:
    """Means over the images: maximum softmax probability, entropy as a share of its maximum, and energy.

    The energy is -log sum exp of the logits (Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020).
    `probabilities` `(N, classes of the pretraining)` are those of each image.
    """

    max_probability: float
    entropy: float
    energy: float
    probabilities: NDArray[np.float32]

    def shift(self, policy: ShiftPolicy) -> DomainShift:
        """Return the domain shift by confidence, for a network whose batch norms tell nothing."""
        images, value = len(self.probabilities), self.max_probability
        measured = f"the pretrained classifier's mean maximum probability is {value:.2f}"
        similar, different = f"similar is above {policy.confident_above}", f"below {policy.unconfident_below}"
        domain: Domain = "unclear"
        if images < policy.min_images:
            reason = f"{images} images are too few"
        elif value > policy.confident_above:
            domain, reason = "similar", f"{measured}, where {similar}"
        elif value < policy.unconfident_below:
            domain, reason = "different", f"{measured}, where different is {different}"
        else:
            reason = f"{measured}, where {similar} and different {different}"
        return DomainShift(None, None, {}, images, domain, reason)


def classifier_confidence(classifier: nn.Module | None, deepest: NDArray[np.float32]) -> ClassifierConfidence | None:
    """Return the pretrained classifier's confidence on deepest features `(N, width)`; None if there is none of both."""
    if classifier is None or not len(deepest):
        return None
    outputs = head_logits(classifier, deepest).astype(np.float64)
    shares = softmax(outputs)
    entropy = -(shares * np.log(np.maximum(shares, 1e-300))).sum(axis=1) / np.log(outputs.shape[1])
    energy = -log_sum_exp(outputs)
    return ClassifierConfidence(
        float(shares.max(axis=1).mean()), float(entropy.mean()), float(energy.mean()), shares.astype(np.float32)
    )
