"""How ONNX Runtime is best run on a kind of machine where there are many images: what `tuning` found, in manifest.json.

It is a fact about a processor, its cores and the version of ONNX Runtime. On any other machine it is passed over, as if
nothing had been tuned.
"""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from pathlib import Path

import onnxruntime

from tlkit.model import exports
from tlkit.runtime.session import LEVELS, OnnxSession
from tlkit.util.resources import cores

TUNING = "tuning"  # in manifest.json


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """How many threads run a graph at once, one core each (1: one call on all cores), and what each call gets."""

    workers: int
    batch_size: int
    level: str

    def open(self, file: Path) -> OnnxSession:
        """A graph opened to be run like this."""
        session = OnnxSession(file, workers=self.workers, level=self.level)
        session.batch_size = self.batch_size
        return session


def usual() -> RuntimeConfig:
    """What is used where nothing was tuned and there are many images."""
    return RuntimeConfig(cores(), OnnxSession.batch_size, LEVELS[0])


def machine() -> str:
    """The kind of machine that a tuning is good for."""
    return f"{_processor()}, {cores()} cores, ONNX Runtime {onnxruntime.__version__}"


def read(file: Path) -> RuntimeConfig | None:
    """The setting that a graph was tuned to on a machine like this one; None where it wasn't."""
    try:
        record = json.loads((file.parent / exports.MANIFEST).read_text())[TUNING]
        setting = RuntimeConfig(**record["best"])
        sound = setting.level in LEVELS and 0 < setting.workers <= cores() and setting.batch_size > 0
        return setting if sound and record["machine"] == machine() else None
    except (OSError, ValueError, KeyError, TypeError):  # it was not tuned, or lies alone
        return None


def _processor() -> str:
    """The name of the processor; Python's own answer is often no more than its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
