"""A server in a process of its own, as `tlkit serve` starts it, and what is asked of one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
from _bench import PYTHON, RIVALS, TLKIT

LISTENING = re.compile(r"http://[^:]+:(\d+)(?: and for gRPC on port (\d+))?")
BUG = "a bug in tlkit"


@dataclass(frozen=True)
class Running:
    """A server, its ports, and the file of its stderr."""

    process: subprocess.Popen[str]
    port: int
    grpc_port: int
    errors: Path

    def bugs(self) -> int:
        """Return the number of its lines on stderr that tell of a bug, or are those of a traceback."""
        said = self.errors.read_text()
        return said.count(BUG) + said.count("Traceback")

    def memory(self) -> float:
        return memory(self.process.pid)


@contextmanager
def serving(work: Path, *arguments: object, command: tuple[object, ...] = (TLKIT, "serve")) -> Iterator[Running]:
    """Run a server until the end of the block; `arguments` are bundles and options beside the port."""
    errors = work / f"errors-{time.monotonic_ns()}.txt"
    with errors.open("w") as stream:
        line = [str(each) for each in (*command, *arguments)]
        process = subprocess.Popen(line, stderr=stream, text=True)
    try:
        while "ready: " not in errors.read_text():
            if process.poll() is not None:
                sys.exit(f"the server ended: {errors.read_text()}")
            time.sleep(0.05)
        found = LISTENING.search(errors.read_text())
        assert found is not None  # noqa: S101 - it is there before "ready"
        yield Running(process, int(found[1]), int(found[2] or 0), errors)
    finally:
        process.terminate()
        process.wait(30)


def load(
    port: int, path: str, body: Path, clients: int, seconds: float, *headers: str, rate: float = 0
) -> dict[str, Any]:
    """Run clients in a process of their own; with a `rate`, that many requests per second whatever is answered."""
    command = [PYTHON, str(RIVALS / "serve_load.py"), str(port), path, str(body), "--clients", str(clients)]
    command += ["--seconds", str(seconds), "--rate", str(rate), *(f"--header={each}" for each in headers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"the clients failed: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout))


def ask(port: int, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    """Return the status and the content of an answer."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content


def tensor_body(work: Path, bundle: Path, count: int) -> tuple[Path, str]:
    """Return the file of a request with a tensor, and its header."""
    size = json.loads((bundle / "bundle.json").read_text())["preprocessing"]["size"]
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
    tensor = {"name": "images", "datatype": "UINT8", "shape": images.shape}
    described = {
        "inputs": [{**tensor, "parameters": {"binary_data_size": images.nbytes}}],
        "outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}],
    }
    text = json.dumps(described).encode()
    file = work / f"tensor-{count}"
    file.write_bytes(text + images.tobytes())
    return file, f"Inference-Header-Content-Length:{len(text)}"


def memory(process: int) -> float:
    """Return the MiB of a process and all that it started, shared pages once; 1 where the system does not tell."""
    parents: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    family = {process}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    total = 0
    for each in family:
        try:
            found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{each}/smaps_rollup").read_text(), re.MULTILINE)
        except OSError:
            continue
        total += int(found[1]) if found else 0
    return total / 1024 or 1.0
