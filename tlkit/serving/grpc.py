"""gRPC: the same answers as over HTTP, by grpc.aio and messages of our own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import DecodeError

from tlkit.errors import ResourceError
from tlkit.serving.http import EXTENSIONS
from tlkit.serving.limits import Front, problem_of
from tlkit.serving.messages import SERVICE, messages
from tlkit.serving.protocol import (
    BYTES,
    MAX_OUTPUTS,
    UINT8,
    InferRequest,
    InferResponse,
    InputTensor,
    ProtocolError,
    RequestedOutput,
    check_parameters,
    classes_of,
    tensor,
    timeout_of,
)
from tlkit.version import __version__

CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    503: grpc.StatusCode.RESOURCE_EXHAUSTED,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
TYPES = {"TYPE_UINT8": 2, "TYPE_FP32": 11, "TYPE_STRING": 13}  # of model_config.proto
OPEN = ("ServerLive", "ServerReady")  # without the token, if there is one
Call = Callable[[Any, Any], Awaitable[Any]]  # of a request and its context


class Grpc(Front):
    """The service."""

    async def start(self, host: str, port: int, tls: Mapping[str, str]) -> tuple[grpc.aio.Server, int]:
        """Return the running server and its port. Raises ResourceError."""
        limits = self.inference.limits
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", limits.body),
                ("grpc.max_metadata_size", limits.headers),
                ("grpc.compression_enabled_algorithms_bitset", 1),  # none: gRPC bounds a message before it unpacks it
                ("grpc.max_concurrent_streams", limits.connections),
                ("grpc.server_handshake_timeout_ms", round(1e3 * limits.reading / 3)),
                ("grpc.so_reuseport", 0),
            ],
            maximum_concurrent_rpcs=limits.connections,
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, self._handlers()),))
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if tls:
                pair = tuple(Path(tls[name]).read_bytes() for name in ("ssl_keyfile", "ssl_certfile"))
                bound = server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
            else:
                bound = server.add_insecure_port(address)
        except RuntimeError as error:
            what = f"gRPC can't listen on {host}, port {port}"
            raise ResourceError(what, do="choose another with --grpc-port") from error
        await server.start()
        return server, int(bound)

    def _handlers(self) -> dict[str, grpc.RpcMethodHandler]:
        """Return the handler of every method that is supported; gRPC itself answers the others."""
        made = messages()
        repository = self.inference.repository
        answers: dict[str, Callable[[Any], Any]] = {
            "ServerLive": lambda _: {"live": True},
            "ServerReady": lambda _: {"ready": repository.ready},
            "ModelReady": lambda asked: {"ready": repository.ready and repository.has(asked.name, asked.version)},
            "ServerMetadata": lambda _: {"name": "tlkit", "version": __version__, "extensions": EXTENSIONS},
            "ModelMetadata": lambda asked: _without(repository.get(asked.name, asked.version).metadata(), "parameters"),
            "ModelConfig": self._config,
            "ModelStatistics": self._statistics,
            "RepositoryIndex": lambda asked: {
                "models": [each for each in repository.index() if not asked.ready or each["state"] == "READY"]
            },
        }

        def answering(name: str, answer: Callable[[Any], Any]) -> Call:
            async def call(request: Any, _context: Any) -> Any:
                return made[f"{name}Response"](**answer(request))

            return call

        calls: dict[str, Call] = {name: answering(name, answer) for name, answer in answers.items()}
        handlers = {name: self._unary(name, call) for name, call in {**calls, "ModelInfer": self._infer}.items()}
        response = made["ModelStreamInferResponse"]
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
            self._stream, response_serializer=response.SerializeToString
        )
        return handlers

    def _unary(self, name: str, call: Call) -> grpc.RpcMethodHandler:
        """Return the handler of a method, as one with a stream of requests: its one request is read when we say so."""

        async def handle(requests: AsyncIterator[bytes], context: Any) -> Any:
            try:
                return await self._answered(name, lambda: self._read(requests), call, context)
            except ProtocolError as problem:
                return await context.abort(_code(problem), problem.message)

        serializer = messages()[f"{name}Response"].SerializeToString
        return grpc.stream_unary_rpc_method_handler(handle, response_serializer=serializer)

    async def _stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:
        """Answer each request of a stream in turn; a problem is a message of it, and the lack of a token its end."""
        response = messages()["ModelStreamInferResponse"]
        async for content in requests:

            async def read(content: bytes = content) -> bytes:
                return content

            try:
                answer = await self._answered("ModelInfer", read, self._infer, context)
                yield response(infer_response=answer)
            except ProtocolError as problem:
                if problem.status == 401:
                    await context.abort(_code(problem), problem.message)
                yield response(error_message=problem.message)

    async def _answered(self, name: str, read: Callable[[], Awaitable[bytes]], call: Call, context: Any) -> Any:
        """Return the answer to a request; what goes wrong is a ProtocolError without paths or stacks."""
        started, code, model = time.monotonic(), grpc.StatusCode.OK, ""
        try:
            if name not in OPEN:
                sent = dict(context.invocation_metadata() or ()).get("authorization", "")
                self.authorize(str(sent).encode())
            request = _parsed(name, await read())
            asked = getattr(request, "model_name", "") or getattr(request, "name", "")
            model = asked if self.inference.repository.has(asked) else ""
            return await call(request, context)
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            self.inference.metrics.rejected("closed")
            raise
        except Exception as error:
            problem = problem_of(error)
            code = _code(problem)
            self.inference.metrics.rejected(problem.reason)
            raise problem from error
        finally:
            self.note(model, code.name, started, "grpc", method=name, client=context.peer())

    async def _read(self, requests: AsyncIterator[bytes]) -> bytes:
        """Return the one request of a call, which the server waits for as long as for a body of HTTP."""
        try:
            async with asyncio.timeout(self.inference.limits.reading):
                return await anext(requests)
        except TimeoutError as error:
            raise ProtocolError(408, "the request came too slowly", reason="slow") from error
        except StopAsyncIteration as error:
            raise ProtocolError(400, "the call holds no request") from error

    async def _infer(self, request: Any, context: Any) -> Any:
        remaining = context.time_remaining()
        parsed = parse(request)
        if remaining is not None:
            parsed = replace(parsed, timeout=min(max(remaining, 1e-6), parsed.timeout or remaining))
        return _response(await self.inference.infer(request.model_name, request.model_version, parsed))

    def _config(self, asked: Any) -> dict[str, Any]:
        config = self.inference.repository.get(asked.name, asked.version).config(self.inference.limits.images)
        for tensors in (config["input"], config["output"]):
            for each in tensors:
                each["data_type"] = TYPES[each["data_type"]]
        parameter = messages()["ModelParameter"]  # protobuf before 6 takes no mapping as a value of a map
        config["parameters"] = {key: parameter(**value) for key, value in config["parameters"].items()}
        return {"config": config}

    def _statistics(self, asked: Any) -> dict[str, Any]:
        repository = self.inference.repository
        models = [repository.get(asked.name, asked.version)] if asked.name else repository.all()
        return {"model_stats": [each.statistics() for each in models]}


def parse(request: Any) -> InferRequest:
    """Return a request of gRPC, whose tensors are raw or in fields of their type. Raises ProtocolError."""
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise ProtocolError(400, "raw_input_contents must have one element for each input, or none")
    inputs = []
    for number, each in enumerate(request.inputs):
        check_parameters(_parameters(each))
        inputs.append(tensor(each.name, each.datatype, list(each.shape), raw[number]) if raw else _typed(each))
    parameters = check_parameters(_parameters(request))
    if len(request.outputs) > MAX_OUTPUTS:
        raise ProtocolError(400, "it asks for too many outputs")
    asked = [
        RequestedOutput(each.name, binary=True, classes=classes_of(check_parameters(_parameters(each))))
        for each in request.outputs
    ]
    return InferRequest(tuple(inputs), tuple(asked), request.id, binary=True, timeout=timeout_of(parameters))


def _typed(each: Any) -> InputTensor:
    """Return an input whose values are in fields of their type."""
    if each.datatype == BYTES:
        elements = tuple(each.contents.bytes_contents)
        raw = b"".join(len(element).to_bytes(4, "little") + element for element in elements)
        return tensor(each.name, BYTES, list(each.shape), raw)
    values = np.array(each.contents.uint_contents, np.uint32)
    if values.size and values.max() > 255:
        raise ProtocolError(400, f"input {each.name[:60]!r}: UINT8 data must be whole numbers from 0 to 255")
    return tensor(each.name, each.datatype or UINT8, list(each.shape), values.astype(np.uint8).tobytes())


def _parameters(message: Any) -> dict[str, Any]:
    """Return parameters by name; those without a value are left out."""
    chosen = ((name, value, value.WhichOneof("parameter_choice")) for name, value in message.parameters.items())
    return {name: getattr(value, which) for name, value, which in chosen if which is not None}


def _response(answer: InferResponse) -> Any:
    outputs = [{"name": each.name, "datatype": each.datatype, "shape": each.shape} for each in answer.outputs]
    return messages()["ModelInferResponse"](
        model_name=answer.model,
        model_version=answer.version,
        id=answer.id,
        outputs=outputs,
        raw_output_contents=[each.raw() for each in answer.outputs],
    )


def _without(facts: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name != key}


def _parsed(name: str, content: bytes) -> Any:
    """Return the message of a request. Raises ProtocolError."""
    try:
        return messages()[f"{name}Request"].FromString(content)
    except DecodeError as error:
        raise ProtocolError(400, "the request is not a message of this method") from error


def _code(problem: ProtocolError) -> grpc.StatusCode:
    return CODES.get(problem.status, grpc.StatusCode.INTERNAL)
