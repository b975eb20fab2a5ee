"""The device that is done first, by speeds that were measured here; on a stand-in for CUDA."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import onnx
import pytest

from tests.kit.fake_cuda import replace_cuda
from tlkit import cli
from tlkit.runtime import cuda, devices
from tlkit.runtime.devices import AutomaticSession, Speed
from tlkit.runtime.model import Model
from tlkit.runtime.pipeline import stream
from tlkit.runtime.session import OnnxSession

# Seconds to start and images per second of `embed` with 16 cores and an H100, fp32.
RECORDED = {"cpu": Speed(0.3, 760.0), "cuda": Speed(4.1, 1177.0)}


@pytest.fixture
def file(tiny_run):
    return tiny_run / "onnx/fp32/model.onnx"


@pytest.fixture
def provider(monkeypatch, request):
    request.getfixturevalue("own_cache")
    return replace_cuda(monkeypatch)[1]


def opened(file, speeds=None):
    session = AutomaticSession(file, lambda device, images: OnnxSession(file, device=device, images=images))
    if speeds is not None:
        session._record.write_text(json.dumps({name: asdict(speed) for name, speed in speeds.items()}))
    return session


@pytest.mark.usefixtures("provider")
@pytest.mark.parametrize("images", [1, 10, 100, 1_000, 5_000, 10_000, 30_000, 100_000])
def test_from_one_image_to_many_the_better_device_is_taken(file, images, recwarn):
    session = opened(file, RECORDED)
    with session.running(images):
        pass
    seconds = {name: speed.seconds(images, started=name == "cpu") for name, speed in RECORDED.items()}
    assert seconds[session.device] == min(seconds.values())
    told = [str(each.message) for each in recwarn]
    assert told == ([] if session.device == "cpu" else [f"device cuda: {images:,} images take about {spoken(seconds)}"])


@pytest.mark.usefixtures("provider")
def test_a_few_images_are_done_before_a_gpu_is_looked_for(file, monkeypatch):
    session, found, gpu = opened(file), [], cuda.gpu
    monkeypatch.setattr(cuda, "gpu", lambda: found.append(1) or gpu())
    for _ in range(devices.FEW):
        with session.running(1):
            assert session.device == "cpu"
    assert not found
    with session.running(1):
        assert found


def spoken(seconds):
    return " and ".join(f"{each:.1f} s on {name}" for name, each in seconds.items())


@pytest.mark.usefixtures("provider")
@pytest.mark.filterwarnings("ignore::tlkit.errors.TlkitNote")
def test_a_device_that_is_started_stays_and_many_small_parts_are_worth_a_start(file):
    session, used = opened(file, RECORDED), []
    for _ in range(12):
        with session.running(1000):
            used.append(session.device)
    assert used == sorted(used)  # cpu, then cuda
    assert set(used) == {"cpu", "cuda"}
    with session.running(1):
        assert session.device == "cuda"


@pytest.mark.usefixtures("provider")
def test_the_speed_of_each_run_is_noted_for_the_next(file, pictures):
    session, files = opened(file), sorted(pictures.rglob("*.png")) * 4
    preprocessing = Model.from_session(session, file).preprocessing
    assert session.speeds() == {}
    for wanted in ("cpu", "cuda"):
        session._use(wanted, 0)
        session._devices = [wanted, wanted]  # no other
        assert sum(len(batch.images) for batch in stream(session, preprocessing, files)) == len(files)
    noted = opened(file).speeds()
    assert set(noted) == {"cpu", "cuda"}
    assert all(speed.rate > 0 and speed.start > 0 for speed in noted.values())


@pytest.mark.usefixtures("provider")
def test_speeds_are_those_of_a_gpu_and_its_driver(file, monkeypatch, tmp_path):
    session = opened(file, RECORDED)
    assert opened(file).speeds() == session.speeds() == RECORDED
    (tmp_path / "version").write_text("NVRM version: 580.65.06\nGCC version: 12\n")
    monkeypatch.setattr(cuda, "DRIVER", tmp_path / "version")
    assert opened(file).speeds() == {}


@pytest.mark.usefixtures("provider")
def test_what_is_noted_may_be_damaged(file):
    for content in ("{", "[1]", '{"cpu": 3}', '{"cpu": {"speed": 1}}', '{"cpu": {"start": 0, "rate": 0}}'):
        session = opened(file)
        session._record.write_text(content)
        assert session.speeds() == {}


def test_a_device_that_does_not_start_is_not_tried_again(file, provider, monkeypatch, recwarn):
    session = opened(file, RECORDED)
    provider.failure = "CUDA failure 2: out of memory"
    monkeypatch.setattr(provider, "get_providers", lambda _: ["CPUExecutionProvider"])
    for _ in range(2):
        with session.running(100_000):
            assert session.device == "cpu"
    assert [str(each.message) for each in recwarn][1:] == ["CUDAExecutionProvider does not start here; the CPU is used"]


def test_without_a_gpu_it_is_the_cpu_without_a_word(tiny_run, pictures, capsys, tmp_path):
    plain = [cli.run(["predict", str(tiny_run), str(pictures)]), capsys.readouterr()]
    assert [cli.run(["predict", str(tiny_run), str(pictures), "--device", "auto"]), capsys.readouterr()] == plain
    out = tmp_path / "features.npy"
    assert cli.run(["embed", str(tiny_run), str(pictures), "-o", str(out), "--device", "auto", "--json"]) == 0
    found = capsys.readouterr()
    assert '"device": "cpu"' in found.out
    assert "device" not in found.err


@pytest.mark.usefixtures("provider")
def test_verbs_say_which_device_they_took_and_give_the_same(file, pictures, capsys, monkeypatch):
    assert cli.run(["predict", str(file), str(pictures), "--device", "auto"]) == 0
    on_cpu = capsys.readouterr()
    assert not on_cpu.err.startswith("tlkit: device")
    monkeypatch.setattr(devices, "unmeasured", lambda: {"cpu": Speed(0, 1.0), "cuda": Speed(2, 100.0)})
    assert cli.run(["predict", str(file), str(pictures), "--device", "auto"]) == 0
    there = capsys.readouterr()
    assert there.out == on_cpu.out
    assert there.err.startswith("tlkit: device cuda: 36 images take about 36.0 s on cpu and 2.4 s on cuda\n")


@pytest.mark.usefixtures("provider")
def test_kernels_are_prepared_while_the_first_images_are_decoded(file, pictures):
    calls, run = [], OnnxSession.run
    session = OnnxSession(file, device="cuda")
    session.run = lambda array, outputs=None: calls.append(array) or run(session, array, outputs)
    preprocessing = Model.from_session(session, file).preprocessing
    list(stream(session, preprocessing, sorted(pictures.rglob("*.png"))[:3], batch_size=2))
    assert sorted(len(array) for array in calls) == [1, 2, 2]
    assert [len(array) for array in calls if not array.any()] == [2]
    assert {rows for _, rows, _ in session._bound._bindings} == {8}  # the last one is padded to what is prepared
    session.warm_up(1)
    assert {rows for _, rows, _ in session._bound._bindings} == {1, 8}


def test_much_work_in_fp16_is_worth_a_preparation_and_tensorrt_is_told_of_fp16(tiny_run, provider, tmp_path):
    file = tiny_run / "onnx/fp32/model.onnx"
    half = tmp_path / "half.onnx"
    graph = onnx.load(file)
    extra = onnx.numpy_helper.from_array(np.ones(1, np.float16), "unused")
    graph.graph.initializer.append(extra)
    onnx.save(graph, half)
    for path, images in ((file, 0), (half, 0), (file, 10**6), (half, 10**6)):
        session = OnnxSession(path, device="cuda", images=images)
        ((_, options),) = provider.opened[-1]
        assert options["cudnn_conv_algo_search"] == "HEURISTIC"
        assert ("prefer_nhwc" in options) == ("fuse_conv_bias" in options) == (path == half and images > 0)
        assert session.batch_size == (256 if images else 64)
    for path in (file, half):
        OnnxSession(path, device="tensorrt")
        assert provider.opened[-1][0][1].get("trt_fp16_enable") == (None if path == file else "1")
