"""Tests that only an NVIDIA GPU can pass: every verb there, parity with the CPU, several sessions, and training."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from random import Random

import numpy as np
import onnxruntime
import pytest
import torch
from tlkit_standard.strategies import Full
from torch import nn

from tests.kit.course import Stopped, Stops, course, same
from tests.kit.exporting import export_of, exported
from tlkit import cli, doctor
from tlkit.data.resampling import layout
from tlkit.model.bundle import open_bundle
from tlkit.plugin.contract import FEATURES, Augmentation, Optimizer, Phase, Preprocessing
from tlkit.runtime import resizing
from tlkit.runtime.devices import AutomaticSession, Speed
from tlkit.runtime.model import Model
from tlkit.runtime.providers import provider_options
from tlkit.runtime.session import OnnxSession
from tlkit.training.config import RunOptions
from tlkit.training.crops import matches_pillow
from tlkit.training.device import Device, DeviceOptions
from tlkit.training.heads import fit_head
from tlkit.training.inputs import Examples
from tlkit.training.run import train
from tlkit.training.trainer import Trainer

pytestmark = pytest.mark.gpu
PRECISIONS = ("fp32", "fp16", "int8")
MIXES, SIZES = 200, (1, 2, 8, 16, 51, 64, 100)


@pytest.fixture(scope="module")
def run(pictures, tiny_config, tmp_path_factory):
    """A bundle with its exports in every precision, which are made on the CPU."""
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip('needs ONNX Runtime for CUDA: pip install "tlkit[gpu]"')
    if (why := doctor.fault("CUDAExecutionProvider")) is not None:
        pytest.skip(f"the CUDA provider does not start: {why}")
    run = tmp_path_factory.mktemp("gpu") / "run"
    train(pictures, run, tiny_config)
    for precision in PRECISIONS:
        exported(run, tiny_config.backbone, tiny_config.head, precision)
    return run


@pytest.fixture(scope="module")
def trainable(tiny_config):
    """A fine-tuning of all stages, if PyTorch sees a GPU."""
    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no NVIDIA GPU")
    return replace(tiny_config, strategy=Full(epochs=2))


def images(count):
    return np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_verb_runs_there(run, pictures, tmp_path, precision):
    model, here = str(export_of(run, precision).file()), ["--device", "cuda"]
    code = 5 if precision == "int8" else 0  # refused, as there are no kernels
    assert cli.run(["predict", model, str(pictures / "dark"), *here]) == code
    for out in ("features.npy", "job"):
        assert cli.run(["embed", model, str(pictures), "-o", str(tmp_path / out), *here]) == code
    assert cli.run(["eval", model, str(pictures), *here]) == code
    assert cli.run(["verify", str(run), "--precision", precision, *here]) == 0


def test_a_process_without_pytorch_finds_the_libraries_of_its_packages(run, pictures):
    code = "import sys; from tlkit import cli; code = cli.run(sys.argv[1:]); sys.exit(code or 'torch' in sys.modules)"
    predict = ["predict", export_of(run).file(), pictures / "dark", "--device", "cuda"]
    done = subprocess.run([sys.executable, "-c", code, *predict], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_all_precisions_are_verified_and_timed_in_one_process(run, capfd):
    assert cli.run(["verify", str(run), "--device", "cuda"]) == 0
    assert cli.run(["bench", str(run), "--device", "cuda", "--batch-size", "1", "--batch-size", "64"]) == 0
    assert "EP" not in capfd.readouterr().err


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-5), ("fp16", 1e-2)])
def test_features_are_those_of_the_cpu(run, precision, limit):
    file = export_of(run, precision).file()
    cpu, gpu = (OnnxSession(file, device=device).run(images(70))[FEATURES] for device in ("cpu", "cuda"))
    assert np.abs(gpu - cpu).max() <= limit * max(1.0, np.abs(cpu).max())


def test_tensorrt_gives_the_features_of_the_cpu_and_keeps_its_engine(run, own_cache):
    if (why := doctor.fault("TensorrtExecutionProvider")) is not None:
        pytest.skip(f"the TensorRT provider does not start: {why}")
    file, kept = export_of(run, "fp32").file(), []
    for _ in range(2):
        with OnnxSession(file, device="tensorrt") as session:
            for size in (1, 64, 51, 2):
                expected = OnnxSession(file).run(images(size))[FEATURES]
                assert np.abs(session.run(images(size))[FEATURES] - expected).max() <= 1e-5 * np.abs(expected).max()
        kept.append({engine: engine.stat().st_mtime_ns for engine in own_cache.glob("tensorrt/*/*/*.engine")})
    assert kept[0]
    assert kept[1] == kept[0]


@pytest.mark.parametrize("images", [64, 256])
def test_images_resized_there_give_the_bits_of_those_resized_by_the_cpu(run, pictures, odd, images):
    """The device proves its pixels to itself before; here are those of files, in features."""
    files, many = [*odd, *sorted(pictures.rglob("*.png"))] * 6, images // 256 * 10**9
    session = OnnxSession(export_of(run, "fp32").file(), device="cuda", images=many)
    with Model.from_session(session, export_of(run, "fp32").file()) as model:
        expected = model.embed(files)
        session.prepare_resizing(model.preprocessing)
        assert session.layout is not None
        assert np.array_equal(model.embed(files), expected)


@pytest.mark.parametrize("interpolation", ["bilinear", "hamming", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [32, 224])
def test_each_filter_gives_the_pixels_of_pillow_there(run, interpolation, size):
    preprocessing = Preprocessing(size, (0.5,) * 3, (0.5,) * 3, interpolation=interpolation)
    session = OnnxSession(export_of(run, "fp32").file(), device="cuda")
    options = provider_options("cuda", session._bound.stream)
    graph = onnxruntime.InferenceSession(resizing.graph(layout(preprocessing)), providers=options)
    rows, expected = resizing.examples(preprocessing, 24)
    (found,) = graph.run([resizing.RESIZED], {resizing.ROWS: rows, resizing.WORDS: rows.view(np.int32)})
    assert np.array_equal(found, expected)


def test_much_work_prepares_more_and_gives_the_same(run):
    file = export_of(run, "fp16").file()
    usual, long = (OnnxSession(file, device="cuda", images=count).run(images(70))[FEATURES] for count in (0, 10**9))
    assert np.allclose(usual, long, rtol=1e-2, atol=1e-2)


@pytest.mark.filterwarnings("ignore::tlkit.errors.TlkitNote")
@pytest.mark.parametrize(("rate", "device"), [(1e9, "cpu"), (1.0, "cuda")])
def test_auto_gives_what_the_cpu_gives_wherever_it_runs(run, pictures, monkeypatch, rate, device):
    files = sorted((pictures / "dark").iterdir())
    speeds = {"cpu": Speed(0.0, rate), "cuda": Speed(1.0, 1e3)}
    monkeypatch.setattr(AutomaticSession, "noted", lambda _, name: speeds[name])
    with Model.open(run) as plain, Model.open(run, device="auto") as automatic:
        assert np.allclose(automatic.embed(files), plain.embed(files), rtol=1e-4, atol=1e-4)
        assert automatic.session.device == device


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_calls_of_one_session_overlap_and_give_what_each_gives_alone(run, precision):
    session = OnnxSession(export_of(run, precision).file(), device="cuda")
    given = [images(1 + number % 64) for number in range(MIXES)]
    expected = [session.run(each)[FEATURES] for each in given]
    with ThreadPoolExecutor(2 * session.workers) as threads:
        found = list(threads.map(lambda each: session.run(each)[FEATURES], given))
    for each, other in zip(found, expected, strict=True):
        assert np.allclose(each, other, rtol=1e-3, atol=1e-3)


def test_sessions_sizes_and_threads_mix(run):
    """Calls of several sessions at once, each closed and opened again at random times."""
    random = Random(0)
    files = [export_of(run, precision).file() for precision in PRECISIONS]
    expected = {(file, size): OnnxSession(file).run(images(size))[FEATURES] for file in files for size in SIZES}
    opened = {}

    def call(mix):
        file, size = mix
        got = opened[file].run(images(size))[FEATURES]
        assert np.allclose(got, expected[mix], rtol=0.1, atol=0.1)

    with ThreadPoolExecutor(4) as threads:
        for _ in range(MIXES):
            for file in random.sample(files, random.randint(1, len(files))):
                if file in opened:
                    opened.pop(file).close()
                opened[file] = OnnxSession(file, device="cuda")
            mixes = [(random.choice(list(opened)), random.choice(SIZES)) for _ in range(4)]
            list(threads.map(call, mixes))


@pytest.mark.parametrize(
    "options",
    [
        *(DeviceOptions("cuda", precision) for precision in ("fp32", "bf16", "fp16")),
        DeviceOptions("cuda", "fp32", compile=True),
    ],
    ids=["fp32", "bf16", "fp16", "compiled"],
)
def test_training_there_is_bit_identical_twice(trainable, pictures, tmp_path, options):
    for name in "ab":
        train(pictures, tmp_path / name, trainable, options=RunOptions(device=options))
    one, other = (open_bundle(tmp_path / name) for name in "ab")
    assert {name: array.tobytes() for name, array in one.trunk.items()} == {
        name: array.tobytes() for name, array in other.trunk.items()
    }


PHASE = Phase(3, 0.02, trunk_lr=0.01, trainable=3, batch_size=8, augmentation=Augmentation(crop=True), ema=0.5)


def on_gpu(precision="fp32"):
    return Device(DeviceOptions("cuda", precision))


@pytest.mark.usefixtures("trainable")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_an_interrupted_training_there_resumes_bit_identically(pictures, tmp_path, precision):
    expected, unbroken = course(pictures, phases=(PHASE,), device=on_gpu(precision))
    with pytest.raises(Stopped):
        course(pictures, tmp_path, phases=(PHASE,), device=on_gpu(precision), monitor=Stops(1))
    weights, fitted = course(pictures, tmp_path, phases=(PHASE,), device=on_gpu(precision))
    assert same(weights, expected)
    assert fitted.history == unbroken.history


@pytest.mark.usefixtures("trainable")
def test_training_there_is_that_of_the_cpu(pictures):
    phases = (replace(PHASE, ema=0.0),)
    cpu, gpu = (course(pictures, phases=phases, device=device)[1].history for device in (Device(), on_gpu()))
    for line, other in zip(cpu, gpu, strict=True):
        assert line["val_loss"] == pytest.approx(other["val_loss"], rel=1e-2)


@pytest.mark.usefixtures("trainable")
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crops_made_there_are_those_of_pillow(interpolation):
    assert matches_pillow(torch.device("cuda", 0), interpolation)


@pytest.mark.usefixtures("trainable")
def test_a_training_with_crops_made_there_is_bit_identical_to_one_without(pictures):
    phase, devices = replace(PHASE, ema=0.0), (on_gpu(), on_gpu())
    devices[1].crops = False
    (weights, there), (expected, usual) = (course(pictures, phases=(phase,), device=each, views=0) for each in devices)
    assert same(weights, expected)
    assert there.history == usual.history


@pytest.mark.usefixtures("trainable")
def test_cached_activations_there_give_what_decoded_images_give(pictures, tmp_path):
    phases = (replace(PHASE, trainable=1),)
    cached, decoded = (course(pictures, work, phases=phases, device=on_gpu())[1] for work in (tmp_path, None))
    for line, other in zip(cached.history, decoded.history, strict=True):
        assert line["val_loss"] == pytest.approx(other["val_loss"], rel=1e-2)


@pytest.mark.usefixtures("trainable")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(("stages", "views"), [(3, 0), (1, 2)], ids=["cropped there", "cached activations"])
def test_from_the_second_epoch_on_nothing_waits_for_it_but_reading_the_loss(
    pictures, tmp_path, monkeypatch, precision, stages, views
):
    epoch, read = Trainer._train_epoch, Trainer._read

    def strict(trainer):
        torch.cuda.set_sync_debug_mode("error" if trainer.epoch > 1 else "default")
        try:
            return epoch(trainer)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def reading(trainer, *given):
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("default")
        read(trainer, *given)
        torch.cuda.set_sync_debug_mode(mode)

    monkeypatch.setattr(Trainer, "_train_epoch", strict)
    monkeypatch.setattr(Trainer, "_read", reading)
    phase = replace(PHASE, trainable=stages, optimizer=Optimizer(gradient_clipping=1.0))
    course(pictures, tmp_path, phases=(phase,), device=on_gpu(precision), views=views)


class Large(nn.Linear):
    """Takes a MiB for each row that it trains on."""

    def forward(self, x):
        return super().forward(x) + (x.mean(1, keepdim=True) * self.wide).sum(1, keepdim=True) * 0

    @property
    def wide(self):
        return self.weight.new_ones(1, 2**18)


@pytest.mark.usefixtures("trainable")
def test_a_batch_that_does_not_fit_there_is_trained_on_in_parts():
    random, (_, total) = np.random.default_rng(0), torch.cuda.mem_get_info()
    examples = Examples(random.normal(size=(512, 4)).astype(np.float32), random.integers(0, 2, 512))
    device, room = on_gpu(), torch.cuda.memory_reserved() + 2**28
    torch.cuda.set_per_process_memory_fraction(room / total)
    try:
        fit_head(Large(4, 2), [Phase(1, 0.1, batch_size=512)], examples, examples.rows(np.arange(8)), device=device)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert device.micro_batches > 1
