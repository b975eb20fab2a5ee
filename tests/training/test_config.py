"""Phases that can't run are refused, with all problems at once."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from torch import nn

from tests.kit.course import STAGES
from tlkit.data.dataset import Sample
from tlkit.errors import UsageError
from tlkit.model.trunk import Trunk
from tlkit.plugin.contract import Augmentation, Loss, Optimizer, Phase, Preprocessing
from tlkit.plugin.phases import trainable_stages
from tlkit.training.config import check_batches, check_phases, identical


@dataclass(frozen=True)
class Focal(Loss):
    """Asks for more than a phase can say."""

    gamma: float = 2.0


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"epochs": 0}, "has 0 epochs"),
        ({"reinit": 2}, "reinitializes 2 stages and does not train them"),
        ({"trainable": -1}, "trains -1 stages of 3"),
        ({"trainable": 4}, "trains 4 stages of 3"),
        ({"trunk_lr": 0.0}, "has a learning rate of 0"),
        ({"head_lr": float("nan")}, "has a learning rate of nan"),
        ({"lr_decay": 1.5}, "has an lr_decay of 1.5"),
        ({"batch_size": 0}, "has a batch size of 0"),
        ({"optimizer": Optimizer("adam")}, "has the optimizer 'adam', not adamw or sgd"),
        ({"optimizer": Optimizer(warmup=1.0)}, "has a warmup of 1"),
        ({"loss": Loss(label_smoothing=-0.1)}, "has a label smoothing of -0.1"),
        ({"optimizer": Optimizer(gradient_clipping=-1.0)}, "clips gradients to -1"),
        ({"patience": -1}, "has a patience of -1 epochs"),
        ({"augmentation": Augmentation(randaugment=31)}, "has a randaugment of 31, not from 0 to 30"),
        ({"augmentation": Augmentation(mixup=-0.1)}, "has a mixup of -0.1"),
        ({"augmentation": Augmentation(cutmix=float("nan"))}, "has a cutmix of nan"),
        ({"loss": Loss(balance="fair")}, "has the balance 'fair', not none or weights or sampling"),
        ({"batchnorm": "keep"}, "has the batchnorm 'keep', not freeze or update"),
        ({"ema": 1.0}, "has an ema of 1"),
        ({"anchor": -1.0}, "has an anchor of -1"),
        ({"anchor": 0.1, "trainable": 0}, "has an anchor of 0.1 and trains 0 stages"),
        ({"trainable": ("first", "fourth")}, "trains the stages 'fourth', and there are first, second, third"),
        ({"trainable": ()}, "trains no stage by name"),
        ({"trainable": "first"}, "trains 'first', not a number of stages or a tuple of their names"),
        ({"trainable": ("first",), "reinit": 1}, "reinitializes 1 stages and does not train them"),
        ({"reinit": 1, "parameters": ("*bias",)}, "reinitializes 1 stages and trains a part of their parameters"),
        ({"parameters": ()}, r"has the parameters \(\), not a tuple of globs"),
        ({"optimizer": "adamw"}, "asks for 'adamw', which is not in the contract's Optimizer"),
        ({"head_lr": "0.1"}, "has the head_lr '0.1', not of type float"),
        ({"patience": None}, "has the patience None, not of type int"),
        ({"epochs": True}, "has the epochs True, not of type int"),
        ({"augmentation": Augmentation(crop="yes")}, "has the crop 'yes', not of type bool"),
        ({"optimizer": Optimizer(gradient_clipping=float("inf"))}, "clips gradients to inf"),
        ({"loss": Focal()}, "asks for gamma, which is not in the contract's Loss"),
    ],
)
def test_a_phase_that_makes_no_sense_is_refused(wrong, problem):
    good = Phase(1, 0.1, trunk_lr=0.1, trainable=1)
    check_phases([good], STAGES)
    with pytest.raises(UsageError, match=f"phase 1 {problem}"):
        check_phases([replace(good, **wrong)], STAGES)


@pytest.mark.parametrize(
    ("batchnorm", "head", "refused"),
    [("freeze", nn.Linear(2, 2), False), ("update", nn.Linear(2, 2), True), ("freeze", nn.BatchNorm1d(2), True)],
)
def test_batch_norms_do_not_learn_from_one_image(batchnorm, head, refused):
    stages = {"first": nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)), "second": nn.Conv2d(2, 2, 1)}
    trunk = Trunk(Preprocessing(4, (0.5,) * 3, (0.5,) * 3), stages, nn.Identity())
    phase = Phase(1, 0.1, trunk_lr=0.1, trainable=2, batch_size=1, batchnorm=batchnorm)
    check_batches(
        [replace(phase, batch_size=2), replace(phase, trainable=1, batchnorm="freeze")], nn.Linear(2, 2), trunk
    )
    check_batches([replace(phase, trainable=1)], nn.Linear(2, 2), trunk)  # the norm is in the frozen stage
    with pytest.raises(UsageError, match="phase 1 has a batch size of 1") if refused else nullcontext():
        check_batches([phase], head, trunk)


def test_images_that_look_the_same_to_the_network_are_said():
    samples = [Sample(Path(f"{n}.png"), f"{n}.png", n % 2, "train") for n in range(6)]
    array = np.arange(12, dtype=np.float32).reshape(6, 2)
    features = SimpleNamespace(array=array, usable=np.ones(6, bool))
    assert identical(features, samples, ("ants", "bees")) == []
    array[1::2] = array[1]
    said = ["all 3 images of bees have identical features; look at some of them"]
    assert identical(features, samples, ("ants", "bees")) == said
    features.usable[[3, 5]] = False
    assert identical(features, samples, ("ants", "bees")) == []


def test_a_phase_of_another_class_is_refused():
    @dataclass(frozen=True)
    class Longer(Phase):
        layers: int = 3

    with pytest.raises(UsageError, match="phase 1 asks for layers, which is not in the contract's Phase"):
        check_phases([Longer(1, 0.1)], STAGES)


def test_stages_are_trained_in_their_order():
    assert trainable_stages(Phase(1, 0.1, trainable=("third", "first")), STAGES) == ("first", "third")
    assert trainable_stages(Phase(1, 0.1, trainable=2), STAGES) == ("second", "third")
    assert trainable_stages(Phase(1, 0.1), STAGES) == ()


def test_all_problems_are_named_at_once():
    with pytest.raises(UsageError, match=r"phase 1 has 0 epochs; phase 2 trains 9 stages of 2"):
        check_phases([Phase(0, 1), Phase(1, 1, trainable=9)], ["a", "b"])


def test_no_phases_are_refused():
    with pytest.raises(UsageError, match="there are no phases"):
        check_phases([], STAGES)
