"""Mixed precision, less memory, and devices that are not there."""

from __future__ import annotations

import subprocess
import sys
import weakref
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.kit.course import Given, as_on_a_gpu, course
from tests.kit.tiny import Line, Tiny
from tlkit.errors import ResourceError, UsageError
from tlkit.model import trunk as trunks
from tlkit.plugin.contract import Augmentation, Optimizer, Phase
from tlkit.training.device import Device, DeviceOptions, seconds_per_image
from tlkit.training.heads import fit_head
from tlkit.training.inputs import Examples
from tlkit.training.trainer import Trainer


def blobs(images):
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1], images // 2)
    features = random.normal(size=(images, 4)).astype(np.float32)
    features[np.arange(images), labels] += 1
    return Examples(features, labels)


def fitted(phase, images, device=None, head=None):
    torch.manual_seed(0)
    examples = blobs(images)
    return fit_head(head or Line().module(4, 2), [phase], examples, examples, device=device)[0]


class Limited(nn.Linear):
    """Runs out of memory with more images than fit; an evaluation fits always."""

    def __init__(self, fit, error):
        super().__init__(4, 2)
        self.fit, self.error = fit, error

    def forward(self, x):
        if torch.is_grad_enabled() and len(x) > self.fit:
            raise self.error("DefaultCPUAllocator: can't allocate memory")
        return super().forward(x)


class TestMemory:
    def test_a_batch_in_parts_gives_the_same_gradients(self):
        phase, parted = Phase(3, 0.1, batch_size=16), Device()
        parted.micro_batches = 4
        one, other = (fitted(phase, 60, device) for device in (Device(), parted))
        assert torch.allclose(one.weight, other.weight, atol=1e-5)

    @pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
    def test_a_batch_that_is_too_large_is_trained_on_in_parts(self, error):
        phase, device = Phase(2, 0.1, batch_size=16), Device()
        torch.manual_seed(0)
        expected = fitted(phase, 60, head=Limited(1000, error))
        torch.manual_seed(0)
        head = fitted(phase, 60, device, Limited(4, error))
        assert device.micro_batches == 4
        assert torch.allclose(head.weight, expected.weight, atol=1e-5)

    def test_an_image_that_does_not_fit_alone_is_an_error(self):
        what = r"not enough memory to train on 1 image\(s\) at once; use a smaller"
        with pytest.raises(ResourceError, match=what):
            fitted(Phase(1, 0.1, batch_size=16), 20, head=Limited(0, torch.OutOfMemoryError))

    def test_what_a_failed_step_held_is_free_before_memory_is_released(self, monkeypatch):
        held, free, device = [], [], Device()
        device.type = "cuda"

        def step(parts):
            if parts == 1:
                maps = torch.zeros(1)
                held.append(weakref.ref(maps))
                raise torch.OutOfMemoryError
            return parts

        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: free.append(held[0]() is None))
        assert device.within_memory(step, 8) == 2
        assert free == [True]

    def test_other_errors_are_not_mistaken_for_it(self):
        def wrong(_parts):
            raise RuntimeError("shapes do not fit")

        with pytest.raises(RuntimeError, match="shapes"):
            Device().within_memory(wrong, 8)


SPLITS = (27, 9)  # images of `course` to train and to validate on, whose features are computed before


