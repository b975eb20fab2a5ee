"""Training images to compare others with: the nearest of them, their class means; and labels that are doubtful."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from tlkit.data.dataset import Sample
from tlkit.errors import TlkitError
from tlkit.model import reference_images
from tlkit.model.bundle import open_bundle
from tlkit.plugin.contract import FEATURES, Progress
from tlkit.reporting.images import Images
from tlkit.runtime.model import Model
from tlkit.util.statistics import unit

MAX_TRAINING = 10_000  # training images that are compared with
MAX_COMPARED = 10**8  # pairs of images; of more training images some are drawn
MAX_JUDGED = 4000  # images whose labels are judged by a classifier of their own, and with many classes
MAX_LOGITS = 400_000  # images times classes
MIN_JUDGED = 40
NEAREST = 3


@dataclass(frozen=True, slots=True)
class Reference:
    """Training images, evenly drawn if there are very many, with their normalized features `(N, width)`."""

    samples: tuple[Sample, ...]
    features: NDArray[np.float32]

    def nearest(self, images: Images, row: int) -> list[Sample]:
        """Return the training images that are nearest to one of the images, the nearest first."""
        order = np.argsort(-(self.features @ images.features[row]), kind="stable")
        return [self.samples[index] for index in order[:NEAREST]]

    def distances(self, images: Images) -> NDArray[np.float32]:
        """Return the distance of each image to the nearest training image: 1 minus the cosine of their features."""
        most = max(1, MAX_COMPARED // len(images.features))
        some = np.stack(reference_images.spread(list(self.features), most))
        found = [(part @ some.T).max(1) for part in np.array_split(images.features, 1 + len(images.features) // 1024)]
        return 1 - np.concatenate(found)

    def nearest_mean(self, images: Images) -> float:
        """Return the accuracy of the classifier that predicts the class with the nearest mean of features."""
        labels = np.array([sample.label for sample in self.samples])
        known = np.unique(labels)
        means = unit(np.stack([self.features[labels == label].mean(0) for label in known]))
        predicted = known[(images.features @ means.T).argmax(1)]
        return float((predicted == images.truth).mean())


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
    kept, parts, remaining = list[Sample](), list[NDArray[np.float32]](), iter(samples)
    tick = progress("training images", len(samples))
    for batch in model.stream([sample.path for sample in samples], [FEATURES]):
        kept += [sample for image, sample in zip(batch.images, remaining, strict=False) if image.reason is None]
        parts += [batch.arrays[FEATURES]] if batch.arrays else []
        tick(len(batch.images))
    if not kept:
        return None
    return Reference(tuple(kept), unit(np.concatenate(parts)))


@dataclass(frozen=True, slots=True)
class Doubts:
    """Labels that a classifier cross-validated on these very images finds far less likely than another class.

    `likely` maps rows to that class; `judged` images were drawn without regard to the model, and `doubtful` of them
    are among these.
    """

    likely: dict[int, int]
    judged: int
    doubtful: int


def doubts(images: Images, shown: Sequence[int], classes: int, seed: int = 0) -> Doubts | None:
    """Return the doubtful labels among an even draw of images and the rows `shown`.

    None without scikit-learn, or with too few images of a class. The model itself is no judge of its own mistakes.
    """
    count = len(images.samples)
    if find_spec("sklearn") is None or count < MIN_JUDGED or classes < 2:
        return None
    from tlkit.audit.labels import cross_validated_probabilities, suspects

    order = np.argsort(images.truth, kind="stable")
    drawn = reference_images.spread(order.tolist(), min(MAX_JUDGED, MAX_LOGITS // classes))
    rows = np.array(sorted({*drawn, *shown}))
    truth = images.truth[rows]
    if len(rows) < 5 * classes or np.bincount(truth).max() < 5 or len(np.unique(truth)) < 2:
        return None
    same_file = np.unique([images.sha256[row] for row in rows], return_inverse=True)[1]
    probabilities = cross_validated_probabilities(images.arrays[FEATURES][rows], truth, classes, seed, same_file)
    likely = {int(rows[index]): label for index, label in suspects(probabilities, truth)}
    return Doubts(likely, len(drawn), len(set(drawn) & likely.keys()))
