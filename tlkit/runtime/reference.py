"""Training images of a model to compare others with: the nearest of them, and their class means."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tlkit.data.dataset import Sample
from tlkit.errors import DataError, TlkitError
from tlkit.evaluation.evaluate import run_samples
from tlkit.model import reference_images
from tlkit.model.bundle import open_bundle
from tlkit.plugin.contract import FEATURES, Progress
from tlkit.runtime.model import Model
from tlkit.util.statistics import unit

MAX_TRAINING = 10_000  # training images that are compared with
MAX_COMPARED = 10**8  # pairs of images; of more training images some are drawn
NEAREST = 3


@dataclass(frozen=True, slots=True)
class Reference:
    """Training images, evenly drawn if there are very many, with their normalized features `(N, width)`."""

    samples: tuple[Sample, ...]
    features: NDArray[np.float32]

    def nearest(self, features: NDArray[np.float32]) -> list[Sample]:
        """Return the training images nearest to an image of features `(width,)` at norm 1, the nearest first."""
        order = np.argsort(-(self.features @ features), kind="stable")
        return [self.samples[index] for index in order[:NEAREST]]

    def distances(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the distance of images `(N, width)` at norm 1 to the nearest training image: 1 minus the cosine."""
        most = max(1, MAX_COMPARED // len(features))
        some = np.stack(reference_images.spread(list(self.features), most))
        found = [(part @ some.T).max(1) for part in np.array_split(features, 1 + len(features) // 1024)]
        return 1 - np.concatenate(found)

    def nearest_mean(self, features: NDArray[np.float32], truth: NDArray[np.int64]) -> float:
        """Return the accuracy of the classifier that predicts the class with the nearest mean of features."""
        labels = np.array([sample.label for sample in self.samples])
        known = np.unique(labels)
        means = unit(np.stack([self.features[labels == label].mean(0) for label in known]))
        predicted = known[(features @ means.T).argmax(1)]
        return float((predicted == truth).mean())


def training_images(model: Model, progress: Progress) -> Reference | None:
    """Return the images that a model was trained on; None if they are not on this machine any more."""
    root = model.bundle
    if root is None:
        return None
    try:
        bundle = open_bundle(root)
        _, dataset = reference_images.dataset(bundle)
    except TlkitError:
        return None
    samples = reference_images.spread(dataset.of("train"), MAX_TRAINING)
    try:
        outputs = run_samples(model, samples, progress("training images", len(samples)), [FEATURES])
    except DataError:  # none of them is readable any more
        return None
    return Reference(outputs.samples, unit(outputs.arrays[FEATURES]))
