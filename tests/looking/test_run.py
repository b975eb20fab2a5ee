"""A look into the tiny network: its own filters, maps and patches, on a page without a script."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

import tlkit
from tests.kit.exporting import modules
from tests.kit.tiny import forget_source
from tlkit.data.dataset import read
from tlkit.data.preprocessing import load
from tlkit.errors import UsageError
from tlkit.looking.peaks import Exciting, box, spatial
from tlkit.looking.run import PATCHES, first_filters, look
from tlkit.model.trunk import tensors
from tlkit.runtime.model import Model
from tlkit.runtime.session import load_graph

SHOWN = 4  # channels of a stage


@pytest.fixture(scope="module")
def trained(tiny_run, tiny_config):
    return modules(tiny_run, tiny_config.backbone, tiny_config.head)


@pytest.fixture(scope="module")
def looked(trained, tiny_run, pictures):
    with Model.open(tiny_run) as model:
        samples = read(pictures).samples
        return look(model, *trained.maps_graph(), pictures / "light/03.png", samples, SHOWN), model


def maps_of(trained, images):
    """The maps of images `(N, h, w, C)` by stage, in PyTorch."""
    trunk = trained._modules[0]
    with torch.inference_mode():
        return dict(zip(trunk.names, (x.permute(0, 2, 3, 1).numpy() for x in trunk.maps(images)), strict=True))


def test_the_filters_are_those_of_the_first_layer(looked, trained):
    weights = tensors(trained._modules[0].stages["first"][0])["weight"]
    filters = looked[0].filters
    assert filters.shape == (6, 3, 3, 3)
    for ours, theirs in zip(filters, weights.transpose(0, 2, 3, 1), strict=True):  # scaled by the batch norm
        assert abs(np.corrcoef(ours.ravel(), theirs.ravel())[0, 1]) > 0.999
    graph = load_graph(trained.maps_graph()[0])
    del graph.graph.node[: next(i for i, node in enumerate(graph.graph.node) if node.op_type == "Conv") + 1]
    assert first_filters(graph).shape[0] == 0  # the next layer reads no colors


def test_the_maps_are_those_of_each_stage(looked, trained, pictures):
    found, model = looked
    pixels = load(pictures / "light/03.png", model.preprocessing)
    assert [stage.name for stage in found.stages] == ["first", "second"]
    maps = maps_of(trained, torch.from_numpy(pixels[None]))
    for stage in found.stages:
        assert stage.maps == pytest.approx(maps[stage.name][0], abs=1e-4)


def test_patches_surround_the_highest_activations_of_all_images(looked, trained, pictures):
    found, model = looked
    samples = read(pictures).samples
    maps = maps_of(trained, torch.from_numpy(np.stack([load(each.path, model.preprocessing) for each in samples])))
    for stage in found.stages:
        peaks = maps[stage.name].max((1, 2))
        own = stage.maps.max((0, 1))
        apart = (own - peaks.mean(0)) / np.maximum(peaks.std(0), 1e-9)
        assert [each.number for each in stage.channels] == np.argsort(-apart, kind="stable")[:SHOWN].tolist()
        for channel in stage.channels:
            highest = np.sort(peaks[:, channel.number])[::-1][:PATCHES]
            assert [each.activation for each in channel.patches] == pytest.approx(highest, abs=1e-4)
            first = channel.patches[0]
            row = [sample.path for sample in samples].index(first.sample.path)
            y, x = np.unravel_index(maps[stage.name][row, ..., channel.number].argmax(), stage.maps.shape[:2])
            left, top, right, bottom = first.box
            scale = 32 / stage.maps.shape[0]
            assert left <= (x + 0.5) * scale <= right
            assert top <= (y + 0.5) * scale <= bottom


def test_the_page_shows_it_and_runs_nothing(looked):
    found = looked[0]
    text = found.page
    assert "<script" not in text
    assert "script-src 'none'" in text
    pictures = re.findall(r'<img[^>]* src="([^"]+)"', text)
    assert all(re.match(r"data:image/(jpeg|png);base64,", each) for each in pictures)
    assert len(pictures) == 3 + 3 + 6 + 2 * SHOWN * (1 + PATCHES)  # evidence, depth, filters, channels
    assert "each position left out of the mean" in text
    assert f"evidence for {found.prediction.label}" in text
    facts = json.loads(json.dumps(found.to_json()))
    assert facts["stages"]["first"]["shape"] == [16, 16, 6]
    assert "first: 16 x 16, 6 channels" in repr(found)


def test_without_a_dataset_there_are_no_patches(own_run, pictures, tmp_path):
    forget_source(own_run)
    with pytest.MonkeyPatch.context() as patch:
        use_tiny(patch)
        found = tlkit.look(own_run, pictures / "light/03.png", tmp_path / "look.html", channels=2)
    assert (found.images, [len(each.patches) for stage in found.stages for each in stage.channels]) == (0, [0] * 4)
    assert "no dataset to find patches in" in (tmp_path / "look.html").read_text()
    with pytest.raises(UsageError, match="channels must be at least 1"):
        tlkit.look(own_run, pictures / "light/03.png", channels=0)


def use_tiny(patch):
    """Have bundles of the tiny components opened, which no plugin provides."""
    from tests.kit.tiny import Line, Tiny
    from tlkit import resolve

    patch.setattr(resolve, "_made_with", lambda _bundle: (Tiny(), Line()))


def test_maps_of_every_layout_have_their_channels_last():
    array = np.arange(2 * 10 * 5, dtype=np.float32).reshape(2, 10, 5)
    assert np.array_equal(spatial(array, 5), array[:, 1:].reshape(2, 3, 3, 5))
    assert spatial(array[:, :2], 5) is None
    assert spatial(array[:, 0], 5) is None
    last = np.arange(2 * 3 * 4 * 6, dtype=np.float32).reshape(2, 3, 4, 6)
    assert np.array_equal(spatial(last, 6), last)
    moved = last.transpose(0, 2, 3, 1)  # as the graph gives maps whose channels were last already
    assert np.array_equal(spatial(moved, 6), last)


def test_the_best_images_of_each_channel_are_kept_batch_by_batch():
    random = np.random.default_rng(0)
    peaks = random.random((30, 4), np.float32)
    found = Exciting.empty(4, 5)
    for start in range(0, 30, 7):
        rows = list(range(start, min(30, start + 7)))
        found.add(rows, peaks[rows], np.float32(rows)[:, None] + np.zeros(4, np.float32))
    assert np.array_equal(found.rows, np.argsort(-peaks, axis=0)[:5].T)
    assert np.array_equal(found.places, found.rows)
    assert found.stands_out(peaks[3]) == pytest.approx((peaks[3] - peaks.mean(0)) / peaks.std(0), abs=1e-3)
    assert Exciting.empty(3, 2).stands_out(np.float32([1, 3, 2])).argmax() == 1  # without a dataset, the highest


@pytest.mark.parametrize("at", [0, 6, 42, 48, 24])
def test_a_patch_is_a_square_inside_the_image(at):
    left, top, right, bottom = box(at, (7, 7), 224)
    assert right - left == bottom - top == 96
    assert min(left, top) >= 0
    assert max(right, bottom) <= 224
    assert box(0, (1, 1), 20) == (0, 0, 20, 20)
