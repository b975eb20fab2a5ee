"""Heads with one thing wrong each, by the check that has to find it. They solve for the nearest mean, but for that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from tests.conformance.broken.registry import Registry
from tlkit.errors import UsageError
from tlkit.plugin.contract import Head

BROKEN = Registry()
breaks = BROKEN.breaks


class Linear(nn.Linear):
    """A linear layer with something behind it."""

    def after(self, logits):
        return logits

    def forward(self, x):
        return self.after(super().forward(x))


@dataclass(frozen=True)
class Mean(Head):
    """The nearest mean."""

    name = "mean"
    layer = Linear

    def module(self, width, classes):
        return self.layer(width, classes)

    def solve(self, features, labels, classes, seed):
        means = np.stack([features[labels == label].mean(0) for label in range(classes)])
        layer = self.module(features.shape[1], classes)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(means))
            layer.bias.copy_(torch.from_numpy(-0.5 * (means**2).sum(1)))
        return layer.eval()


def layer_with(after: Callable[..., torch.Tensor]) -> type[Linear]:
    return type("Changed", (Linear,), {"after": after})


@breaks("module-or-refusal", r"untrained, it gives float32 \(60, 4\) for 60 rows")
class TooMany(Mean):
    def module(self, width, classes):
        return nn.Linear(width, classes + 1)


@breaks("gradient-reaches-every-parameter", "parameters without a gradient: idle")
class Idle(Mean):
    def module(self, width, classes):
        layer = nn.Linear(width, classes)
        layer.idle = nn.Parameter(torch.ones(1))
        return layer


@breaks("fits", "the solved module is in training mode")
class Training(Mean):
    def solve(self, *given):
        return super().solve(*given).train()


@breaks("leaves-its-data-alone", "`solve` writes into its arguments")
class Writing(Mean):
    def solve(self, features, labels, classes, seed):
        features += 1
        return super().solve(features, labels, classes, seed)


@breaks("separates-blobs", "of well separated rows right")
class Backwards(Mean):
    def solve(self, features, labels, classes, seed):
        return super().solve(features, classes - 1 - labels, classes, seed)


@breaks("two-classes", r"it gives \(40, 1\)")
class Binary(Mean):
    class layer(Linear):  # noqa: N801
        def after(self, logits):
            return logits[:, 1:] if logits.shape[1] == 2 else logits


@breaks("fifty-classes", "of 50 separated classes right")
class Digits(Mean):
    class layer(Linear):  # noqa: N801
        def after(self, logits):
            return torch.cat([logits[:, :10], 0.0 * logits[:, 10:] - 1e4], 1)


@breaks("one-row-of-a-class", r"with one row of a class it gives \(41, 3\), not finite")
class Spreading(Mean):
    def solve(self, features, labels, classes, seed):
        layer = super().solve(features, labels, classes, seed)
        counts = np.bincount(labels)
        layer.bias.data /= torch.from_numpy(np.where(counts > 1, 1.0, np.nan)).float()
        return layer


@breaks("permuted-labels-permute-logits", "with its labels exchanged, probabilities differ by up to")
class Favoring(Mean):
    layer = layer_with(lambda _, logits: logits + torch.arange(logits.shape[1]) * 1e3)


@breaks("deterministic", "a second fit gives other values of bias")
class Unseeded(Mean):
    def solve(self, *given):
        layer = super().solve(*given)
        layer.bias.data += 1e-3 * torch.rand(len(layer.bias))
        return layer


@breaks("logits-are-float32", r"for 1 rows it gives float64 \(1, 3\)")
class Double(Mean):
    layer = layer_with(lambda _, logits: logits.double())


@breaks("finite-far-away", "logits of unusual rows are not finite")
class Exploding(Mean):
    layer = layer_with(lambda _, logits: logits.exp())


@breaks("rows-are-independent", "logits depend on the other rows of the batch")
class Centring(Mean):
    layer = layer_with(lambda _, logits: logits - logits.mean(0))


@breaks("restores", "restored from its tensors, it gives other logits; override `restore`")
class Forgetful(Mean):
    class layer(Linear):  # noqa: N801
        scale = 1.0

        def after(self, logits):
            return self.scale * logits

    def solve(self, *given):
        layer = super().solve(*given)
        layer.scale = 2.0
        return layer


@breaks("state-is-finite", "values are not finite: far")
class Masked(Mean):
    def module(self, width, classes):
        layer = super().module(width, classes)
        layer.register_buffer("far", torch.tensor([float("inf")]))
        return layer


@breaks("report-is-json", "its report is no JSON: .*ndarray")
class Reporting(Mean):
    def solve(self, *given):
        layer = super().solve(*given)
        layer.__dict__["report"] = {"scores": np.ones(3)}
        return layer


@breaks("scores-are-float32", r"for 60 rows, novelty is torch.float32 \(60, 3\)")
class Novel(Mean):
    scores = ("novelty",)
    layer = type("Novelty", (Linear,), {"scores": lambda self, features: (self(features),)})


class Untraceable(Linear):
    """The refusal that tracing ends with, at once."""

    def after(self, logits):
        if torch.compiler.is_exporting():
            raise NotImplementedError("no such operator")
        return logits


@breaks("traces", "it raised NotImplementedError: no such operator")
class Custom(Mean):
    layer = Untraceable


@breaks("core-operators-only", "it needs operators that are not ONNX's: com.microsoft::Gelu")
class Foreign(Mean):
    layer = layer_with(lambda _, x: torch.onnx.ops.symbolic("com.microsoft::Gelu", (x,), dtype=x.dtype, shape=x.shape))


@breaks("graph-agrees", "the graph differs: .*logit error")
class TwoFaced(Mean):
    layer = layer_with(lambda _, logits: logits * (1.1 if torch.compiler.is_exporting() else 1.0))


@breaks("stand-in-learns", "its stand-in: it is only solved; name a head that is trained by gradient")
class Deputized(Mean):
    def stand_in(self):
        class Solved(Mean):
            def module(self, width, classes):
                raise UsageError("it is only solved")

        return Solved()
