"""Crops that a device makes of images that stay there: bit for bit those of Pillow, from as few decodes as possible."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image

from tests.kit.course import as_on_a_gpu, course, same
from tests.kit.tiny import Tiny
from tlkit.data.preprocessing import load
from tlkit.plugin.contract import Augmentation, Phase, Preprocessing
from tlkit.training import crops, inputs
from tlkit.training.crops import crop, matches_pillow
from tlkit.training.device import Device
from tlkit.training.inputs import AugmentedViews, DecodedImages, Examples

INTERPOLATIONS = ("bilinear", "bicubic")
MODES = ("center", "squash")


def by_pillow(image, box, size, interpolation):
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling[interpolation.upper()], box))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("size", [7, 32, 224])
def test_a_crop_is_bit_for_bit_that_of_pillow(interpolation, size):
    random = np.random.default_rng(size)
    images, boxes = [], []
    for _ in range(24):
        height, width = random.integers(1, 400, 2)
        images.append((255 * random.integers(0, 2, (height, width, 3))).astype(np.uint8))  # the sharpest edges
        (left, right), (top, bottom) = (np.sort(random.uniform(0, extent, 2)) for extent in (width, height))
        boxes.append((left, top, min(width, right + 1), min(height, bottom + 1)))
    images.append(random.integers(0, 256, (size, size, 3), dtype=np.uint8))
    boxes.append((0, 0, size, size))  # which Pillow copies
    planes = [torch.from_numpy(image).permute(2, 0, 1) for image in images]
    found = crop(planes, boxes, size, interpolation, lambda tensor: tensor).numpy()
    for image, box, each in zip(images, boxes, found, strict=True):
        assert np.array_equal(each, by_pillow(image, box, size, interpolation))


def made(files, *, mode="center", interpolation="bilinear", size=32, epochs=3, device=None):
    preprocessing = Preprocessing(size, (0.5,) * 3, (0.5,) * 3, crop_mode=mode, interpolation=interpolation)
    examples = Examples(np.zeros((len(files), 1), np.float32), np.zeros(len(files), np.int64), files)
    views = AugmentedViews(preprocessing, 1, crop=True)
    return DecodedImages(examples, views, torch.nn.Identity(), device or as_on_a_gpu(), 0, epochs)


def assert_same(files, orders, **options):
    """Compare what the device crops with what the CPU does, epoch by epoch; return the images."""
    images = made(files, **options)
    assert images.cropped_there
    for epoch, batches in enumerate(orders, 1):
        for found, expected in zip(images.batches(batches, epoch), images.pixels(batches, epoch), strict=True):
            assert torch.equal(found, expected)
    return images


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_images_of_all_kinds_give_the_bytes_of_the_cpu(odd, mode, interpolation):
    order = np.random.default_rng(0).permutation(len(odd))
    batches = np.split(order, [5, 10])
    images = assert_same(odd, [batches, [np.array([3, 3, 0])], batches[::-1]], mode=mode, interpolation=interpolation)
    assert {odd[index].name for (index, _), kept in images.uncropped.items() if kept is None} == {"huge.png"}
    assert {index for index, _ in images.uncropped} == set(range(len(odd)))
    assert {scale for index, scale in images.uncropped if odd[index].name == "large.jpg"} <= {2, 4}


@pytest.mark.parametrize("room", [2**28, 30_000])
def test_each_is_decoded_once_if_it_fits(pictures, monkeypatch, room):
    files, decoded, decode = sorted(pictures.rglob("*.png"))[:8], [], crops.decode
    monkeypatch.setattr(crops, "decode", lambda path, *given: decoded.append(path) or decode(path, *given))
    monkeypatch.setattr(Device, "room", lambda _: room)
    batches = [np.array([2, 0, 7, 5]), np.array([1, 3, 4, 6])]
    images = assert_same(files, [batches] * 3, size=16)
    kept = sum(planes.numel() for planes, *_ in images.uncropped.values())
    assert kept <= room
    assert images.room == [room - kept]
    assert len(decoded) == len(files) + 2 * (len(files) - len(images.uncropped))
    assert (len(images.uncropped) == len(files)) == (room == 2**28)


@pytest.mark.parametrize(("room", "together"), [(2**24, [8, 8]), (3 * 3 * 16 * 48, [3, 3, 2, 3, 3, 2]), (1, [1] * 16)])
def test_images_are_resampled_together_as_far_as_the_memory_goes(pictures, monkeypatch, room, together):
    files, found, made_at_once = sorted(pictures.rglob("*.png"))[:8], [], crops.crop
    monkeypatch.setattr(crops, "matches_pillow", lambda *_: True)
    monkeypatch.setattr(crops, "TOGETHER", room)
    monkeypatch.setattr(crops, "crop", lambda images, *given: found.append(len(images)) or made_at_once(images, *given))
    assert_same(files, [[np.arange(8)]] * 2, size=16)
    assert found == together


def test_every_nth_picture_of_the_data_sets_gives_the_bytes_of_the_cpu(shared_data):
    files = sorted(chain.from_iterable(shared_data.rglob(f"*.{suffix}") for suffix in ("jpg", "png")))
    files = files[:: max(1, len(files) // 20)]
    assert_same(files, [np.array_split(np.arange(len(files)), 2)] * 2, interpolation="bicubic", size=224)


@pytest.mark.parametrize(
    "change",
    [{"mode": "border"}, {"interpolation": "nearest"}, {"epochs": 1}, {"device": Device()}],
    ids=["border", "nearest", "one epoch", "not there"],
)
def test_others_are_decoded_in_every_epoch(pictures, change):
    assert not made(sorted(pictures.rglob("*.png"))[:2], **change).cropped_there


def test_a_device_that_computes_another_byte_is_not_used(pictures, monkeypatch):
    files = sorted(pictures.rglob("*.png"))[:2]
    monkeypatch.setattr(crops, "BITS", 21)
    matches_pillow.cache_clear()
    assert not matches_pillow(torch.device("cpu"), "bilinear")
    assert not made(files).cropped_there
    matches_pillow.cache_clear()


def test_a_training_with_them_is_bit_for_bit_the_same(pictures, monkeypatch):
    phase = Phase(3, 0.02, trunk_lr=0.01, trainable=3, batch_size=8, augmentation=Augmentation(crop=True))
    assert Tiny.preprocessing.interpolation in INTERPOLATIONS
    device, plain = as_on_a_gpu(), as_on_a_gpu()
    plain.crops = False
    loaded = []

    def noted(*given, view=None):
        loaded.append(view)
        return load(*given, view=view)

    monkeypatch.setattr(inputs, "load", noted)
    weights, fitted = course(pictures, phases=(phase,), device=device, views=0)
    assert not any(loaded)  # no view is made by the CPU
    expected, usual = course(pictures, phases=(phase,), device=plain, views=0)
    assert any(loaded)
    assert same(weights, expected)
    assert fitted.history == usual.history
