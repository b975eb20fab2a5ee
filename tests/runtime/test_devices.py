"""The device that is done first, by speeds that were measured here; on a stand-in for CUDA."""

from __future__ import annotations

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

# Seconds to start and images per second of `embed` with 16 cores and an H100, fp32; and of other machines.
RECORDED = {"cpu": Speed(0.0, 760.0), "cuda": Speed(4.1, 1177.0)}
SMALL = {"cpu": Speed(0.0, 110.0), "cuda": Speed(2.5, 300.0)}
SLOWER = {"cpu": Speed(0.0, 2000.0), "cuda": Speed(6.0, 900.0)}
LARGE = {"cpu": Speed(0.0, 3.0), "cuda": Speed(8.0, 400.0)}
IMPORTS, OPENING, LOOKING = 0.7, 0.1, 0.2  # seconds of every run, to open a graph on the CPU, and to look for a GPU


@pytest.fixture
def file(tiny_run):
    return tiny_run / "onnx/fp32/model.onnx"


@pytest.fixture
def provider(monkeypatch, request):
    request.getfixturevalue("own_cache")
    return replace_cuda(monkeypatch)[1]


def opened(file, speeds=None):
    session = AutomaticSession(file, lambda device, images: OnnxSession(file, device=device, images=images))
    for name, speed in (speeds or {}).items():
        session._note(name, speed)
    return session


def noted(session):
    return {name: speed for name in ("cpu", "cuda") if (speed := session.noted(name)) is not None}


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
@pytest.mark.filterwarnings("ignore::tlkit.errors.TlkitNote")
@pytest.mark.parametrize("speeds", [RECORDED, SMALL, SLOWER, LARGE], ids=["H100", "small", "slower", "large network"])
def test_a_run_takes_at_most_a_tenth_longer_than_on_the_better_device(file, speeds, monkeypatch):
    looked, gpu = [], cuda.gpu
    monkeypatch.setattr(cuda, "gpu", lambda: looked.append(1) or gpu())
    for images in sorted({round(10 ** (exponent / 10)) for exponent in range(51)}):
        session = opened(file, speeds)
        looked.clear()
        with session.running(images):
            pass
        whole = {name: IMPORTS + speed.seconds(images, started=False) for name, speed in speeds.items()}
        taken = whole[session.device] + (LOOKING * bool(looked) if session.device == "cpu" else OPENING)
        assert taken <= 1.1 * min(whole.values())


@pytest.mark.usefixtures("provider")
def test_little_work_is_done_before_a_gpu_is_looked_for(file, monkeypatch):
    session, found, gpu = opened(file, RECORDED), [], cuda.gpu
    monkeypatch.setattr(cuda, "gpu", lambda: found.append(1) or gpu())
    for _ in range(4):
        with session.running(250):
            assert session.device == "cpu"
    assert not found
    with session.running(250):
        assert found


@pytest.mark.usefixtures("provider")
def test_speeds_are_assumed_by_one_image_on_the_cpu(file, monkeypatch):
    monkeypatch.setattr(devices, "cores", lambda: 16)
    speeds = devices.assumed(0.018)  # EfficientNet-Lite0 on a Xeon
    assert [speeds[name].rate for name in speeds] == [pytest.approx(RECORDED["cpu"].rate, rel=0.1), 268.0 * 16]
    assert devices.assumed(10.0)["cuda"].rate == pytest.approx(15.0)  # what it computes, not what cores decode
    session, calls = opened(file), []
    run = session._opened["cpu"].run
    session._opened["cpu"].run = lambda array, outputs=None: calls.append(array.shape) or run(array, outputs)
    for images, wanted in ((devices.FEW, []), (devices.FEW + 1, [(1, 32, 32, 3)])):
        session._best(images)
        assert calls == wanted


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
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_speed_of_each_run_is_noted_for_the_next(file, pictures, device, monkeypatch):
    session, files = opened(file), sorted(pictures.rglob("*.png")) * 4
    preprocessing = Model.from_session(session, file).preprocessing
    assert noted(session) == {}
    monkeypatch.setattr(session, "_best", lambda _: device)
    assert sum(len(batch.images) for batch in stream(session, preprocessing, files)) == len(files)
    ((name, speed),) = noted(opened(file)).items()
    assert name == device
    assert speed.rate > 0
    assert (speed.start == devices.assumed(1.0)[device].start) == (device == "cpu")  # which is started anyway


