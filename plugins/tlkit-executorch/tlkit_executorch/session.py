"""A program of ExecuTorch, opened."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tlkit import Session
from tlkit.plugin.support import ArtifactError, DataError
from tlkit_executorch.program import FACTS, PROGRAM, silent

if TYPE_CHECKING:
    from numpy.typing import NDArray

AGAIN = "export it again"


class ExecuTorchSession(Session):
    """ExecuTorch's portable runtime, whose XNNPACK uses all cores for one call; a second call waits for the first."""

    def __init__(self, place: Path) -> None:
        self.place = place
        content, facts = _read(place)
        self.input: str = facts["input"]
        self.outputs: tuple[str, ...] = tuple(facts["outputs"])
        self.metadata: Mapping[str, str] = facts["metadata"]
        self._fewest, self.batch_size = facts["batch"]
        try:
            with silent(), _no_stderr():
                from executorch.runtime import Runtime

                self._program = Runtime.get().load_program(content)  # the method needs it as long as it lives
                self._forward: Any = self._program.load_method("forward")
        except RuntimeError as error:
            raise ArtifactError(f"ExecuTorch refuses it: {error}", file=place, do=AGAIN) from error
        self._turn = threading.Lock()

    def run(self, array: NDArray[Any], outputs: Sequence[str] | None = None) -> dict[str, NDArray[np.float32]]:
        parts = [self._part(array[start : start + self.batch_size]) for start in range(0, len(array), self.batch_size)]
        arrays = dict(zip(self.outputs, map(np.concatenate, zip(*parts, strict=True)), strict=True))
        return {name: arrays[name] for name in outputs or self.outputs}

    def _part(self, array: NDArray[Any]) -> list[NDArray[np.float32]]:
        """Return the outputs of one batch, which is filled up to the fewest rows that the program takes."""
        count = len(array)
        filled = np.resize(array, (max(count, self._fewest), *array.shape[1:]))
        try:
            with self._turn:  # outputs lie in memory that the next call uses again
                results = self._forward.execute([torch.from_numpy(filled)])
                return [result.numpy()[:count].copy() for result in results]
        except RuntimeError as error:
            raise ArtifactError(f"ExecuTorch fails: {error}", file=self.place, do=AGAIN) from error


@contextmanager
def _no_stderr() -> Iterator[None]:
    """Hide what the runtime's C++ code writes about the processor's files that it does not find."""
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def _read(place: Path) -> tuple[bytes, dict[str, Any]]:
    """Return the program and the facts about it, whose hash has to be the program's."""
    try:
        content, facts = (place / PROGRAM).read_bytes(), json.loads((place / FACTS).read_text("utf-8"))
        fits = hashlib.sha256(content).hexdigest() == facts["sha256"] and len(facts["batch"]) == 2
        if fits and {"input", "outputs", "metadata"} <= facts.keys():
            return content, facts
    except OSError as error:
        raise DataError(f"can't be read: {error.strerror}", file=place) from error
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise ArtifactError("not a whole program of tlkit", file=place, do=AGAIN)
