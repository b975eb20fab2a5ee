"""The gate lets through what is the same and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from tests.kit.faults import caught
from tlkit.plugin.contract import FEATURES, IMAGES, LOGITS, Session
from tlkit.plugin.detection import NOVELTY
from tlkit.verification.parity import BATCHES, compare, cosines, ties

RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.integers(0, 256, (20, 4, 4, 3), dtype=np.uint8)
WEIGHT = RANDOM.normal(size=(48, 6)).astype(np.float32)
HEAD = RANDOM.normal(size=(6, 3)).astype(np.float32)


class Linear(Session):
    """A session whose results `fault` may spoil."""

    input, outputs, metadata = IMAGES, (FEATURES, LOGITS), {}

    def __init__(self, fault=lambda arrays: arrays):
        self.fault, self.batches = fault, []

    def run(self, array, outputs=None):
        self.batches.append(len(array))
        features = array.reshape(len(array), -1).astype(np.float32) / 255 @ WEIGHT
        return self.fault({FEATURES: features, LOGITS: features @ HEAD})


EXPECTED = Linear().run(INPUTS)


def test_the_same_passes_at_every_batch_size():
    session = Linear()
    verdict = compare(EXPECTED, session, INPUTS)
    assert verdict.passed
    assert [c.batch_size for c in verdict.comparisons] == list(BATCHES)
    assert {1, 2, 7, 16, 4, 6} == set(session.batches)  # the last batch of a pass is what is left over


def spoiled(name, change):
    return lambda arrays: arrays | {name: change(arrays[name])}


FAULTS = {
    "a scaled feature": spoiled(FEATURES, lambda x: x * 1.01),
    "one feature of one row": spoiled(
        FEATURES, lambda x: x + np.float32(0.1) * (np.arange(x.size).reshape(x.shape) == 3)
    ),
    "two features exchanged": spoiled(FEATURES, lambda x: x[:, [1, 0, 2, 3, 4, 5]]),
    "labels exchanged": spoiled(LOGITS, lambda x: x[:, [1, 0, 2]]),
    "a shifted logit": spoiled(LOGITS, lambda x: x + np.array([0.1, 0, 0], np.float32)),
    "NaN": spoiled(FEATURES, lambda x: np.where(x == x.max(), np.nan, x)),
    "NaN in the logits": spoiled(LOGITS, lambda x: np.where(x == x.max(), np.nan, x)),
    "a dropped row": lambda arrays: {name: array[: max(1, len(array) - 1)] for name, array in arrays.items()},
    "another width": spoiled(FEATURES, lambda x: x[:, :5]),
    "rows that depend on their batch": spoiled(FEATURES, lambda x: x - 0.1 * x.mean(0)),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_every_fault_is_caught(fault):
    assert caught(lambda: compare(EXPECTED, Linear(fault), INPUTS))


def test_rounding_passes():
    verdict = compare(EXPECTED, Linear(spoiled(FEATURES, lambda x: x * np.float32(1 + 1e-6))), INPUTS)
    assert verdict.passed


def test_a_flip_counts_unless_it_was_a_tie():
    near = EXPECTED | {LOGITS: np.array([[1, 1.0000001, 0]] * 20, np.float32)}
    flip = spoiled(LOGITS, lambda x: np.array([[1.0000001, 1, 0]] * len(x), np.float32))
    verdict = compare(near, Linear(flip), INPUTS, batches=(4,))
    assert verdict.passed
    assert verdict.comparisons[0].agreement == 0
    clear = EXPECTED | {LOGITS: np.array([[1, 2, 0]] * 20, np.float32)}
    verdict = compare(clear, Linear(flip), INPUTS, batches=(4,))
    assert verdict.comparisons[0].flips == 20


@pytest.mark.parametrize(("error", "passed"), [(9e-4, True), (1.1e-3, False)])
def test_the_novelty_is_compared_by_its_spread_however_typical_the_images_are(error, passed):
    """It is 0 for a typical image and 1 at the threshold; other scores are compared by their largest value."""

    class Typical(Linear):
        outputs = (FEATURES, LOGITS, NOVELTY)

        def run(self, array, outputs=None):
            return super().run(array, (FEATURES, LOGITS)) | {NOVELTY: np.full(len(array), np.float32(1e-3 + error))}

    expected = EXPECTED | {NOVELTY: np.full(len(INPUTS), np.float32(1e-3))}
    verdict = compare(expected, Typical(), INPUTS)
    assert (verdict.passed, verdict.comparisons[0].score_error) == (passed, pytest.approx(error, abs=1e-6))


def amplified(features):
    """A head that makes much of little."""
    return features @ HEAD * 1000


class TestHead:
    """Below fp32, features are compared with what is expected, and logits against the head on these features."""

    noisy = staticmethod(lambda arrays: {FEATURES: (x := arrays[FEATURES] * np.float32(1.0005)), LOGITS: amplified(x)})

    def test_what_the_head_makes_of_noise_is_no_fault(self):
        expected = EXPECTED | {LOGITS: amplified(EXPECTED[FEATURES]) + np.float32(1000)}
        assert not compare(expected, Linear(self.noisy), INPUTS).passed
        verdict = compare(expected, Linear(self.noisy), INPUTS, head=lambda x: {LOGITS: amplified(x)})
        assert verdict.passed
        assert verdict.comparisons[0].logit_error > 0.01
        assert verdict.comparisons[0].head_error == pytest.approx(0, abs=1e-5)  # sums differ by processor
        assert ", head error " in verdict.summary()

    more = FAULTS | {"a shifted logit": spoiled(LOGITS, lambda x: x + np.array([1, 0, 0], np.float32))}

    @pytest.mark.parametrize("fault", more.values(), ids=more)
    def test_every_fault_is_caught(self, fault):
        head = lambda features: {LOGITS: features[:, : len(HEAD)] @ HEAD[: features.shape[1]]}  # noqa: E731
        assert compare(EXPECTED, Linear(), INPUTS, head=head).passed
        assert caught(lambda: compare(EXPECTED, Linear(fault), INPUTS, head=head))


def test_few_images_are_compared_at_the_batch_sizes_there_are():
    assert [
        c.batch_size for c in compare({k: v[:3] for k, v in EXPECTED.items()}, Linear(), INPUTS[:3]).comparisons
    ] == [
        1,
        2,
        3,
    ]


@pytest.mark.parametrize("images", [3, 4, 6, 8, 20])
def test_a_session_that_drops_a_last_batch_that_is_not_full_is_caught(images):
    class Drops(Linear):
        full = 0

        def run(self, array, outputs=None):
            self.full = max(self.full, len(array))
            return {
                name: rows[: len(rows) if len(rows) == self.full else 0] for name, rows in super().run(array).items()
            }

    expected = {name: rows[:images] for name, rows in EXPECTED.items()}
    for batch in (1, images):
        assert caught(lambda batch=batch: compare(expected, Drops(), INPUTS[:images], batches=(batch,)))


def test_cosines_of_zero_rows():
    a, b = np.array([[0, 0], [1, 0], [1, 1]], np.float32), np.array([[0, 0], [0, 0], [2, 2]], np.float32)
    assert cosines(a, b) == pytest.approx([1, 0, 1])


def test_ties_are_about_the_two_largest():
    assert ties(np.array([[3, 2.95, 0], [3, 0, 0.01]], np.float32), 0.1).tolist() == [True, False]
