"""The pixels are those of timm's own transform, in each of its crop modes."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data import create_transform
from timm.models import get_pretrained_cfg
from tlkit_timm import loading
from tlkit_timm.backbone import Timm

from tlkit.data.preprocessing import load
from tlkit.plugin.contract import Preprocessing


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("mode", "crop_pct"), [("center", 0.875), *product(("squash", "border"), (1.0, 0.875))])
def test_pixels_are_those_of_timms_transform(mode: str, crop_pct: float, turned: bool) -> None:
    preprocessing = Preprocessing(112, (0.2, 0.5, 0.7), (1.0, 1.0, 1.0), crop_pct, mode, "bicubic")
    theirs = create_transform(
        112, interpolation="bicubic", mean=preprocessing.mean, crop_pct=crop_pct, crop_mode=mode, normalize=False
    )
    for photograph in load_sample_images().images:
        picture = Image.fromarray(photograph[:, :601])
        picture = picture.transpose(Image.Transpose.ROTATE_90) if turned else picture
        apart = np.abs(load(picture, preprocessing).astype(int) - theirs(picture).numpy().transpose(1, 2, 0))
        # For the centered square timm resizes and then crops, at whole pixels; otherwise both do the same.
        assert apart.mean() < 0.5 if mode == "center" else apart.max() <= 1


def test_the_crop_mode_is_that_of_the_weights() -> None:
    assert Timm("timm/convnext_tiny", tag="in12k_ft_in1k_384").preprocessing.crop_mode == "squash"
    assert Timm("timm/resnet18").preprocessing.crop_mode == "center"
    bordered = loading.preprocessing(get_pretrained_cfg("deepseek_vit_412m"), None)
    assert (bordered.crop_mode, bordered.crop_pct) == ("border", 1.0)
