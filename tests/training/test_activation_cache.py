"""The output of frozen stages is computed once per view, by the deployed runtime, and every epoch begins there."""

from __future__ import annotations

import os
import threading
import warnings
from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.kit.course import course, splits
from tests.kit.tiny import WIDTHS, Line, Seeded, Tiny
from tlkit.errors import ResourceError, TlkitWarning
from tlkit.model import trunk as trunks
from tlkit.plugin.contract import Augmentation, Phase
from tlkit.training import activation_cache, inputs
from tlkit.training.activation_cache import ActivationCache, check_space, open_cache
from tlkit.training.device import Device
from tlkit.training.freezing import Network
from tlkit.training.inputs import AugmentedViews, DecodedImages

CROP = Augmentation(crop=True)
ROWS = [np.array([5, 0]), np.array([3])]
VIEWS = AugmentedViews(Tiny.preprocessing, 0, crop=True, views=2)


class Counting(AugmentedViews):
    """Counts the images that are decoded."""

    decoded = 0

    def decode(self, path, number, index):
        type(self).decoded += 1
        return super().decode(path, number, index)


@pytest.fixture
def views(monkeypatch):
    monkeypatch.setattr(Counting, "decoded", 0)
    return Counting(Tiny.preprocessing, 0, crop=True, views=2)


@pytest.fixture(scope="module")
def trunk():
    return trunks.build(Tiny())


@pytest.fixture(scope="module")
def train(pictures, trunk):
    return splits(pictures, trunk)[0]


@pytest.fixture(scope="module")
def frozen(trunk):
    return Network(Line().module(12, 3), trunk).split([Phase(1, 1, trainable=1)])[0]


@pytest.fixture
def cache(tmp_path, train, trunk, frozen, views):
    stages, val = trunk.upto("second"), (train, AugmentedViews(Tiny.preprocessing, 0))
    return open_cache(tmp_path, stages, frozen, (train, views), val, Device())[0]


def test_it_gives_what_decoding_and_the_frozen_stages_give(cache, train, frozen):
    decoded = DecodedImages(train, VIEWS, frozen)
    for epoch in (1, 2, 3):
        for output, expected in zip(cache.batches(ROWS, epoch), decoded.batches(ROWS, epoch), strict=True):
            assert output.dtype == torch.float32
            assert output.shape == expected.shape
            assert torch.allclose(output, expected, atol=1e-2)  # half precision
            assert output.is_contiguous(memory_format=torch.channels_last)


def test_epochs_use_the_views_in_rotation_and_each_is_computed_once(cache, views):
    first, second, third, fourth = (torch.cat(list(cache.batches(ROWS, epoch))) for epoch in (1, 2, 3, 4))
    assert torch.equal(first, third)
    assert torch.equal(second, fourth)
    assert not torch.equal(first, second)
    assert views.decoded == 2 * len(cache.labels)


def test_a_gpu_sees_batches_of_one_shape_while_all_cores_decode(cache, train, frozen, monkeypatch, tmp_path):
    together, shapes, put = threading.Barrier(3), [], []

    class Waiting(AugmentedViews):
        def decode(self, path, number, index):
            together.wait(timeout=60)
            return super().decode(path, number, index)

    class Noted(Device):
        def put(self, tensor):
            put.append(tensor)
            return super().put(tensor)

    def noted(x):
        shapes.append(len(x))
        return frozen(x)

    monkeypatch.setattr(inputs, "cores", lambda: 3)
    views = Waiting(Tiny.preprocessing, 0, crop=True, views=2)
    gpu = ActivationCache(tmp_path / "gpu", "train", train, views, noted, None, "key", Noted())
    for output, expected in zip(gpu.batches(ROWS, 1), cache.batches(ROWS, 1), strict=True):
        assert torch.allclose(output, expected, atol=1e-2)
    assert set(shapes) == {activation_cache.GPU_BATCH_SIZE}
    assert [each.tolist() for each in put if each.dtype == torch.int64] == [rows.tolist() for rows in ROWS]


def test_it_takes_the_space_that_it_states(cache, tmp_path):
    expected = 2 * len(cache.labels) * 8 * 8 * 8 * 2  # views, images, height, width, channels, bytes
    assert cache.missing == expected
    next(cache.batches(ROWS, 1))
    assert cache.missing == 0
    files = list(tmp_path.glob("*.npy"))
    assert len(files) == 2
    assert expected < sum(file.stat().st_size for file in files) < expected + 1000


