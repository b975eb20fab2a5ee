"""Processes that share one import of PyTorch: forks of a process that has imported it and has done nothing else.

A fork has memory, threads, environment, working directory, signals and an exit code of its own, as any process has.
What it has not to do is to import PyTorch, its exporter and scikit-learn, which takes four seconds of CPU time. A test
of what is imported, or of packages that are missing, needs a process that starts again.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import pkgutil
import random
import re
import resource
import runpy
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
PRELOADED = (
    *("matplotlib.backends.backend_agg", "matplotlib.figure", "numpy", "onnx", "onnxruntime", "onnxscript"),
    *("onnxscript.function_libs.torch_lib.ops", "onnxscript.rewriter.onnx_fusions", "PIL.Image", "pyarrow.parquet"),
    *("safetensors.numpy", "safetensors.torch", "scipy.optimize", "sklearn.decomposition", "sklearn.linear_model"),
    *("sklearn.svm", "sympy.combinatorics", "torch", "torch._dynamo", "torch._export.db", "torch._inductor.lowering"),
    *("torch.export._trace", "torch.onnx", "torch.onnx._internal.exporter._core"),
    *("tests.kit.components", "tests.kit.exporting", "tlkit.conformance.backbone.graph", "tlkit.conformance.head"),
    *("tlkit_standard.heads._solver", "tlkit_standard.heads.memory", "tlkit_standard.strategies"),
    *("tlkit_standard.backbones", "tlkit_standard.sources", "tlkit_standard.targets"),
)
NOT_PRELOADED = ("tlkit.__main__", "tlkit.serving", "tlkit.worker")  # gRPC does not survive a fork


@dataclass(frozen=True)
class Finished:
    """Exit code (below 0: minus the signal that ended it) and output of a process."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The result that it printed with `--json`."""
        return json.loads(self.out)

    @property
    def problems(self) -> str:
        """Stderr without the lines that a training begins with, and without the number of files."""
        told = re.compile(r"[\d,]+ class(es)? \(|leakage: |label conflict: |[\d,]+ files?: ")
        return "".join(line for line in self.err.splitlines(keepends=True) if not told.match(line))

    @property
    def next(self) -> str:
        """The command it named as the next."""
        return self.err.splitlines()[-1].removeprefix("next: ")


def python_path(more: str = "") -> str:
    """Return a PYTHONPATH for processes that import `tests` as well."""
    return os.pathsep.join(filter(None, [more, str(ROOT), os.environ.get("PYTHONPATH")]))


class Forks:
    """A process that forks on request, started with the first one; a context manager that ends it."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None

    def run(
        self,
        command: Sequence[object],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        largest_file: int | None = None,
    ) -> Finished:
        """Run `tlkit ...`, or what would follow `python`: `-m module ...`, `-c code ...` or `script.py ...`.

        `env` is added to the environment of this process; folders of a PYTHONPATH in it come first on the fork's path.
        `largest_file` is a limit in bytes, as of a disk that is full.
        """
        return self.run_together(command, cwd=cwd, envs=[env or {}], largest_file=largest_file)[0]

    def run_together(
        self,
        command: Sequence[object],
        *,
        envs: Sequence[Mapping[str, str]],
        cwd: Path | None = None,
        largest_file: int | None = None,
    ) -> list[Finished]:
        """Run a command in so many processes at the same time, each with an environment of its own; see `run`."""
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, "-m", __name__],
                cwd=ROOT,
                # Telemetry is a thread that starts when ONNX Runtime is imported, and threads don't survive a fork.
                env={**os.environ, "PYTHONPATH": python_path(), "ORT_DISABLE_TELEMETRY": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        with tempfile.TemporaryDirectory(prefix="tlkit-fork-") as name:
            request = {"command": [str(each) for each in command], "cwd": str(cwd or Path.cwd())}
            requests = [
                request
                | {"env": {**os.environ, **env}, "largest_file": largest_file}
                | {stream: str(Path(name, f"{number}.{stream}")) for stream in ("out", "err")}
                for number, env in enumerate(envs)
            ]
            self._server.stdin.write(json.dumps(requests) + "\n")
            self._server.stdin.flush()
            codes = json.loads(self._server.stdout.readline())
            texts = [  # names may be any bytes
                [Path(each[stream]).read_text("utf-8", "surrogateescape") for stream in ("out", "err")]
                for each in requests
            ]
        return [Finished(code, *text) for code, text in zip(codes, texts, strict=True)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.communicate()


def serve() -> None:
    """Fork for each request in a line of standard input, wait for all, and write their exit codes in a line."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever an import prints is no reply
    preload()
    gc.freeze()  # or collections of garbage would copy the pages that forks share
    for line in sys.stdin:
        started = []
        for request in json.loads(line):
            started.append(os.fork())
            if started[-1] == 0:
                renew_threads()
                os._exit(_exit_code(request))  # without taking apart what was imported, which takes a second
        replies.write(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in started]) + "\n")
        replies.flush()


def renew_threads() -> None:
    """Have PyTorch replace the pool of threads that a fork has lost; two threads that do so at once abort (2.14)."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(torch.get_num_threads())


def preload() -> None:
    """Import what tests use, and trace once: PyTorch's exporter prepares for a second at the first trace."""
    import tlkit

    ours = [module.name for module in pkgutil.walk_packages(tlkit.__path__, "tlkit.")]
    for name in (*PRELOADED, *(name for name in ours if not name.startswith(NOT_PRELOADED))):
        with contextlib.suppress(ImportError):
            import_module(name)
    with contextlib.suppress(ImportError):
        import torch

        from tests.kit.tiny import Line
        from tests.kit.tracing import prepare_once
        from tlkit.graph.trace import head_graph

        prepare_once()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # threads don't survive a fork
        head_graph(Line().module(2, 2), 2)
        torch.set_num_threads(threads)


def _exit_code(request: Mapping[str, Any]) -> int:
    """Return the exit code of what was asked for, after what a process does when it ends."""
    try:
        become(**request)
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - this is the end of a process
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    return code


def become(
    command: Sequence[str], cwd: str, env: Mapping[str, str], out: str, err: str, largest_file: int | None
) -> None:
    """Turn this process into the one that was asked for."""
    for number, file, flags in ((0, os.devnull, os.O_RDONLY), (1, out, os.O_WRONLY), (2, err, os.O_WRONLY)):
        os.dup2(os.open(file, flags | os.O_CREAT), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    tempfile.tempdir = None  # TMPDIR may be another
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    _seed_again()
    first, *rest = command
    path = [each for each in env.get("PYTHONPATH", "").split(os.pathsep) if each and each not in sys.path]
    sys.path[1:1] = path
    if first == "tlkit":
        from tlkit.cli import main

        sys.argv = list(command)
        main()
    elif first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.path[0] = ""
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102 - as Python does
    else:
        sys.argv, sys.path[0] = list(command), str(Path(first).parent)
        runpy.run_path(first, run_name="__main__")


def _seed_again() -> None:
    """Have the generators that a new process seeds at random differ from fork to fork."""
    import numpy as np

    random.seed()
    np.random.seed()  # noqa: NPY002 - the global one is what is seeded here


if __name__ == "__main__":
    serve()
