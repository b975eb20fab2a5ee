"""Checks of a head."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import nn

from tlkit.conformance.backbone.exported import expect_core_operators, open_graph, trace
from tlkit.conformance.subject import CheckFailed, Skipped, Subject, expect, expect_none, prepared
from tlkit.errors import DataError, UsageError
from tlkit.model.modules import ScoredHead, head_outputs
from tlkit.plugin.contract import FEATURES, LOGITS, Head, Phase
from tlkit.training.heads import fit_head
from tlkit.training.inputs import Examples
from tlkit.util.statistics import softmax
from tlkit.util.text import listed
from tlkit.verification.parity import compare, relative_error

WIDTH, CLASSES, PER_CLASS = 24, 3, 20
BATCHES = (1, 2, 5)
TRAINING = Phase(epochs=200, head_lr=1e-2)  # ample for clusters this far apart
ACCURACY = 0.95
SAME_PROBABILITY = 0.1  # between two fits that differ only by the order of the classes
SAME = 1e-5  # relative


@dataclass(frozen=True)
class Blobs:
    """Features `(N, width)` in well separated clusters, and the cluster of each; none is negative, as behind a ReLU."""

    features: NDArray[np.float32]
    labels: NDArray[np.int64]

    @classmethod
    def make(cls, sizes: list[int], *, seed: int = 0) -> Blobs:
        """Return `sizes[c]` rows of each class c, shuffled; another `seed` draws other rows of the same clusters."""
        centers = np.random.default_rng(len(sizes)).exponential(2.0, (len(sizes), WIDTH))
        random = np.random.default_rng(seed)
        labels = random.permutation(np.repeat(np.arange(len(sizes)), sizes))
        features = np.maximum(centers[labels] + random.normal(0.0, 0.3, (len(labels), WIDTH)), 0.0)
        features[:, 0] = 0.0  # dead channels are common
        return cls(features.astype(np.float32), labels.astype(np.int64))


class HeadSubject(Subject[Head]):
    """Head under test. Prepared objects must not be changed."""

    blobs = Blobs.make([PER_CLASS] * CLASSES)
    others = Blobs.make([PER_CLASS] * CLASSES, seed=1)

    @prepared("module-or-refusal")
    def untrained(self) -> nn.Module:
        """Untrained module. Skips the check if the head can only be solved."""
        try:
            return self.component.module(WIDTH, CLASSES)
        except UsageError as refusal:
            raise Skipped(f"it can only be solved: {refusal}") from refusal

    def fitted(self, blobs: Blobs, classes: int) -> nn.Module:
        """Return the head fitted as in training: solved, or else trained by gradient."""
        module = self.component.solve(blobs.features, blobs.labels, classes, 0)
        if module is None:
            torch.manual_seed(0)
            module = self.component.module(WIDTH, classes)
            examples = Examples(blobs.features, blobs.labels)
            module, _ = fit_head(module, [TRAINING], examples, examples, seed=0)
        return module

    @prepared("fits")
    def module(self) -> nn.Module:
        """Head fitted to the blobs."""
        return self.fitted(self.blobs, CLASSES)

    @prepared("traces")
    def graph(self) -> onnx.ModelProto:
        """Fitted head as an ONNX graph."""
        scores = self.component.scores
        return trace(ScoredHead(self.module, scores), torch.zeros(2, WIDTH), FEATURES, [LOGITS, *scores])

    def outputs(self, module: nn.Module, features: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return logits and scores of features."""
        return head_outputs(module, features, self.component.scores)


def module_or_refusal(subject: HeadSubject) -> None:
    """`module` returns an `nn.Module` from features to logits, or raises a UsageError with the reason."""
    logits = _logits(subject.untrained.eval(), subject.others.features)
    rows = len(subject.others.labels)
    wrong = f"untrained, it gives {logits.dtype} {logits.shape} for {rows} rows"
    expect(_is_logits(logits, rows, CLASSES), wrong, do="give float32 `(N, classes)`")


def gradient_reaches_every_parameter(subject: HeadSubject) -> None:
    """Every parameter of an untrained module gets a gradient."""
    module = subject.untrained.train()
    logits = module(torch.from_numpy(subject.blobs.features))
    nn.functional.cross_entropy(logits, torch.from_numpy(subject.blobs.labels)).backward()  # type: ignore[no-untyped-call]
    idle = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    expect(any(True for _ in module.parameters()), "it has no parameters", do="refuse with a UsageError")
    expect_none(idle, "parameters without a gradient", do="make constants buffers, and detach nothing")


def fits(subject: HeadSubject) -> None:
    """It can be fitted, solved or by gradient; the result is a module in eval mode."""
    module = subject.module
    expect(isinstance(module, nn.Module), f"`solve` returned {type(module).__name__}", do="return a module, or None")
    training = any(inner.training for inner in module.modules())
    expect(not training, "the solved module is in training mode", do="return it after `.eval()`")


