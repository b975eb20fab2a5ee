"""A head is solved if it can be, and solved again on a fine-tuned trunk if that loses nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.kit.tiny import Line, Scored
from tlkit.errors import DataError, PluginError, UsageError
from tlkit.model.modules import head_logits
from tlkit.plugin.contract import Phase
from tlkit.training.heads import calibrate, check_restored, head_report, new_module, refit_head, solve, solve_or_fit
from tlkit.training.inputs import Examples
from tlkit.util.statistics import softmax

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


def many(count, features=None):
    labels = np.arange(count) % 2
    return Examples(np.eye(2, dtype=np.float32)[labels] if features is None else features, labels)


@pytest.mark.parametrize(("head", "better"), [(Solved(), True), (Worse(), False)])
def test_the_solved_head_is_kept_unless_it_is_significantly_worse(head, better):
    trained, val = linear(1.0), many(40)
    kept, (line,) = refit_head(head, trained, EXAMPLES, val, 2, 0)
    assert (kept is not trained) is better is line["kept"]


def test_one_image_more_or_less_does_not_decide_on_the_solved_head():
    val = many(40)
    val.features[:3] = val.features[:3, ::-1]  # all heads are wrong there
    trained = linear(1.0)
    trained.weight.data[0, 0] += 1e-3
    kept, (line,) = refit_head(Solved(), trained, EXAMPLES, val, 2, 0)
    assert kept is not trained
    assert line["val_accuracy"] == line["trained_val_accuracy"]


def test_a_head_that_can_not_be_solved_keeps_its_trained_weights_and_says_why():
    for head, said in (
        (Line(), {"trained": "line"}),
        (Unsolvable(), {"solved": "line", "kept": False, "because": "a class has one image"}),
    ):
        trained = linear(1.0)
        kept, (line,) = refit_head(head, trained, EXAMPLES, EXAMPLES, 2, 0)
        assert kept is trained
        assert line.pop("val_temperature") < 1  # it is always right
        assert line == said


def test_a_trained_head_is_calibrated_on_enough_images_without_a_change_of_its_predictions():
    """Of 100 images a quarter is wrong: at the best temperature the confidence is about three quarters."""
    val = many(100)
    val.features[:25] = val.features[:25, ::-1]
    head = nn.Sequential(nn.Identity(), linear(9.0))
    before = head_logits(head, val.features)
    temperature = calibrate(head, val, "softmax")
    after = head_logits(head, val.features)
    assert np.allclose(after * temperature, before, rtol=1e-4)
    assert softmax(after).max(1).mean() == pytest.approx(0.75, abs=0.02)
    assert calibrate(linear(9.0), val, "sigmoid") == 1.0
    val.features[25:40] = val.features[25:40, ::-1]
    behind = nn.Sequential(linear(9.0), nn.Tanh())  # logits that its linear layer does not scale
    unscaled = head_logits(behind, val.features)
    assert calibrate(behind, val, "softmax") == 1.0
    assert np.allclose(head_logits(behind, val.features), unscaled, rtol=1e-5)


def test_of_few_images_the_temperature_stays_near_1():
    few, many_more = many(8), many(400)
    for val in (few, many_more):
        val.features[::4] = val.features[::4, ::-1]
    assert 1.2 < calibrate(linear(9.0), few, "softmax") < calibrate(linear(9.0), many_more, "softmax") / 2


class Overconfident(Line):
    """A head that knows the images it is solved on too well."""

    def solve(self, features, labels, classes, seed):
        return linear(9.0)


def test_a_head_solved_on_images_that_the_trunk_knows_is_calibrated_on_others():
    val = many(100)
    val.features[:25] = val.features[:25, ::-1]
    kept, (line,) = refit_head(Overconfident(), linear(1.0), EXAMPLES, val, 2, 0)
    assert line["kept"]
    assert line["val_temperature"] > 5
    assert softmax(head_logits(kept, val.features)).max(1).mean() == pytest.approx(0.75, abs=0.02)


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
    temperature = line.pop("val_temperature")
    assert temperature > 1  # it is always wrong
    assert torch.allclose(kept.weight * temperature, linear(-3.0).weight)
    assert line == {"solved": "line", "trained": "line"}
    with pytest.raises(UsageError, match=r"names a stand-in, and was not solved; .*author of the head"):
        refit_head(Dishonest(), linear(1.0), EXAMPLES, EXAMPLES, 2, 0)


def test_a_head_without_a_solution_is_trained_by_gradient():
    _, solved = solve_or_fit(Solved(), [Phase(3, 0.1)], EXAMPLES, EXAMPLES, 2, seed=0)
    assert solved.history == [{"phase": 1, "solved": "line"}]
    head, fitted = solve_or_fit(Line(), [Phase(3, 0.1)], EXAMPLES, EXAMPLES, 2, seed=0)
    assert [line["epoch"] for line in fitted.history] == [1, 2, 3]
    assert not head.training


@pytest.mark.parametrize("report", [{"loss": float("nan")}, {"folds": (1, 2)}, {"score": np.float32(1)}, {1: "one"}])
def test_what_a_head_reports_is_json(report):
    fitted = linear(1)
    fitted.report = {"folds": [1, 2]}
    assert head_report(Line(), fitted) == fitted.report
    fitted.report = report
    with pytest.raises(PluginError, match=r"^head 'line' failed in report\(\): it is no JSON: "):
        head_report(Line(), fitted)


def gives(output):
    """A module that gives what a function makes of the features."""
    module = nn.Linear(2, 2)
    module.forward = output
    return module


class Given(Line):
    """A head whose module, solved or restored, is a given one."""

    def __init__(self, given):
        self.given = given

    def module(self, width, classes):
        return self.given

    def solve(self, features, labels, classes, seed):
        return self.given

    def restore(self, width, classes, tensors):
        return self.given


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (lambda x: x[:, :1], r"its module gives torch.float32 \(2, 1\), not logits: torch.float32 \(2, 2\)"),
        (lambda x: x[:1], r"its module gives torch.float32 \(1, 2\)"),
        (lambda x: x.double(), r"its module gives torch.float64 \(2, 2\)"),
        (lambda x: (x, x), r"its module gives torch.float32 \(2, 2\), torch.float32 \(2, 2\)"),
        (lambda _x: None, "its module gives NoneType"),
        (lambda x: x / 0, "its module gives values that are not finite"),
        (lambda x: x @ x, "RuntimeError: .*shapes cannot be multiplied"),
    ],
)
def test_a_module_that_does_not_give_logits_is_named_before_anything_uses_it(output, said):
    head = Given(gives(output))
    features = np.ones((4, 2), np.float32)
    for where, call in {
        "module": lambda: new_module(head, 3 if "shapes" in said else 2, 2),
        "solve": lambda: solve(head, features[:, [0, 1, 1]] if "shapes" in said else features, LABELS, 2, 0),
    }.items():
        with pytest.raises(PluginError, match=rf"^head 'line' failed in (the module of )?{where}\(\): .*{said}"):
            call()


def test_scores_are_looked_at_too():
    assert new_module(Scored(), 2, 2).training
    head = Scored()
    object.__setattr__(head, "scores", ("energy", "margin", "third"))
    with pytest.raises(PluginError, match=r"\(2,\), not logits, energy, margin and 1 more: "):
        new_module(head, 2, 2)


def test_a_head_that_does_not_come_back_is_not_stored():
    features = np.eye(2, dtype=np.float32)
    check_restored(Given(linear(2.0)), linear(2.0), features, 2)
    with pytest.raises(PluginError, match=r"^head 'line' failed in restore\(\): its module gives other logits"):
        check_restored(Given(linear(1.0)), linear(2.0), features, 2)


def test_a_head_without_parameters_is_not_trained():
    identity = Given(nn.Identity())
    identity.solve = lambda *_: None
    with pytest.raises(PluginError, match=r"failed in module\(\): it has no parameters to train, and was not solved"):
        solve_or_fit(identity, [Phase(1, 0.1)], EXAMPLES, EXAMPLES, 2, seed=0)
