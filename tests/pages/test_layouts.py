"""Maps of images: their trustworthiness is scikit-learn's, and the images drawn are those of all classes."""

from __future__ import annotations

import numpy as np
import pytest

from tlkit.pages.layouts import _distances, drawn, layouts, trustworthiness


def test_trustworthiness_is_that_of_scikit_learn():
    from sklearn import manifold

    random = np.random.default_rng(0)
    points = random.normal(size=(60, 5))
    places = points[:, :2] + random.normal(0, 0.5, (60, 2))
    expected = manifold.trustworthiness(points, places, n_neighbors=7)
    assert trustworthiness(_distances(points), _distances(places), 7) == pytest.approx(expected)


def test_principal_components_and_t_sne_keep_clusters_apart():
    random = np.random.default_rng(0)
    features = (4 * np.eye(3, 8)[np.arange(45) % 3] + random.normal(0, 0.3, (45, 8))).astype(np.float32)
    found = {each.method: each for each in layouts(features)}
    assert {"principal components", "t-SNE"} <= set(found)
    for each in found.values():
        assert each.places.min() == 0
        assert each.places.max() == 1
        means = [each.places[start::3].mean(0) for start in range(3)]
        spread = max(each.places[start::3].std() for start in range(3))
        assert min(np.linalg.norm(means[0] - other) for other in means[1:]) > spread / 2
        assert 0.7 < each.trustworthiness <= 1


def test_without_variance_or_with_few_images_there_is_none():
    assert not [*layouts(np.ones((30, 4), np.float32)), *layouts(np.eye(2, dtype=np.float32))]
    assert [each.method for each in layouts(np.eye(5, dtype=np.float32))] == ["principal components"]


def test_images_are_drawn_from_every_class_with_their_share_of_mistakes():
    truth = np.repeat([0, 1, 2], [900, 90, 10])
    wrong = np.arange(1000) % 10 == 0
    rows = drawn(truth, wrong, 100)
    assert len(set(rows)) == 100
    assert np.bincount(truth[rows]).tolist() == [90, 9, 1]
    assert 7 <= wrong[rows].sum() <= 13