def test_another_run_finds_what_is_there_and_computes_the_rest(cache, train, views, tmp_path):
    next(cache.batches(ROWS, 1))
    max(tmp_path.iterdir()).unlink()
    again, before = replace(cache, examples=train, views=views, opened={}), views.decoded
    for epoch in (1, 2):
        assert torch.equal(next(again.batches(ROWS, epoch)), next(cache.batches(ROWS, epoch)))
    assert views.decoded == before + len(train.labels)


def test_values_beyond_half_precision_are_kept_in_single(cache, tmp_path):
    class Large(ActivationCache):
        def compute(self, images):
            return super().compute(images) + 1e6

    large = Large(tmp_path, "large", cache.examples, VIEWS, cache.frozen, cache.session, cache.key, cache.device)
    output, plain = (torch.cat(list(each.batches(ROWS, 1))) for each in (large, cache))
    assert torch.allclose(output, plain + 1e6, rtol=1e-6)
    assert {np.load(file).dtype for file in tmp_path.glob("*large*")} == {np.dtype("float32")}


def test_a_disk_without_room_is_an_error_before_any_work(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")  # noqa: PYI024 - stands for shutil's own
    monkeypatch.setattr(activation_cache.shutil, "disk_usage", lambda _folder: usage(10_000_000))
    check_space(tmp_path, 9_000_000)
    with pytest.raises(ResourceError, match=r"takes 12 GB, and 9\.5 MB are free; use fewer --views"):
        check_space(tmp_path, 12_000_000_000)


def test_a_disk_that_fills_up_leaves_no_half_view(cache, monkeypatch, tmp_path):
    def full(_descriptor):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="no space left on device"):
        next(cache.batches(ROWS, 1))
    assert list(tmp_path.iterdir()) == []


def test_training_with_it_and_without_it_gives_the_same_losses(pictures, tmp_path):
    phases = (Phase(4, 0.01, trunk_lr=0.002, trainable=1, batch_size=8, augmentation=CROP),)
    (tmp_path / "kept").mkdir()
    (_, with_it), (_, without) = (course(pictures, work, phases=phases) for work in (tmp_path / "kept", None))
    losses = [[line["val_loss"] for line in fitted.history] for fitted in (with_it, without)]
    assert losses[0] == pytest.approx(losses[1], abs=0.02)
    assert losses[0] != losses[1]  # half precision: both were really run


@pytest.mark.parametrize(("named", "globs"), [(("second",), ("*",)), (("first", "second"), ("*bias",))])
def test_it_ends_before_the_first_stage_that_learns(pictures, tmp_path, monkeypatch, named, globs):
    monkeypatch.setattr(Seeded, "stages", with_bias_free_stage)
    phase = Phase(2, 0.05, trunk_lr=0.02, trainable=named, parameters=globs, batch_size=8, augmentation=CROP)
    _, fitted = course(pictures, tmp_path, phases=(phase,))
    shapes = {np.load(file, mmap_mode="r").shape[3] for file in tmp_path.glob("*.npy")}
    assert shapes == {WIDTHS["first"]}
    assert fitted.changed == ("second",)


def with_bias_free_stage(backbone, *, pretrained):
    stages = dict(Tiny.stages(backbone, pretrained=pretrained))
    stages["first"] = torch.nn.Sequential(torch.nn.Conv2d(3, WIDTHS["first"], 3, 2, 1, bias=False), torch.nn.ReLU())
    return stages


def test_the_output_of_other_stages_is_removed(pictures, tmp_path):
    phases = [Phase(2, 0.05, trunk_lr=0.02, trainable=count, batch_size=8, augmentation=CROP) for count in (1, 2)]
    course(pictures, tmp_path, phases=tuple(phases))
    assert len({file.name.split("-")[0] for file in tmp_path.glob("*.npy")}) == 1


@pytest.mark.parametrize("damage", ["a bit", "a row less", "no end", "no header", "another shape"])
def test_a_damaged_view_is_computed_again(cache, damage):
    (before,) = cache.batches([np.arange(len(cache.labels))], 1)
    file = cache._file(1)
    content = bytearray(file.read_bytes())
    if damage == "a bit":
        content[len(content) // 2] ^= 1
    elif damage == "a row less":
        del content[-100:]
    elif damage == "no end":
        del content[len(content) // 2 :]
    elif damage == "no header":
        content[:6] = bytes(6)
    else:
        content = content.replace(b"'shape': (27,", b"'shape': (26,")
    file.write_bytes(content)
    cache.opened.clear()
    with pytest.warns(TlkitWarning, match="a cached view was damaged and is computed again"):
        (after,) = cache.batches([np.arange(len(cache.labels))], 1)
    assert torch.equal(before, after)
    cache.opened.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        next(cache.batches([np.arange(len(cache.labels))], 1))
