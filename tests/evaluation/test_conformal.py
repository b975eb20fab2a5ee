"""Sets of labels hold the right one at the wished rate, for classes with a threshold of their own too."""

from __future__ import annotations

import numpy as np
import pytest

from tlkit.errors import ArtifactError, UsageError
from tlkit.evaluation.conformal import LEVELS, MIN_OWN, Thresholds, achieved, cross_validated, fit
from tlkit.util.statistics import binomial_tail, softmax


def drawn(count, seed, classes=4, hard=0):
    """Probabilities and labels; images of the class `hard` are told worst."""
    random = np.random.default_rng(seed)
    labels = random.integers(classes, size=count)
    logits = random.normal(0, 1, (count, classes))
    logits[np.arange(count), labels] += np.where(labels == hard, 0.5, 3.0)
    return softmax(logits).astype(np.float32), labels


def test_the_coverage_on_new_images_is_the_wished_one():
    thresholds = fit(*drawn(4000, 0))
    found = achieved(thresholds, *drawn(4000, 1))
    assert found[-1].achieved == pytest.approx(0.95, abs=0.02)
    for each in found:  # the most probable label is always in, so that a low coverage is exceeded
        assert each.achieved >= each.coverage - 0.02
        assert each.interval[0] <= each.achieved <= each.interval[1]
        assert 1 <= each.set_size < 4


def test_a_hard_class_is_covered_by_its_own_threshold():
    thresholds = fit(*drawn(4000, 0))
    probabilities, labels = drawn(4000, 1)
    sets = thresholds.sets(probabilities, 0.9)
    per_class = [sets[labels == label, label].mean() for label in range(4)]
    assert min(per_class) > 0.87
    pooled = Thresholds(thresholds.levels, thresholds.pooled).sets(probabilities, 0.9)
    assert pooled[labels == 0, 0].mean() < 0.75


def test_the_threshold_is_the_quantile_of_n_plus_one():
    scores = np.arange(1, 20, dtype=np.float32) / 100  # 19 images: the 18th for 90 %, the 19th for 95 %
    probabilities = np.stack([1 - scores, scores], axis=1)
    thresholds = fit(probabilities, np.zeros(19, np.int64))
    by_level = dict(zip(thresholds.levels, thresholds.pooled, strict=True))
    assert by_level[0.9] == pytest.approx(0.18, abs=1e-6)
    assert by_level[0.95] == pytest.approx(0.19, abs=1e-6)
    assert by_level[0.99] == 1.0  # too few images to promise it: every label
    assert thresholds.classes == {}
    assert thresholds.sets(np.array([[0.82, 0.18]], np.float32), 0.9).tolist() == [[True, False]]
    assert thresholds.sets(np.array([[0.5, 0.5]], np.float32), 0.9).sum() == 1  # never empty


def test_only_classes_with_enough_images_have_their_own():
    probabilities, labels = drawn(400, 0)
    labels[labels == 3] = 2
    labels[: MIN_OWN - 1] = 3
    assert set(fit(probabilities, labels).classes) == {"0", "1", "2"}


def test_the_cross_validated_coverage_lies_within_its_binomial_interval():
    found = cross_validated(*drawn(500, 3), seed=0)
    for each in found:
        missed = round((1 - each.achieved) * each.images)
        assert binomial_tail(missed, each.images, 1 - each.coverage) > 1e-3
    assert [each.coverage for each in found] == [0.8, 0.9, 0.95]
    assert cross_validated(np.array([[1.0, 0.0]], np.float32), np.array([0]), 0)[0].achieved == 1.0


def test_they_are_stored_as_json_and_refused_if_it_is_none():
    thresholds = fit(*drawn(400, 0))
    assert Thresholds.from_json(thresholds.to_json(), 4) == thresholds
    other = thresholds.to_json().replace('"3": [', '"x": [')
    for text in ("{", "[]", '{"levels": [0.9], "pooled": [], "classes": {}}', '{"levels": "x"}', other):
        with pytest.raises(ArtifactError, match="metadata of the graph is invalid"):
            Thresholds.from_json(text, 4)
    with pytest.raises(ArtifactError, match="names a class that does not exist"):
        Thresholds.from_json(thresholds.to_json(), 2)


@pytest.mark.parametrize("coverage", [0.0, -1, 0.999, 2, float("nan")])
def test_what_can_not_be_promised_is_refused(coverage):
    with pytest.raises(UsageError, match="can't be promised"):
        fit(*drawn(100, 0)).sets(drawn(1, 1)[0], coverage)
    assert LEVELS[-1] == 0.99
