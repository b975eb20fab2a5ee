"""Another input size than that of the pretraining: allowed where the weights fit, refused with the reason elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from tests.kit.exporting import exported, replayed
from tests.kit.tiny import Tiny
from tlkit.errors import UsageError
from tlkit.model.bundle import open_bundle
from tlkit.model.trunk import resized
from tlkit.training.run import train


class Places(nn.Module):
    """Adds a learnt value to each place, as vision transformers do: there are as many as there were in training."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(8, 16, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.values[: x.shape[1]]


@dataclass(frozen=True)
class Placed(Tiny):
    """Its first stage knows places."""

    def stages(self, *, pretrained: bool) -> Mapping[str, nn.Module]:
        stages = dict(super().stages(pretrained=pretrained))
        stages["first"].append(Places())
        return stages


def test_weights_that_fit_are_used_at_another_size(pictures, tiny_recipe, tmp_path):
    train(pictures, tmp_path / "run", replace(tiny_recipe, size=48))
    bundle = open_bundle(tmp_path / "run")
    assert bundle.record.preprocessing == replace(Tiny.preprocessing, size=48)
    exported(bundle.root, tiny_recipe.backbone, tiny_recipe.head)
    assert replayed(bundle.root).passed


def test_weights_that_do_not_fit_are_refused_with_the_stage_and_the_reason():
    assert resized(Placed(), 32).size == 32
    with pytest.raises(
        UsageError, match=r"tiny can't take images of 48 pixels: stage 'first' fails: .*; leave out --siz"
    ):
        resized(Placed(), 48)


def test_an_image_of_which_nothing_is_left_is_refused(monkeypatch):
    class Crop(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[..., 2:, 2:]

    stages = Tiny.stages

    def cropping(self, *, pretrained):
        return {**stages(self, pretrained=pretrained), "third": Crop()}

    monkeypatch.setattr(Tiny, "stages", cropping)
    with pytest.raises(UsageError, match="stage 'third' fails: nothing is left of an image"):
        resized(Tiny(), 8)
