"""How sure the pretrained classifier is of its own classes: where there is one, it tells of likeness too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tlkit.advice.domain_shift import FEWEST, Shift
from tlkit.advice.scores import leep, nce
from tlkit.model.modules import head_logits

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

# Of the mean greatest probability; photographs of insects have 0.73 with EfficientNet-Lite0. The borders are far apart
# because they rest on little: no network without batch norm has been measured yet.
SURE, UNSURE = 0.5, 0.35


@dataclass(frozen=True, slots=True)
class Confidence:
    """Means over the images: greatest softmax probability, entropy as a share of the most there could be, and energy.

    The energy is -log sum exp of the logits (Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020).
    `probabilities` `(N, classes of the pretraining)` are those of each image.
    """

    greatest: float
    entropy: float
    energy: float
    probabilities: NDArray[np.float32]

    def leep(self, labels: NDArray[np.int64], classes: int) -> float:
        """See `scores.leep`; labels `(N,)` of the same images."""
        return leep(self.probabilities, labels, classes)

    def nce(self, labels: NDArray[np.int64]) -> float:
        """See `scores.nce`."""
        return nce(self.probabilities.argmax(axis=1), labels)


def measure(classifier: nn.Module | None, deepest: NDArray[np.float32]) -> Confidence | None:
    """What the classifier makes of features `(N, width)` of the deepest stage; None where there is none."""
    if classifier is None or not len(deepest):
        return None
    given = head_logits(classifier, deepest).astype(np.float64)
    top = given.max(axis=1, keepdims=True)
    mass = np.exp(given - top)
    total = mass.sum(axis=1, keepdims=True)
    shares = mass / total
    entropy = -(shares * np.log(np.maximum(shares, 1e-300))).sum(axis=1) / np.log(given.shape[1])
    energy = -(top + np.log(total))
    return Confidence(
        float(shares.max(axis=1).mean()), float(entropy.mean()), float(energy.mean()), shares.astype(np.float32)
    )


def as_shift(sure: Confidence) -> Shift:
    """A likeness by confidence, for a network whose norms tell nothing."""
    images = len(sure.probabilities)
    seen = f"the pretrained classifier's greatest probability is {sure.greatest:.2f} on average"
    if images < FEWEST:
        return Shift(None, None, {}, images, "unclear", f"{images} images are too few to tell")
    if sure.greatest > SURE:
        return Shift(None, None, {}, images, "alike", f"{seen}, where alike is above {SURE}")
    if sure.greatest < UNSURE:
        return Shift(None, None, {}, images, "unlike", f"{seen}, where unlike is below {UNSURE}")
    return Shift(None, None, {}, images, "unclear", f"{seen}, between alike (above {SURE}) and unlike (below {UNSURE})")
