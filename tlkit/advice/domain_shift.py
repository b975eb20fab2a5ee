"""How far images are from those of the pretraining, stage by stage, by what the batch norms remember.

A batch norm keeps the mean and the variance that each channel had on the images of the pretraining. The distance of
a channel is the symmetric Kullback-Leibler divergence between the Gaussians of these two moments and those on the
images at hand; that of a layer the median over its channels, that of a stage or of the network the median over layers.
That such statistics tell one domain from another is the ground of AdaBN (Li et al., "Revisiting Batch Normalization
For Practical Domain Adaptation", 2016).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from tlkit.graph.moments import MEAN, SQUARE, watched
from tlkit.plugin.contract import Preprocessing
from tlkit.runtime.model import stream
from tlkit.runtime.session import OnnxSession
from tlkit.util.resources import cores

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tlkit.model.batchnorm import Norm

    Channels = NDArray[np.float64]

Likeness = Literal["alike", "unclear", "unlike", "unknown"]

# By benchmarks/advise.py photographs of insects lie at 0.03, hands, garments and enlarged thumbnails above 0.26; in a
# first trial everyday photographs of textures and things reached 0.12. Between the two borders nothing is said.
ALIKE, UNLIKE = 0.15, 0.22
# Images that are looked at: an eighth of all, as each costs two or three times what its features do, but no fewer than
# the first, of which another draw differs by a tenth or so, and no more than the second.
LEAST, MOST = 32, 96
FEWEST = 16  # images to say anything from
DRAWS = 60  # of the bootstrap
SEEN = 0.5  # share of the norms that has to be found in the graph


@dataclass(frozen=True, slots=True)
class Shift:
    """The distance from the images of the pretraining, with its 90 % interval over draws of images.

    `stages` has the distance within each stage that has batch norms.
    """

    overall: float | None
    interval: tuple[float, float] | None
    stages: Mapping[str, float]
    images: int
    likeness: Likeness
    reason: str

    @property
    def kind(self) -> str:
        """What sort of difference it is, by where it is greatest; empty where there is none to speak of."""
        if self.likeness not in ("unlike", "unclear") or len(self.stages) < 3:
            return ""
        values = list(self.stages.values())
        third = max(1, len(values) // 3)
        first, last = float(np.mean(values[:third])), float(np.mean(values[-third:]))
        if first > 1.5 * last:
            return "greatest at the first stages: the pixels differ (sharpness, contrast, colour)"
        if last > 1.5 * first:
            return "greatest at the last stages: the content differs"
        return "about the same at all depths: pixels and content differ"


class Moments:
    """Gathers the moments of every image as they come from the graph of `deploy.moments`."""

    def __init__(self, norms: Sequence[Norm]) -> None:
        self.batchnorm = norms
        self._parts: dict[int, list[tuple[NDArray[np.float32], NDArray[np.float32]]]] = {}

    def look(self, graph: Path, preprocessing: Preprocessing, files: Sequence[Path]) -> None:
        """Run images through such a graph; those that can't be used are left out."""
        session = OnnxSession(graph, workers=cores())
        wanted = [name for name in session.outputs if name.startswith((MEAN, SQUARE))]
        for chunk in stream(session, preprocessing, files, wanted):
            if chunk.kept():
                self.see(chunk.arrays)

    def see(self, arrays: Mapping[str, NDArray[np.float32]]) -> None:
        """Take what the graph gave for a few images."""
        for index in watched(tuple(arrays)):
            means, squares = arrays[f"{MEAN}{index}"], arrays[f"{SQUARE}{index}"]
            self._parts.setdefault(index, []).append((means, squares))

    def shift(self, seed: int = 0) -> Shift:
        """The distance of all images seen."""
        seen = {
            index: tuple(np.concatenate(side).astype(np.float64) for side in zip(*parts, strict=True))
            for index, parts in self._parts.items()
        }
        images = len(next(iter(seen.values()))[0]) if seen else 0
        if not self.batchnorm:
            return unknown("the network has no batch norm", images)
        if len(seen) < SEEN * len(self.batchnorm):
            return unknown(
                f"only {len(seen)} of {len(self.batchnorm)} batch norms are to be found in its graph", images
            )
        layers = [
            (self.batchnorm[index].stage, _Layer(self.batchnorm[index], means, squares))
            for index, (means, squares) in sorted(seen.items())
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
        # A draw with repetitions has less variety than the images themselves, which moves all draws: only their spread
        # is used, around the figure.
        low, high = (overall * value / np.median(redrawn) for value in np.quantile(redrawn, [0.05, 0.95]).tolist())
        return judged(overall, (low, high), stages, images)


class _Layer:
    """The moments of one batch norm's channels, in units in which those of the pretraining are 0 and 1."""

    def __init__(self, norm: Norm, means: Channels, squares: Channels) -> None:
        alive = np.abs(norm.weight) > 1e-6 * np.abs(norm.weight).max(
            initial=1e-12
        )  # a channel without weight is constant
        weight, bias = norm.weight[alive], norm.bias[alive]
        self.means = (means[:, alive] - bias) / weight
        self.squares = (squares[:, alive] - 2 * bias * means[:, alive] + bias**2) / weight**2
        self.epsilon = 1.0 - norm.share[alive]

    def distances(self, draws: Channels) -> Channels:
        """For each draw `(draws, images)`, in which image i counts `draws[:, i]`, the median over channels."""
        if not self.means.shape[1]:
            return np.zeros(len(draws))
        mean, square = draws @ self.means, draws @ self.squares
        variance = np.maximum(square - mean**2, 0.0) + self.epsilon
        medians: Channels = np.median(divergence(mean, variance), axis=1)
        return medians


def divergence(mean: Channels, variance: Channels) -> Channels:
    """The symmetric Kullback-Leibler divergence between p = N(mean, variance) and q = N(0, 1): KL(p|q) + KL(q|p)."""
    variance = np.maximum(variance, 1e-12)
    total: Channels = (variance + mean**2 + (1.0 + mean**2) / variance) / 2 - 1.0
    return total


def judge(overall: float, interval: tuple[float, float], images: int) -> tuple[Likeness, str]:
    """Whether images at that distance are like those of the pretraining, and why."""
    low, high = interval
    if images < FEWEST:
        return "unclear", f"{images} images are too few to tell"
    if high < ALIKE:
        return "alike", f"at most {high:.2f}, where alike is below {ALIKE}"
    if low > UNLIKE:
        return "unlike", f"at least {low:.2f}, where unlike is above {UNLIKE}"
    return (
        "unclear",
        f"{overall:.2f} lies between alike (below {ALIKE}) and unlike (above {UNLIKE}), or too near to tell",
    )


def judged(overall: float, interval: tuple[float, float], stages: Mapping[str, float], images: int) -> Shift:
    """That distance, with what it means."""
    likeness, reason = judge(overall, interval, images)
    return Shift(overall, interval, stages, images, likeness, reason)


def unknown(reason: str, images: int = 0) -> Shift:
    """No distance, for a reason."""
    return Shift(None, None, {}, images, "unknown", reason)
