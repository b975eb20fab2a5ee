"""The trunk: its preprocessing, its cuts, its identity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from tests.kit.tiny import WIDTHS, Tiny
from tlkit.errors import ArtifactError, UsageError
from tlkit.model import trunk as trunks
from tlkit.plugin.contract import Preprocessing


@pytest.fixture(scope="module")
def tiny():
    return trunks.build(Tiny())


@pytest.fixture(scope="module")
def images():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8))


def test_normalize_is_the_preprocessing_and_moves_channels_first(images):
    preprocessing = Tiny.preprocessing
    expected = (images.double() / 255 - torch.tensor(preprocessing.mean)) / torch.tensor(preprocessing.std)
    assert torch.allclose(trunks.Normalize(preprocessing)(images), expected.permute(0, 3, 1, 2).float(), atol=1e-5)


def test_the_published_preprocessing_of_efficientnet_lite_is_exact():
    grey = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(1, 16, 16, 3)
    preprocessing = Preprocessing(16, (127 / 255,) * 3, (128 / 255,) * 3)
    expected = (torch.arange(256).float() - 127) / 128
    assert torch.equal(trunks.Normalize(preprocessing)(grey)[0, 0].flatten(), expected)


@pytest.mark.parametrize("cut", WIDTHS)
def test_a_cut_gives_the_features_of_its_stage(tiny, images, cut):
    with torch.inference_mode():
        taps = dict(zip(tiny.names, trunks.StageFeatures(tiny)(images), strict=True))
        assert torch.equal(tiny.upto(cut)(images), taps[cut])
    assert taps[cut].shape == (5, WIDTHS[cut])


def test_rows_do_not_depend_on_their_batch(tiny, images):
    with torch.inference_mode():
        together, alone = tiny(images), torch.cat([tiny(image[None]) for image in images])
    assert torch.allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 5, 4, 4), (2, 7, 5), (2, 5)])
def test_the_mean_goes_over_space_or_tokens(shape):
    pooled = trunks.MeanPool()(torch.arange(float(np.prod(shape))).reshape(shape))
    assert pooled.shape == (2, 5)


def test_an_unknown_cut_names_the_stages(tiny):
    with pytest.raises(UsageError, match="first, second, third"):
        tiny.upto("fourth")


@pytest.mark.parametrize("names", [(), ("ok", "not ok"), ("a.b",)])
def test_stages_a_plugin_may_not_have_are_refused(names):
    class Odd(Tiny):
        def stages(self, *, pretrained):
            return {name: nn.Identity() for name in names}

    with pytest.raises(UsageError, match="author of the plugin"):
        trunks.build(Odd())


class TestFingerprint:
    def test_is_the_same_for_the_same_trunk(self):
        assert trunks.fingerprint(trunks.build(Tiny())) == trunks.fingerprint(trunks.build(Tiny()))

    def test_changes_with_one_weight(self, tiny):
        other = trunks.build(Tiny())
        with torch.no_grad():
            other.stages["second"][0].bias[3] += 1e-6
        assert trunks.fingerprint(other) != trunks.fingerprint(tiny)

    def test_changes_with_a_statistic_of_batch_norm(self, tiny):
        other = trunks.build(Tiny())
        other.stages["second"][1].running_mean[0] += 1e-6
        assert trunks.fingerprint(other) != trunks.fingerprint(tiny)

    def test_changes_with_the_preprocessing_the_cut_and_the_structure(self, tiny):
        params = trunks.build(Tiny(), preprocessing=Preprocessing(32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), crop_pct=0.8))
        structure = trunks.build(Tiny())
        structure.stages["third"][2] = nn.ReLU6()
        prints = {trunks.fingerprint(t) for t in (tiny, params, structure, tiny.upto("second"))}
        assert len(prints) == 4

    def test_changes_with_the_code_of_a_layer(self, tiny, tmp_path, monkeypatch):
        monkeypatch.syspath_prepend(tmp_path)
        prints = set()
        for body in ("return x", "return -x"):
            (tmp_path / "layer_of_a_plugin.py").write_text(
                f"from torch import nn\nclass Layer(nn.Module):\n    def forward(self, x):\n        {body}\n"
            )
            import layer_of_a_plugin

            trunk = trunks.build(Tiny())
            trunk.stages["third"].append(layer_of_a_plugin.Layer())
            prints.add(trunks.fingerprint(trunk))
        assert len(prints) == 2


class TestLoadTensors:
    def test_round_trip(self, tiny, images):
        other = trunks.build(Tiny(), pretrained=False)
        with torch.inference_mode():
            assert not torch.equal(other(images), tiny(images))
            trunks.load_tensors(other, trunks.tensors(tiny), what="trunk")
            assert torch.equal(other(images), tiny(images))

    def test_the_arrays_share_no_memory_with_the_module(self, tiny):
        arrays = trunks.tensors(tiny)
        before = tiny.stages["first"][0].weight.clone()
        arrays["stages.first.0.weight"][:] = 0
        assert torch.equal(tiny.stages["first"][0].weight, before)

    def test_what_does_not_fit_is_named(self, tiny):
        arrays = trunks.tensors(tiny)
        arrays["stages.first.0.bias"] = np.zeros(3, np.float32)
        del arrays["stages.third.0.weight"]
        arrays["stages.fourth.0.weight"] = np.zeros(3, np.float32)
        with pytest.raises(ArtifactError) as raised:
            trunks.load_tensors(trunks.build(Tiny()), arrays, what="trunk")
        for part in ("third.0.weight is missing", "fourth.0.weight is unknown", "shape (3,), not (6,)"):
            assert part in str(raised.value)


class Positions(nn.Module):
    """Adds a learned value to each position, as vision transformers do: there are as many as in training."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(8, 16, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.values[: x.shape[1]]


class Crop(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., 2:, 2:]


@dataclass(frozen=True)
class Positional(Tiny):
    """Its first stage depends on the input size."""

    def stages(self, *, pretrained: bool) -> Mapping[str, nn.Module]:
        stages = dict(super().stages(pretrained=pretrained))
        stages["first"].append(Positions())
        return stages


@dataclass(frozen=True)
class Cropping(Tiny):
    """Its last stage takes a border away."""

    def stages(self, *, pretrained: bool) -> Mapping[str, nn.Module]:
        return {**super().stages(pretrained=pretrained), "third": Crop()}


def test_weights_that_do_not_fit_another_size_are_refused_with_the_stage_and_the_reason():
    assert trunks.resized(Positional(), 32).size == 32
    with pytest.raises(
        UsageError, match=r"tiny can't take images of 48 pixels: stage 'first' fails: .*; leave out --siz"
    ):
        trunks.resized(Positional(), 48)


def test_an_image_of_which_nothing_is_left_is_refused():
    with pytest.raises(UsageError, match="stage 'third' fails: its output is empty"):
        trunks.resized(Cropping(), 8)


def test_tokens_and_maps_with_channels_last_are_pooled():
    x = torch.arange(24.0).reshape(1, 2, 3, 4)
    assert torch.equal(trunks.ChannelsLastPool()(x), x.mean((1, 2)))
    tokens = x.reshape(1, 6, 4)
    assert torch.equal(trunks.TokenPool(2, first=True)(tokens), tokens[:, 0])
    assert torch.equal(trunks.TokenPool(2, first=False)(tokens), tokens[:, 2:].mean(1))
    for pool in (trunks.ChannelsLastPool(), trunks.TokenPool(1, first=True)):
        assert pool(x[0, 0]) is not None
        assert torch.equal(pool(x[0, 0]), x[0, 0])
