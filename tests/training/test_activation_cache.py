"""What frozen stages give on is computed once, as the deployed runtime gives it, and every epoch begins there."""

from __future__ import annotations

import os
from collections import namedtuple

import numpy as np
import pytest
import torch

from tests.kit.course import course, splits
from tests.kit.tiny import Line, Tiny
from tlkit.data import preprocessing as decoding
from tlkit.errors import ResourceError
from tlkit.model import trunk as trunks
from tlkit.plugin.contract import Phase, silent
from tlkit.training import activation_cache
from tlkit.training import inputs as seeing
from tlkit.training.activation_cache import ActivationCache, border, check_space
from tlkit.training.device import Device
from tlkit.training.freezing import Network
from tlkit.training.inputs import AugmentedViews, Decoded

ROWS = [np.array([5, 0]), np.array([3])]


@pytest.fixture(scope="module")
def trunk():
    return trunks.build(Tiny())


@pytest.fixture(scope="module")
def train(pictures, trunk):
    return splits(pictures, trunk)[0].images


@pytest.fixture(scope="module")
def frozen(trunk):
    return Network(trunk, Line().module(12, 3)).part(1)[0]


@pytest.fixture(scope="module")
def edge(trunk, frozen):
    return border(trunk.upto("second"), frozen, Device())


@pytest.fixture
def kept(tmp_path, train, edge):
    return ActivationCache(tmp_path, "train", train, AugmentedViews(0, crop=True, views=2), edge, Device(), silent)


def test_it_gives_what_decoding_and_the_frozen_stages_give(kept, train, frozen):
    anew = Decoded(train, frozen, kept.variety)
    for epoch in (1, 2, 3):
        for given, expected in zip(kept.batches(ROWS, epoch), anew.batches(ROWS, epoch), strict=True):
            assert given.dtype == torch.float32
            assert given.shape == expected.shape
            assert torch.allclose(given, expected, atol=1e-2)  # half precision
            assert given.is_contiguous(memory_format=torch.channels_last)


def test_epochs_take_turns_at_the_views_and_each_is_computed_once(kept, monkeypatch):
    seen, load = [], decoding.load
    monkeypatch.setattr(seeing, "load", lambda *given, **named: seen.append(1) or load(*given, **named))
    first, second, third, fourth = (torch.cat(list(kept.batches(ROWS, epoch))) for epoch in (1, 2, 3, 4))
    assert torch.equal(first, third)
    assert torch.equal(second, fourth)
    assert not torch.equal(first, second)
    assert len(seen) == 2 * len(kept.labels)


def test_it_takes_the_space_that_it_says(kept, tmp_path):
    expected = 2 * len(kept.labels) * 8 * 8 * 8 * 2  # views, images, height, width, channels, bytes
    assert kept.missing == expected
    next(kept.batches(ROWS, 1))
    assert kept.missing == 0
    files = list(tmp_path.glob("*.npy"))
    assert len(files) == 2
    assert expected < sum(file.stat().st_size for file in files) < expected + 1000


def test_another_run_finds_what_is_there_and_computes_the_rest(kept, train, edge, tmp_path, monkeypatch):
    next(kept.batches(ROWS, 1))
    max(tmp_path.iterdir()).unlink()
    again = ActivationCache(tmp_path, "train", train, kept.variety, edge, Device(), silent)
    seen, load = [], decoding.load
    monkeypatch.setattr(seeing, "load", lambda *given, **named: seen.append(1) or load(*given, **named))
    for epoch in (1, 2):
        assert torch.equal(next(again.batches(ROWS, epoch)), next(kept.batches(ROWS, epoch)))
    assert len(seen) == len(train.labels)


def test_values_beyond_half_precision_are_kept_in_single(kept, train, edge, tmp_path):
    large = edge.__class__(lambda images: edge.give(images) + 1e6, edge.batch_size, edge.workers, edge.key, edge.shape)
    there = ActivationCache(tmp_path, "large", train, kept.variety, large, Device(), silent)
    given, plain = (torch.cat(list(each.batches(ROWS, 1))) for each in (there, kept))
    assert torch.allclose(given, plain + 1e6, rtol=1e-6)
    assert {np.load(file).dtype for file in tmp_path.glob("*large*")} == {np.dtype("float32")}


def test_a_disk_without_room_is_told_of_before_any_work(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")  # noqa: PYI024 - stands for shutil's own
    monkeypatch.setattr(activation_cache.shutil, "disk_usage", lambda _folder: usage(10_000_000))
    check_space(tmp_path, 9_000_000)
    with pytest.raises(ResourceError, match=r"takes 12 GB, and 9\.5 MB are free; take fewer --views"):
        check_space(tmp_path, 12_000_000_000)


def test_a_disk_that_fills_up_leaves_no_half_view(kept, monkeypatch, tmp_path):
    def full(_descriptor):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="no space left on device"):
        next(kept.batches(ROWS, 1))
    assert list(tmp_path.iterdir()) == []


def test_training_with_it_and_without_it_comes_to_the_same(pictures, tmp_path):
    phases = (Phase(4, 0.01, trunk_lr=0.002, trainable=1, batch_size=8, augment=True),)
    (tmp_path / "kept").mkdir()
    (_, with_it), (_, without) = (course(pictures, work, phases=phases) for work in (tmp_path / "kept", None))
    losses = [[line["val_loss"] for line in fitted.history] for fitted in (with_it, without)]
    assert losses[0] == pytest.approx(losses[1], abs=0.02)
    assert losses[0] != losses[1]  # half precision: both were really run


def test_the_output_of_other_borders_is_forgotten(pictures, tmp_path):
    phases = [Phase(2, 0.05, trunk_lr=0.02, trainable=moving, batch_size=8, augment=True) for moving in (1, 2)]
    course(pictures, tmp_path, phases=tuple(phases))
    assert len({file.name.split("-")[0] for file in tmp_path.glob("*.npy")}) == 1
