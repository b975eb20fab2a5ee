"""What a step may be made of: mixed and distorted images, weights of classes, averages, less memory, other formats."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import nn

from tests.kit.course import course
from tests.kit.tiny import Line, Tiny
from tlkit.data import augmentation as vision
from tlkit.errors import ResourceError, UsageError
from tlkit.model import trunk as trunks
from tlkit.plugin.contract import Phase
from tlkit.training import batchnorm
from tlkit.training.device import Device, DeviceOptions
from tlkit.training.history import LOG, Watch
from tlkit.training.inputs import AugmentedViews, Examples
from tlkit.training.steps import Learner, Lesson, mixing
from tlkit.training.trainer import Setting, fit_head


def blobs(counts, seed=0):
    """Points around as many centres as there are counts."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    features = random.normal(size=(len(labels), 4)).astype(np.float32)
    features[np.arange(len(labels)), labels] += 1
    return Examples(features, labels)


def fitted(phase, train, val=None, machine=None):
    torch.manual_seed(0)
    return fit_head(Line().module(4, 2), [phase], train, val or train, Setting(0, machine=machine or Device()))


def learner(phase, examples, machine=None):
    torch.manual_seed(0)
    head = Line().module(4, 2)
    lesson = Lesson(head, [{"params": list(head.parameters()), "lr": phase.head_lr}], examples, examples)
    return Learner(phase, lesson, machine or Device(), 0, None, head)


class TestBalance:
    rare = blobs([190, 10])

    def recall(self, balance):
        head, _ = fitted(Phase(60, 0.05, balance=balance), self.rare)
        with torch.inference_mode():
            right = head(torch.from_numpy(self.rare.features)).argmax(1).numpy() == self.rare.labels
        return right[self.rare.labels == 1].mean()

    @pytest.mark.parametrize("balance", ["weights", "sampling"])
    def test_a_rare_class_is_found_more_often(self, balance):
        assert self.recall(balance) > self.recall("none")

    def test_sampling_draws_each_class_as_often_as_any(self):
        batches = learner(Phase(1, 0.1, balance="sampling"), self.rare)._batches(np.random.default_rng(0))
        drawn = self.rare.labels[np.concatenate(batches)]
        assert len(drawn) == 200
        assert 70 < drawn.sum() < 130

    def test_weights_count_a_rare_image_more_and_are_one_on_average(self):
        weights = learner(Phase(1, 0.1, balance="weights"), self.rare).weights
        assert weights.tolist() == pytest.approx([200 / 380, 10.0])
        assert weights[self.rare.labels].mean() == pytest.approx(1.0)


class TestMixing:
    def test_images_and_labels_are_mixed_by_the_same_shares(self):
        torch.manual_seed(0)
        given, labels = torch.arange(4.0)[:, None, None, None].expand(4, 3, 8, 8), torch.tensor([0, 1, 0, 1])
        mixed, shares = mixing(Phase(1, 0.1, mixup=1.0), 2)(given, labels)
        assert shares.sum(1).tolist() == pytest.approx([1.0] * 4)
        rolled = given.roll(1, 0)
        share = ((mixed - rolled) / (given - rolled))[:, 0, 0, 0]
        assert torch.allclose(shares.gather(1, labels[:, None])[:, 0], share, atol=1e-5)

    def test_cutmix_puts_pieces_into_images(self):
        torch.manual_seed(0)
        given = torch.arange(4.0)[:, None, None, None].expand(4, 3, 8, 8)
        mixed, _ = mixing(Phase(1, 0.1, cutmix=1.0), 4)(given, torch.arange(4))
        values = [set(image.unique().tolist()) for image in mixed]
        assert all(value <= {float(n), float((n - 1) % 4)} for n, value in enumerate(values))
        assert any(len(value) == 2 for value in values)

    def test_no_mixing_costs_no_import(self):
        assert mixing(Phase(1, 0.1), 2) is None

    def test_without_torchvision_it_is_said_what_to_do(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "torchvision.transforms", None)
        with pytest.raises(ResourceError, match=r'need torchvision: .*; run: pip install "tlkit\[train\]"'):
            mixing(Phase(1, 0.1, mixup=1.0), 2)

    @pytest.mark.parametrize("mix", [{"mixup": 0.2}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}])
    def test_a_trunk_learns_from_mixed_maps(self, pictures, mix):
        _, found = course(pictures, phases=(Phase(6, 0.05, trunk_lr=0.02, trainable=2, batch_size=8, **mix),))
        losses = [line["val_loss"] for line in found.history]
        assert min(losses) < losses[0]


