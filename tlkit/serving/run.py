"""Serve bundles: listen, prove, serve, watch, and end well; the order of a server, top to bottom."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tlkit.errors import ResourceError, TlkitError, UsageError
from tlkit.plugin.contract import Session
from tlkit.serving.connection import HttpServer
from tlkit.serving.http import Http
from tlkit.serving.inference import Inference
from tlkit.serving.limits import Limits
from tlkit.serving.loading import Loader, OpenGraph
from tlkit.serving.metrics import Metrics
from tlkit.serving.models import Repository, ServedModel, discover, retire
from tlkit.serving.scheduler import Scheduler
from tlkit.util.resources import cores

LOCAL = "127.0.0.1"
LOOK = 1.0  # seconds between looks at what is watched


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Options of a server. Port 0 is any that is free; `tls` has the options `ssl_keyfile` and `ssl_certfile`.

    `log` takes a line of JSON per request. `said` is told what happens, `listening` the ports once they are bound.
    """

    host: str = LOCAL
    port: int = 8000
    grpc_port: int | None = None
    watch: bool = False
    token: str = ""
    tls: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    log: Callable[[str], object] | None = None
    said: Callable[[str], object] = lambda _text: None
    look: float = LOOK


class Server:
    """A server of the bundles at `paths`; `place` is the folder of the export that is served, as "onnx/fp32"."""

    def __init__(self, paths: Sequence[Path], open_graph: OpenGraph, place: str, options: ServeOptions) -> None:
        if not options.watch and not discover(paths):
            raise UsageError("no bundle is there to serve", file=paths[0] if paths else None)
        self.options = options
        self.repository, self.metrics = Repository(), Metrics()
        pool = ThreadPoolExecutor(cores(), "decode")
        self.inference = Inference(self.repository, options.limits, self.metrics, pool)
        self.loader = Loader(paths, place, open_graph, self._schedule)
        self._error: TlkitError | None = None
        self._stopping = threading.Event()
        app = Http(self.inference, options.token, options.log)
        self.http = HttpServer(app, options.limits, tls=dict(options.tls), stopping=self._stop)
        self.port = self.grpc_port = 0  # once it listens

    def run(self) -> None:
        """Serve until it is stopped. Raises what keeps it from serving, and KeyboardInterrupt for Ctrl-C."""
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(self._serve())
        if self._error is not None:
            raise self._error
        if self.http.interrupted:
            raise KeyboardInterrupt

    def stop(self) -> None:
        """End well, from any thread."""
        self.http.stop()

    async def _serve(self) -> None:
        options = self.options
        listener = listen(options.host, options.port)
        self.port = listener.getsockname()[1]
        if options.grpc_port is not None:
            os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # it would write a line for each message that it refuses
            from tlkit.serving.grpc import Grpc

            service = Grpc(self.inference, options.token, options.log)
            try:
                server, self.grpc_port = await service.start(options.host, options.grpc_port, options.tls)
            except BaseException:
                listener.close()
                raise
            self.http.beside = lambda: server.stop(options.limits.draining)
        scheme = "https" if options.tls else "http"
        self.options.said(f"listening on {scheme}://{options.host}:{self.port}" + self._grpc_told())
        thread = threading.Thread(target=self._load, args=(asyncio.get_running_loop(),), name="load", daemon=True)
        thread.start()
        await self.http.serve(sockets=[listener])
        self._stopping.set()
        await asyncio.to_thread(thread.join)
        await asyncio.to_thread(retire, self.repository.all())
        self.inference.pool.shutdown(cancel_futures=True)

    def _grpc_told(self) -> str:
        return f" and for gRPC on port {self.grpc_port}" if self.grpc_port else ""

    def _stop(self) -> None:
        """Begin to end: a load balancer sends nothing more to a server that is not ready."""
        self.repository.ready = False
        self._stopping.set()

    def _load(self, loop: asyncio.AbstractEventLoop) -> None:
        """Load what is to be served, and again whenever it changes if it is watched."""
        try:
            self._look(loop, strict=not self.options.watch)
            while self.options.watch and not self._stopping.wait(self.options.look):
                self._look(loop, strict=False)
        except TlkitError as error:
            self._error = error
            self.http.stop()
        except BaseException as error:
            self._error = TlkitError(f"a bug in tlkit serve: {type(error).__name__}: {error}")
            self.http.stop()
            raise

    def _look(self, loop: asyncio.AbstractEventLoop, *, strict: bool) -> None:
        """Load what has changed, exchange it, and close what it replaces once nothing runs on it."""
        failures = dict(self.loader.failures)
        try:
            models = self.loader.load(strict=strict)
        except UsageError as error:  # a folder that is being exchanged
            if strict:
                raise
            self.loader.failures["*"] = error.what
            models = None
        self.repository.failures = dict(self.loader.failures)
        for name, why in self.loader.failures.items():
            if failures.get(name) != why:
                self.metrics.loaded(name, passed=False)
                self.options.said(f"not served: {name}: {why}")
        if models is None or self._stopping.is_set():
            if models is not None:
                retire(models, kept=self.repository.all())
            return
        before = {id(each) for each in self.repository.all()}
        gone = asyncio.run_coroutine_threadsafe(self._exchange(models), loop).result()
        for served in models:
            if id(served) not in before:
                self.metrics.loaded(served.source.name, passed=True)
                what = f"{served.replay.images} golden images replayed, bundle {served.bundle.digest[:12]}"
                version = f"{served.source.name} {served.source.version}"
                self.options.said(f"ready: {version} ({served.precision}): {what}")
        retire(gone, kept=models)

    async def _exchange(self, models: Sequence[ServedModel]) -> list[ServedModel]:
        """Serve these models from now on; on the event loop, so that no request is between two of them."""
        gone = self.repository.replace(models)
        missing = self.loader.failures.keys() - {each.source.name for each in models}
        self.repository.ready = bool(models) and not missing and not self._stopping.is_set()
        return gone

    def _schedule(self, session: Session, name: str) -> Scheduler:
        def observe(images: int, seconds: float) -> None:
            self.metrics.batch(name, images, seconds)

        scheduler = Scheduler(session, self.options.limits.queue, observe)
        self.metrics.watch(name, scheduler)
        return scheduler


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes the event loop; None for asyncio's own."""
    try:
        import uvloop
    except ImportError:  # it is not made for Windows
        return None
    return uvloop.new_event_loop


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises ResourceError."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = (error.strerror or str(error)).lower() if isinstance(error, OSError) else str(error)
        what = f"can't listen on {host}, port {port}: {reason}"
        raise ResourceError(what, do="choose another with --port") from error
