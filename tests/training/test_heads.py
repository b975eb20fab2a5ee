"""A head is solved if it can be, and solved again on a fine-tuned trunk if that loses nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.kit.tiny import Line
from tlkit.errors import DataError, UsageError
from tlkit.plugin.contract import Phase
from tlkit.training.heads import refit_head, solve_or_fit
from tlkit.training.inputs import Examples

LABELS = np.array([0, 1, 0, 1])
EXAMPLES = Examples(np.eye(2, dtype=np.float32)[LABELS], LABELS)


def linear(scale):
    module = nn.Linear(2, 2, bias=False)
    module.weight.data = scale * torch.eye(2)
    return module


class Solved(Line):
    """A head whose solution separates the examples better than `linear(1)`, or worse."""

    scale = 3.0

    def solve(self, features, labels, classes, seed):
        return linear(self.scale)


class Worse(Solved):
    scale = -3.0


class Unsolvable(Line):
    def solve(self, features, labels, classes, seed):
        raise DataError("a class has one image")


@pytest.mark.parametrize(("head", "better"), [(Solved(), True), (Worse(), False)])
def test_the_solved_head_is_kept_only_if_it_is_no_worse(head, better):
    trained = linear(1.0)
    kept, (line,) = refit_head(head, trained, EXAMPLES, EXAMPLES, 2, 0)
    assert (kept is not trained) is better is line["kept"]


def test_a_head_that_can_not_be_solved_keeps_its_trained_weights_and_says_why():
    trained = linear(1.0)
    assert refit_head(Line(), trained, EXAMPLES, EXAMPLES, 2, 0) == (trained, [])
    kept, (line,) = refit_head(Unsolvable(), trained, EXAMPLES, EXAMPLES, 2, 0)
    assert kept is trained
    assert line == {"solved": "line", "kept": False, "because": "a class has one image"}


class Replaced(Worse):
    """A head that is trained as another, and solved in any case."""

    def module(self, width, classes):
        raise UsageError("it can't be trained")

    def stand_in(self):
        return Line()


class Dishonest(Replaced):
    def solve(self, features, labels, classes, seed):
        return None


def test_in_place_of_a_stand_in_the_head_is_solved_whatever_that_loses():
    kept, (line,) = refit_head(Replaced(), linear(1.0), EXAMPLES, EXAMPLES, 2, 0)
    assert torch.equal(kept.weight, linear(-3.0).weight)
    assert line == {"solved": "line", "trained": "line"}
    with pytest.raises(UsageError, match=r"names a stand-in, and was not solved; .*author of the head"):
        refit_head(Dishonest(), linear(1.0), EXAMPLES, EXAMPLES, 2, 0)


def test_a_head_without_a_solution_is_trained_by_gradient():
    _, solved = solve_or_fit(Solved(), [Phase(3, 0.1)], EXAMPLES, EXAMPLES, 2, seed=0)
    assert solved.history == [{"phase": 1, "solved": "line"}]
    head, fitted = solve_or_fit(Line(), [Phase(3, 0.1)], EXAMPLES, EXAMPLES, 2, seed=0)
    assert [line["epoch"] for line in fitted.history] == [1, 2, 3]
    assert not head.training
