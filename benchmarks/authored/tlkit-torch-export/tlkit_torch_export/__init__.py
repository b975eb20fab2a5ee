"""torch.export programs (.pt2) as a target: what PyTorch's own runtimes and compilers read."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlkit import BuildSource, OptimizationProfile, Progress, Session, Target, hookimpl
from tlkit.plugin.support import ArtifactError, DataError, translate_os_errors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FACTS = "tlkit.json"


class TorchExportSession(Session):
    """A program, opened."""

    def __init__(self, file: Path) -> None:
        import torch

        extra = {FACTS: ""}
        if not file.is_file():
            raise DataError("there is no such program", file=file)
        try:
            self._program = torch.export.load(file, extra_files=extra).module()
            facts = json.loads(extra[FACTS])
            self.input, self.outputs, self.metadata = facts["input"], tuple(facts["outputs"]), facts["metadata"]
        except (RuntimeError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise ArtifactError(f"it is no program of tlkit: {error}", file=file, do="export it again") from error

    def run(self, array: NDArray[Any], outputs: Sequence[str] | None = None) -> dict[str, NDArray[np.float32]]:
        import torch

        with torch.no_grad():
            arrays = [tensor.numpy() for tensor in self._program(torch.from_numpy(array))]
        found = dict(zip(self.outputs, arrays, strict=True))
        return {name: found[name] for name in outputs or self.outputs}


@dataclass(frozen=True)
class TorchExportTarget(Target):
    """One file with the program, its weights, and the names of its input and outputs."""

    name = "torch-export"
    suffix = ".pt2"

    def missing(self) -> str | None:
        return None if importlib.util.find_spec("torch") else "PyTorch is not installed; run: pip install torch"

    def build(self, made: BuildSource, out: Path, profile: OptimizationProfile, progress: Progress) -> None:
        import torch

        example = torch.from_numpy(made.example(2))
        shapes = ({0: torch.export.Dim("batch", min=1)},)
        program = torch.export.export(made.module(), (example,), dynamic_shapes=shapes)
        facts = {"input": made.input, "outputs": list(made.outputs), "metadata": dict(made.metadata)}
        with translate_os_errors(out):
            torch.export.save(program, out, extra_files={FACTS: json.dumps(facts)})

    def open(self, place: Path) -> Session:
        return TorchExportSession(place)


@hookimpl
def tlkit_targets() -> Iterable[Target]:
    """Return the target."""
    return [TorchExportTarget()]
