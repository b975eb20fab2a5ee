"""The distance from the images of the pretraining, against what batch norms really give."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.advice.asking import ask
from tests.kit.tiny import Tiny
from tlkit.advice.domain_shift import ALIKE, FEWEST, UNLIKE, Moments, divergence, judge
from tlkit.advice.run import advise
from tlkit.data.preprocessing import load
from tlkit.graph import trace
from tlkit.graph.moments import MEAN, SQUARE, moments_graph, watched
from tlkit.model import trunk as trunks
from tlkit.model.batchnorm import norms
from tlkit.runtime.session import OnnxSession


@pytest.fixture
def files(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("TLKIT_CACHE", str(tmp_path / "cache"))
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
    remembered = norms(trunk)
    moments = Moments(remembered)
    moments.look(moments_graph(trace.stage_graph(trunk), remembered), trunk.preprocessing, files)
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
    session = OnnxSession(moments_graph(trace.stage_graph(trunk), norms(trunk)))
    arrays = session.run(images)
    assert watched(session.outputs) == [0, 1, 2]
    for index, output in enumerate(seen):
        assert np.allclose(arrays[f"{MEAN}{index}"], output.mean((2, 3)), atol=1e-4)
        assert np.allclose(arrays[f"{SQUARE}{index}"], (output**2).mean((2, 3)), rtol=1e-3, atol=1e-4)


def test_the_images_of_the_pretraining_are_alike_and_darker_ones_are_not(files):
    own = shift_of(pretrained_on(files), files)
    assert own.overall == pytest.approx(0.0, abs=0.01)
    assert own.likeness == "alike"
    assert set(own.stages) == {"first", "second", "third"}
    light = [file for file in files if file.parent.name == "light"]
    dark = [file for file in files if file.parent.name == "dark"]
    other = shift_of(pretrained_on(light), dark * 2)
    assert other.overall > UNLIKE
    assert other.likeness == "unlike"


def test_a_few_images_tell_nothing(files):
    assert shift_of(pretrained_on(files), files[: FEWEST - 1]).likeness == "unclear"


def test_the_interval_is_around_the_figure_and_the_same_for_a_seed(files):
    trunk = pretrained_on(files[:20])
    one, other = shift_of(trunk, files), shift_of(trunk, files)
    assert one == other
    assert one.interval[0] <= one.overall <= one.interval[1]


@pytest.mark.usefixtures("files")  # a cache of its own
def test_it_is_known_from_an_earlier_run_for_the_same_images_only(pictures, monkeypatch):
    def look(seed=0):
        return advise(pictures, ask(seed=seed)).sight.shift

    found = look()
    monkeypatch.setattr(Moments, "look", lambda *_args: pytest.fail("looked again"))
    assert look() == found
    with pytest.raises(pytest.fail.Exception, match="looked again"):
        look(seed=1)


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
    found = Moments(norms(trunks.build(Plain()))).shift()
    assert (found.likeness, found.overall) == ("unknown", None)
    assert "no batch norm" in found.reason


@pytest.mark.parametrize(
    ("interval", "images", "likeness"),
    [
        ((0.9 * ALIKE, 0.99 * ALIKE), 99, "alike"),
        ((0.9 * ALIKE, 1.01 * ALIKE), 99, "unclear"),
        ((0.99 * UNLIKE, 1.1 * UNLIKE), 99, "unclear"),
        ((1.01 * UNLIKE, 1.1 * UNLIKE), 99, "unlike"),
        ((1.01 * UNLIKE, 1.1 * UNLIKE), FEWEST - 1, "unclear"),
    ],
)
def test_nothing_is_said_near_the_borders(interval, images, likeness):
    assert judge(sum(interval) / 2, interval, images)[0] == likeness
