"""From PyTorch modules to a program of ExecuTorch."""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tlkit import BuildSource, OptimizationProfile
from tlkit.plugin.support import ArtifactError, translate_os_errors

PROGRAM, FACTS = "program.pte", "program.json"


def write(made: BuildSource, out: Path, profile: OptimizationProfile) -> None:
    """Write the folder `out` with the program of the modules, and what the program itself does not say."""
    content = _lower(made, profile)
    facts = {
        "input": made.input,
        "outputs": list(made.outputs),
        "batch": [profile.min, profile.max],
        "sha256": hashlib.sha256(content).hexdigest(),
        "metadata": dict(made.metadata),
    }
    with translate_os_errors(out):
        out.mkdir()
        (out / PROGRAM).write_bytes(content)
        (out / FACTS).write_text(json.dumps(facts, indent=2) + "\n", "utf-8")


def _lower(made: BuildSource, profile: OptimizationProfile) -> bytes:
    # A dynamic axis is traced with two rows at least: PyTorch takes a one for a constant.
    fixed = profile.min == profile.max
    example = torch.from_numpy(made.example(profile.max if fixed else max(2, profile.min)))
    batch = None if fixed else {0: torch.export.Dim("batch", min=profile.min, max=profile.max)}
    module = made.module()
    try:
        with silent():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            program = torch.export.export(module, (example,), dynamic_shapes=(batch,))
            lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            return bytes(lowered.to_executorch().buffer)
    except Exception as error:
        what = f"ExecuTorch refuses it: {type(error).__name__}: {str(error).strip().splitlines()[0]}"
        raise ArtifactError(what, file=made.graph, do="choose another target, or another backbone") from error


@contextmanager
def silent() -> Iterator[Any]:
    """Hide the remarks that libraries make on each other's interfaces."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
