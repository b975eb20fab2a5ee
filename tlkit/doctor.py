"""Diagnose a machine: versions, GPU, providers that start, and problems of the installation."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper
from packaging.requirements import Requirement
from packaging.version import Version

from tlkit.plugin.discovery import damaged
from tlkit.runtime.providers import cause, load_libraries
from tlkit.runtime.session import quiet_options

# These packages write the same files; the last one installed wins, until one is removed together with the files.
RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-training")
RTX = ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12")  # these as well
RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
ORT_GPU = "onnxruntime-gpu"
ORT_CUDA_13 = "1.27"  # the first version of it that is built for CUDA 13
ORT_TENSORRT = 10  # the major version that its TensorRT provider loads
PARTS = ("libs", "bindings")  # of TensorRT-RTX, each a package of its own
CUDA = ("nvidia-cuda-runtime-cu12", "nvidia-cuda-runtime")  # what pip installs of it
PACKAGES = (
    *("tlkit", "numpy", "onnx", "pillow", "safetensors", "torch", "scikit-learn", "pyarrow"),
    *("tensorrt", *RTX, "openvino"),
    *("cuda-bindings", *CUDA, "nvidia-cudnn-cu12", "nvidia-cudnn-cu13"),
    *RUNTIMES,
)
QUERY = ("name", "driver_version", "compute_cap", "memory.total")
TIMEOUT = 20  # seconds for nvidia-smi, which can hang if a driver is broken


@dataclass(frozen=True, slots=True)
class Provider:
    """A provider of ONNX Runtime, and the reason if it does not start."""

    name: str
    starts: bool
    why: str | None = None


@dataclass(frozen=True, slots=True)
class Gpu:
    """An NVIDIA GPU as its driver sees it."""

    name: str
    driver: str
    compute_capability: str
    memory: str


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem, and the command that fixes it."""

    what: str
    do: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """State of a machine. `problems` are defects; `advice` names what would enable more."""

    system: str
    versions: Mapping[str, str]
    providers: tuple[Provider, ...]
    gpus: tuple[Gpu, ...]
    cuda: str | None  # newest version that the driver supports; None without a driver or an answer
    problems: tuple[Problem, ...]
    advice: tuple[Problem, ...]
    targets: Mapping[str, str | None] = field(default_factory=dict)  # why each can't be built here, or None
    plugins: tuple[str, ...] = ()  # warnings about some of them

    def __repr__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield self.system
        yield ", ".join(f"{name} {version}" for name, version in self.versions.items())
        yield from (
            f"GPU: {gpu.name}, driver {gpu.driver}, compute capability {gpu.compute_capability}, {gpu.memory}"
            for gpu in self.gpus
        )
        if not self.gpus:
            yield "GPU: none from NVIDIA; engines can be built for one, but not run"
        if self.cuda is not None:
            yield f"CUDA: the driver supports up to {self.cuda}"
        for provider in self.providers:
            yield f"provider {provider.name}: {'starts' if provider.starts else f'does not start: {provider.why}'}"
        for name, missing in self.targets.items():
            yield f"target {name}: {missing or 'can be built here'}"
        yield from (f"plugin: {warning}" for warning in self.plugins)
        yield from (f"advice: {each.what}; {each.do}" for each in self.advice)
        yield from (f"PROBLEM: {each.what}; {each.do}" for each in self.problems)
        if not self.problems:
            yield "no problems found"

    def to_json(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        return asdict(self)


def diagnose() -> Diagnosis:
    """Return the state of this machine. Takes a second or two if a GPU has to wake up."""
    found, tried, seen = versions(), tuple(providers()), tuple(gpus())
    cuda = driver_cuda()
    return Diagnosis(
        system=f"Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        versions=found,
        providers=tried,
        gpus=seen,
        cuda=cuda,
        problems=(*problems(found, tried), *clashes(found, cuda)),
        advice=tuple(advice(found, tried, seen)),
    )


def versions() -> dict[str, str]:
    """Return the versions of the relevant packages that are installed."""
    return {package: version for package in PACKAGES if (version := _version(package)) is not None}


def providers() -> Iterator[Provider]:
    """Yield every provider that ONNX Runtime lists, tried on a graph of one operator: a listed one may not start."""
    for name in onnxruntime.get_available_providers():
        why = fault(name)
        yield Provider(name, why is None, why)


def gpus() -> list[Gpu]:
    """Return the NVIDIA GPUs; none without a driver."""
    rows = (line.split(", ") for line in _ask_driver(f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader"))
    return [Gpu(*row) for row in rows if len(row) == len(QUERY)]


def driver_cuda() -> str | None:
    """Return the newest CUDA that the driver supports, such as 13.0; it is printed above its table of GPUs."""
    found = re.search(r"CUDA (?:\w+ )?Version *: *(\d+\.\d+)", "\n".join(_ask_driver()))
    return found[1] if found else None


def _ask_driver(*options: str) -> list[str]:
    """Return the lines that nvidia-smi prints; none without a driver or an answer."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        done = subprocess.run([tool, *options], capture_output=True, text=True, check=True, timeout=TIMEOUT)  # noqa: S603 - no input
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.splitlines()


def problems(found: Mapping[str, str], tried: Sequence[Provider]) -> Iterator[Problem]:
    """Yield defects of the installation."""
    for folder in damaged():
        what = f"the metadata in {folder} is damaged: if a plugin, it is not found"
        yield Problem(what, "remove the folder and install the package again")
    several = [name for name in RUNTIMES if name in found]
    if len(several) > 1:
        yield _overwriting(several, keep=next(name for name in several if name != RUNTIMES[0]))
    needed = {"CPUExecutionProvider", *(_INSTALLED_FOR[name] for name in several if name in _INSTALLED_FOR)}
    for provider in tried:
        if not provider.starts and provider.name in needed:
            yield Problem(f"{provider.name} does not start: {provider.why}", _FIXES.get(provider.name, _REINSTALL))
    for requirement in _requirements():
        has = found.get(requirement.name) or _version(requirement.name)
        if has is not None and has not in requirement.specifier:
            yield Problem(
                f"{requirement.name} {has} is installed, and tlkit needs {requirement.specifier}",
                f'run: pip install "{requirement.name}{requirement.specifier}"',
            )


def clashes(found: Mapping[str, str], cuda: str | None) -> Iterator[Problem]:
    """Yield NVIDIA packages that conflict, or that need a newer CUDA than `cuda`, the driver's."""
    both = [name for name in RTX if name in found]
    if len(both) > 1:
        yield _overwriting(both, keep=both[0])
    for name in both:
        for part in PARTS:
            has = _version(f"{name}-{part}")
            if has is not None and has != found[name]:
                yield Problem(
                    f"{name} {found[name]} is installed with {name}-{part} {has}",
                    f"run: pip install --force-reinstall {name}=={found[name]}",
                )
    if cuda is None:
        return
    has = found.get(ORT_GPU)
    if has is not None and Version(has) >= Version(ORT_CUDA_13) and Version(cuda).major < 13:
        yield Problem(
            f"{ORT_GPU} {has} is built for CUDA 13, and the driver supports CUDA {cuda} at most",
            f'update NVIDIA\'s driver, or run: pip install "{ORT_GPU}<{ORT_CUDA_13}"',
        )
    for name in CUDA:
        has = found.get(name)
        if has is not None and Version(has).major > Version(cuda).major:  # within a major version all of them run
            yield Problem(
                f"{name} {has} is installed, and the driver supports CUDA {cuda} at most",
                f"update NVIDIA's driver, or install what is built for CUDA {Version(cuda).major}",
            )


def _overwriting(packages: Sequence[str], *, keep: str) -> Problem:
    return Problem(
        f"{' and '.join(packages)} are installed together and overwrite each other's files",
        f"run: pip uninstall -y {' '.join(packages)} && pip install {keep}",
    )


def advice(found: Mapping[str, str], tried: Sequence[Provider], seen: Sequence[Gpu]) -> Iterator[Problem]:
    """Yield packages that would enable more on this machine."""
    if seen and not any(provider.starts and provider.name in _GPU for provider in tried):
        yield Problem(
            f"there is a GPU ({seen[0].name}), and ONNX Runtime does not use it",
            "run: pip uninstall -y onnxruntime && pip install onnxruntime-gpu",
        )
    yield from _tensorrt_advice(found, seen)
    if "torch" not in found:
        yield Problem("training and exporting need PyTorch", 'run: pip install "tlkit[train]"')
    if "pyarrow" not in found:
        yield Problem("writing features as Parquet needs pyarrow", 'run: pip install "tlkit[parquet]"')


def _tensorrt_advice(found: Mapping[str, str], seen: Sequence[Gpu]) -> Iterator[Problem]:
    """Yield what keeps an installed TensorRT from running here."""
    has = found.get("tensorrt")
    if ORT_GPU in found and has is not None and Version(has).major != ORT_TENSORRT:
        yield Problem(
            f"tensorrt {has} is installed, and the TensorRT provider of {ORT_GPU} {found[ORT_GPU]} loads "
            f"TensorRT {ORT_TENSORRT} (libnvinfer.so.{ORT_TENSORRT})",
            f'for --device tensorrt run: pip install "tensorrt~={ORT_TENSORRT}.0"',
        )
    for gpu in seen if any(name in found for name in RTX) else ():
        if gpu.compute_capability not in RTX_CAPABILITIES:
            yield Problem(
                f"TensorRT-RTX has no kernels for {gpu.name} (compute capability {gpu.compute_capability}), only for "
                f"{', '.join(RTX_CAPABILITIES)}: its engines can be built here, but not run",
                "use TensorRT or ONNX Runtime on this GPU",
            )


_GPU = ("CUDAExecutionProvider", "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")
_INSTALLED_FOR = {"onnxruntime-gpu": "CUDAExecutionProvider"}
_REINSTALL = "run: pip install --force-reinstall onnxruntime"
_FIXES = {
    "CUDAExecutionProvider": "install the CUDA and cuDNN that this version is built for: "
    'pip install "onnxruntime-gpu[cuda,cudnn]"'
}


def fault(provider: str) -> str | None:
    """Return the reason why a provider does not run a graph; None if it does. ONNX Runtime falls back silently."""
    load_libraries(provider)
    try:  # with its fallback, ONNX Runtime would print a banner to stdout where a provider fails
        session = onnxruntime.InferenceSession(_tiny_graph(), quiet_options(), providers=[provider], enable_fallback=0)
        if provider not in session.get_providers():
            return "its libraries can't be loaded, so ONNX Runtime runs on the CPU instead"
        got = session.run(None, {"x": np.ones((1, 2), np.float32)})[0]
    except Exception as error:  # noqa: BLE001 - onnxruntime has an exception class for each status
        return cause(error).strip().split("\n")[0]
    return None if np.array_equal(got, np.full((1, 2), 2, np.float32)) else f"it computes 1 + 1 = {got.flat[0]}"


def _tiny_graph() -> bytes:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "tiny", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def _requirements() -> list[Requirement]:
    """Return the requirements of tlkit and its extras: those that are installed have to be new enough."""
    try:
        stated = metadata.requires("tlkit") or []
    except metadata.PackageNotFoundError:
        return []
    extras = ("", *(metadata.metadata("tlkit").get_all("Provides-Extra") or ()))
    return [
        each
        for each in map(Requirement, stated)
        if each.name != "tlkit" and (each.marker is None or any(each.marker.evaluate({"extra": e}) for e in extras))
    ]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
