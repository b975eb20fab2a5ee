"""Paired evidence on an accuracy drop: what is refused, what is taken, and what so few images can't tell."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import binom
from tlkit_standard.strategies import STRATEGIES
from torch import nn

from tests.kit.exporting import exported, searched
from tests.kit.tiny import Line
from tlkit.data.dataset import Sample
from tlkit.errors import DataError
from tlkit.exporting.candidates import SearchPolicy
from tlkit.exporting.evidence import FOLDS, RISK, CrossValidation, Pairs, comparable, lost_class
from tlkit.training.run import train
from tlkit.util.statistics import binomial_tail, paired_interval


class TestPairs:
    def test_counts_images_that_one_of_the_two_alone_classifies_correctly(self):
        truth, fp32, below = (np.array(each) for each in ([0, 0, 1, 1, 2], [0, 1, 1, 0, 0], [0, 0, 0, 1, 1]))
        pairs = Pairs.of(fp32, below, truth)
        assert (pairs.images, pairs.lost, pairs.gained, pairs.different) == (5, 1, 2, 4)
        assert pairs.drop == -20
        assert pairs.joined(Pairs(3, 1, 0, 2)) == Pairs(8, 2, 2, 6, cross_validated=3)

    @pytest.mark.parametrize(
        ("pairs", "exceeds"),
        [
            (Pairs(62, 1, 0, 1), False),  # 1.6 points, one image: it may be chance
            (Pairs(62, 6, 0, 6), True),
            (Pairs(400, 2, 0, 2), False),  # just the budget
            (Pairs(400, 5, 3, 9), False),
            (Pairs(400, 9, 0, 9), True),
            (Pairs(5000, 60, 0, 60), True),
            (Pairs(5000, 25, 0, 25), False),
            (Pairs(100, 0, 9, 9), False),
        ],
    )
    def test_what_exceeds_half_a_point(self, pairs, exceeds):
        assert pairs.exceeds(0.5) == exceeds

    def test_a_candidate_at_the_budget_is_refused_by_chance_no_more_often_than_agreed(self):
        random, images, shares = np.random.default_rng(0), 2000, (0.015, 0.01)  # lost and gained: half a point
        drawn = random.multinomial(images, [*shares, 1 - sum(shares)], 2000)
        refused = np.mean([Pairs(images, lost, gained, 0).exceeds(0.5) for lost, gained, _ in drawn])
        assert 0.1 < refused < RISK + 0.03

    def test_what_few_images_can_not_tell(self):
        said = Pairs(62, 1, 0, 1).undecided(0.5)
        assert said.startswith("62 images can't tell a drop of 0.5 percentage points from chance")
        assert "; some" in said
        assert Pairs(5000, 2, 5, 9).undecided(0.5) is None

    def test_a_rare_class_is_not_lost_within_the_budget(self):
        truth = np.array([0] * 995 + [1] * 5)
        fp32, below = truth.copy(), np.zeros(1000, np.int64)
        assert not Pairs.of(fp32, below, truth).exceeds(0.5)
        assert lost_class(fp32, below, truth) == 1
        below[-1] = 1  # four of five may be chance
        assert lost_class(fp32, below, truth) is None
        assert lost_class(below, fp32, truth) is None

    def test_images_are_enough_to_refuse_a_drop_of_two_points_nine_times_of_ten(self):
        count, random = SearchPolicy().paired_images, np.random.default_rng(0)

        def refused(lost, gained):
            draws = random.multinomial(count, [lost, gained, 1 - lost - gained], 400)
            return np.mean([Pairs(count, lost, gained, lost + gained).exceeds(0.5) for lost, gained, _ in draws])

        assert refused(0.05, 0.03) > 0.9
        assert refused(0.021, 0.02) < 0.1


class TestStatistics:
    @pytest.mark.parametrize(("least", "trials", "chance"), [(3, 7, 0.5), (0, 5, 0.2), (900, 1600, 0.53), (4, 4, 1.0)])
    def test_the_tail_is_that_of_scipy(self, least, trials, chance):
        assert binomial_tail(least, trials, chance) == pytest.approx(binom.sf(least - 1, trials, chance), rel=1e-9)

    def test_the_interval_covers_the_true_difference(self):
        random, covered = np.random.default_rng(1), 0
        for lost, gained, _ in random.multinomial(150, [0.03, 0.01, 0.96], 1000):
            low, high = paired_interval(lost, gained, 150)
            covered += low <= 0.02 <= high
        assert 0.92 < covered / 1000 <= 1
        assert paired_interval(0, 0, 50)[0] == -paired_interval(0, 0, 50)[1] < 0


@dataclass(frozen=True)
class Means(Line):
    """The nearest class mean."""

    def solve(self, features, labels, classes, seed):
        means = np.stack([features[labels == label].mean(0) for label in range(classes)])
        solved = nn.Linear(features.shape[1], classes)
        with torch.no_grad():
            solved.weight.copy_(torch.from_numpy(means))
            solved.bias.copy_(torch.from_numpy(-np.square(means).sum(1) / 2))
        return solved


class TestCrossValidation:
    def modules(self, head, provenance):
        record = SimpleNamespace(labels=("a", "b"), seed=0, provenance=provenance)
        return SimpleNamespace(head=head, bundle=SimpleNamespace(record=record))

    def data(self, count=40):
        random, truth = np.random.default_rng(0), np.arange(count) % 2
        features = (random.normal(size=(count, 3)) + truth[:, None] * 4).astype(np.float32)
        return (
            [Sample(Path(f"{number}.png"), f"{number}.png", int(label), "train") for number, label in enumerate(truth)],
            features,
            truth,
        )

    def test_every_image_is_classified_by_a_head_that_was_fitted_without_it(self):
        seen = []

        class Watched(Means):
            def solve(self, features, labels, classes, seed):
                seen.append(features)
                return super().solve(features, labels, classes, seed)

        samples, features, truth = self.data()
        validation = CrossValidation(self.modules(Watched(), {}), samples, features, truth)
        assert len(seen) == FOLDS
        for row in features:
            assert sum((row == each).all(1).any() for each in seen) == FOLDS - 1
        rows = validation.rows(10, without=["0.png", "39.png"])
        assert len(rows) == 10
        assert not {0, 39} & set(rows)
        same, worse = (validation.pairs(rows, array[rows]) for array in (features, -features))
        assert (same.lost, same.gained, same.different) == (0, 0, 0)
        assert worse.lost >= 4

    def test_a_head_that_learns_by_gradient_has_none(self):
        with pytest.raises(DataError, match="learns by gradient"):
            CrossValidation(self.modules(Line(), {}), *self.data())

    def test_it_says_nothing_about_a_trunk_that_saw_the_labels(self):
        samples, *_ = self.data()
        for provenance, expected in (
            ({"s": "original"}, True),
            ({"s": "original", "t": "fine-tuned"}, False),
            ({}, False),
        ):
            assert comparable(self.modules(Means(), provenance), samples) == expected
        assert not comparable(self.modules(Means(), {"s": "original"}), samples[:8])


def test_a_search_counts_images_of_the_training_split_where_the_trunk_is_frozen(pictures, tiny_config, tmp_path):
    config = replace(tiny_config, head=Means(), strategy=STRATEGIES[0])
    train(pictures, tmp_path / "run", config)
    exported(tmp_path / "run", config.backbone, config.head)
    _, found = searched(tmp_path / "run", config.backbone, config.head, "int8", max_drop=0.5)
    (result,) = found.candidates
    assert result.images == result.pairs.images > result.pairs.cross_validated
    assert found.to_json()["candidates"][0]["pairs"]["lost"] == 0
    assert "images can't tell a drop of 0.5 percentage points from chance" in found.undecided
