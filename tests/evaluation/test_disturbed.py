"""Disturbed copies, and what decides between a frozen and a fine-tuned classifier."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from tlkit.evaluation.disturbed import DISTURBANCES, Comparison, disturbed

LABELS = np.arange(40) % 2


def logits(correct, margin=2.0, copies=None):
    """Return logits of images and copies, of which the first are classified correctly."""
    hit = np.arange(40) < np.array([correct, correct if copies is None else copies])[:, None]
    sides = margin * np.where(hit, 1.0, -1.0)[..., None] * np.where(np.eye(2, dtype=bool)[LABELS], 0.5, -0.5)
    return sides.astype(np.float32)


def test_a_copy_differs_by_its_turn_and_keeps_its_shape():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    copies = [disturbed(image, index) for index in range(len(DISTURBANCES))]
    assert {each.shape for each in copies} == {(32, 32, 3)}
    assert len({each.tobytes() for each in (image, *copies)}) == 5
    assert np.array_equal(disturbed(image, 5), copies[1])
    assert copies[1].mean() == pytest.approx(image.mean() / 2, abs=1)


@pytest.mark.parametrize(
    ("frozen", "fine_tuned", "better", "decided"),
    [
        (logits(20), logits(30), True, "held-out images"),
        (logits(30), logits(20), False, "held-out images"),
        (logits(30), logits(31), True, "held-out images"),  # whatever its error
        (logits(30), logits(30, copies=36), True, "disturbed copies"),
        (logits(30), logits(31, copies=25), False, "disturbed copies"),
        (logits(30), logits(30), False, "held-out images"),  # of equals the frozen one
        (logits(30), logits(30, margin=4.0), False, "held-out images"),  # nor by rounding
    ],
)
def test_the_likelier_one_is_better_by_images_and_copies(frozen, fine_tuned, better, decided):
    comparison = Comparison.of(frozen, fine_tuned, LABELS)
    assert comparison.better is better
    assert comparison.decided == f"the {decided} decided"
    assert f"on {len(LABELS)} held-out images" in str(comparison)
    assert Comparison.from_json(json.loads(json.dumps(asdict(comparison)))) == comparison


def test_between_equally_accurate_ones_the_one_that_knows_its_errors_wins():
    overconfident = logits(30)
    knowing = np.where(np.arange(40)[:, None] < 30, overconfident, overconfident / 10).astype(np.float32)
    comparison = Comparison.of(overconfident, knowing, LABELS)
    assert comparison.log_loss[1] < comparison.log_loss[0]
    assert comparison.better
    assert comparison.decided == "the log loss decided"
    assert not Comparison.of(knowing, overconfident, LABELS).better


@pytest.mark.parametrize(
    ("fine_tuned", "better"),
    [(logits(31), False), (logits(36), True), (logits(30, copies=40), True), (logits(20), False)],
)
def test_with_a_margin_a_gain_must_exceed_its_error(fine_tuned, better):
    without = Comparison.of(logits(30), fine_tuned, LABELS)
    comparison = replace(without, margin=1.96)
    assert comparison.better is better
    assert (comparison.decided == "the gain does not exceed 1.96 standard errors") is (without.better and not better)


def test_two_comparisons_are_pooled_by_their_images():
    """Of both together, accuracy and log loss are those of all images, and the errors what these would have."""
    better, same = (Comparison.of(logits(20), each, LABELS) for each in (logits(24), logits(20)))
    pooled = better.pooled(same)
    assert pooled.images == 80
    assert pooled.accuracy == pytest.approx((0.5, 0.55))
    assert pooled.disturbed == pytest.approx(np.mean([better.disturbed, same.disturbed], axis=0))
    assert pooled.log_loss == pytest.approx(np.mean([better.log_loss, same.log_loss], axis=0))
    assert pooled.errors == pytest.approx([each / 2 for each in better.errors])
    assert pooled == replace(same.pooled(better), interval=better.interval)
