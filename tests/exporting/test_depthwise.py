"""A depthwise network that falls apart in int8: the precision search leaves the layers in float that it is due to.

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

from tests.kit.exporting import exported, replayed, searched
from tests.kit.tiny import ORIGINS, Tiny
from tlkit.errors import GateError
from tlkit.model.bundle import open_bundle
from tlkit.plugin.registry import load
from tlkit.training.config import TrainingConfig
from tlkit.training.run import train

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
def search(pictures, tmp_path_factory):
    """Trains a network and searches from int8: the bundle, what was exported, and the search."""

    def run(backbone, **options):
        place = tmp_path_factory.mktemp("depthwise") / "run"
        config = TrainingConfig(backbone, STRATEGIES[0], load().get("head", "logistic"), ORIGINS, golden=4)
        train(pictures, place, config)
        bundle = open_bundle(place)
        exported(place, config.backbone, config.head)
        return bundle, *searched(place, config.backbone, config.head, **options)

    return run


def test_with_similar_channels_it_is_as_good_in_int8(search):
    _, _, found = search(Depthwise(wild=False), max_drop=0.5)
    assert [candidate.name for candidate in found.candidates] == ["int8"]


def test_with_different_channels_it_falls_apart_and_the_layers_around_them_stay_in_float(search):
    bundle, written, found = search(Depthwise(), max_drop=0.5)
    first, *_, last = found.candidates
    assert first.name == "int8"
    assert first.drop > 30
    assert (last.name, last.drop <= 0.5) == ("int8, 2 layers in float", True)
    error = {layer.name: layer.error for layer in found.sensitivity}
    guilty = set(found.candidates[-1].kept)
    assert min(error[name] for name in guilty) > 10 * max(error[name] for name in error if name not in guilty)
    assert written.folder == bundle.root / "onnx/int8"
    assert replayed(bundle.root, "int8").passed


def test_without_a_search_it_is_not_written(search):
    with pytest.raises(GateError, match="does not compute what was trained"):
        search(Depthwise())
