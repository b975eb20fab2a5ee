"""Measure what declaring a component imports, in a new process."""

from __future__ import annotations

import inspect
import json
import runpy
import subprocess
import sys
from importlib import import_module
from pathlib import Path

from tlkit.conformance.subject import CheckFailed
from tlkit.plugin import hooks
from tlkit.plugin.discovery import find
from tlkit.plugin.registry import Host
from tlkit.util.resources import own_environment

# Each takes from a fifth of a second to several seconds to import.
HEAVY = (
    *("cv2", "jax", "keras", "onnx", "onnxruntime", "openvino", "pandas", "scipy", "sklearn", "tensorflow"),
    *("tensorrt", "tensorrt_rtx", "timm", "torch", "torchvision", "transformers"),
)

_CODE = "import sys; from tlkit.conformance.declare import main; main(*sys.argv[1:])"


def declare(kind: type) -> list[str] | None:
    """Return the heavy packages that declaring components of that class imports; None if it has no file."""
    try:
        file = inspect.getfile(kind)
    except (OSError, TypeError):
        return None
    environment = own_environment()
    command = [sys.executable, "-c", _CODE, kind.__module__, file]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603 - ours
    if process.returncode != 0:
        reason = (process.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise CheckFailed(f"its module can't be imported in a new process: {reason}", do="install the plugin")
    imported: list[str] = json.loads(process.stdout.splitlines()[-1])
    return imported


def main(module: str, file: str) -> None:
    """Import a module and list the components of the plugin it belongs to; print the heavy packages this imported."""
    before = set(sys.modules)
    package = module.partition(".")[0]
    Host(found for found in find(hooks.NAMESPACE) if found.module.partition(".")[0] == package)
    try:
        import_module(module if module != "__main__" else "")
    except (ImportError, ValueError):  # a script, or a test that pytest found by its path
        runpy.run_path(file, run_name=Path(file).stem)
    loaded = set(sys.modules) - before
    print(json.dumps([name for name in HEAVY if name in loaded]))  # noqa: T201 - read by the process that asks
