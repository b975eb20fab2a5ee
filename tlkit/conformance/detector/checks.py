"""Checks of a detector."""

from __future__ import annotations

import json

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import nn

from tlkit.conformance.backbone.exported import expect_core_operators, open_graph, trace
from tlkit.conformance.head import CLASSES, PER_CLASS, SAME, WIDTH, Blobs
from tlkit.conformance.subject import Subject, expect, prepared
from tlkit.model.novelty import DETECTOR, NovelHead, head_tensors
from tlkit.plugin.contract import FEATURES
from tlkit.plugin.detection import NOVELTY, ROUNDING, Detector
from tlkit.plugin.options import from_json, to_json
from tlkit.util.statistics import roc_area
from tlkit.verification.parity import relative_error

SUMS = 1e-3  # relative: sums in another order, of numbers that nearly cancel
AREA = 0.9  # under the ROC curve, of blobs far from those that it was fitted to


class DetectorSubject(Subject[Detector]):
    """Detector under test. Prepared objects must not be changed."""

    blobs = Blobs.make([PER_CLASS] * CLASSES)
    others = Blobs.make([PER_CLASS] * CLASSES, seed=1)

    @property
    def head(self) -> nn.Module:
        """Linear head whose logits rank the classes as the distances to their means do."""
        means = np.stack([self.blobs.features[self.blobs.labels == label].mean(0) for label in range(CLASSES)])
        layer = nn.Linear(WIDTH, CLASSES)
        bias = -0.5 * (means**2).sum(1)
        layer.load_state_dict({"weight": torch.from_numpy(means), "bias": torch.from_numpy(bias)})
        return layer.eval()

    def fitted(self, head: nn.Module | None = None) -> nn.Module:
        """Return the detector fitted to the blobs."""
        return self.component.fit(self.blobs.features, self.blobs.labels, head or self.head, 0).eval()

    @prepared("fits")
    def module(self) -> nn.Module:
        """Detector fitted to the blobs."""
        return self.fitted()

    @prepared("traces")
    def graph(self) -> onnx.ModelProto:
        """Fitted detector as an ONNX graph."""
        return trace(self.module, torch.zeros(2, WIDTH), FEATURES, [NOVELTY])

    def novel(self) -> NDArray[np.float32]:
        """Return rows of no cluster: other features are active."""
        flipped: NDArray[np.float32] = np.ascontiguousarray(self.others.features[:, ::-1] * 0.5)
        return flipped


def fits(subject: DetectorSubject) -> None:
    """`fit` returns a module from features to one score per row, float32 and finite."""
    scores = _scores(subject.module, subject.others.features)
    rows = len(subject.others.labels)
    good = scores.dtype == np.float32 and scores.shape == (rows,) and bool(np.isfinite(scores).all())
    expect(good, f"it gives {scores.dtype} {scores.shape} for {rows} rows", do="give finite float32 `(N,)`")


def leaves_its_data_alone(subject: DetectorSubject) -> None:
    """`fit` changes neither the features and labels nor the head that it gets."""
    features, labels, head = subject.blobs.features.copy(), subject.blobs.labels.copy(), subject.head
    subject.component.fit(features, labels, head, 0)
    same = np.array_equal(features, subject.blobs.features) and np.array_equal(labels, subject.blobs.labels)
    own = subject.head.state_dict()
    kept = all(torch.equal(tensor, own[name]) for name, tensor in head.state_dict().items())
    expect(same and kept, "it changed the arrays or the head that it was given", do="work on copies")


def novel_rows_score_higher(subject: DetectorSubject) -> None:
    """Rows of no known cluster score higher than other rows of the known ones."""
    area = roc_area(_scores(subject.module, subject.novel()), _scores(subject.module, subject.others.features))
    what = f"the area under the ROC curve of rows of no cluster is {area:.2f}, below {AREA}"
    expect(area >= AREA, what, do="give higher scores to what is less like the training images")


def tells_more_than_rounding(subject: DetectorSubject) -> None:
    """Scores of different rows differ by more than 0.005, below which differences count as rounding."""
    apart = float(
        _scores(subject.module, subject.novel()).mean() - _scores(subject.module, subject.others.features).mean()
    )
    what = f"rows of no cluster score higher by {apart:.2g} on average"
    expect(apart > ROUNDING, what, do="multiply the score: its scale should be about 1")


def deterministic(subject: DetectorSubject) -> None:
    """The same data and seed give the same scores."""
    one, two = (_scores(module, subject.others.features) for module in (subject.module, subject.fitted()))
    error = relative_error(one, two)
    expect(error <= SAME, f"two fits differ by {error:.2g}", do="draw all random numbers from the seed")


def restores(subject: DetectorSubject) -> None:
    """`restore` gives the fitted module back from its stored tensors and options."""
    head = subject.head
    novel = NovelHead(head, subject.fitted(head))
    stored = load(save({name: torch.from_numpy(np.array(tensor)) for name, tensor in head_tensors(novel).items()}))
    own = {name.removeprefix(DETECTOR): tensor for name, tensor in stored.items() if name.startswith(DETECTOR)}
    again = from_json(subject.component, json.loads(json.dumps(to_json(subject.component)))).restore(own, head)
    error = relative_error(_scores(novel.detector, subject.others.features), _scores(again, subject.others.features))
    expect(error <= SAME, f"restored, it differs by {error:.2g}", do="keep all that decides in the state or in options")


def finite_far_away(subject: DetectorSubject) -> None:
    """Scores are finite for features of zeros, and for those a thousand times as large."""
    rows = np.concatenate([np.zeros((1, WIDTH), np.float32), 1000 * subject.others.features])
    good = bool(np.isfinite(_scores(subject.module, rows)).all())
    expect(good, "it is not finite for zeros or for large features", do="keep what is divided by away from zero")


def rows_are_independent(subject: DetectorSubject) -> None:
    """The score of a row does not depend on the rows beside it."""
    alone = np.concatenate([_scores(subject.module, row[None]) for row in subject.others.features[:5]])
    error = relative_error(_scores(subject.module, subject.others.features)[:5], alone)
    expect(error <= SUMS, f"alone, a row's score differs by {error:.2g}", do="compute each row by itself")


def traces(subject: DetectorSubject) -> None:
    """It is traced to ONNX with operators of ONNX alone, and gives the same there at any batch size."""
    expect_core_operators(subject.graph)
    session, features = open_graph(subject.graph), subject.others.features
    for rows in (1, 2, 5):
        error = relative_error(_scores(subject.module, features[:rows]), session.run(features[:rows])[NOVELTY])
        expect(error <= SUMS, f"at {rows} rows the graph differs by {error:.2g}", do="avoid shapes that were traced")


def _scores(module: nn.Module, features: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.inference_mode():
        return module(torch.from_numpy(np.ascontiguousarray(features))).numpy()  # type: ignore[no-any-return]


SUBJECT = DetectorSubject
