"""The server of uvicorn, with limits that it lacks: slow and endless headers, idle connections; and the end we want."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tlkit.serving.limits import Limits

UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)


class Connection(HttpToolsProtocol):
    """Uvicorn's protocol of one connection, which ends one that dawdles over its headers, or sends no end of them.

    The parser, llhttp, bounds nothing by itself: neither headers, nor trailers, nor what frames the chunks of a body.
    """

    limits: Limits
    timer: asyncio.TimerHandle | None = None
    framing = 0  # bytes since the last ones of a body
    fields = 0  # bytes of the address, the headers and the trailers of a request

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            transport.abort()
            return
        # asyncio does this only for sockets that name their protocol, which those of our listener do not; without
        # it an answer waits 40 ms for the acknowledgement of its headers.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.timer = self.loop.call_later(self.limits.reading / 3, transport.abort)

    def data_received(self, data: bytes) -> None:
        self.framing += len(data)
        super().data_received(data if self.begun else _without_upgrade(data))
        if self.framing > self.limits.headers and not self.transport.is_closing():
            self.send_400_response("too many bytes of headers")
        if self.begun and self.timer is not None:
            self.timer.cancel()
            self.timer = None
        elif not self.begun and self.timer is None:
            self.timer = self.loop.call_later(self.limits.reading / 3, self.transport.abort)

    @property
    def begun(self) -> bool:
        """Return true between the headers of a request and the end of its answer."""
        return self.cycle is not None and not self.cycle.response_complete

    def on_message_begin(self) -> None:
        self.fields = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self.count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.count(len(name) + len(value))
        super().on_header(name, value)

    def count(self, size: int) -> None:
        self.fields += size
        if self.fields > self.limits.headers:
            raise ValueError  # to the parser, which then refuses the request

    def on_headers_complete(self) -> None:
        self.framing = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self.framing = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self.framing = 0
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.timer is not None:
            self.timer.cancel()
        super().connection_lost(exc)


def _without_upgrade(data: bytes) -> bytes:
    """Return the beginning of a request without its header Upgrade, which clients for HTTP/2 send by default.

    The parser would take the body for the other protocol.
    """
    end = data.find(b"\r\n\r\n")
    return UPGRADE.sub(b"\r\nx-upgrade:", data[:end]) + data[end:] if UPGRADE.search(data, 0, end) else data


class HttpServer(uvicorn.Server):
    """Serves until SIGTERM or Ctrl-C, then answers what is under way; `stopping` is told as soon as that begins.

    `beside` is another server to stop at the same time.
    """

    def __init__(self, app: Any, limits: Limits, *, tls: dict[str, str], stopping: Callable[[], object]) -> None:
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # what a client does wrong is in the metrics
        config = uvicorn.Config(
            app,
            http=type("Connection", (Connection,), {"limits": limits}),
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=limits.connections,
            limit_concurrency=limits.connections + 1,
            timeout_keep_alive=60,
            timeout_graceful_shutdown=max(1, round(limits.draining)),
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
