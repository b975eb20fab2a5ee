"""Candidates are judged on rows they never saw, the same way each time, and cheaply."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tlkit_standard.heads import HEADS, _selection, _temperature
from tlkit_standard.heads._selection import Path, select

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
    path = Path(range(len(losses)), start)
    selection = select(path, scored_by(losses, calls), labels[:, None].astype(float), labels, seed=0)
    return selection.choice, set(calls)


def test_it_walks_downhill_from_the_expected_candidate_and_stops():
    assert chosen([9, 5, 2, 1, 3, 6, 8], start=2) == (3, {2, 3, 4})
    assert chosen([3, 1, 2, 4, 6, 8, 9], start=3) == (1, {3, 4, 2, 1, 0})
    assert chosen([4, 3, 2, 1], start=0) == (3, {0, 1, 2, 3})
    assert chosen([1], start=0) == (0, {0})


def test_a_tie_goes_to_the_stronger_regularisation():
    assert chosen([2, 2, 2, 2], start=2)[0] == 0


@given(st.lists(st.integers(1, 12), min_size=2, max_size=5), st.integers(0, 99))
def test_folds_fit_to_some_rows_and_judge_by_the_others(counts, seed):
    labels = labelled(*counts)
    rows = np.stack([np.arange(len(labels)), labels], axis=1).astype(float)
    held_out = []

    def open_fold(fitted, fitted_labels, held):
        assert not set(fitted[:, 0]) & set(held[:, 0])
        assert set(held[:, 1]) <= set(fitted[:, 1])  # what is judged has been seen
        assert len(set(fitted_labels)) == len(set(fitted[:, 1])) == fitted_labels.max() + 1
        held_out.extend(held[:, 0])
        return lambda _candidate: np.zeros((len(held), sum(count > 1 for count in counts)))

    selection = select(Path([1.0]), open_fold, rows, labels, seed)
    judged = [row for row, label in rows if counts[int(label)] > 1]
    if sum(count > 1 for count in counts) < 2:
        assert selection.evidence is None
        assert selection.temperature == 1.0
    else:
        assert sorted(held_out) == judged
        assert selection.evidence.images == len(judged)
        assert selection.evidence.folds == min(5, max(counts))


def test_of_many_rows_a_stratified_draw_takes_part():
    labels = labelled(40_000, 10_000, 7, 1)
    drawn = np.bincount(labels[_selection._draw(labels, 0)], minlength=4)
    assert drawn[0] == pytest.approx(2400, abs=2)
    assert drawn[1] == pytest.approx(600, abs=2)
    assert drawn[2:].tolist() == [5, 0]


def test_noise_is_not_mistaken_for_knowledge():
    random = np.random.default_rng(0)
    features = random.normal(size=(80, 300)).astype(np.float32)
    labels = random.permutation(labelled(40, 40))
    head = replace(BY_NAME["logistic"], standardise=True, pca=20, whiten=True)
    report = head.solve(features, labels, 2, seed=0).report
    assert report["cv_accuracy"] < 0.65  # of the rows it was fitted to, it knows all
    assert report["cv_log_loss"] > 0.6


@given(st.integers(2, 40), st.integers(2, 6))
def test_scores_that_are_never_wrong_do_not_make_certain(rows, classes):
    labels = np.arange(rows) % classes
    scores = np.eye(classes)[labels]
    temperature, _ = _temperature.fit(scores, labels)
    chances = np.exp(scores[0] / temperature)
    assert chances[labels[0]] / chances.sum() == pytest.approx((rows + 1) / (rows + classes), abs=1e-3)


def test_scores_that_know_nothing_are_flattened():
    labels = labelled(50, 50)
    scores = np.random.default_rng(0).normal(size=(100, 2)) * 10
    temperature, log_loss = _temperature.fit(scores, labels)
    assert temperature > 50
    assert log_loss == pytest.approx(np.log(2), abs=0.01)


@pytest.mark.parametrize("cores", [1, 3])
@pytest.mark.parametrize("name", ["logistic", "svm", "rbf-svm", "knn"])
def test_the_number_of_threads_changes_nothing(name, cores, monkeypatch):
    random = np.random.default_rng(0)
    labels = labelled(30, 30, 30)
    features = (random.normal(size=(90, 12)) + 1.5 * np.eye(12)[labels]).astype(np.float32)
    expected = BY_NAME[name].solve(features, labels, 3, seed=1).report
    monkeypatch.setattr(_selection, "cores", lambda: cores)
    assert BY_NAME[name].solve(features, labels, 3, seed=1).report == expected
