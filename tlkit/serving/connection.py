"""The server of uvicorn, with limits that it lacks: slow headers and idle connections; and the end that we want."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from tlkit.serving.limits import Limits


def protocol_of(limits: Limits) -> type[H11Protocol]:
    """Return uvicorn's protocol of one connection, which ends one that dawdles over its headers."""

    class Connection(H11Protocol):
        timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                transport.abort()
                return
            # asyncio does this only for sockets that name their protocol, which those of our listener do not; without
            # it an answer waits 40 ms for the acknowledgement of its headers.
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.timer = self.loop.call_later(limits.reading / 3, transport.abort)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            begun = self.cycle is not None and not self.cycle.response_complete
            if begun and self.timer is not None:
                self.timer.cancel()
                self.timer = None
            elif not begun and self.timer is None:
                self.timer = self.loop.call_later(limits.reading / 3, self.transport.abort)

        def connection_lost(self, exc: Exception | None) -> None:
            if self.timer is not None:
                self.timer.cancel()
            super().connection_lost(exc)

    return Connection


class HttpServer(uvicorn.Server):
    """Serves until SIGTERM or Ctrl-C, then answers what is under way; `stopping` is told as soon as that begins.

    `beside` is another server to stop at the same time.
    """

    def __init__(self, app: Any, limits: Limits, *, tls: dict[str, str], stopping: Callable[[], object]) -> None:
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # what a client does wrong is in the metrics
        config = uvicorn.Config(
            app,
            http=protocol_of(limits),
            ws="none",
            lifespan="off",
            loop="asyncio",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=limits.connections,
            limit_concurrency=limits.connections + 1,
            timeout_keep_alive=60,
            timeout_graceful_shutdown=max(1, round(limits.draining)),
            h11_max_incomplete_event_size=limits.headers,
            **tls,  # type: ignore[arg-type]  # ssl_keyfile, ssl_certfile
        )
        super().__init__(config)
        self._stopping = stopping
        self.beside: Callable[[], Awaitable[object]] | None = None
        self.interrupted = False

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take SIGTERM and SIGINT as the wish to end well; they are not raised again afterwards."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.interrupted = self.interrupted or sig == signal.SIGINT
        self._stopping()
        super().handle_exit(sig, frame)

    def stop(self) -> None:
        """End well, from any thread."""
        self._stopping()
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        ending = [super().shutdown(sockets)]
        if self.beside is not None:
            ending.append(_awaited(self.beside))
        await asyncio.gather(*ending)


async def _awaited(call: Callable[[], Awaitable[object]]) -> None:
    await call()
