"""Images as a report sees them, made up: clusters of features, with a fault planted into them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tlkit.data.dataset import Sample
from tlkit.data.decoding import Header
from tlkit.plugin.contract import FEATURES, PROBABILITIES
from tlkit.reporting.images import BRIGHTNESS, SHARPNESS, Images

LABELS = ("ants", "bees", "crabs")


def images(
    count=300,
    *,
    predicted=None,
    labels=None,
    brightness=None,
    headers=None,
    confidence=0.9,
    paths=None,
):
    """Images in turn of three classes in clusters, all predicted right with this confidence unless told otherwise."""
    random = np.random.default_rng(0)
    content = np.arange(count) % 3
    truth = content if labels is None else labels
    guess = content if predicted is None else predicted
    features = 4 * np.eye(3, 8)[content] + random.normal(0, 0.6, (count, 8)) + 2
    probabilities = np.full((count, 3), (1 - confidence) / 2)
    probabilities[np.arange(count), guess] = confidence
    samples = [
        Sample((paths or {}).get(row, Path(f"photos/{row}.jpg")), f"{row}.jpg", int(truth[row]), "test")
        for row in range(count)
    ]
    light = random.uniform(0.3, 0.7, count) if brightness is None else brightness
    arrays = {FEATURES: features, PROBABILITIES: probabilities, BRIGHTNESS: light, SHARPNESS: light[::-1].copy()}
    made = Images(
        tuple(samples),
        {name: array.astype(np.float32) for name, array in arrays.items()},
        tuple(f"{row:064x}" for row in range(count)),
        {},
        1.0,
    )
    made.__dict__["headers"] = headers or [Header("JPEG", 64, 48, "RGB", "none")] * count
    return made
