"""Limits of what one client may ask for, who may ask at all, and a line for each request: for HTTP and gRPC."""

from __future__ import annotations

import hmac
import json
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tlkit.serving.protocol import ProtocolError

if TYPE_CHECKING:
    from tlkit.serving.inference import Inference

_WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


@dataclass(frozen=True, slots=True)
class Limits:
    """Defaults that a server on the internet can live with; sizes in bytes, times in seconds."""

    body: int = 64 << 20  # of a request, before and after decompression
    json: int = 16 << 20  # of the JSON in it: Python needs about ten times as much to read it
    memory: int = 1 << 30  # of the bodies of all requests together
    headers: int = 16 << 10
    images: int = 256  # per request
    pixels: int = 100_000_000  # per image
    queue: int = 512  # images of all requests for one trunk together
    deadline: float = 10.0  # from the last byte of a request to its answer
    reading: float = 30.0  # from the first to the last byte of a request; of its headers a third
    draining: float = 20.0  # for the requests under way, once the server is to stop
    connections: int = 256


class Body:
    """The bytes of a request as they stream in, counted before and after decompression. Raises ProtocolError.

    Unless they are to `keep`, they are counted as they come, and forgotten.
    """

    def __init__(self, encoding: str, limit: int, *, keep: bool = True) -> None:
        if encoding not in ("", "identity", *_WINDOWS):
            raise ProtocolError(415, f"content encoding {encoding[:40]!r} is not supported; use gzip or deflate")
        self._inflate = zlib.decompressobj(_WINDOWS[encoding]) if encoding in _WINDOWS else None
        self._limit, self._sent, self.size, self._keep = limit, 0, 0, keep
        self._parts: list[bytes] = []

    def feed(self, chunk: bytes) -> int:
        """Add a chunk; return the number of bytes that it adds to the memory held."""
        self._sent += len(chunk)
        if self._sent > self._limit:
            raise self._too_large()
        if not self._keep:
            return 0
        if self._inflate is not None:
            try:
                chunk = self._inflate.decompress(chunk, self._limit - self.size + 1)
            except zlib.error as error:
                raise ProtocolError(400, "the compressed body is damaged") from error
            if self._inflate.unused_data:
                raise ProtocolError(400, "the compressed body holds more than one stream")
        self.size += len(chunk)
        if self.size > self._limit:
            raise self._too_large()
        self._parts.append(chunk)
        return len(chunk)

    def whole(self) -> bytes:
        """Return all of it."""
        if self._inflate is not None and not self._inflate.eof:
            raise ProtocolError(400, "the compressed body is truncated")
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    def _too_large(self) -> ProtocolError:
        return ProtocolError(413, f"the body is larger than {self._limit:,} bytes", reason="size")


@dataclass
class Front:
    """A front of the server: what answers behind it, and who may ask.

    `token` is what clients must send, if it is set; `log` takes a line of JSON per request.
    """

    inference: Inference
    token: str = ""
    log: Callable[[str], object] | None = None

    def authorize(self, sent: bytes) -> None:
        """Raise a ProtocolError unless a client sent the token as its authorization."""
        if self.token and not hmac.compare_digest(sent, b"Bearer " + self.token.encode()):
            raise ProtocolError(401, "a bearer token is needed", reason="token")

    def note(self, model: str, status: str | int, started: float, protocol: str, **facts: object) -> None:
        """Count a request that started at a time, and write its line."""
        seconds = time.monotonic() - started
        self.inference.metrics.request(model, protocol, str(status), seconds)
        if self.log is not None:
            known = {"time": round(time.time(), 3), "protocol": protocol, "model": model, "status": status}
            self.log(json.dumps({**known, "ms": round(1e3 * seconds, 3), **facts}))


def problem_of(error: Exception) -> ProtocolError:
    """Return what a client may know of an error; a bug goes to the server's own stderr."""
    if isinstance(error, ProtocolError):
        return error
    sys.stderr.write(f"tlkit: a bug in tlkit serve: {type(error).__name__}: {error}\n")
    return ProtocolError(500, "internal error", reason="internal")
