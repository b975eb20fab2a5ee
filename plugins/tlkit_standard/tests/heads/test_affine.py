"""Standardising, PCA, whitening and rotation are one affine map, and linear layers swallow it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tlkit_standard.heads import _affine

maps = st.fixed_dictionaries({"standardise": st.booleans(), "pca": st.sampled_from([0, 1, 5]), "whiten": st.booleans()})


def rows(count, width, seed):
    random = np.random.default_rng(seed)
    return random.normal(size=(count, width)) * random.uniform(0.1, 9.0, width) + random.normal(size=width) * 5


@given(maps, st.integers(7, 40), st.integers(5, 40), st.integers(0, 99))
def test_it_does_what_scikit_learn_does(options, count, width, seed):
    seen, unseen = rows(count, width, seed), rows(9, width, seed + 1)
    affine = _affine.fit(seen, **options)
    steps = [StandardScaler()] if options["standardise"] else []
    if options["pca"] or options["whiten"]:
        steps.append(PCA(options["pca"] or min(count - 1, width), whiten=options["whiten"], svd_solver="full"))
    expected = make_pipeline("passthrough", *steps).fit(seen).transform(unseen)
    # PCA is free to turn a component round, and equal whichever way.
    np.testing.assert_allclose(np.abs(affine(unseen)), np.abs(expected), atol=1e-7)


@given(maps, st.integers(7, 40), st.integers(5, 40), st.integers(0, 99))
def test_a_linear_layer_on_top_is_one_linear_layer(options, count, width, seed):
    seen = rows(count, width, seed)
    affine = _affine.fit(seen, **options)
    image = affine(seen)
    random = np.random.default_rng(seed)
    weight, bias = random.normal(size=(3, image.shape[1])), random.normal(size=3)
    folded, offset = affine.under(weight, bias)
    np.testing.assert_allclose(seen @ folded.T + offset, image @ weight.T + bias, atol=1e-9)


@given(maps, st.integers(2, 20), st.integers(0, 99))
def test_a_rotation_keeps_every_angle_and_length_among_the_rows_it_was_made_for(options, count, seed):
    seen = rows(count, 25, seed)
    affine = _affine.fit(seen, **options)
    image, turned = affine(seen), _affine.rotate(affine, seen)(seen)
    assert turned.shape[1] == min(count, image.shape[1])
    np.testing.assert_allclose(turned @ turned.T, image @ image.T, atol=1e-7)


@pytest.mark.parametrize("whiten", [False, True])
def test_directions_without_variance_are_not_components(whiten):
    seen = rows(30, 4, 0) @ np.random.default_rng(1).normal(size=(4, 50))  # 50 columns of rank 4
    image = _affine.fit(seen, standardise=False, pca=20, whiten=whiten)(seen)
    assert image.shape == (30, 4)
    if whiten:
        np.testing.assert_allclose(np.cov(image.T), np.eye(4), atol=1e-7)


def test_rows_that_are_all_the_same_become_zero():
    same = np.ones((6, 5))
    assert not _affine.fit(same, standardise=True, pca=3, whiten=True)(same).any()