class TestRandAugment:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)

    def test_the_key_decides(self):
        one, same, other = (vision.randaugment(self.image, 9, [0, 1, n]) for n in (4, 4, 5))
        assert np.array_equal(one, same)
        assert not np.array_equal(one, other)
        assert one.shape == self.image.shape
        assert one.dtype == np.uint8

    @pytest.mark.parametrize("name", [name for name in vision._DISTORTIONS if name != "identity"])
    def test_every_distortion_distorts(self, name):
        from PIL import Image

        functional = vision.transforms().functional
        picture = Image.fromarray(self.image // 2)
        distort = vision._DISTORTIONS[name]
        assert not np.array_equal(np.array(distort(functional, picture, 0.9)), self.image // 2)

    def test_an_image_differs_from_view_to_view(self, pictures):
        file = min(pictures.rglob("*.png"))
        variety = AugmentedViews(0, magnitude=9)
        assert variety.varies
        views = {variety.see(file, Tiny.preprocessing, number, 0).tobytes() for number in range(6)}
        assert len(views) > 3


class TestAverage:
    def test_it_is_what_is_measured_and_kept(self):
        examples = blobs([50, 50])
        heads = [fitted(Phase(3, 0.5, ema=ema), examples)[0] for ema in (0.0, 0.999)]
        start = Line()
        torch.manual_seed(0)
        before = start.module(4, 2).weight
        moved = [(head.weight - before).abs().max().item() for head in heads]
        assert moved[1] < 0.05 < moved[0]


class TestMemory:
    def test_a_batch_in_parts_gives_the_same_gradients(self):
        examples, phase = blobs([30, 30]), Phase(3, 0.1, batch_size=16)
        whole, parted = Device(), Device()
        parted.parts = 4
        one, other = (fitted(phase, examples, machine=machine)[0] for machine in (whole, parted))
        assert torch.allclose(one.weight, other.weight, atol=1e-5)

    @pytest.mark.parametrize("kind", [torch.OutOfMemoryError, RuntimeError])
    def test_a_batch_that_is_too_large_is_learnt_from_in_parts(self, monkeypatch, kind):
        examples, phase, machine = blobs([30, 30]), Phase(2, 0.1, batch_size=16), Device()
        forward = nn.Linear.forward

        def small_only(self, x):
            if torch.is_grad_enabled() and len(x) > 4:
                raise kind("DefaultCPUAllocator: can't allocate memory")
            return forward(self, x)

        expected, _ = fitted(phase, examples)
        monkeypatch.setattr(nn.Linear, "forward", small_only)
        head, _ = fitted(phase, examples, machine=machine)
        assert machine.parts == 4
        assert torch.allclose(head.weight, expected.weight, atol=1e-5)

    def test_what_fits_in_no_part_is_told_of(self, monkeypatch):
        def never(*_):
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(nn.Linear, "forward", never)
        with pytest.raises(
            ResourceError, match=r"not enough memory to learn from 1 image\(s\) at once; take a smaller"
        ):
            fitted(Phase(1, 0.1, batch_size=16), blobs([10, 10]))

    def test_other_errors_are_not_taken_for_it(self):
        def wrong(_parts):
            raise RuntimeError("shapes do not fit")

        with pytest.raises(RuntimeError, match="shapes"):
            Device().retried(wrong, 8)


class TestMachine:
    def test_bf16_learns_as_well(self, pictures):
        phases = (Phase(3, 0.05, trunk_lr=0.02, trainable=3, batch_size=8),)
        plain, half = (
            course(pictures, phases=phases, machine=Device(DeviceOptions("cpu", precision)))[1].history
            for precision in ("fp32", "bf16")
        )
        losses = [[line["val_loss"] for line in history] for history in (plain, half)]
        assert losses[0] != losses[1]
        assert losses[0] == pytest.approx(losses[1], rel=0.15)

    def test_auto_is_single_precision_on_a_cpu(self):
        assert Device(DeviceOptions("cpu")).format == torch.float32

    def test_what_is_not_there_is_told_of(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert Device(DeviceOptions()).device.type == "cpu"
        with pytest.raises(ResourceError, match="sees no NVIDIA GPU here; take --device cpu"):
            Device(DeviceOptions("cuda"))
        with pytest.raises(UsageError, match="fp16 needs a GPU; take --precision bf16 or fp32"):
            Device(DeviceOptions("cpu", "fp16"))

    @pytest.mark.slow
    def test_compiled_it_learns_the_same(self, pictures):
        phases = (Phase(2, 0.05, trunk_lr=0.02, trainable=3, batch_size=8),)
        plain, compiled = (
            course(pictures, phases=phases, machine=Device(DeviceOptions("cpu", "fp32", each)))[1].history
            for each in (False, True)
        )
        assert [line["val_loss"] for line in plain] == pytest.approx([line["val_loss"] for line in compiled], rel=1e-2)


class TestNorm:
    def test_statistics_follow_inside_and_modules_are_as_before_afterwards(self):
        stages = nn.ModuleList([nn.BatchNorm2d(3, momentum=0.01), nn.BatchNorm2d(3, momentum=0.3)])
        before = repr(stages)
        with batchnorm.following(stages, shared=False):
            assert [stage.momentum for stage in stages] == [batchnorm.MOMENTUM, 0.3]
        assert repr(stages) == before

    def test_the_trained_trunk_is_known_by_the_structure_of_the_original(self, pictures):
        """Otherwise `export` would trace it a second time."""
        trunk = trunks.build(Tiny())
        weights, _ = course(
            pictures, phases=(Phase(1, 0.05, trunk_lr=0.02, trainable=3, batch_size=8, batchnorm="update"),)
        )
        trunk.load_state_dict({name: value for name, value in weights.items() if not name.startswith("head.")})
        again = trunks.build(Tiny())
        again.load_state_dict(trunk.state_dict())
        assert trunks.fingerprint(trunk) == trunks.fingerprint(again)


class TestWatch:
    def test_the_log_has_a_line_an_epoch_with_its_speed(self, tmp_path):
        watch = Watch(log=tmp_path / LOG)
        torch.manual_seed(0)
        examples = blobs([20, 20])
        fit_head(Line().module(4, 2), [Phase(3, 0.1)], examples, examples, Setting(0, watch))
        lines = (tmp_path / LOG).read_text().splitlines()
        assert len(lines) == 3
        assert all('"images_per_second": ' in line for line in lines)

    def test_tensorboard_that_is_not_there_is_told_of(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        with pytest.raises(
            ResourceError, match=r'TensorBoard is not installed; run: pip install "tlkit\[tensorboard\]"'
        ):
            Watch(board=tmp_path)

    def test_tensorboard_is_written_where_it_is_there(self, tmp_path):
        pytest.importorskip("tensorboard", reason="needs tensorboard")
        watch = Watch(board=tmp_path)
        examples = blobs([20, 20])
        fit_head(Line().module(4, 2), [Phase(2, 0.1)], examples, examples, Setting(0, watch))
        assert list(tmp_path.glob("events.*"))


def test_the_curves_are_drawn(tmp_path):
    from PIL import Image

    from tlkit.training.curves import draw

    pytest.importorskip("matplotlib", reason="draws with matplotlib")
    examples = blobs([20, 20])
    _, found = fitted(Phase(3, 0.1), examples)
    picture = draw(found.history, tmp_path)
    assert Image.open(picture).size > (800, 300)
    assert draw([{"phase": 1, "solved": "logistic"}], tmp_path) is None
