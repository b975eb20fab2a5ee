"""Every public method of NVIDIA's clients, each tried on a server that has the model "run"."""

from __future__ import annotations

import asyncio
import inspect
import queue
import re
from collections.abc import Callable
from http.client import HTTPConnection
from importlib import import_module
from typing import Any

import numpy as np

KINDS = ("http", "http.aio", "grpc", "grpc.aio")
NEEDS = {"http": "geventhttpclient", "http.aio": "aiohttp", "grpc": "grpc", "grpc.aio": "grpc"}
WORKS = "works"
OFF = re.compile("trace|log|memory|load")  # what asks for extensions that a server of classifiers does not have
PATIENCE = 30

# Methods that are called with these arguments and return an answer.
PLAIN: dict[str, tuple[Any, ...]] = {
    "is_server_live": (),
    "is_server_ready": (),
    "is_model_ready": ("run",),
    "get_server_metadata": (),
    "get_model_metadata": ("run",),
    "get_model_config": ("run",),
    "get_model_repository_index": (),
    "get_inference_statistics": ("run",),
    "load_model": ("run",),
    "unload_model": ("run",),
    "update_trace_settings": ("run", {}),
    "get_trace_settings": (),
    "update_log_settings": ({},),
    "get_log_settings": (),
    "get_system_shared_memory_status": (),
    "register_system_shared_memory": ("a", "b", 8),
    "unregister_system_shared_memory": (),
    "get_cuda_shared_memory_status": (),
    "register_cuda_shared_memory": ("a", b"c2M=", 0, 8),
    "unregister_cuda_shared_memory": (),
}


class Clients:
    """Clients of one kind of a server on this machine; `port` is that of the kind."""

    def __init__(self, kind: str, port: int) -> None:
        self.kind, self.port = kind, port
        self.module = import_module(f"tritonclient.{kind}")
        self.type = self.module.InferenceServerClient

    def __call__(self, call: Callable[[Any], Any], **options: Any) -> Any:
        """Return what a call of a new client gives, awaited where it has to be."""
        address = f"127.0.0.1:{self.port}"

        async def later() -> Any:
            async with self.type(address, **options) as made:
                result = call(made)
                return await result if inspect.isawaitable(result) else result

        if self.kind.endswith("aio"):
            return asyncio.run(later())
        made = self.type(address, **options)
        try:
            return call(made)
        finally:
            made.close()

    def given(self, images: Any) -> list[Any]:
        """Return the inputs of a request: an array of uint8, or of encoded pictures."""
        made = self.module.InferInput("images", list(images.shape), "UINT8" if images.dtype == np.uint8 else "BYTES")
        made.set_data_from_numpy(images)
        return [made]

    def methods(self) -> list[str]:
        """Return the names of all public methods."""
        found = inspect.getmembers(self.type, inspect.isfunction)
        return sorted(name for name, _ in found if not name.startswith("_"))

    def tried(self, picture: bytes) -> dict[str, str]:
        """Return for each public method that it works, or the error of the protocol that it raises."""
        from tritonclient.utils import InferenceServerException

        outcomes = {}
        for name in self.methods():
            try:
                special = _SPECIAL.get(name)
                if special is None:
                    assert self(lambda made, name=name: getattr(made, name)(*PLAIN[name])) is not None
                else:
                    special(self, picture)
                outcomes[name] = WORKS
            except InferenceServerException as error:
                outcomes[name] = error.message()
        return outcomes


def _pictures(picture: bytes) -> Any:
    return np.array([picture], object)


def _labelled(answer: Any) -> None:
    assert answer.as_numpy("label").shape == (1, 1)


def _infer(clients: Clients, picture: bytes) -> None:
    inputs = clients.given(_pictures(picture))
    _labelled(clients(lambda made: made.infer("run", inputs)))


def _async_infer(clients: Clients, picture: bytes) -> None:
    inputs = clients.given(_pictures(picture))
    if clients.kind == "http":
        _labelled(clients(lambda made: made.async_infer("run", inputs).get_result()))
        return
    got: queue.Queue[Any] = queue.Queue()

    def call(made: Any) -> Any:
        made.async_infer("run", inputs, lambda result, error: got.put(error or result))
        return got.get(timeout=PATIENCE)

    _labelled(clients(call))


def _stream(clients: Clients, picture: bytes) -> None:
    got: queue.Queue[Any] = queue.Queue()

    def call(made: Any) -> Any:
        made.start_stream(callback=lambda result, error: got.put(error or result))
        made.async_stream_infer("run", clients.given(_pictures(picture)))
        answer = got.get(timeout=PATIENCE)
        made.stop_stream()
        return answer

    _labelled(clients(call))


def _stream_infer(clients: Clients, picture: bytes) -> None:
    async def requests() -> Any:
        yield {"model_name": "run", "inputs": clients.given(_pictures(picture))}

    async def call(made: Any) -> Any:
        return [each async for each in made.stream_infer(requests())]

    [(answer, error)] = clients(call)
    assert error is None
    _labelled(answer)


def _bodies(clients: Clients, picture: bytes) -> None:
    """Send the body that the client makes by other means, and let the client read the answer."""
    body, length = clients.type.generate_request_body(clients.given(_pictures(picture)))
    connection = HTTPConnection("127.0.0.1", clients.port, timeout=PATIENCE)
    connection.request("POST", "/v2/models/run/infer", body, {"Inference-Header-Content-Length": str(length)})
    answer = connection.getresponse()
    header = answer.getheader("Inference-Header-Content-Length")
    parsed = clients.type.parse_response_body(answer.read(), header_length=None if header is None else int(header))
    connection.close()
    _labelled(parsed)


def _plugin(clients: Clients, _picture: bytes) -> None:
    from tritonclient._auth import BasicAuth

    def call(made: Any) -> Any:
        made.register_plugin(BasicAuth("someone", "secret"))
        assert made.plugin() is not None
        live = made.is_server_live()
        made.unregister_plugin()
        return live

    assert clients(call)


def _close(clients: Clients, _picture: bytes) -> None:
    assert clients(lambda made: made.is_server_live())  # `clients` closes it


_SPECIAL: dict[str, Callable[[Clients, bytes], None]] = {
    "infer": _infer,
    "async_infer": _async_infer,
    **dict.fromkeys(("start_stream", "async_stream_infer", "stop_stream"), _stream),
    "stream_infer": _stream_infer,
    **dict.fromkeys(("generate_request_body", "parse_response_body"), _bodies),
    **dict.fromkeys(("plugin", "register_plugin", "unregister_plugin"), _plugin),
    "close": _close,
}


def expected(name: str) -> bool:
    """Return whether a method has to work."""
    return OFF.search(name) is None
