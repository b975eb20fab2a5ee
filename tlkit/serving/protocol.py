"""The Open Inference Protocol, version 2: bytes to dataclasses and back, without I/O.

A request is JSON; with the binary extension, raw tensors follow it in the order of the inputs. Of a BYTES tensor each
element is preceded by its length, 4 bytes, little-endian; in JSON it is base64.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

UINT8, BYTES, FP32 = "UINT8", "BYTES", "FP32"
MAX_AXES = 8
MAX_OUTPUTS = 64
MAX_DEPTH = 64  # of JSON
T = TypeVar("T")


class ProtocolError(Exception):
    """A request that can't be answered: the status of HTTP, and what the client is told.

    `reason` is a label of metrics; `retry_after` is in seconds.
    """

    def __init__(self, status: int, message: str, *, reason: str = "invalid", retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.reason, self.retry_after = status, message, reason, retry_after


@dataclass(frozen=True, slots=True)
class InputTensor:
    """One input: uint8 values of this shape, or encoded pictures."""

    name: str
    shape: tuple[int, ...]
    content: NDArray[np.uint8] | tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """One output: raw or as JSON, and the number of classes to return instead of values, 0 for the values."""

    name: str
    binary: bool = False
    classes: int = 0


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request for inference; without `outputs` all of the model, raw if `binary`. `timeout` is in seconds."""

    inputs: tuple[InputTensor, ...]
    outputs: tuple[RequestedOutput, ...] = ()
    id: str = ""
    binary: bool = False
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One output: float32 values, or strings (BYTES) with their shape."""

    name: str
    shape: tuple[int, ...]
    content: NDArray[np.float32] | tuple[bytes, ...]
    binary: bool = False

    @property
    def datatype(self) -> str:
        """The protocol's name of the type."""
        return BYTES if isinstance(self.content, tuple) else FP32

    def raw(self) -> bytes:
        """Return the values in the binary representation."""
        if isinstance(self.content, tuple):
            return b"".join(len(each).to_bytes(4, "little") + each for each in self.content)
        return np.ascontiguousarray(self.content, "<f4").tobytes()


@dataclass(frozen=True, slots=True)
class InferResponse:
    """The answer to a request for inference."""

    model: str
    version: str
    id: str
    outputs: tuple[OutputTensor, ...]


def parse_json(body: bytes | memoryview, limit: int) -> dict[str, Any]:
    """Return a JSON object. Raises ProtocolError for anything else, for NaN, and where it is too large or deep."""
    if len(body) > limit:
        raise ProtocolError(413, f"the JSON is larger than {limit:,} bytes; send tensors as binary", reason="size")
    try:
        content = json.loads(bytes(body), parse_constant=_no_constant)
    except RecursionError as error:
        raise ProtocolError(400, "the JSON is nested too deeply") from error
    except ValueError as error:
        raise ProtocolError(400, "the body is not valid JSON") from error
    if not isinstance(content, dict):
        raise ProtocolError(400, "the body is not a JSON object")
    if _depth(content) > MAX_DEPTH:
        raise ProtocolError(400, "the JSON is nested too deeply")
    return content


def parse_infer(body: bytes, header_length: str | None, json_limit: int) -> InferRequest:
    """Return the request that a body holds; `header_length` is the value of Inference-Header-Content-Length."""
    size = len(body)
    if header_length is not None:
        if not header_length.isascii() or not header_length.isdigit() or not 0 < int(header_length[:20]) <= len(body):
            raise ProtocolError(400, "Inference-Header-Content-Length is not the length of JSON in the body")
        size = int(header_length)
    view = memoryview(body)
    content = parse_json(view[:size], json_limit)
    raw = view[size:]
    inputs = []
    for each in _objects(content, "inputs"):
        tensor, used = _input(each, raw)
        raw = raw[used:]
        inputs.append(tensor)
    if len(raw):
        raise ProtocolError(400, f"the body holds {len(raw)} bytes that belong to no input")
    parameters = check_parameters(_typed(content, "parameters", dict, {}))
    binary = _typed(parameters, "binary_data_output", bool, False)
    asked = content.get("outputs")
    outputs = [] if asked is None else [_output(each, binary) for each in _objects(content, "outputs")]
    if len(outputs) > MAX_OUTPUTS:
        raise ProtocolError(400, "it asks for too many outputs")
    return InferRequest(tuple(inputs), tuple(outputs), _typed(content, "id", str, ""), binary, timeout_of(parameters))


def encode_infer(response: InferResponse) -> tuple[bytes, int | None]:
    """Return the body of an answer, and the length of the JSON in it if raw tensors follow."""
    outputs, raw = [], []
    for tensor in response.outputs:
        described: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if tensor.binary:
            raw.append(tensor.raw())
            described["parameters"] = {"binary_data_size": len(raw[-1])}
        elif isinstance(tensor.content, tuple):
            described["data"] = [each.decode("utf-8", "replace") for each in tensor.content]
        else:
            described["data"] = tensor.content.ravel().tolist()
        outputs.append(described)
    header = {"model_name": response.model, "model_version": response.version, "outputs": outputs}
    if response.id:
        header["id"] = response.id
    text = json.dumps(header, separators=(",", ":")).encode()
    return b"".join([text, *raw]), len(text) if raw else None


def split_bytes(raw: bytes | memoryview, count: int, name: str) -> tuple[bytes, ...]:
    """Return the elements of a BYTES tensor from its binary representation."""
    elements: list[bytes] = []
    position = 0
    while position < len(raw):
        end = position + 4 + int.from_bytes(raw[position : position + 4], "little")
        if position + 4 > len(raw) or end > len(raw) or len(elements) == count:
            break
        elements.append(bytes(raw[position + 4 : end]))
        position = end
    if position != len(raw) or len(elements) != count:
        raise ProtocolError(400, f"input {name!r}: its bytes are not {count} elements with their lengths")
    return tuple(elements)