class Reads(TorchDispatchMode):
    """Counts the values that are read from the device, each of which waits for it."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, called, _types, args=(), named=None):
        self.count += called is torch.ops.aten._local_scalar_dense.default
        return called(*args, **(named or {}))


class TestSteps:
    phase = Phase(3, 0.01, trunk_lr=0.005, trainable=3, batch_size=8)

    @pytest.fixture
    def shapes(self, monkeypatch):
        """Numbers of rows that convolutions see."""
        seen, forward = set(), nn.Conv2d.forward

        def noted(layer, x):
            seen.add(len(x))
            return forward(layer, x)

        monkeypatch.setattr(nn.Conv2d, "forward", noted)
        return seen

    @pytest.mark.parametrize(
        "change",
        [
            {},
            {"augmentation": Augmentation(crop=True, mixup=0.4), "ema": 0.5},
            {"optimizer": Optimizer("sgd", gradient_clipping=0.5), "augmentation": Augmentation(crop=True)},
        ],
        ids=["plain", "mixed", "clipped"],
    )
    def test_padding_gives_all_batches_one_shape_and_changes_nothing_else(self, pictures, shapes, change):
        phases = (replace(self.phase, **change),)
        usual, fitted = course(pictures, phases=phases)
        assert shapes == {3, 8, *SPLITS}
        shapes.clear()
        weights, padded = course(pictures, phases=phases, device=as_on_a_gpu())
        assert shapes == {8, *SPLITS}
        for name, values in usual.items():
            assert torch.allclose(weights[name], values, atol=1e-4), name
        for line, other in zip(fitted.history, padded.history, strict=True):
            assert line == pytest.approx(other, rel=1e-4)

    def test_batch_norms_that_use_the_batch_see_no_padding(self, pictures, shapes):
        phases = (replace(self.phase, batchnorm="update"),)
        usual, padded = (course(pictures, phases=phases, device=device)[1] for device in (Device(), as_on_a_gpu()))
        for line, other in zip(usual.history, padded.history, strict=True):
            assert line == pytest.approx(other, rel=1e-4)
        assert shapes == {3, 8, *SPLITS}

    def test_a_step_reads_nothing_and_some_are_read_at_once(self, pictures, monkeypatch):
        step, reads, sums = Trainer._step, Reads(), []

        def counted(trainer, *args):
            with reads:
                return step(trainer, *args)

        monkeypatch.setattr(Trainer, "_step", counted)
        monkeypatch.setattr(Device, "all_sum", lambda _, values: sums.append(len(values)) or values)
        course(pictures, phases=(self.phase,), device=as_on_a_gpu())
        assert reads.count == 0
        assert sums == 3 * [3, 1]  # the four steps of an epoch

    def test_a_step_lists_the_weights_for_their_average_alone(self, pictures, monkeypatch):
        step, listed, trained = Trainer._step, [], Trainer._trained

        def counted(trainer, *args):
            with monkeypatch.context() as patch:
                patch.setattr(Trainer, "_trained", lambda this: listed.append(1) or trained(this))
                return step(trainer, *args)

        monkeypatch.setattr(Trainer, "_step", counted)
        for ema, times in ((0.0, 0), (0.5, 12)):
            course(pictures, phases=(replace(self.phase, ema=ema),))
            assert len(listed) == times

    def test_eager_training_does_not_import_what_compiles(self, pictures, checkout):
        code = "import sys; from pathlib import Path; from tests.kit.course import *; "
        code += "course(Path(sys.argv[1]), phases=PHASES[2:], cache=False); print('torch._dynamo' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code, pictures], capture_output=True, cwd=checkout, check=False)
        assert done.stdout.split() == [b"False"], done.stderr


class TestPrecision:
    phases = (Phase(3, 0.05, trunk_lr=0.02, trainable=3, batch_size=8),)

    def test_bf16_learns_as_well(self, pictures):
        plain, half = (
            course(pictures, phases=self.phases, device=Device(DeviceOptions("cpu", precision)))[1].history
            for precision in ("fp32", "bf16")
        )
        losses = [[line["val_loss"] for line in history] for history in (plain, half)]
        assert losses[0] != losses[1]
        assert losses[0] == pytest.approx(losses[1], rel=0.15)

    def test_auto_is_single_precision_on_a_cpu(self):
        assert Device(DeviceOptions("cpu")).dtype == torch.float32

    def test_every_phase_is_compiled_for_training_and_validation(self, pictures, monkeypatch):
        compiled, compile_with = [], nn.Module.compile

        def noted(graph, _inputs):
            compiled.append(graph)
            return graph.forward

        monkeypatch.setattr(nn.Module, "compile", lambda module: compile_with(module, backend=noted))
        phases = tuple(Phase(1, 0.01, trunk_lr=0.01, trainable=1 + number % 3, batch_size=8) for number in range(5))
        course(pictures, phases=phases, device=Device(DeviceOptions("cpu", "fp32", compile=True)))
        assert len(compiled) == 2 * len(phases)

    @pytest.mark.slow
    def test_compiled_it_learns_the_same(self, pictures):
        plain, compiled = (
            course(pictures, phases=self.phases, device=Device(DeviceOptions("cpu", "fp32", each)))[1].history
            for each in (False, True)
        )
        assert [line["val_loss"] for line in plain] == pytest.approx([line["val_loss"] for line in compiled], rel=1e-2)


def test_a_missing_gpu_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Device(DeviceOptions()).type == "cpu"
    with pytest.raises(ResourceError, match="sees no NVIDIA GPU here; use --device cpu"):
        Device(DeviceOptions("cuda"))
    with pytest.raises(UsageError, match="fp16 needs a GPU; use --precision bf16 or fp32"):
        Device(DeviceOptions("cpu", "fp16"))


@pytest.mark.parametrize("tf32", [False, True])
def test_a_gpu_computes_the_same_every_time_and_fp32_unless_told(monkeypatch, tf32):
    cudnn, cublas = torch.backends.cudnn, torch.backends.cuda.matmul
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _device: None)
    before = cudnn.deterministic, cudnn.allow_tf32, cublas.allow_tf32
    try:
        cudnn.deterministic, cudnn.allow_tf32, cublas.allow_tf32 = False, not tf32, not tf32
        Device(DeviceOptions("cuda", "fp32", tf32=tf32))
        assert (cudnn.deterministic, cudnn.allow_tf32, cublas.allow_tf32) == (True, tf32, tf32)
    finally:
        cudnn.deterministic, cudnn.allow_tf32, cublas.allow_tf32 = before


def test_processes_wait_for_each_other_for_days(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    given = {}
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda _backend, **more: given.update(more))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    with Device().process_group():
        assert given["timeout"] >= timedelta(days=1)


def test_the_speed_is_measured_on_a_copy():
    trunk = trunks.build(Tiny())
    before = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
    least, greatest, frozen, cached = seconds_per_image(trunk, Phase(1, 1, trainable=2), Given().prepare)
    assert 0 < least <= greatest
    assert cached
    assert frozen > 0
    assert seconds_per_image(trunk, Phase(1, 1, trainable=3), Given().prepare)[2:] == (0.0, False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trunk.state_dict().items())
    assert not any(parameter.grad is not None for parameter in trunk.parameters())
