"""TensorRT: engines for the NVIDIA GPU they are built on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.version import Version

from tlkit.plugin.contract import option
from tlkit.plugin.support import ArtifactError, atomic_file, translate_os_errors
from tlkit_standard.targets._nvidia import NvidiaTarget

# Which major version reads the version-compatible engines of an earlier one (support matrix of TensorRT 11.4.1).
LATER = {8: 10, 10: 11}


@dataclass(frozen=True)
class TensorRT(NvidiaTarget):
    """Engines that hold kernels for one kind of GPU and one version of TensorRT."""

    name = "tensorrt"
    package = "tensorrt"
    distribution = "tensorrt"
    version_compatible: bool = option(False, "engines that later versions of TensorRT can open")
    refit: bool = option(False, "engines whose weights can be replaced without a new build")
    hardware_compatible: bool = option(False, "engines for every GPU from Ampere on, with lower throughput")
    timing_cache: Path | None = option(None, "file for layer timings, which make the next build faster", local=True)

    @contextmanager
    def timed(self, trt: Any, config: Any) -> Iterator[None]:
        """Build with the timings of earlier builds, and store those of this one."""
        if (file := self.timing_cache) is None:
            yield
            return
        with translate_os_errors(file):
            known = file.read_bytes() if file.exists() else b""
        if not config.set_timing_cache(config.create_timing_cache(known), False):
            raise ArtifactError(f"not a timing cache of TensorRT {trt.__version__}", file=file, do="name another file")
        yield
        with atomic_file(file) as temporary:
            temporary.write_bytes(memoryview(config.get_timing_cache().serialize()))

    def configure(self, trt: Any, config: Any) -> None:
        if self.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if self.refit:
            config.set_flag(trt.BuilderFlag.REFIT)
        if self.hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS

    def incompatible(self, recorded: Mapping[str, str]) -> str | None:
        """Accept a version-compatible engine in later versions of TensorRT."""
        if self.version_compatible and _reads(self._library().__version__, recorded[self.name]):
            recorded = {name: value for name, value in recorded.items() if name != self.name}
        return super().incompatible(recorded)

    def machine(self) -> Mapping[str, str]:
        """Return the GPU as well: an engine holds kernels for one kind."""
        from tlkit.plugin.support import gpu

        if self.hardware_compatible:
            return super().machine()
        here = gpu()
        return {**super().machine(), "GPU": here.name, "compute capability": here.capability}


def _reads(here: str, built: str) -> bool:
    """Return True if the installed TensorRT reads version-compatible engines of version `built`."""
    ours, theirs = Version(here), Version(built)
    if ours.major == theirs.major:
        return ours >= theirs
    return LATER.get(theirs.major) == ours.major