def leaves_its_data_alone(subject: HeadSubject) -> None:
    """Solving changes neither features nor labels: other heads are fitted to them, too."""
    mine = Blobs(subject.blobs.features.copy(), subject.blobs.labels.copy())
    subject.component.solve(mine.features, mine.labels, CLASSES, 0)
    same = np.array_equal(mine.features, subject.blobs.features) and np.array_equal(mine.labels, subject.blobs.labels)
    expect(same, "`solve` writes into its arguments", do="work on a copy")


def separates_blobs(subject: HeadSubject) -> None:
    """It classifies well separated clusters: column c of the logits is that of class c."""
    accuracy = _accuracy(subject.module, subject.others)
    expect(accuracy >= ACCURACY, f"it gets {accuracy:.0%} of well separated rows right", do="check fit and label order")


def two_classes(subject: HeadSubject) -> None:
    """Two classes have two logits, not one."""
    _check_classes(subject, 2)


def fifty_classes(subject: HeadSubject) -> None:
    """It classifies fifty classes of six rows each."""
    _check_classes(subject, 50, per_class=6)


def one_row_of_a_class(subject: HeadSubject) -> None:
    """With a single row of a class it gives finite logits for every class, or refuses with a DataError."""
    blobs = Blobs.make([PER_CLASS, PER_CLASS, 1])
    try:
        logits = _logits(subject.fitted(blobs, CLASSES), blobs.features)
    except (DataError, UsageError):
        return
    right = _is_logits(logits, len(blobs.labels), CLASSES)
    wrong = f"with one row of a class it gives {logits.shape}, not finite everywhere"
    expect(right, wrong, do="cope, or raise tlkit.errors.DataError with what it needs")


def permuted_labels_permute_logits(subject: HeadSubject) -> None:
    """The order of the classes doesn't matter: permuted labels permute the columns of the logits."""
    permutation = np.array([1, 2, 0])
    module = subject.fitted(Blobs(subject.blobs.features, permutation[subject.blobs.labels]), CLASSES)
    outputs = (_logits(each, subject.others.features).astype(np.float64) for each in (subject.module, module))
    before, after = map(softmax, outputs)
    difference = float(np.abs(before - after[:, permutation]).max())
    wrong = f"with its labels exchanged, probabilities differ by up to {difference:.2f}"
    expect(difference <= SAME_PROBABILITY, wrong, do="treat all classes the same, whatever their index")


def deterministic(subject: HeadSubject) -> None:
    """The same data and seed give a bit-identical head."""
    torch.manual_seed(1)  # not the seed that it is given
    again = subject.fitted(subject.blobs, CLASSES).state_dict()
    changed = [name for name, t in subject.module.state_dict().items() if not torch.equal(t, again[name])]
    expect(not changed, f"a second fit gives other values of {listed(changed)}", do="draw all randomness from `seed`")


def logits_are_float32(subject: HeadSubject) -> None:
    """Logits are float32 `(N, classes)` for 1, 2 and 5 rows."""
    for batch in BATCHES:
        logits = _logits(subject.module, subject.others.features[:batch])
        wrong = f"for {batch} rows it gives {logits.dtype} {logits.shape}"
        expect(_is_logits(logits, batch, CLASSES), wrong, do="give float32 `(N, classes)`")


def scores_are_float32(subject: HeadSubject) -> None:
    """The method `scores` of the module gives a finite float32 `(N,)` for each name, and restored the same."""
    names = subject.component.scores
    if not names:
        raise Skipped("it has no scores")
    do = "return a tuple of tensors `(N,)`, one for each name in `scores`, from the module's `scores(features)`"
    module, features = subject.module, subject.others.features
    given = getattr(module, "scores", lambda _: ())
    with torch.inference_mode():
        values = given(torch.from_numpy(features))
    expect(isinstance(values, tuple) and len(values) == len(names), f"it gives no {listed(names)}", do=do)
    for name, value in zip(names, values, strict=True):
        fits = value.dtype == torch.float32 and value.shape == (len(features),) and bool(value.isfinite().all())
        expect(fits, f"for {len(features)} rows, {name} is {value.dtype} {tuple(value.shape)}", do=do)
    stored = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    again = subject.outputs(subject.component.restore(WIDTH, CLASSES, load(save(stored))), features)
    before = subject.outputs(module, features)
    same = all(np.array_equal(before[name], again[name]) for name in names)
    expect(same, "restored from its tensors, it gives other scores", do="keep what they need as buffers")


def finite_far_away(subject: HeadSubject) -> None:
    """Logits are finite for zeros, and for rows far from the training data."""
    rows = np.concatenate([np.zeros((1, WIDTH), np.float32), 100 * subject.others.features[:4]])
    finite = bool(np.isfinite(_logits(subject.module, rows)).all())
    expect(finite, "logits of unusual rows are not finite", do="guard divisions, logarithms and exponentials")


