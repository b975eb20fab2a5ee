"""Modules of heads: the front, numerical edge cases, and restoring from a bundle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer, StandardScaler
from sklearn.svm import SVC, LinearSVC
from tlkit_standard.heads import HEADS
from tlkit_standard.heads._modules import Front
from tlkit_standard.heads.memory import RbfSvm

from tlkit.errors import ArtifactError

BY_NAME = {head.name: head for head in HEADS}
SOLVED = ("logistic", "svm", "rbf-svm", "knn", "nearest-mean")


def positive(rows=36, width=80, classes=3, seed=0):
    """Features that are never negative, as behind a ReLU, and more of them than rows."""
    random = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    centers = np.random.default_rng(99).normal(size=(classes, width))
    features = np.maximum(0.0, 0.7 * centers[labels] + random.normal(size=(rows, width)))
    return features.astype(np.float32), labels.astype(np.int64)


def logits(module, features):
    with torch.inference_mode():
        return module(torch.from_numpy(features)).numpy()


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("name", SOLVED)
def test_with_fewer_rows_than_features_it_still_agrees_with_scikit_learn(name, standardize):
    features, labels = positive()
    unseen, _ = positive(rows=60, seed=1)
    options = {"knn": {"k": 3}, "nearest-mean": {}}.get(name, {"c": 2.0})
    module = replace(BY_NAME[name], calibrate=False, standardize=standardize, **options).solve(features, labels, 3, 0)
    model = {
        "logistic": LogisticRegression(C=2.0, tol=1e-9, max_iter=10_000),
        "svm": LinearSVC(C=2.0, tol=1e-9, max_iter=100_000),
        "rbf-svm": SVC(C=2.0, break_ties=True, tol=1e-6),
        "knn": KNeighborsClassifier(3, metric="cosine", weights="distance"),
        "nearest-mean": NearestCentroid(),
    }[name]
    steps = [FunctionTransformer(lambda x: np.sqrt(x.astype(np.float64))), Normalizer()]
    pipeline = make_pipeline(*steps, *[StandardScaler()] * standardize, model).fit(features, labels)
    assert (logits(module, unseen).argmax(1) == pipeline.predict(unseen)).all()
    if "c" in options:
        assert np.abs(logits(module, unseen) - pipeline.decision_function(unseen)).max() < 1e-4
    if name == "knn":  # one vote is cast beforehand, a third of it for each class
        shares = (3 * pipeline.predict_proba(unseen) + 1 / 3) / 4
        assert np.abs(logits(module, unseen) - np.log(shares)).max() < 1e-4


def test_the_square_root_is_for_features_that_are_never_negative():
    features, labels = positive()
    for given, expected in ((features, 0.5), (features - 1, 1.0)):
        module = BY_NAME["nearest-mean"].solve(given, labels, 3, 0)
        assert module.report["power"] == expected
        assert module.state_dict()["front.power"] == expected


def test_a_head_without_a_front_is_one_linear_layer():
    features, labels = positive()
    head = replace(BY_NAME["svm"], power=1.0, l2=False, standardize=True, pca=5, whiten=True)
    assert type(head.solve(features, labels, 3, 0)) is torch.nn.Linear
    assert type(head.module(80, 3)) is torch.nn.Linear


def test_the_front_has_finite_gradients_where_features_are_zero():
    features = torch.zeros(3, 6)
    features[1, 2] = 4.0
    features.requires_grad_()
    Front(0.5, l2=True)(features).square().sum().backward()
    assert torch.isfinite(features.grad).all()


@pytest.mark.parametrize("name", SOLVED)
def test_in_half_precision_nothing_is_lost_but_digits(name):
    features, labels = positive()
    features[0] = 0.0
    module = BY_NAME[name].solve(features, labels, 3, 0)
    expected = logits(module, features)
    found = logits(module.half(), features.astype(np.float16)).astype(np.float32)
    assert np.isfinite(found).all()
    assert (found.argmax(1) == expected.argmax(1)).mean() > 0.95


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_a_training_image_seen_again_outvotes_its_neighbors(metric):
    features, labels = positive()
    features += 100 if metric == "euclidean" else 0  # where |x|^2 - 2xr + |r|^2 would not come to zero
    head = replace(BY_NAME["knn"], k=9, metric=metric, weights="distance", l2=False, power=1.0)
    shares = np.exp(logits(head.solve(features, labels, 3, 0), features))
    assert (shares.argmax(1) == labels).all()


def test_without_the_whole_kernel_matrix_the_fit_is_the_same():
    class Sparing(RbfSvm):
        max_kernel_rows = 10

    features, labels = positive()
    whole, sparing = (
        logits(kind(c=2.0, calibrate=False).solve(features, labels, 3, 0), features) for kind in (RbfSvm, Sparing)
    )
    assert np.abs(whole - sparing).max() < 1e-4


@pytest.mark.parametrize("gamma", [0.3, 3.0])
def test_gamma_is_the_width_of_the_kernel(gamma):
    features, labels = positive()
    head = replace(BY_NAME["rbf-svm"], c=2.0, gamma=gamma, power=1.0, l2=False, standardize=False, calibrate=False)
    model = SVC(C=2.0, gamma=gamma, tol=1e-6).fit(features.astype(np.float64) / 8, labels)
    assert (
        np.abs(
            logits(head.solve(features / 8, labels, 3, 0), features / 8) - model.decision_function(features / 8)
        ).max()
        < 1e-4
    )


@pytest.mark.parametrize("standardize", [False, True])
def test_a_perceptron_learns_and_is_restored(standardize):
    features, labels = positive()
    torch.manual_seed(0)
    head = replace(BY_NAME["mlp"], hidden=16, standardize=standardize)
    assert head.solve(features, labels, 3, 0) is None
    module = head.module(80, 3)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for rows in (*[slice(None)] * 40, slice(0, 1)):  # the last batch of an epoch may be a single row
        loss = torch.nn.functional.cross_entropy(
            module(torch.from_numpy(features[rows])), torch.from_numpy(labels[rows])
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = logits(module.eval(), features)
    assert (found.argmax(1) == labels).mean() > 0.9
    other = replace(BY_NAME["mlp"], standardize=standardize)  # the tensors say how many units are hidden
    assert np.array_equal(logits(other.restore(80, 3, module.state_dict()), features), found)


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.name)
def test_tensors_that_do_not_fit_are_refused(head):
    features, labels = positive()
    module = head.solve(features, labels, 3, 0) or head.module(80, 3)
    tensors = module.state_dict()
    for width, classes, changed in (
        (81, 3, tensors),
        (80, 4, tensors),
        (80, 3, dict(list(tensors.items())[:-1])),
        (80, 3, tensors | {"stray": torch.zeros(1)}),
        (80, 3, {}),
    ):
        with pytest.raises(ArtifactError, match="the head's tensors"):
            head.restore(width, classes, changed)


def test_a_solved_linear_head_can_go_on_learning():
    features, labels = positive()
    module = BY_NAME["logistic"].solve(features, labels, 3, 0)
    torch.nn.functional.cross_entropy(module(torch.from_numpy(features)), torch.from_numpy(labels)).backward()
    assert [name for name, parameter in module.named_parameters() if parameter.grad is None] == []
    assert len(list(module.parameters())) == 2
