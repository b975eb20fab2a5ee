"""Every head agrees with scikit-learn, and its module says the same in PyTorch and in ONNX."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer, StandardScaler
from sklearn.svm import SVC, LinearSVC
from tlkit_standard.heads import HEADS
from tlkit_standard.heads._solver import fit_temperature

from tlkit.conformance import checks
from tlkit.errors import DataError, TlkitError, UsageError

BY_NAME = {head.name: head for head in HEADS}
SOLVED = ("logistic", "svm", "rbf-svm", "knn", "nearest-mean")
C = 3.0
FRONTS = {
    "plain": {"power": 1.0, "l2": False},
    "default": {},
    "standardized": {"power": 1.0, "l2": False, "standardize": True},
    "pca": {"pca": 7},
    "everything": {"power": 0.7, "l2": True, "standardize": True, "pca": 9, "whiten": True},
}


def blobs(classes, rows=240, width=24, seed=0):
    """Overlapping classes of positive and negative features, some of them zero, as float32."""
    random = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    centers = random.normal(size=(classes, width))
    features = centers[labels] + random.normal(size=(rows, width)) * 1.4
    features[np.abs(features) < 0.05] = 0.0
    return features.astype(np.float32), labels.astype(np.int64)


def fixed(name, **options):
    """The head with nothing left to choose, so that scikit-learn can be asked for the same."""
    chosen = {"logistic": {"c": C}, "svm": {"c": C}, "rbf-svm": {"c": C}, "knn": {"k": 5}}.get(name, {})
    return replace(BY_NAME[name], calibrate=False, **chosen, **options)


def reference(head):
    """The pipeline that a scikit-learn user would write."""

    def power(x):
        return np.sign(x) * np.abs(x) ** (head.power or 1.0)  # without one, none: features have both signs

    steps = [FunctionTransformer(lambda x: x.astype(np.float64)), FunctionTransformer(power)]
    steps += [Normalizer()] if head.l2 else []
    steps += [StandardScaler()] if head.standardize else []
    if head.pca:
        steps.append(PCA(head.pca, whiten=head.whiten, svd_solver="full"))
    models = {
        "logistic": lambda: LogisticRegression(C=C, tol=1e-9, max_iter=10_000),
        "svm": lambda: LinearSVC(C=C, tol=1e-9, max_iter=200_000, dual=True),
        "rbf-svm": lambda: SVC(C=C, decision_function_shape="ovr", break_ties=True, tol=1e-6),
        "knn": lambda: KNeighborsClassifier(5, metric=head.metric, weights=head.weights, algorithm="brute"),
        "nearest-mean": NearestCentroid,
    }
    return make_pipeline(*steps, models[head.name]())


def logits(module, features):
    with torch.inference_mode():
        return module(torch.from_numpy(features)).numpy()


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("name", SOLVED)
def test_agrees_with_scikit_learn(name, front, classes):
    features, labels = blobs(classes)
    unseen, _ = blobs(classes, seed=1)
    names = np.array([f"class {9 - label}" for label in range(classes)])  # sorted otherwise than they are numbered
    head = fixed(name, **FRONTS[front])
    module = head.solve(features, labels, classes, seed=0)
    model = reference(head).fit(features, labels)
    for rows in (features, unseen):
        called = names[logits(module, rows).argmax(1)]
        assert (called == names[model.predict(rows)]).all()
    if name in ("logistic", "svm", "rbf-svm"):
        decision, scores = model.decision_function(unseen), logits(module, unseen)
        if classes == 2:
            assert np.abs((scores[:, 1] - scores[:, 0]) - decision).max() < 1e-4
            assert np.abs(scores.sum(1)).max() < 1e-4
        else:
            assert np.abs(scores - decision).max() < 1e-4


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("weights", ["uniform", "distance"])
def test_neighbors_of_every_kind_agree_with_scikit_learn(metric, weights):
    features, labels = blobs(4)
    unseen, _ = blobs(4, seed=1)
    head = fixed("knn", metric=metric, weights=weights, l2=False)
    module = head.solve(features, labels, 4, seed=0)
    assert (logits(module, unseen).argmax(1) == reference(head).fit(features, labels).predict(unseen)).all()


def test_class_weights_are_scikit_learns():
    features, labels = blobs(3, rows=300)
    rare = np.flatnonzero((labels != 2) | (np.arange(300) < 60))
    features, labels = features[rare], labels[rare]
    head = fixed("logistic", class_weight="balanced", power=1.0, l2=False)
    model = LogisticRegression(C=C, tol=1e-9, max_iter=10_000, class_weight="balanced")
    model.fit(features.astype(np.float64), labels)
    module = head.solve(features, labels, 3, seed=0)
    assert np.abs(logits(module, features) - model.decision_function(features)).max() < 1e-4


# What the conformance kit proves of every head with its defaults holds with other options, too.
@pytest.mark.parametrize(
    "check", ["restores", "deterministic", "rows-are-independent", "core-operators-only", "graph-agrees"]
)
@pytest.mark.parametrize("front", ["plain", "everything"])
@pytest.mark.parametrize("name", SOLVED)
def test_configured_it_keeps_the_contract(name, front, check):
    dict(checks(replace(BY_NAME[name], **FRONTS[front])))[check]()


@pytest.mark.parametrize("name", SOLVED)
def test_labels_exchanged_exchange_logits(name):
    features, labels = blobs(3)
    order = np.array([2, 0, 1])
    plain = logits(fixed(name).solve(features, labels, 3, seed=0), features)
    moved = logits(fixed(name).solve(features, order[labels], 3, seed=0), features)
    tolerance = {"svm": 5e-3}.get(name, 1e-3)  # LIBLINEAR visits rows in an order of its own
    assert np.abs(moved[:, order] - plain).max() < tolerance


class TestCalibration:
    @pytest.mark.parametrize("name", ["logistic", "svm", "rbf-svm", "nearest-mean"])
    def test_probabilities_mean_more_with_it(self, name):
        features, labels = blobs(3, rows=600)
        unseen, truth = blobs(3, rows=600, seed=0)[0] + np.float32(0), labels
        random = np.random.default_rng(3)
        unseen = unseen + random.normal(size=unseen.shape).astype(np.float32)  # harder than what was seen
        losses = {}
        for calibrate in (True, False):
            head = replace(BY_NAME[name], calibrate=calibrate, power=1.0, l2=False)
            scores = torch.from_numpy(logits(head.solve(features, labels, 3, seed=0), unseen))
            losses[calibrate] = torch.nn.functional.cross_entropy(scores, torch.from_numpy(truth)).item()
        assert losses[True] < losses[False] + 0.02
        if name == "nearest-mean":  # squared distances are far too sure of themselves
            assert losses[True] < losses[False] - 0.1

    @given(st.floats(0.05, 20.0), st.integers(0, 1000))
    def test_the_temperature_that_scores_were_multiplied_by_is_found(self, factor, seed):
        random = np.random.default_rng(seed)
        scores = random.normal(size=(4000, 3)) * 2
        chances = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        labels = (chances.cumsum(1) > random.random((4000, 1))).argmax(1)
        temperature, _ = fit_temperature(scores * factor, labels)
        assert temperature == pytest.approx(factor, rel=0.2)

    def test_what_was_chosen_is_reported(self):
        features, labels = blobs(3)
        report = BY_NAME["logistic"].solve(features, labels, 3, seed=0).report
        assert report["c"] > 0
        assert report["temperature"] > 0
        assert report["cv_folds"] == 5
        assert 0.3 < report["cv_accuracy"] <= 1


class TestAwkwardFeatures:
    @pytest.mark.parametrize("name", SOLVED)
    @pytest.mark.parametrize("front", FRONTS)
    def test_zero_rows_constant_columns_and_duplicate_rows(self, name, front):
        features, labels = blobs(3)
        features[:5] = 0
        features[:, 3] = 2.5
        features[10:20] = features[7]
        module = replace(BY_NAME[name], **FRONTS[front]).solve(features, labels, 3, seed=0)
        assert np.isfinite(logits(module, features)).all()

    @pytest.mark.parametrize("name", SOLVED)
    @pytest.mark.parametrize("counts", [(1, 1), (2, 2), (1, 9), (1, 2, 30)])
    def test_classes_of_one_or_two_images(self, name, counts):
        labels = np.repeat(np.arange(len(counts)), counts)
        features, _ = blobs(len(counts), rows=len(labels))
        module = BY_NAME[name].solve(features, labels.astype(np.int64), len(counts), seed=0)
        assert logits(module, features).shape == (len(labels), len(counts))
        assert np.isfinite(logits(module, features)).all()

    @pytest.mark.parametrize("name", SOLVED)
    def test_more_components_than_there_are(self, name):
        features, labels = blobs(2, rows=20)
        module = replace(BY_NAME[name], pca=500).solve(features, labels, 2, seed=0)
        assert np.isfinite(logits(module, features)).all()

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_features_that_are_not_finite_are_refused(self, value):
        features, labels = blobs(2)
        features[3, 4] = value
        with pytest.raises(DataError, match="finite"):
            BY_NAME["logistic"].solve(features, labels, 2, seed=0)

    def test_labels_that_do_not_fit_are_refused(self):
        features, labels = blobs(2)
        for wrong, classes in ((labels * 0, 2), (labels + 5, 2), (labels - 1, 2)):
            with pytest.raises(TlkitError):
                BY_NAME["svm"].solve(features, wrong, classes, seed=0)


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("logistic", {"c": -1.0, "pca": -2}, r"pca must be 0 or more.*c must be from 1e-09 to 1e\+09, not -1"),
        ("svm", {"c": 1e-200}, "c must be from"),
        ("rbf-svm", {"gamma": "wide"}, "gamma"),
        ("knn", {"k": 0}, "k must be 1 or more"),
        ("knn", {"metric": "taxi"}, "cosine, euclidean"),
        ("mlp", {"hidden": 0, "dropout": 1.0}, r"hidden .* dropout"),
        ("svm", {"power": 0.0}, "power must be above 0"),
    ],
)
def test_options_that_make_no_sense_are_refused_all_at_once(name, options, problem):
    with pytest.raises(UsageError, match=problem):
        replace(BY_NAME[name], **options)


@pytest.mark.parametrize("name", ["logistic", "svm", "nearest-mean", "mlp"])
def test_learns_by_gradient(name):
    features, labels = blobs(3)
    torch.manual_seed(0)
    module = BY_NAME[name].module(features.shape[1], 3)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    losses = []
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(module(torch.from_numpy(features)), torch.from_numpy(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in module.parameters())


@pytest.mark.parametrize("name", ["rbf-svm", "knn"])
def test_what_only_can_be_solved_says_so(name):
    with pytest.raises(UsageError, match=r"can't be trained by gradient.*logistic"):
        BY_NAME[name].module(4, 2)


def test_listing_the_heads_imports_no_framework():
    found = "{'torch', 'sklearn'} & {*sys.modules}"
    code = f"import sys, tlkit_standard.heads as h; sys.exit(len(h.HEADS) != 6 or bool({found}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
