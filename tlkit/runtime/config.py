"""Runtime configs that `bench --tune` found: the fastest way to run a graph on many images, in its manifest.

A config holds for a processor, its number of cores and the version of ONNX Runtime; on another machine it is ignored.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

import onnxruntime

from tlkit.model import exports
from tlkit.runtime.session import LEVELS, OnnxSession
from tlkit.util.files import read_inside
from tlkit.util.resources import cores, processor_info
from tlkit.util.schema import parse_json

TUNING = "tuning"  # in manifest.json


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """Number of threads that run a graph concurrently, one core each (1: one call on all cores), and their calls."""

    workers: int
    batch_size: int
    level: str

    def open(self, file: Path) -> OnnxSession:
        """Open a graph with this config."""
        session = OnnxSession(file, workers=self.workers, level=self.level)
        session.batch_size = self.batch_size
        return session


def default_config() -> RuntimeConfig:
    """Return the config for many images without tuning."""
    return RuntimeConfig(cores(), OnnxSession.batch_size, "all")


def machine() -> str:
    """Return the kind of machine that a config holds for."""
    # Python's own answer is often no more than the architecture.
    processor = processor_info("model name") or platform.processor() or platform.machine()
    return f"{processor}, {cores()} cores, ONNX Runtime {onnxruntime.__version__}"


def read(file: Path) -> RuntimeConfig | None:
    """Return the config that a graph was tuned to on a machine like this one; None without one."""
    try:
        record = parse_json(read_inside(file.parent, exports.MANIFEST))[TUNING]
        config = RuntimeConfig(**record["best"])
        valid = config.level in LEVELS and 0 < config.workers <= cores() and config.batch_size > 0
        return config if valid and record["machine"] == machine() else None
    except (OSError, ValueError, KeyError, TypeError):  # it was not tuned, or has no manifest beside it
        return None
