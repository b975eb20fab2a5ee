"""Augmented views follow from seed, number and image; validation and the deployed graph see the same pixels."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from tests.kit.course import course
from tests.kit.tiny import Tiny
from tlkit.data.preprocessing import load
from tlkit.errors import DataError, ResourceError
from tlkit.model import trunk as trunks
from tlkit.plugin.contract import Augmentation, Phase
from tlkit.training.inputs import AugmentedViews, DecodedImages, Examples, mixing, split_batches

PREPROCESSING = Tiny.preprocessing


@pytest.fixture
def normalize():
    return trunks.build(Tiny()).normalize


def examples(files):
    return Examples(np.zeros((len(files), 1), np.float32), np.zeros(len(files), np.int64), files)


class TestDecodedImages:
    def test_each_epoch_sees_another_view_and_validation_the_deployed_pixels(self, pictures, normalize):
        files = sorted(pictures.rglob("*.png"))[:4]
        rows = [np.array([2, 0]), np.array([1, 3])]
        varied, plain = (
            DecodedImages(examples(files), AugmentedViews(PREPROCESSING, 0, crop), normalize) for crop in (True, False)
        )
        first, again, second = (torch.cat(list(varied.batches(rows, epoch))) for epoch in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, second)
        deployed = torch.from_numpy(np.stack([load(files[row], PREPROCESSING) for row in (2, 0, 1, 3)]))
        for epoch in (1, 2):
            assert torch.equal(torch.cat(list(plain.batches(rows, epoch))), normalize(deployed))

    @pytest.mark.parametrize("crop", [True, False])
    def test_those_that_fit_on_the_device_are_decoded_once_per_view(self, pictures, normalize, monkeypatch, crop):
        files, decoded, decode = sorted(pictures.rglob("*.png"))[:5], [], AugmentedViews.decode

        def counted(views, path, number, index):
            decoded.append((number, index))
            return decode(views, path, number, index)

        monkeypatch.setattr(AugmentedViews, "decode", counted)
        rows = [np.array([2, 0, 4]), np.array([1, 3])]
        views = AugmentedViews(PREPROCESSING, 0, crop, views=2 if crop else 0)
        made = [DecodedImages(examples(files), views, normalize, epochs=epochs) for epochs in (6, 1)]
        for epoch, order in enumerate([rows, rows[::-1], [np.array([3, 3, 0])], rows, rows, rows], 1):
            outputs = [torch.cat(list(each.batches(order, epoch))) for each in made]
            assert torch.equal(*outputs)
        kept = 10 if crop else 5
        assert len(decoded) == kept + 5 * 5 + 2  # and every time by the one that is used once

    def test_an_image_that_is_gone_is_named(self, normalize, tmp_path):
        images = DecodedImages(examples([tmp_path / "gone.png"]), AugmentedViews(PREPROCESSING, 0), normalize)
        with pytest.raises(DataError, match=r"gone\.png: no such file"):
            list(images.batches([np.array([0])], 1))


def test_views_differ_by_number(pictures):
    file = min(pictures.rglob("*.png"))
    views = AugmentedViews(PREPROCESSING, 0, magnitude=9)
    assert views.varies
    assert len({views.decode(file, number, 0).tobytes() for number in range(6)}) > 3


def test_views_are_used_in_rotation():
    phase = Phase(5, 0.1, augmentation=Augmentation(crop=True))
    limited, unlimited = (AugmentedViews.from_phase(phase, PREPROCESSING, 0, views) for views in (2, 0))
    assert [limited.number(epoch) for epoch in range(1, 6)] == [0, 1, 0, 1, 0]
    assert [unlimited.number(epoch) for epoch in range(1, 6)] == [1, 2, 3, 4, 5]
    assert AugmentedViews.from_phase(phase, PREPROCESSING, 0, 9).views == 5


def test_a_last_single_image_joins_the_batch_before():
    assert [len(part) for part in split_batches(np.arange(9), 4)] == [4, 5]
    assert [len(part) for part in split_batches(np.arange(10), 4)] == [4, 4, 2]
    assert [len(part) for part in split_batches(np.arange(1), 4)] == [1]


class TestMixing:
    def test_images_and_labels_are_mixed_by_the_same_shares(self):
        torch.manual_seed(0)
        images, labels = torch.arange(4.0)[:, None, None, None].expand(4, 3, 8, 8), torch.tensor([0, 1, 0, 1])
        mixed, shares = mixing(Phase(1, 0.1, augmentation=Augmentation(mixup=1.0)), 2)(images, labels)
        assert shares.sum(1).tolist() == pytest.approx([1.0] * 4)
        rolled = images.roll(1, 0)
        share = ((mixed - rolled) / (images - rolled))[:, 0, 0, 0]
        assert torch.allclose(shares.gather(1, labels[:, None])[:, 0], share, atol=1e-5)

    def test_cutmix_puts_pieces_into_images(self):
        torch.manual_seed(0)
        images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 8, 8)
        mixed, _ = mixing(Phase(1, 0.1, augmentation=Augmentation(cutmix=1.0)), 4)(images, torch.arange(4))
        values = [set(image.unique().tolist()) for image in mixed]
        assert all(value <= {float(n), float((n - 1) % 4)} for n, value in enumerate(values))
        assert any(len(value) == 2 for value in values)

    def test_no_mixing_costs_no_import(self):
        assert mixing(Phase(1, 0.1), 2) is None

    def test_missing_torchvision_is_named_with_the_remedy(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "torchvision.transforms", None)
        with pytest.raises(ResourceError, match=r'need torchvision: .*; run: pip install "tlkit\[train\]"'):
            mixing(Phase(1, 0.1, augmentation=Augmentation(mixup=1.0)), 2)

    @pytest.mark.parametrize("mix", [{"mixup": 0.2}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}])
    def test_a_trunk_learns_from_mixed_maps(self, pictures, mix):
        phase = Phase(6, 0.05, trunk_lr=0.02, trainable=2, batch_size=8, augmentation=Augmentation(**mix))
        _, found = course(pictures, phases=(phase,))
        losses = [line["val_loss"] for line in found.history]
        assert min(losses) < losses[0]
