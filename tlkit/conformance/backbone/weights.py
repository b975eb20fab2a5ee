"""Checks of pretrained weights, and that random ones need no file and no network."""

from __future__ import annotations

from contextlib import suppress

import torch

from tlkit.conformance.backbone.running import SAME
from tlkit.conformance.backbone.subject import BackboneSubject
from tlkit.conformance.subject import Skipped, expect, expect_none
from tlkit.model import trunk as trunks
from tlkit.util.text import listed
from tlkit.verification.parity import relative_error

SEED = 20_260_101  # none that a plugin would use itself


def touches_no_network(subject: BackboneSubject) -> None:
    """`stages(pretrained=False)` uses no network: a bundle is opened that way, on any machine."""
    _attempt(subject)
    do = "download only with `pretrained=True`"
    expect(not subject.watch.addresses, f"it tried to reach {listed(subject.watch.addresses)}", do=do)


def touches_no_weights(subject: BackboneSubject) -> None:
    """`stages(pretrained=False)` opens no weights file: a machine that opens a bundle may have none."""
    _attempt(subject)
    do = "read weights only with `pretrained=True`"
    expect(not subject.watch.files, f"it opened {listed(subject.watch.files)}", do=do)


def pretrained_has_the_same_structure(subject: BackboneSubject) -> None:
    """With and without pretrained weights, the stages have the same names and tensors."""
    pretrained, random = subject.pretrained_trunk(), subject.builds[0]
    do = "build the same structure either way: the bundle's weights are loaded into the random one"
    expect(pretrained.names == random.names, f"stages {pretrained.names}, but {random.names} without", do=do)
    different = subject.different_tensors(pretrained, random)
    expect_none(different, "tensors differ", do=do)


def pretrained_is_always_the_same(subject: BackboneSubject) -> None:
    """Two builds with pretrained weights are bit-identical."""
    one, other = (trunks.fingerprint(subject.pretrained_trunk()) for _ in range(2))
    expect(one == other, "two builds with pretrained weights differ", do="load every tensor of every stage")


def pretrained_is_not_random(subject: BackboneSubject) -> None:
    """Every matrix and filter comes from the weights: none keeps its initial value."""
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        pretrained = dict(subject.pretrained_trunk().named_parameters())
        torch.manual_seed(SEED)
        random = dict(subject.random_trunk().named_parameters())
    left = [name for name, p in pretrained.items() if p.ndim >= 2 and torch.equal(p, random[name])]
    expect_none(left, "tensors have random weights", do="load every tensor of every stage")


def classifier_fits(subject: BackboneSubject) -> None:
    """The pretrained classifier, if there is one, maps the deepest features to two logits or more, in eval mode."""
    trunk = subject.pretrained_trunk()
    classifier = subject.component.classifier()
    if classifier is None:
        raise Skipped("it has no classifier")
    with torch.inference_mode():
        logits = classifier(trunk(subject.images))
    right = logits.ndim == 2 and logits.shape[0] == len(subject.images) and logits.shape[1] >= 2
    wrong = f"it gives logits of shape {tuple(logits.shape)} for {len(subject.images)} images"
    expect(right, wrong, do="return a module from `(N, width)` to `(N, classes)`")
    expect(bool(torch.isfinite(logits).all()), "its logits are not finite", do="check its weights")
    expect(not any(m.training for m in classifier.modules()), "it is in training mode", do="return it after `.eval()`")


def logits_equal_the_library(subject: BackboneSubject) -> None:
    """The classifier on the chained stages gives the logits of the library's own network, if its reference has one."""
    trunk = subject.pretrained_trunk()
    network, classifier = subject.reference.logits(subject.component), subject.component.classifier()
    if network is None or classifier is None:
        raise Skipped("its reference has no `logits` to compare with, or it has no classifier")
    with torch.inference_mode():
        expected, got = network.eval()(trunk.normalize(subject.images)), classifier(trunk(subject.images))
    do = "check what the classifier is given, and its weights"
    expect(expected.shape == got.shape, f"the library gives {expected.shape}, the classifier {got.shape}", do=do)
    error = relative_error(expected.numpy(), got.numpy())
    expect(error <= SAME, f"the logits differ from the library's by {error:.2g}", do=do)


def _attempt(subject: BackboneSubject) -> None:
    """Build the stages; other checks test that this works."""
    with suppress(Exception):
        _ = subject.stages
