"""Heads on computed features: solved or trained by gradient, and solved again on those of a fine-tuned trunk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tlkit.errors import DataError, PluginError, UsageError
from tlkit.evaluation.metrics import score
from tlkit.model.modules import ScoredHead, head_logits, solve_head
from tlkit.model.trunk import shape_of
from tlkit.plugin.blame import calling, described
from tlkit.plugin.contract import Head, Phase
from tlkit.training.device import Device
from tlkit.training.freezing import Network
from tlkit.training.history import Line, Monitor
from tlkit.training.inputs import Examples
from tlkit.training.trainer import FitResult, Trainer
from tlkit.util.statistics import activated, fit_temperature, log_sum_exp, paired_difference
from tlkit.util.text import listed

SIGNIFICANT = 1.96  # standard errors
MIN_LOSS = 1e-3  # nats; a difference below is none
CALIBRATED = 10  # images per class, of fewer of which the temperature stays near 1
PRIOR = 0.5  # standard deviation of its logarithm then, before any image is seen
TEMPERATURE, THRESHOLDS = slice(0, None, 2), slice(1, None, 2)  # of them: those for it, and those for sets of labels
VAL_TEMPERATURE = "val_temperature"  # in the history
Probabilities = NDArray[np.float32]
Groups = NDArray[np.int64] | None

_TO_AUTHOR = "report this to the author of the head: solve() has to return a module"


def solve_or_fit(
    head: Head,
    phases: Sequence[Phase],
    train: Examples,
    val: Examples,
    classes: int,
    *,
    seed: int,
    monitor: Monitor | None = None,
) -> tuple[nn.Module, FitResult]:
    """Return the head, solved if it can be, otherwise trained by gradient, and its history."""
    solved = solve(head, train.features, train.labels, classes, seed, train.groups)
    if solved is not None:
        return solved.eval(), FitResult([{"phase": 1, "solved": head.name, **head_report(head, solved)}])
    module = new_module(head, train.features.shape[1], classes)
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise PluginError(f"{described(head)} failed in module(): it has no parameters to train, and was not solved")
    return fit_head(module, phases, train, val, seed=seed, monitor=monitor)


def solve(
    head: Head, features: NDArray[np.float32], labels: NDArray[np.int64], classes: int, seed: int, groups: Groups = None
) -> nn.Module | None:
    """Return a head fitted as by `solve_head`. Raises PluginError for a module that does not give what a head gives."""
    solved = solve_head(head, features, labels, classes, seed, groups)
    return None if solved is None else _checked(head, "solve()", solved, features[:2], classes)


def new_module(head: Head, width: int, classes: int) -> nn.Module:
    """Return the untrained module of a head. Raises PluginError for one that does not give what a head gives."""
    features = np.random.default_rng(0).random((2, width), np.float32)  # above 0, as behind a ReLU
    return _checked(head, "module()", head.module(width, classes), features, classes)


def check_restored(head: Head, fitted: nn.Module, features: NDArray[np.float32], classes: int) -> None:
    """Raise PluginError if a head does not come back from its state, as it has to where a bundle is opened."""
    again = head.restore(features.shape[1], classes, fitted.state_dict()).eval()
    given, expected = (
        head_logits(_checked(head, "restore()", each, features, classes), features) for each in (again, fitted)
    )
    if not np.allclose(given, expected, rtol=1e-3, atol=1e-3 * float(np.abs(expected).max())):
        raise PluginError(f"{described(head)} failed in restore(): its module gives other logits than the fitted one")


def _checked(head: Head, where: str, module: nn.Module, features: NDArray[np.float32], classes: int) -> nn.Module:
    """Return a module of a head. Raises PluginError unless it gives float32 logits and scores for these rows."""
    modes = [(each, each.training) for each in module.modules()]
    with torch.no_grad(), calling(head, f"the module of {where}"):
        given = ScoredHead(module.eval(), head.scores)(torch.from_numpy(np.array(features)))
    for each, training in modes:
        each.training = training
    outputs, rows = given if isinstance(given, tuple) else (given,), len(features)
    wanted = {"logits": (rows, classes), **dict.fromkeys(head.scores, (rows,))}
    shown = [shape_of(each) for each in outputs]
    expected = [f"torch.float32 {shape}" for shape in wanted.values()]
    if shown == expected and all(torch.isfinite(each).all() for each in outputs):
        return module
    what = ", ".join(shown) if shown != expected else "values that are not finite"
    said = f"for {rows} rows its module gives {what}, not {listed(wanted)}: {', '.join(expected)}"
    raise PluginError(f"{described(head)} failed in {where}: {said}")


def fit_head(
    head: nn.Module,
    phases: Sequence[Phase],
    train: Examples,
    val: Examples,
    *,
    seed: int = 0,
    device: Device | None = None,
    monitor: Monitor | None = None,
) -> tuple[nn.Module, FitResult]:
    """Train a head on features, in place; return it in eval mode with the weights of its best epoch on `val`."""
    device, monitor = device or Device(), monitor or Monitor()
    network = Network(head, device=device.torch_device)
    return head, Trainer(network, phases, train, val, seed=seed, device=device, monitor=monitor).fit()


def refit_head(
    head: Head, trained: nn.Module, train: Examples, val: Examples, classes: int, seed: int
) -> tuple[nn.Module, list[Line]]:
    """Return the head solved on the features of the deployed trunk, unless that is significantly worse on `val`.

    It is if either its balanced accuracy or its log loss is worse by more than twice the standard error, both heads at
    their best temperature. Otherwise, and if it can't be solved, the trained one; and the lines to add to the history.
    In place of a stand-in the head is solved in any case. Each is calibrated on `val`: the trunk knows the images that
    a head is solved on, whose features are easier to tell apart than those of others.
    """
    stand_in = head.stand_in()
    try:
        solved = solve(head, train.features, train.labels, classes, seed, train.groups)
    except DataError as problem:
        if stand_in is not None:
            raise
        temperature = calibrate(trained, val, head.activation)
        line = {"solved": head.name, "kept": False, "because": problem.what, VAL_TEMPERATURE: temperature}
        return trained, [line]
    if stand_in is not None:
        if solved is None:
            raise UsageError(f"the head {head.name!r} names a stand-in, and was not solved", do=_TO_AUTHOR)
        line = {"solved": head.name, "trained": stand_in.name, **head_report(head, solved)}
        return solved, [{**line, VAL_TEMPERATURE: calibrate(solved, val, head.activation)}]
    if solved is None:
        temperature = calibrate(trained, val, head.activation)
        return trained, [] if temperature == 1.0 else [{"trained": head.name, VAL_TEMPERATURE: temperature}]
    before, after = (probabilities(module.eval(), val.features, head.activation) for module in (trained, solved))
    kept = not _is_worse(after, before, val.labels)
    line = {"solved": head.name, "kept": kept}
    for prefix, given in (("val", after), ("trained_val", before)):
        metrics = score(given, val.labels)
        line |= {f"{prefix}_loss": metrics.log_loss, f"{prefix}_accuracy": metrics.accuracy}
        line |= {f"{prefix}_balanced_accuracy": metrics.balanced_accuracy}
    line |= head_report(head, solved)
    chosen = solved if kept else trained
    return chosen, [{**line, VAL_TEMPERATURE: calibrate(chosen, val, head.activation)}]


def head_report(head: Head, solved: nn.Module) -> dict[str, Any]:
    """Return what a head reports of its fit. Raises PluginError for what is no JSON: history and bundle store it."""
    report = dict(head.report(solved))
    try:
        same = json.loads(json.dumps(report, allow_nan=False)) == report
    except (TypeError, ValueError):
        same = False
    if not same:
        raise PluginError(f"{described(head)} failed in report(): it is no JSON: {shorten(repr(report), 200)}")
    return report


def _is_worse(one: Probabilities, other: Probabilities, labels: NDArray[np.int64]) -> bool:
    """Return whether one classifier is significantly worse than another by their probabilities `(N, classes)`."""
    behind = paired_difference(other.argmax(axis=1) == labels, one.argmax(axis=1) == labels, labels)
    if behind.difference > SIGNIFICANT * behind.standard_error:
        return True
    losses = []
    for given in (one, other):
        logits = np.log(np.maximum(given, np.finfo(np.float32).tiny)).astype(np.float64)
        logits /= fit_temperature(logits, labels)[0]
        losses.append(log_sum_exp(logits) - logits[np.arange(len(labels)), labels])
    more = losses[0] - losses[1]
    return bool(more.mean() > max(MIN_LOSS, SIGNIFICANT * more.std() / len(labels) ** 0.5))


def calibrate(head: nn.Module, val: Examples, activation: str) -> float:
    """Divide the logits of a head by the temperature that suits half of `val`, in its last layer; return it.

    The other half is left for the thresholds of sets of labels. 1.0, and the head as it was, if it does not end in a
    linear layer, or classes overlap.
    """
    logits = head_logits(head.eval(), val.features)
    layers = [module for module in head.modules() if isinstance(module, nn.Linear)]
    if activation != "softmax" or not layers:
        return 1.0
    prior = PRIOR if len(val.labels) < CALIBRATED * logits.shape[1] else None
    temperature = fit_temperature(logits[TEMPERATURE].astype(np.float64), val.labels[TEMPERATURE], prior)[0]
    _divide(layers[-1], temperature)
    if np.allclose(head_logits(head, val.features) * temperature, logits, rtol=1e-3, atol=1e-3):
        return temperature
    _divide(layers[-1], 1.0 / temperature)
    return 1.0


def _divide(layer: nn.Linear, by: float) -> None:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.div_(by)


def probabilities(head: nn.Module, features: NDArray[np.float32], activation: str) -> NDArray[np.float32]:
    """Return class probabilities `(N, classes)` for features `(N, width)`."""
    return activated(head_logits(head, features), activation)
