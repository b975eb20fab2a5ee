"""The solver: cross-validation on held-out rows, the affine map that scikit-learn would fit, temperature."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tlkit_standard.heads import HEADS, _solver
from tlkit_standard.heads._base import Candidates
from tlkit_standard.heads._solver import (
    FOLDS,
    MAX_ROWS,
    draw_rows,
    fit_temperature,
    group_folds,
    rotate,
    select,
    solve,
    transform,
)

from tlkit import TlkitWarning

BY_NAME = {head.name: head for head in HEADS}


def labelled(*counts):
    return np.repeat(np.arange(len(counts)), counts)


def scored_by(losses, calls):
    """Scores whose log-loss grows with `losses[candidate]`: noise of that size hides the label."""

    def open_fold(_rows, _labels, held):
        def score(candidate):
            calls.append(candidate)
            noise = np.random.default_rng(0).normal(size=(len(held), 3)) * losses[candidate]
            return 3 * np.eye(3)[held[:, 0].astype(int)] + noise

        return score

    return open_fold


def chosen(losses, start):
    labels, calls = labelled(20, 20, 20), []
    candidates = Candidates(range(len(losses)), start)
    selection = select(candidates, scored_by(losses, calls), labels[:, None].astype(float), labels, seed=0)
    return selection.choice, set(calls)


def test_it_walks_downhill_from_the_expected_candidate_and_stops():
    assert chosen([9, 5, 2, 1, 3, 6, 8], start=2) == (3, {2, 3, 4})
    assert chosen([3, 1, 2, 4, 6, 8, 9], start=3) == (1, {3, 4, 2, 1, 0})
    assert chosen([4, 3, 2, 1], start=0) == (3, {0, 1, 2, 3})
    assert chosen([1], start=0) == (0, {0})


def test_a_tie_goes_to_the_stronger_regularization():
    assert chosen([2, 2, 2, 2], start=2)[0] == 0


@given(st.lists(st.integers(1, 12), min_size=2, max_size=5), st.integers(0, 99))
def test_folds_are_disjoint_and_cover_every_row_once(counts, seed):
    labels = labelled(*counts)
    rows = np.stack([np.arange(len(labels)), labels], axis=1).astype(float)
    held_out = []

    def open_fold(fitted, fitted_labels, held):
        assert not set(fitted[:, 0]) & set(held[:, 0])
        assert set(held[:, 1]) <= set(fitted[:, 1])  # every held-out class was fitted to
        assert len(set(fitted_labels)) == len(set(fitted[:, 1])) == fitted_labels.max() + 1
        held_out.extend(held[:, 0])
        return lambda _candidate: np.zeros((len(held), sum(count > 1 for count in counts)))

    selection = select(Candidates([1.0]), open_fold, rows, labels, seed)
    expected = [row for row, label in rows if counts[int(label)] > 1]
    if sum(count > 1 for count in counts) < 2:
        assert selection.evidence is None
        assert selection.temperature == 1.0
    else:
        assert sorted(held_out) == expected
        assert selection.evidence.images == len(expected)
        assert selection.evidence.folds == min(5, max(counts))


def test_of_many_rows_a_stratified_draw_takes_part():
    labels = labelled(40_000, 10_000, 7, 1)
    drawn = np.bincount(labels[draw_rows(labels, 0, MAX_ROWS)], minlength=4)
    assert drawn[0] == pytest.approx(2400, abs=2)
    assert drawn[1] == pytest.approx(600, abs=2)
    assert drawn[2:].tolist() == [5, 1]


@pytest.mark.parametrize("name", ["logistic", "knn"])
def test_more_images_than_the_limit_are_drawn_by_class(name, monkeypatch):
    labels = labelled(300, 90, 1)
    features = np.random.default_rng(0).normal(np.eye(4)[labels], 0.2).astype(np.float32)
    groups = np.arange(len(labels)) // 2
    whole = solve(BY_NAME[name], features, labels, 3, 0)
    assert "fitted_images" not in whole.report
    monkeypatch.setattr(_solver, "MEMORY", 100 * 4 * 8)
    says = f"the head {name} is fitted to 100 of 391 images, drawn by class; all of them take 0.0 GB"
    with pytest.warns(TlkitWarning, match=says):
        part = solve(BY_NAME[name], features, labels, 3, 0, groups=groups)
    assert part.report["fitted_images"] == pytest.approx(100, abs=3)
    agree = [
        module(torch.from_numpy(features[:390])).argmax(1) == torch.from_numpy(labels[:390]) for module in (whole, part)
    ]
    assert all(each.float().mean() > 0.95 for each in agree)
    more = replace(BY_NAME[name], max_rows=391)
    assert "fitted_images" not in solve(more, features, labels, 3, 0).report


def test_cross_validation_finds_chance_accuracy_on_noise():
    random = np.random.default_rng(0)
    features = random.normal(size=(80, 300)).astype(np.float32)
    labels = random.permutation(labelled(40, 40))
    head = replace(BY_NAME["logistic"], standardize=True, pca=20, whiten=True)
    report = head.solve(features, labels, 2, seed=0).report
    assert report["cv_accuracy"] < 0.65  # it fits all rows that it was fitted to
    assert report["cv_log_loss"] > 0.6


@given(st.integers(2, 40), st.integers(2, 6))
def test_the_temperature_of_scores_without_an_error_is_not_zero(rows, classes):
    labels = np.arange(rows) % classes
    scores = np.eye(classes)[labels]
    temperature, _ = fit_temperature(scores, labels)
    chances = np.exp(scores[0] / temperature)
    assert chances[labels[0]] / chances.sum() == pytest.approx((rows + 2 / classes) / (rows + 2), abs=1e-3)


def test_random_scores_get_a_high_temperature():
    labels = labelled(50, 50)
    scores = np.random.default_rng(0).normal(size=(100, 2)) * 10
    temperature, log_loss = fit_temperature(scores, labels)
    assert temperature > 50
    assert log_loss == pytest.approx(np.log(2), abs=0.01)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", ["logistic", "svm", "rbf-svm", "knn"])
def test_the_number_of_threads_changes_nothing(name, threads):
    random = np.random.default_rng(0)
    labels = labelled(30, 30, 30)
    features = (random.normal(size=(90, 12)) + 1.5 * np.eye(12)[labels]).astype(np.float32)
    expected = BY_NAME[name].solve(features, labels, 3, seed=1).report
    assert solve(BY_NAME[name], features, labels, 3, 1, threads=threads).report == expected


maps = st.fixed_dictionaries({"standardize": st.booleans(), "pca": st.sampled_from([0, 1, 5]), "whiten": st.booleans()})


def rows(count, width, seed):
    random = np.random.default_rng(seed)
    return random.normal(size=(count, width)) * random.uniform(0.1, 9.0, width) + random.normal(size=width) * 5


@given(maps, st.integers(7, 40), st.integers(5, 40), st.integers(0, 99))
def test_it_does_what_scikit_learn_does(options, count, width, seed):
    seen, unseen = rows(count, width, seed), rows(9, width, seed + 1)
    affine = transform(seen, **options)
    steps = [StandardScaler()] if options["standardize"] else []
    if options["pca"] or options["whiten"]:
        steps.append(PCA(options["pca"] or min(count - 1, width), whiten=options["whiten"], svd_solver="full"))
    expected = make_pipeline("passthrough", *steps).fit(seen).transform(unseen)
    # The sign of a principal component is arbitrary.
    np.testing.assert_allclose(np.abs(affine(unseen)), np.abs(expected), atol=1e-7)


@given(maps, st.integers(7, 40), st.integers(5, 40), st.integers(0, 99))
def test_a_linear_layer_on_top_is_one_linear_layer(options, count, width, seed):
    seen = rows(count, width, seed)
    affine = transform(seen, **options)
    image = affine(seen)
    random = np.random.default_rng(seed)
    weight, bias = random.normal(size=(3, image.shape[1])), random.normal(size=3)
    folded, offset = affine.under(weight, bias)
    np.testing.assert_allclose(seen @ folded.T + offset, image @ weight.T + bias, atol=1e-9)


@given(maps, st.integers(2, 20), st.integers(0, 99))
def test_a_rotation_keeps_every_angle_and_length_among_the_rows_it_was_made_for(options, count, seed):
    seen = rows(count, 25, seed)
    affine = transform(seen, **options)
    image, turned = affine(seen), rotate(affine, seen)(seen)
    assert turned.shape[1] == min(count, image.shape[1])
    np.testing.assert_allclose(turned @ turned.T, image @ image.T, atol=1e-7)


def test_rows_are_rotated_from_their_full_width_once(monkeypatch):
    rows, widths = np.random.default_rng(0).normal(size=(30, 200)).astype(np.float32), []
    monkeypatch.setattr(_solver, "rotate", lambda affine, of: widths.append(of.shape[1]) or rotate(affine, of))
    solve(BY_NAME["logistic"], rows, labelled(15, 15), 2, seed=0)
    assert widths == [200] + [30] * FOLDS


@pytest.mark.parametrize("whiten", [False, True])
def test_directions_without_variance_are_not_components(whiten):
    seen = rows(30, 4, 0) @ np.random.default_rng(1).normal(size=(4, 50))  # 50 columns of rank 4
    image = transform(seen, standardize=False, pca=20, whiten=whiten)(seen)
    assert image.shape == (30, 4)
    if whiten:
        np.testing.assert_allclose(np.cov(image.T), np.eye(4), atol=1e-7)


def test_rows_that_are_all_the_same_become_zero():
    same = np.ones((6, 5))
    assert not transform(same, standardize=True, pca=3, whiten=True)(same).any()


def test_groups_stay_in_one_fold_and_every_class_is_in_several():
    random = np.random.default_rng(0)
    groups = random.integers(0, 12, 90)
    labels = np.where(groups < 2, 2, groups % 2)
    folds = group_folds(labels, groups, seed=0)
    assert all(len(set(folds[groups == group])) == 1 for group in range(12))
    assert all(len(set(folds[labels == label])) > 1 for label in range(3))
    assert set(folds) == set(range(FOLDS))


def test_copies_in_groups_give_nothing_away():
    """Noise of which each row is there four times: known by its copies, unless these are held out together."""
    random = np.random.default_rng(0)
    features = np.repeat(random.normal(size=(40, 60)).astype(np.float32), 4, 0)
    groups = np.arange(160) // 4
    labels = groups % 2
    for name in ("logistic", "knn"):
        alone = BY_NAME[name].solve(features, labels, 2, 0).report
        together = BY_NAME[name].solve_grouped(features, labels, 2, 0, groups).report
        assert alone["cv_accuracy"] > 0.9
        assert together["cv_balanced_accuracy"] < 0.75