def tensor(name: str, datatype: str, shape: Sequence[int], raw: bytes | memoryview) -> InputTensor:
    """Return an input from its binary representation."""
    count = _count(name, shape)
    if datatype == BYTES:
        return InputTensor(name, tuple(shape), split_bytes(raw, count, name))
    if datatype != UINT8:
        raise ProtocolError(400, f"input {name!r}: datatype {datatype[:20]!r} is not supported, only UINT8 and BYTES")
    if len(raw) != count:
        raise ProtocolError(400, f"input {name!r}: its shape needs {count} bytes, and there are {len(raw)}")
    return InputTensor(name, tuple(shape), np.frombuffer(raw, np.uint8).reshape(shape))


def check_parameters(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return parameters of a request or tensor, none of which asks for an extension that is not there."""
    for name, value in parameters.items():
        if name.startswith(("shared_memory", "sequence_")) and value:
            what = "shared memory" if name.startswith("shared") else "sequences"
            raise ProtocolError(400, f"{what} are not supported", reason="unsupported")
    return parameters


def timeout_of(parameters: Mapping[str, Any]) -> float | None:
    """Return the parameter `timeout`, which is in microseconds, in seconds."""
    timeout = _typed(parameters, "timeout", int, 0)
    return timeout / 1e6 if timeout > 0 else None


def classes_of(parameters: Mapping[str, Any]) -> int:
    """Return the parameter `classification` of an output, 0 without it."""
    classes = _typed(parameters, "classification", int, 0)
    if classes < 0:
        raise ProtocolError(400, "classification must be a positive number of classes")
    return classes


def _input(described: Mapping[str, Any], raw: memoryview) -> tuple[InputTensor, int]:
    """Return an input, and how much of the raw bytes it used."""
    name, datatype = _typed(described, "name", str), _typed(described, "datatype", str)
    shape = _typed(described, "shape", list)
    parameters = check_parameters(_typed(described, "parameters", dict, {}))
    size = _typed(parameters, "binary_data_size", int, -1)
    if "binary_data_size" in parameters:
        if "data" in described:
            raise ProtocolError(400, f"input {name!r} has both data and binary_data_size")
        if not 0 <= size <= len(raw):
            raise ProtocolError(400, f"input {name!r}: binary_data_size is not the size of what follows")
        return tensor(name, datatype, shape, raw[:size]), size
    data = _typed(described, "data", list)
    count = _count(name, shape)
    if datatype == BYTES:
        return InputTensor(name, tuple(shape), _decoded(name, data, count)), 0
    if datatype != UINT8:
        return tensor(name, datatype, shape, b""), 0
    try:
        values = np.array(data)
    except (ValueError, OverflowError, RecursionError) as error:
        raise ProtocolError(400, f"input {name!r}: its data is not a tensor") from error
    if values.size != count:
        raise ProtocolError(400, f"input {name!r}: its shape needs {count} values, and there are {values.size}")
    if count and (values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 255):
        raise ProtocolError(400, f"input {name!r}: UINT8 data must be whole numbers from 0 to 255")
    return InputTensor(name, tuple(shape), values.astype(np.uint8).reshape(shape)), 0


def _decoded(name: str, data: Sequence[Any], count: int) -> tuple[bytes, ...]:
    """Return BYTES from JSON: base64, in nested lists as the shape has it or flat."""
    while data and all(isinstance(each, list) for each in data):
        data = [element for each in data for element in each]
    if len(data) != count or not all(isinstance(each, str) for each in data):
        raise ProtocolError(400, f"input {name!r}: its data is not {count} strings")
    try:
        return tuple(base64.b64decode(each, validate=True) for each in data)
    except (binascii.Error, ValueError) as error:
        raise ProtocolError(400, f"input {name!r}: BYTES in JSON must be base64") from error


def _output(described: Mapping[str, Any], binary: bool) -> RequestedOutput:
    parameters = check_parameters(_typed(described, "parameters", dict, {}))
    name = _typed(described, "name", str)
    return RequestedOutput(name, _typed(parameters, "binary_data", bool, binary), classes_of(parameters))


def _count(name: str, shape: Sequence[Any]) -> int:
    """Return the number of elements of a shape."""
    if len(shape) > MAX_AXES or not all(type(each) is int and 0 <= each < 1 << 31 for each in shape):
        raise ProtocolError(400, f"input {name[:60]!r}: its shape is not a list of sizes")
    return math.prod(shape)


def _objects(content: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    listed = _typed(content, key, list)
    if not all(isinstance(each, dict) for each in listed):
        raise ProtocolError(400, f"{key!r} must be a list of objects")
    return listed


def _typed(content: Mapping[str, Any], key: str, kind: type[T], default: T | None = None) -> T:
    """Return a value of this very type (a bool is no int). Without a default it must be there."""
    value = content.get(key, default)
    if type(value) is not kind:
        raise ProtocolError(400, f"{key!r} must be {_NAMES[kind]}" + (" and is missing" if value is None else ""))
    return value


_NAMES: Mapping[type, str] = {str: "a string", int: "a whole number", bool: "true or false", list: "a list"}
_NAMES = {**_NAMES, dict: "an object"}


def _depth(content: object) -> int:
    """Return how deep JSON is nested; stops at the limit. Of a list only the first element counts, as in a tensor."""
    depth, level = 0, [content]
    while level and depth <= MAX_DEPTH:
        depth += 1
        level = [
            inner
            for each in level
            for inner in (each.values() if isinstance(each, dict) else each[:1] if isinstance(each, list) else ())
            if isinstance(inner, dict | list)
        ]
    return depth


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)
