"""ExecuTorch as a target of tlkit: programs for phones and other devices, built from the PyTorch modules."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tlkit import BuildSource, OptimizationProfile, Progress, Session, Target, hookimpl
from tlkit.plugin.support import ResourceError


@dataclass(frozen=True)
class ExecuTorch(Target):
    """A folder with a program, which XNNPACK runs on the CPU, and the names of its input and outputs."""

    name = "executorch"
    suffix = ".executorch"

    def missing(self) -> str | None:
        if importlib.util.find_spec("executorch") is None:
            return 'ExecuTorch is not installed; run: pip install "executorch>=1.0"'
        return None

    def build(self, made: BuildSource, out: Path, profile: OptimizationProfile, progress: Progress) -> None:
        """Lower the modules for batches of `profile.min` to `profile.max`; larger ones run in parts."""
        self._check()
        from tlkit_executorch.program import write

        write(made, out, profile)

    def open(self, place: Path) -> Session:
        self._check()
        from tlkit_executorch.session import ExecuTorchSession

        return ExecuTorchSession(place)

    def _check(self) -> None:
        if (why := self.missing()) is not None:
            raise ResourceError(why)


@hookimpl
def tlkit_targets() -> Iterable[Target]:
    """Return one target, for the CPU."""
    return [ExecuTorch()]
