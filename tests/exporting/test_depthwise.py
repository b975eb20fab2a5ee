"""A depthwise network that falls apart in int8: the ladder sees it, and leaves those layers in float that it is due to.

Depthwise convolutions let channels of one tensor differ by orders of magnitude, which a scale for the whole tensor
can't serve (Nagel, van Baalen, Blankevoort & Welling, "Data-Free Quantization Through Weight Equalization and Bias
Correction", ICCV 2019, section 3). To multiply channels before a layer by what their weights in it are divided by
changes nothing in float, so a network like that is easily made.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from tlkit_standard.strategies import STRATEGIES
from torch import nn

from tests.kit.tiny import ORIGINS, Tiny
from tlkit.errors import GateError
from tlkit.exporting.precision import publish_precision
from tlkit.exporting.run import half_trunk, publish_onnx
from tlkit.model.bundle import open_bundle
from tlkit.plugin.registry import load
from tlkit.training.run import TrainingConfig, train
from tlkit.verification.replay import replay

CHANNELS = 8
LOUD = 1000.0  # a channel that says nothing
QUIET = 0.01  # what the channels that say something are scaled by


@dataclass(frozen=True)
class Depthwise(Tiny):
    """A convolution, one by channel, and one over channels; `wild` rescales what lies between the last two."""

    name = "depthwise"
    wild: bool = True

    def stages(self, *, pretrained):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            first = nn.Conv2d(3, CHANNELS, 3, stride=2, padding=1)
            depthwise = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS)
            pointwise = nn.Conv2d(CHANNELS, 12, 1)
            with torch.no_grad():
                depthwise.weight[0], pointwise.weight[:, 0] = 0, 0
                depthwise.bias[0] = 1
                if self.wild:
                    for channel in range(CHANNELS):
                        scale = QUIET if channel else LOUD
                        depthwise.weight[channel] *= scale
                        depthwise.bias[channel] *= scale
                        pointwise.weight[:, channel] /= scale
        parts = {"first": first, "second": depthwise, "third": pointwise}
        return {name: nn.Sequential(part, nn.ReLU()).eval() for name, part in parts.items()}


@pytest.fixture(scope="module")
def climb(pictures, tmp_path_factory):
    """Trains a network and climbs from int8: the bundle, what was published, and the rungs."""

    def run(backbone, **options):
        place = tmp_path_factory.mktemp("depthwise") / "run"
        recipe = TrainingConfig(backbone, STRATEGIES[0], load().get("head", "logistic"), ORIGINS, golden=4)
        train(pictures, place, recipe)
        bundle = open_bundle(place)
        publish_onnx(bundle, recipe.backbone, recipe.head)
        half = lambda: half_trunk(bundle, recipe.backbone, recipe.head)  # noqa: E731
        return bundle, *publish_precision(bundle, "int8", half, **options)

    return run


def test_with_channels_alike_it_is_as_good_in_int8(climb):
    _, _, climbed = climb(Depthwise(wild=False), max_drop=0.5)
    assert [rung.name for rung in climbed.rungs] == ["int8"]


def test_with_channels_unlike_it_falls_apart_and_the_layers_around_them_stay_in_float(climb):
    bundle, published, climbed = climb(Depthwise(), max_drop=0.5)
    first, *_, last = climbed.rungs
    assert first.name == "int8"
    assert first.drop > 30
    assert (last.name, last.drop <= 0.5) == ("int8, 2 layers in float", True)
    noise = {layer.name: layer.noise for layer in climbed.sensitivity}
    guilty = set(climbed.rungs[-1].kept)
    assert min(noise[name] for name in guilty) > 10 * max(noise[name] for name in noise if name not in guilty)
    assert published.place == bundle.root / "onnx/int8"
    assert replay(bundle, "onnx", "int8").passed


def test_without_a_ladder_it_is_not_written(climb):
    with pytest.raises(GateError, match="does not compute what was trained"):
        climb(Depthwise())
