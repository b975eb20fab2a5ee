"""The trainer: schedules, optimizers, early stopping, balance, averages, and losses that become NaN."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from tests.kit.tiny import Line
from tlkit.errors import DataError
from tlkit.plugin.contract import Loss, Optimizer, Phase
from tlkit.training.device import Device
from tlkit.training.freezing import Network
from tlkit.training.heads import fit_head
from tlkit.training.history import Monitor, lr_factor
from tlkit.training.inputs import Examples, evaluate
from tlkit.training.trainer import Trainer


def split_examples():
    """150 examples to train on and 50 to validate on, linearly separable."""
    features = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)
    labels = (features[:, 0] + features[:, 1] > 0).astype(np.int64)
    return Examples(features[:150], labels[:150]), Examples(features[150:], labels[150:])


TRAIN, VAL = split_examples()


def fitted(*phases, head=None, train=TRAIN, val=VAL, ticks=None):
    torch.manual_seed(0)
    ticks = [] if ticks is None else ticks
    monitor = Monitor(lambda _what, _total: lambda more, _said="": ticks.append(more))
    return fit_head(head or Line().module(train.features.shape[1], 2), phases, train, val, monitor=monitor)


def blobs(counts):
    """Points around as many centers as there are counts."""
    random, labels = np.random.default_rng(0), np.repeat(np.arange(len(counts)), counts)
    features = random.normal(size=(len(labels), 4)).astype(np.float32)
    features[np.arange(len(labels)), labels] += 1
    return Examples(features, labels)


class Breaking(nn.Linear):
    """Gives NaN from its n-th call on, of those in training mode or of those in eval mode."""

    def __init__(self, call, *, training):
        super().__init__(5, 2)
        self.left, self.when = call, training

    def forward(self, x):
        self.left -= self.training is self.when
        return super().forward(x) * (torch.nan if self.left <= 0 and self.training is self.when else 1)


def test_it_learns_and_leaves_the_head_in_eval_mode():
    head, result = fitted(Phase(30, 0.05))
    assert result.history[-1]["val_accuracy"] > 0.9
    assert not head.training


def test_the_best_epoch_is_kept():
    head, result = fitted(Phase(5, 0.05), Phase(3, 50.0))
    losses = [line["val_loss"] for line in result.history]
    assert evaluate(head, VAL, Device())["val_loss"] == pytest.approx(min(losses), rel=1e-5)
    assert min(losses) < losses[-1]


def test_a_phase_begins_with_the_best_weights_so_far():
    _, result = fitted(Phase(10, 0.05), Phase(5, 500.0), Phase(1, 1e-9))
    losses = [line["val_loss"] for line in result.history]
    assert losses[14] > 2 * losses[9]
    assert losses[15] == pytest.approx(min(losses[:15]), rel=1e-4)


def test_patience_ends_a_phase_and_every_epoch_still_ticks():
    ticks = []
    _, result = fitted(Phase(50, 50.0, patience=2), Phase(3, 1e-3), ticks=ticks)
    first = [line["val_loss"] for line in result.history if line["phase"] == 1]
    assert 3 <= len(first) < 50
    assert min(first) == first[-3]
    assert sum(ticks) == 53 * 150  # images
    assert [line["phase"] for line in result.history][-3:] == [2, 2, 2]


class TestLearningRate:
    def test_it_rises_and_then_falls_along_a_cosine(self):
        factors = [lr_factor(step, 20, 0.2) for step in range(20)]
        assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
        assert all(after < before for before, after in pairwise(factors[4:]))
        assert 0 < factors[-1] < 0.02

    def test_the_history_has_that_of_each_first_step(self):
        _, result = fitted(Phase(4, 1.0))
        expected = [(1 + np.cos(np.pi * epoch / 4)) / 2 for epoch in range(4)]
        assert [line["lr"] for line in result.history] == pytest.approx(expected)
        _, result = fitted(Phase(4, 1.0, optimizer=Optimizer(warmup=0.5)))
        assert [line["lr"] for line in result.history] == pytest.approx([1 / 7, 4 / 7, 1.0, 0.5])


def test_sgd_learns_as_well():
    _, result = fitted(Phase(20, 0.5, optimizer=Optimizer("sgd")))
    assert result.history[-1]["val_accuracy"] > 0.9
    _, other = fitted(Phase(20, 0.5))
    assert other.history[-1]["val_loss"] != result.history[-1]["val_loss"]


def test_clipped_gradients_take_short_steps():
    def length(clip):
        head = Line().module(5, 2)
        before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
        fit_head(head, [Phase(1, 1.0, optimizer=Optimizer("sgd", gradient_clipping=clip), batch_size=150)], TRAIN, VAL)
        return sum(((head.state_dict()[name] - old) ** 2).sum() for name, old in before.items()) ** 0.5

    assert length(1e-6) < 1e-3 < length(0.0)


def test_label_smoothing_keeps_the_loss_from_zero_and_is_no_part_of_validation():
    (_, plain), (_, smooth) = (fitted(Phase(60, 0.1, loss=Loss(label_smoothing=share))) for share in (0.0, 0.3))
    assert plain.history[-1]["train_loss"] < 0.15
    assert smooth.history[-1]["train_loss"] > 0.4
    assert smooth.history[-1]["val_loss"] < smooth.history[-1]["train_loss"]


def test_the_average_of_the_weights_is_validated_and_kept():
    examples = blobs([50, 50])
    heads = [fitted(Phase(3, 0.5, ema=ema), train=examples, val=examples)[0] for ema in (0.0, 0.999)]
    torch.manual_seed(0)
    before = Line().module(4, 2).weight
    changes = [(head.weight - before).abs().max().item() for head in heads]
    assert changes[1] < 0.05 < changes[0]


class TestBalance:
    rare = blobs([190, 10])

    def recall(self, balance):
        head, _ = fitted(Phase(60, 0.05, loss=Loss(balance=balance)), train=self.rare, val=self.rare)
        with torch.inference_mode():
            correct = head(torch.from_numpy(self.rare.features)).argmax(1).numpy() == self.rare.labels
        return correct[self.rare.labels == 1].mean()

    @pytest.mark.parametrize("balance", ["weights", "sampling"])
    def test_a_rare_class_is_found_more_often(self, balance):
        assert self.recall(balance) > self.recall("none")

    def test_sampling_draws_each_class_as_often_as_any(self):
        drawn = []

        class Counting(nn.Linear):
            def forward(self, x):
                if self.training:
                    drawn.append(x)
                return super().forward(x)

        fitted(Phase(1, 0.1, loss=Loss(balance="sampling")), head=Counting(4, 2), train=self.rare, val=self.rare)
        features = torch.cat(drawn)
        rare = torch.from_numpy(self.rare.features[self.rare.labels == 1])
        count = int((features[:, None] == rare).all(2).any(1).sum())
        assert len(features) == 200
        assert 70 < count < 130

    def test_weights_count_a_rare_image_more_and_are_one_on_average(self):
        network = Network(Line().module(4, 2))
        weights = Trainer(network, [Phase(1, 0.1, loss=Loss(balance="weights"))], self.rare, self.rare).class_weights
        assert weights.tolist() == pytest.approx([200 / 380, 10.0])
        assert weights[self.rare.labels].mean() == pytest.approx(1.0)


class TestDivergence:
    def test_a_loss_that_is_not_finite_at_once_is_an_error_that_says_where(self):
        spoiled = Examples(TRAIN.features * np.float32(1e38), TRAIN.labels)
        with pytest.raises(DataError, match="phase 1, epoch 1, with lr 1e"):
            fitted(Phase(2, 1e20), train=spoiled)

    def test_a_loss_that_becomes_nan_later_keeps_the_best_weights_and_says_where(self):
        head, result = fitted(Phase(5, 0.05), head=Breaking(8, training=True))
        assert result.diverged.startswith("the loss is nan at step 2 of phase 1, epoch 3, with lr 0.0")
        assert len(result.history) == 2
        least = min(line["val_loss"] for line in result.history)
        assert evaluate(head, VAL, Device())["val_loss"] == least

    def test_so_does_a_validation_loss(self):
        head, result = fitted(Phase(5, 0.05), head=Breaking(3, training=False))
        assert result.diverged == "the validation loss is nan after phase 1, epoch 3"
        head.left = 9
        assert evaluate(head, VAL, Device())["val_loss"] == min(line["val_loss"] for line in result.history)

    def test_so_does_one_that_rises_without_becoming_nan(self):
        """Logits that grow from one call to the next: the loss rises to 10^6, and the first epoch was the best."""

        class Growing(Breaking):
            def forward(self, x):
                self.left += not self.training
                return nn.Linear.forward(self, x) * 1e3 ** max(0, self.left - 1)

        head, result = fitted(Phase(3, 1e-3), head=Growing(0, training=False))
        assert len(result.history) == 3
        assert result.history[-1]["val_loss"] > 1e5
        least = result.history[0]["val_loss"]
        lost = result.history[-1]["val_loss"]
        assert (
            result.diverged == f"the validation loss is {lost:.3g} after phase 1, epoch 3; the lowest was {least:.3g}"
        )
        head.left = 0
        assert evaluate(head, VAL, Device())["val_loss"] == least
