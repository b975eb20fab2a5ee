"""Detectors with one thing wrong each, by the check that has to find it. They measure the distance to the mean."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from tests.conformance.broken.registry import Registry
from tlkit import Detector

BROKEN = Registry()
breaks = BROKEN.breaks


class Distance(nn.Module):
    def __init__(self, mean, after=lambda scores, _features: scores):
        super().__init__()
        self.register_buffer("mean", mean)
        self.after = after

    def forward(self, features):
        return self.after((features - self.mean).norm(dim=1), features)


@dataclass(frozen=True)
class Center(Detector):
    """The distance to the mean of all."""

    name = "center"

    def after(self, scores, features):
        return scores

    def fit(self, features, labels, head, seed):
        return Distance(torch.from_numpy(features.mean(0)), self.after)

    def restore(self, tensors, head):
        return Distance(tensors["mean"], self.after)


@breaks("fits", r"it gives float32 \(60, 1\) for 60 rows")
class Column(Center):
    def after(self, scores, features):
        return scores[:, None]


@breaks("leaves-its-data-alone", "it changed the arrays or the head")
class Scaling(Center):
    def fit(self, features, labels, head, seed):
        features *= 1.0 + 1e-3
        fitted = super().fit(features, labels, head, seed)
        features /= 1.0 + 2e-3
        return fitted


@breaks("novel-rows-score-higher", r"area under the ROC curve of rows of no cluster is 0\.\d+")
class Reversed(Center):
    def after(self, scores, features):
        return -scores


@breaks("tells-more-than-rounding", "rows of no cluster score higher by .*e-0")
class Small(Center):
    def after(self, scores, features):
        return scores * 1e-6


@breaks("deterministic", "two fits differ by")
class Drawn(Center):
    turns = itertools.count(1)

    def fit(self, features, labels, head, seed):
        return Distance(torch.from_numpy(features.mean(0) + 0.01 * np.float32(next(self.turns))), self.after)


@breaks("restores", "restored, it differs by")
class Forgetful(Center):
    def restore(self, tensors, head):
        return Distance(torch.zeros_like(tensors["mean"]), self.after)


@breaks("finite-far-away", "it is not finite for zeros or for large features")
class Dividing(Center):
    def after(self, scores, features):
        return scores / features.sum(1).clamp_max(1.0)


@breaks("rows-are-independent", "alone, a row's score differs by")
class Batchwise(Center):
    def after(self, scores, features):
        return scores + features.mean() * 0.1


@breaks("traces", "ONNX Runtime fails|graph differs|can't trace")
class Counting(Center):
    def after(self, scores, features):
        return scores + 0.1 * float(len(features) == 2)