def rows_are_independent(subject: HeadSubject) -> None:
    """The logits of a row are the same alone and among others."""
    together = _logits(subject.module, subject.others.features)
    alone = np.concatenate([_logits(subject.module, row[None]) for row in subject.others.features])
    error = relative_error(together, alone)
    do = "use no statistics of the batch in eval mode"
    expect(error <= SAME, f"logits depend on the other rows of the batch (error {error:.2g})", do=do)


def restores(subject: HeadSubject) -> None:
    """`restore` returns the same head, in eval mode, from its state in a safetensors file."""
    stored = save({name: t.contiguous() for name, t in subject.module.state_dict().items()})
    restored = subject.component.restore(WIDTH, CLASSES, load(stored))
    do = "override `restore` where `module` gives another structure than `solve`, and keep all that matters as buffers"
    before, after = (_logits(module, subject.others.features) for module in (subject.module, restored))
    expect(np.array_equal(before, after), "restored from its tensors, it gives other logits", do=do)
    expect(not any(module.training for module in restored.modules()), "restored, it is in training mode", do=do)


def state_is_finite(subject: HeadSubject) -> None:
    """Every stored value is finite: a bundle with other values is refused."""
    state = subject.module.state_dict()
    odd = [name for name, tensor in state.items() if not torch.isfinite(tensor.float()).all()]
    expect_none(odd, "values are not finite", do="store what is finite, and compute the rest of it")


def report_is_json(subject: HeadSubject) -> None:
    """The report of its fit is JSON, which the bundle stores; a cross-validation has all that heads are compared by."""
    report = subject.component.report(subject.module)
    try:
        again = json.loads(json.dumps(report, allow_nan=False))
    except (TypeError, ValueError) as problem:
        again = problem
    expect(again == report, f"its report is no JSON: {again!r}", do="report plain numbers and texts, by name")
    from tlkit.advice.selection import cross_validated

    given = {name: value for name, value in report.items() if name.startswith("cv_")}
    do = "report cv_accuracy or cv_balanced_accuracy, from 0 to 1, and cv_log_loss, in nats; or none of them"
    expect(not given or cross_validated(report) is not None, f"it can't be compared by {given}", do=do)


def stand_in_learns(subject: HeadSubject) -> None:
    """The head that it names as a stand-in can be trained by gradient, and it is solved itself."""
    stand_in = subject.component.stand_in()
    if stand_in is None:
        return
    try:
        trained = any(parameter.requires_grad for parameter in stand_in.module(WIDTH, CLASSES).parameters())
    except UsageError as problem:
        raise CheckFailed(f"its stand-in: {problem.what}", do="name a head that is trained by gradient") from problem
    expect(trained, "its stand-in has nothing to train", do="name a head that is trained by gradient")
    blobs = subject.blobs
    solved = subject.component.solve(blobs.features, blobs.labels, CLASSES, 0)
    expect(solved is not None, "it names a stand-in and is not solved", do="return a module from `solve`")


def traces(subject: HeadSubject) -> None:
    """It traces to an ONNX graph."""
    _ = subject.graph


def core_operators_only(subject: HeadSubject) -> None:
    """The graph is made of ONNX's own operators, which every target knows."""
    expect_core_operators(subject.graph)


def graph_agrees(subject: HeadSubject) -> None:
    """In ONNX Runtime it gives the same logits and scores, for batches of 1, 2 and 5."""
    expected = subject.outputs(subject.module, subject.others.features)
    verdict = compare(expected, open_graph(subject.graph), subject.others.features, batches=BATCHES)
    do = "look for code that depends on Python values or on the batch: a trace keeps them as constants"
    expect(verdict.passed, f"the graph differs: {verdict.summary()}", do=do)


def _check_classes(subject: HeadSubject, classes: int, per_class: int = PER_CLASS) -> None:
    blobs, others = (Blobs.make([per_class] * classes, seed=seed) for seed in (0, 1))
    module = subject.fitted(blobs, classes)
    logits = _logits(module, others.features)
    right = _is_logits(logits, len(others.labels), classes)
    expect(right, f"it gives {logits.shape}", do="give a logit for each class")
    accuracy = _accuracy(module, others)
    expect(accuracy >= ACCURACY, f"it gets {accuracy:.0%} of {classes} separated classes right", do="check the fit")


def _logits(module: nn.Module, features: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.inference_mode():
        logits: NDArray[np.float32] = module(torch.from_numpy(features)).numpy()
    return logits


def _is_logits(logits: NDArray[np.float32], rows: int, classes: int) -> bool:
    return logits.dtype == np.float32 and logits.shape == (rows, classes) and bool(np.isfinite(logits).all())


def _accuracy(module: nn.Module, blobs: Blobs) -> float:
    return float((_logits(module, blobs.features).argmax(1) == blobs.labels).mean())


SUBJECT = HeadSubject
