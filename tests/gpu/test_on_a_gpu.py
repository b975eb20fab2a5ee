"""Tests that only an NVIDIA GPU can pass: every verb there, parity with the CPU, several sessions, and training."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from random import Random

import numpy as np
import onnxruntime
import pytest
import torch
from tlkit_standard.strategies import Full

from tests.kit.exporting import export_of, exported
from tlkit import cli, doctor
from tlkit.model.bundle import open_bundle
from tlkit.plugin.contract import FEATURES
from tlkit.runtime.session import OnnxSession
from tlkit.training.config import RunOptions
from tlkit.training.device import DeviceOptions
from tlkit.training.run import train

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
    assert cli.run(["embed", model, str(pictures), "-o", str(tmp_path / "features.npy"), *here]) == code
    assert cli.run(["eval", model, str(pictures), *here]) == code
    assert cli.run(["verify", str(run), "--precision", precision, *here]) == 0


def test_all_precisions_are_verified_and_timed_in_one_process(run, capfd):
    assert cli.run(["verify", str(run), "--device", "cuda"]) == 0
    assert cli.run(["bench", str(run), "--device", "cuda", "--batch-size", "1", "--batch-size", "64"]) == 0
    assert "EP" not in capfd.readouterr().err


def test_fp32_is_that_of_the_cpu(run):
    file = export_of(run).file()
    cpu, gpu = (OnnxSession(file, device=device).run(images(70))[FEATURES] for device in ("cpu", "cuda"))
    assert np.abs(gpu - cpu).max() <= 1e-5 * max(1.0, np.abs(cpu).max())


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
