"""Problems of an installation are found, each with the command that fixes it."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace

import pytest

from tlkit import cli, doctor
from tlkit.doctor import Gpu, Provider, advice, clashes, diagnose, driver_cuda, gpus, problems, providers

CPU = Provider("CPUExecutionProvider", starts=True)
GPU = Gpu("NVIDIA H200", "570.1", "9.0", "143771 MiB")


@pytest.fixture
def hidden(monkeypatch):
    """No provider of a GPU is expected to start, as tests hide it."""
    monkeypatch.setattr(doctor, "_INSTALLED_FOR", {})


@pytest.mark.usefixtures("hidden")
def test_this_machine_is_sound():
    found = diagnose()
    assert found.problems == ()
    assert found.versions.keys() >= {"tlkit", "onnx", "onnxruntime", "numpy"}
    assert next(each for each in found.providers if each.name == "CPUExecutionProvider").starts


class TestProviders:
    def test_one_that_is_listed_and_falls_back_to_the_cpu_does_not_start(self, monkeypatch):
        monkeypatch.setattr(
            doctor.onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
        )
        real = doctor.onnxruntime.InferenceSession
        monkeypatch.setattr(
            doctor.onnxruntime,
            "InferenceSession",
            lambda content, settings, **_: real(content, settings, providers=["CPUExecutionProvider"]),
        )
        cuda, cpu = providers()
        assert (cuda.name, cuda.starts) == ("CUDAExecutionProvider", False)
        assert "runs on the CPU instead" in cuda.why
        assert cpu.starts

    def test_one_that_raises_says_why_in_one_line(self, monkeypatch):
        def broken(*_, **__):
            raise RuntimeError("libcudnn.so.9 is missing\nand more")

        monkeypatch.setattr(doctor.onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
        monkeypatch.setattr(doctor.onnxruntime, "InferenceSession", broken)
        assert next(providers()) == Provider("CUDAExecutionProvider", starts=False, why="libcudnn.so.9 is missing")

    def test_one_that_computes_rubbish_does_not_start(self, monkeypatch):
        monkeypatch.setattr(doctor.np, "full", lambda *_: doctor.np.zeros((1, 2)))
        assert "1 + 1 = 2" in next(each for each in providers() if each.name == "CPUExecutionProvider").why

    def test_one_that_fails_prints_nothing_and_leaves_stdout_to_json(self, monkeypatch, capfd):
        monkeypatch.setattr(doctor.onnxruntime, "get_available_providers", lambda: ["AzureExecutionProvider"])
        monkeypatch.setattr(doctor, "_tiny_graph", lambda: b"no graph")
        assert not next(providers()).starts
        assert capfd.readouterr() == ("", "")


class TestGpus:
    def test_none_without_a_driver(self, monkeypatch):
        monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
        assert gpus() == []

    def test_what_the_driver_says(self, monkeypatch, tmp_path):
        tool = tmp_path / "nvidia-smi"
        tool.write_text("#!/bin/sh\necho 'NVIDIA H200, 570.1, 9.0, 143771 MiB'\n")
        tool.chmod(0o755)
        monkeypatch.setattr(doctor.shutil, "which", lambda _: str(tool))
        assert gpus() == [GPU]

    @pytest.mark.parametrize(
        ("says", "cuda"),
        [
            ("| NVIDIA-SMI 570.86.15   Driver Version: 570.86.15   CUDA Version: 12.8     |", "12.8"),
            ("| NVIDIA-SMI 595.1   KMD Version: 595.1   CUDA UMD Version: 13.2     |", "13.2"),
            ("| NVIDIA-SMI 570.86.15   Driver Version: 570.86.15   CUDA Version: N/A      |", None),
        ],
    )
    def test_the_cuda_that_the_driver_runs(self, monkeypatch, tmp_path, says, cuda):
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\necho '{says}'\n")
        tool.chmod(0o755)
        monkeypatch.setattr(doctor.shutil, "which", lambda _: str(tool))
        assert driver_cuda() == cuda

    @pytest.mark.parametrize("error", [subprocess.TimeoutExpired("nvidia-smi", 1), OSError("no")])
    def test_a_broken_driver_is_none(self, monkeypatch, error):
        def fail(*_, **__):
            raise error

        monkeypatch.setattr(doctor.shutil, "which", lambda _: "nvidia-smi")
        monkeypatch.setattr(doctor.subprocess, "run", fail)
        assert gpus() == []
        assert driver_cuda() is None


class TestProblems:
    def test_two_runtimes_at_once(self):
        (problem,) = problems({"onnxruntime": "1.22.0", "onnxruntime-gpu": "1.22.0"}, [CPU])
        assert problem.what.startswith("onnxruntime and onnxruntime-gpu are installed together")
        assert problem.do == ("run: pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu")

    def test_cuda_that_was_installed_and_does_not_start(self):
        cuda = Provider("CUDAExecutionProvider", starts=False, why="libcudnn.so.9 is missing")
        (problem,) = problems({"onnxruntime-gpu": "1.22.0"}, [CPU, cuda])
        assert problem.what == "CUDAExecutionProvider does not start: libcudnn.so.9 is missing"
        assert "pip install" in problem.do

    def test_a_provider_that_nobody_asked_for_may_fail(self):
        azure = Provider("AzureExecutionProvider", starts=False, why="no network")
        assert list(problems({"onnxruntime": "1.22.0"}, [CPU, azure])) == []

    def test_a_package_that_is_too_old(self):
        (problem,) = problems({"onnx": "1.2"}, [CPU])
        assert problem.what.startswith("onnx 1.2 is installed, and tlkit needs ")
        assert problem.do.startswith('run: pip install "onnx>=')

    def test_both_packages_of_tensorrt_rtx(self, monkeypatch):
        monkeypatch.setattr(doctor, "_version", lambda _: None)
        (problem,) = clashes({"tensorrt-rtx-cu13": "1.7", "tensorrt-rtx-cu12": "1.6"}, None)
        assert problem.what.startswith("tensorrt-rtx-cu13 and tensorrt-rtx-cu12 are installed together")
        assert problem.do.endswith(
            "pip uninstall -y tensorrt-rtx-cu13 tensorrt-rtx-cu12 && pip install tensorrt-rtx-cu13"
        )

    def test_parts_of_tensorrt_rtx_of_different_versions(self, monkeypatch):
        monkeypatch.setattr(doctor, "_version", lambda name: "1.6" if name.endswith("-libs") else "1.7")
        (problem,) = clashes({"tensorrt-rtx-cu13": "1.7"}, None)
        assert problem.what == "tensorrt-rtx-cu13 1.7 is installed with tensorrt-rtx-cu13-libs 1.6"

    @pytest.mark.parametrize(("cuda", "count"), [("12.8", 1), ("13.0", 0), ("14.1", 0), (None, 0)])
    def test_cuda_that_is_newer_than_the_driver(self, cuda, count):
        found = list(clashes({"nvidia-cuda-runtime": "13.1.80", "nvidia-cuda-runtime-cu12": "12.9.79"}, cuda))
        assert len(found) == count
        for problem in found:
            assert problem.what == "nvidia-cuda-runtime 13.1.80 is installed, and the driver supports CUDA 12.8 at most"
            assert problem.do == "update NVIDIA's driver, or install what is built for CUDA 12"

    @pytest.mark.parametrize(
        ("version", "cuda", "count"), [("1.31.1", "12.8", 1), ("1.31.1", "13.0", 0), ("1.26.0", "12.8", 0)]
    )
    def test_an_onnx_runtime_that_is_built_for_a_newer_cuda(self, version, cuda, count):
        found = list(clashes({"onnxruntime-gpu": version}, cuda))
        assert len(found) == count
        for problem in found:
            assert (
                problem.what == "onnxruntime-gpu 1.31.1 is built for CUDA 13, and the driver supports CUDA 12.8 at most"
            )
            assert problem.do.endswith('pip install "onnxruntime-gpu<1.27"')

    def test_a_tensorrt_that_its_provider_does_not_load(self):
        found = {"torch": "2.9", "pyarrow": "20", "onnxruntime-gpu": "1.31.1", "tensorrt": "11.0"}
        (hint,) = advice(found, [CPU], [])
        assert "loads TensorRT 10 (libnvinfer.so.10)" in hint.what
        assert hint.do.endswith('pip install "tensorrt~=10.0"')
        assert list(advice(found | {"tensorrt": "10.13"}, [CPU], [])) == []

    def test_a_gpu_that_tensorrt_rtx_has_no_kernels_for(self):
        found = {"torch": "2.9", "pyarrow": "20", "tensorrt-rtx-cu13": "1.7"}
        cuda = Provider("CUDAExecutionProvider", starts=True)
        (hint,) = advice(found, [CPU, cuda], [GPU])
        assert hint.what.startswith("TensorRT-RTX has no kernels for NVIDIA H200 (compute capability 9.0)")
        assert list(advice(found, [CPU, cuda], [replace(GPU, compute_capability="8.9")])) == []

    def test_a_gpu_that_is_not_used_is_worth_a_word_and_no_problem(self):
        (hint,) = advice({"torch": "2.9", "pyarrow": "20"}, [CPU], [GPU])
        assert hint.what == "there is a GPU (NVIDIA H200), and ONNX Runtime does not use it"
        cuda = Provider("CUDAExecutionProvider", starts=True)
        assert list(advice({"torch": "2.9", "pyarrow": "20"}, [CPU, cuda], [GPU])) == []

    def test_what_is_missing_names_the_extra(self):
        assert [hint.do for hint in advice({}, [CPU], [])] == [
            'run: pip install "tlkit[train]"',
            'run: pip install "tlkit[parquet]"',
        ]


class TestCommand:
    @pytest.mark.usefixtures("hidden")
    def test_a_sound_machine(self, capsys):
        assert cli.run(["doctor"]) == 0
        out, err = capsys.readouterr()
        assert "provider CPUExecutionProvider: starts" in out
        assert "target onnx: can be built here" in out
        assert out.splitlines()[-1] == "no problems found"
        assert ("CUDA: the driver supports" in out) == (doctor.driver_cuda() is not None)
        assert err.splitlines()[-1] == "next: tlkit plugins"

    def test_a_problem_is_shown_and_ends_with_its_code(self, capsys, monkeypatch):
        real = doctor.versions()
        monkeypatch.setattr(doctor, "versions", lambda: real | {"onnxruntime": "1.22.0", "onnxruntime-gpu": "1.22.0"})
        assert cli.run(["doctor", "--json"]) == 5
        out, err = capsys.readouterr()
        assert json.loads(out)["problems"][0]["do"].startswith("run: pip uninstall -y")
        assert err.startswith("tlkit: onnxruntime and onnxruntime-gpu are installed together")