@pytest.mark.usefixtures("provider")
def test_a_job_that_is_settled_on_another_device_notes_no_speed(file, pictures):
    session, files = opened(file), sorted(pictures.rglob("*.png")) * 6
    assert session.settle(len(files), "tensorrt") == "tensorrt"
    preprocessing = Model.from_session(session, file).preprocessing
    assert sum(len(batch.images) for batch in stream(session, preprocessing, files)) == len(files)
    assert session.device == "tensorrt"
    assert noted(opened(file)) == {}


@pytest.mark.usefixtures("provider")
def test_speeds_are_those_of_a_gpu_its_driver_and_the_versions(file, monkeypatch, tmp_path):
    session = opened(file, RECORDED)
    assert noted(opened(file)) == noted(session) == RECORDED
    (tmp_path / "version").write_text("NVRM version: 580.65.06\nGCC version: 12\n")
    with monkeypatch.context() as patch:
        patch.setattr(cuda, "DRIVER", tmp_path / "version")
        assert noted(opened(file)) == {"cpu": RECORDED["cpu"]}
    with monkeypatch.context() as patch:
        patch.setattr(devices.onnxruntime, "cuda_version", "14.0", raising=False)
        assert noted(opened(file)) == {"cpu": RECORDED["cpu"]}
    monkeypatch.setattr(devices.onnxruntime, "__version__", "9.9")
    assert noted(opened(file)) == {}


@pytest.mark.usefixtures("provider")
def test_what_is_noted_may_be_damaged(file):
    for content in ("{", "[1]", "3", '{"speed": 1}', '{"start": 0, "rate": 0}'):
        session = opened(file)
        session._record("cpu").write_text(content)
        assert noted(session) == {}


def test_a_device_that_does_not_start_is_not_tried_again(file, provider, monkeypatch, recwarn):
    session = opened(file, RECORDED)
    provider.failure = "CUDA failure 2: out of memory"
    monkeypatch.setattr(provider, "get_providers", lambda _: ["CPUExecutionProvider"])
    for _ in range(2):
        with session.running(100_000):
            assert session.device == "cpu"
    assert [str(each.message) for each in recwarn][1:] == ["CUDAExecutionProvider does not start here; the CPU is used"]


def test_what_fails_on_a_gpu_is_done_on_the_cpu(file, provider, pictures, recwarn):
    files = sorted(pictures.rglob("*.png"))
    expected = Model.open(file).embed(files)
    session = opened(file)
    session.settle(10**6, "cuda")
    provider.failure = "CUDA failure 700: an illegal memory access was encountered"
    assert np.allclose(Model.from_session(session, file).embed(files), expected, atol=1e-6)
    assert session.device == "cpu"
    assert "CUDA failure 700" in str(recwarn[0].message)
    assert str(recwarn[0].message).endswith("; the CPU is used")
    assert len(recwarn) == 1


def test_without_a_gpu_it_is_the_cpu_without_a_word(tiny_run, pictures, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(devices.onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(cuda, "gpu", None)  # it is not looked for
    monkeypatch.setattr(devices, "AutomaticSession", None)
    plain = [cli.run(["predict", str(tiny_run), str(pictures), "--device", "cpu"]), capsys.readouterr()]
    assert [cli.run(["predict", str(tiny_run), str(pictures)]), capsys.readouterr()] == plain
    out = tmp_path / "features.npy"
    assert cli.run(["embed", str(tiny_run), str(pictures), "-o", str(out), "--json"]) == 0
    found = capsys.readouterr()
    assert '"device": "cpu"' in found.out
    assert "device" not in found.err
    assert type(Model.open(tiny_run, device="auto").session) is OnnxSession


@pytest.mark.usefixtures("provider")
def test_verbs_say_which_device_they_took_and_give_the_same(file, pictures, capsys, monkeypatch):
    assert cli.run(["predict", str(file), str(pictures)]) == 0
    on_cpu = capsys.readouterr()
    assert not on_cpu.err.startswith("tlkit: device")
    monkeypatch.setattr(devices, "assumed", lambda _: {"cpu": Speed(0, 1.0), "cuda": Speed(2, 100.0)})
    assert cli.run(["predict", str(file), str(pictures)]) == 0
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
