"""The domain shift against the outputs of batch norms, and what it means."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.advice.asking import ask
from tests.kit.tiny import Tiny
from tlkit.advice.domain_shift import (
    ActivationMoments,
    ClassifierConfidence,
    ShiftPolicy,
    classifier_confidence,
    divergence,
)
from tlkit.advice.run import advise
from tlkit.data.preprocessing import load
from tlkit.graph import trace
from tlkit.graph.moments import MEAN, SQUARE, moments_graph, watched
from tlkit.model import trunk as trunks
from tlkit.model.batchnorm import pretraining_statistics
from tlkit.runtime.session import OnnxSession

POLICY = ShiftPolicy()
SIMILAR, DIFFERENT = POLICY.similar_below, POLICY.different_above


@pytest.fixture
def files(pictures, own_cache):
    assert not (own_cache / "domain-shifts").exists()
    return sorted(pictures.rglob("*.png"))


def images_of(files):
    return np.stack([load(file, Tiny.preprocessing) for file in files])


def pretrained_on(files):
    """A tiny trunk whose norms remember these images."""
    trunk = trunks.build(Tiny())
    for stage in trunk.stages.values():
        stage[1].momentum = None  # a plain average
        stage[1].reset_running_stats()
        torch.nn.init.uniform_(stage[1].weight, 0.5, 1.5)
        torch.nn.init.uniform_(stage[1].bias, -0.5, 0.5)
        stage.train()
    with torch.no_grad():
        trunk(torch.from_numpy(images_of(files)))
    return trunk.eval()


def shift_of(trunk, files, seed=0):
    remembered = pretraining_statistics(trunk)
    moments = ActivationMoments(remembered)
    moments.collect(moments_graph(trace.stage_graph(trunk), remembered), trunk.preprocessing, files)
    return moments.shift(seed)


@pytest.mark.parametrize(
    ("mean", "variance", "expected"),
    [(0.0, 1.0, 0.0), (1.0, 1.0, 1.0), (0.0, 2.0, 0.25), (0.0, 0.5, 0.25), (2.0, 4.0, (4 + 4 + 5 / 4) / 2 - 1)],
)
def test_the_divergence_by_hand(mean, variance, expected):
    assert divergence(np.array([mean]), np.array([variance]))[0] == pytest.approx(expected)


@given(st.floats(-10, 10), st.floats(0.01, 100))
def test_the_divergence_is_that_of_the_definition_and_never_negative(mean, variance):
    def directed(m1, v1, m2, v2):
        return 0.5 * (np.log(v2 / v1) + (v1 + (m1 - m2) ** 2) / v2 - 1)

    both = directed(mean, variance, 0, 1) + directed(0, 1, mean, variance)
    value = divergence(np.array([mean]), np.array([variance]))[0]
    assert value >= -1e-12
    assert value == pytest.approx(both, rel=1e-6, abs=1e-9)


def test_the_graph_gives_the_moments_of_what_every_norm_gives(files):
    trunk = pretrained_on(files)
    given = []
    for stage in trunk.stages.values():
        stage[1].register_forward_hook(lambda _module, _inputs, output: given.append(output))
    images = images_of(files[:5])
    with torch.no_grad():
        trunk(torch.from_numpy(images))
    seen, given[:] = given[:], []
    session = OnnxSession(moments_graph(trace.stage_graph(trunk), pretraining_statistics(trunk)))
    arrays = session.run(images)
    assert watched(session.outputs) == [0, 1, 2]
    for index, output in enumerate(seen):
        assert np.allclose(arrays[f"{MEAN}{index}"], output.mean((2, 3)), atol=1e-4)
        assert np.allclose(arrays[f"{SQUARE}{index}"], (output**2).mean((2, 3)), rtol=1e-3, atol=1e-4)


def test_the_pretraining_images_are_similar_and_darker_ones_different(files):
    own = shift_of(pretrained_on(files), files)
    assert own.overall == pytest.approx(0.0, abs=0.01)
    assert own.domain == "similar"
    assert set(own.stages) == {"first", "second", "third"}
    light = [file for file in files if file.parent.name == "light"]
    dark = [file for file in files if file.parent.name == "dark"]
    other = shift_of(pretrained_on(light), dark * 2)
    assert other.overall > POLICY.different_above
    assert other.domain == "different"


def test_few_images_are_unclear(files):
    assert shift_of(pretrained_on(files), files[: POLICY.min_images - 1]).domain == "unclear"


def test_the_interval_is_around_the_figure_and_the_same_for_a_seed(files):
    trunk = pretrained_on(files[:20])
    one, other = shift_of(trunk, files), shift_of(trunk, files)
    assert one == other
    assert one.interval[0] <= one.overall <= one.interval[1]


@pytest.mark.usefixtures("files")  # a cache of its own
def test_it_is_cached_for_the_same_images_and_seed_only(pictures, monkeypatch):
    def measured(seed=0):
        return advise(pictures, ask(seed=seed)).analysis.shift

    found = measured()
    monkeypatch.setattr(ActivationMoments, "collect", lambda *_args: pytest.fail("measured again"))
    assert measured() == found
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        measured(seed=1)


@dataclass(frozen=True)
class Plain(Tiny):
    """The tiny backbone without its norms."""

    name = "plain"

    def stages(self, *, pretrained):
        return {
            name: torch.nn.Sequential(stage[0], stage[2])
            for name, stage in super().stages(pretrained=pretrained).items()
        }


def test_a_network_without_norms_is_unknown():
    found = ActivationMoments(pretraining_statistics(trunks.build(Plain()))).shift()
    assert (found.domain, found.overall) == ("unknown", None)
    assert "no batch norm" in found.reason


@pytest.mark.parametrize(
    ("low", "high", "images", "domain"),
    [
        (0.9 * SIMILAR, 0.99 * SIMILAR, 99, "similar"),
        (0.9 * SIMILAR, 1.01 * SIMILAR, 99, "unclear"),
        (0.99 * DIFFERENT, 1.1 * DIFFERENT, 99, "unclear"),
        (1.01 * DIFFERENT, 1.1 * DIFFERENT, 99, "different"),
        (1.01 * DIFFERENT, 1.1 * DIFFERENT, POLICY.min_images - 1, "unclear"),
    ],
)
def test_near_the_thresholds_the_domain_is_unclear(low, high, images, domain):
    assert POLICY.judge((low + high) / 2, (low, high), images)[0] == domain


@pytest.mark.parametrize(
    ("probability", "images", "domain"),
    [(0.51, 99, "similar"), (0.49, 99, "unclear"), (0.34, 99, "different"), (0.9, POLICY.min_images - 1, "unclear")],
)
def test_without_batch_norms_the_confidence_of_the_classifier_decides(probability, images, domain):
    probabilities = np.full((images, 2), [probability, 1 - probability], np.float32)
    shift = ClassifierConfidence(probability, 0.5, -1.0, probabilities).shift(POLICY)
    assert (shift.domain, shift.overall, shift.images) == (domain, None, images)


def test_the_classifier_is_measured_on_the_deepest_features():
    classifier = torch.nn.Linear(2, 4)
    torch.nn.init.zeros_(classifier.weight)
    torch.nn.init.zeros_(classifier.bias)
    found = classifier_confidence(classifier, np.ones((3, 2), np.float32))
    assert (found.max_probability, found.entropy, found.energy) == pytest.approx((0.25, 1.0, -np.log(4)))
    assert classifier_confidence(None, np.ones((3, 2), np.float32)) is None
    assert classifier_confidence(classifier, np.ones((0, 2), np.float32)) is None
