"""A server in a thread, on ports that are free, as `tlkit.serve` runs it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tlkit.model.exports import graph_file
from tlkit.plugin.contract import Session
from tlkit.runtime.model import Model

PATIENCE = 30


def open_graph(root: Path, graph: str = "model", precision: str = "fp32") -> Model:
    """Open a graph with one core per call and two workers, whatever the machine."""
    return Model.open(graph_file(root, graph, precision=precision), workers=2)


@contextmanager
def serving(paths: Sequence[Path], *, wait: bool = True, precision: str = "fp32", **options: Any) -> Iterator[Any]:
    """Serve bundles until the end of the block; with `wait`, from when it is ready."""
    for package in ("uvicorn", "starlette", "prometheus_client"):
        pytest.importorskip(package, reason="needs tlkit[serve]")
    from tlkit.serving.run import ServeOptions, Server

    opening = partial(open_graph, precision=precision)
    server = Server(paths, opening, f"onnx/{precision}", ServeOptions(port=0, look=0.02, **options))
    errors: list[BaseException] = []

    def run() -> None:
        try:
            server.run()
        except BaseException as error:  # noqa: BLE001 - raised again in the thread of the test
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    until(lambda: errors or (server.http.started and (server.repository.ready or not wait)))
    try:
        if not errors:
            yield server
    finally:
        server.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def until(condition: Any) -> None:
    """Wait for what happens on another thread."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


class Slow(Session):
    """A session that waits for `gate` before each run and remembers the sizes of its batches."""

    def __init__(self, session: Session, gate: threading.Event) -> None:
        self.session, self.gate, self.batches = session, gate, list[int]()
        self.input, self.outputs, self.metadata = session.input, session.outputs, session.metadata
        self.workers, self.batch_size = 1, 8

    def run(self, array: Any, outputs: Sequence[str] | None = None) -> Any:
        assert self.gate.wait(PATIENCE)
        self.batches.append(len(array))
        return self.session.run(array, outputs)

    def close(self) -> None:
        self.session.close()
