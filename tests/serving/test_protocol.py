"""Bytes to requests and back, without a server: what is valid comes back, and nothing that is not gets through."""

from __future__ import annotations

import gzip
import json
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from tlkit.serving.limits import Body
from tlkit.serving.protocol import (
    InferRequest,
    InferResponse,
    OutputTensor,
    ProtocolError,
    encode_infer,
    parse_infer,
    parse_json,
)

LIMIT = 1 << 20


def outcome(call):
    """Return what a call returns, or the ProtocolError that it raises."""
    try:
        return call()
    except ProtocolError as error:
        return error


names = some.text(max_size=8) | some.sampled_from(["images", "UINT8", "BYTES", "FP32"])
anything = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | names,
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)
sizes = some.lists(some.integers(-2, 40) | some.integers() | some.none(), max_size=5)
tensors = some.fixed_dictionaries(
    {"name": names | anything, "datatype": names | anything, "shape": sizes | anything},
    optional={
        "data": some.lists(some.integers(-1, 256), max_size=9) | anything,
        "parameters": some.dictionaries(
            some.sampled_from(["binary_data_size", "shared_memory_region", "x"]), anything, max_size=2
        ),
    },
)
requests = some.fixed_dictionaries(
    {"inputs": some.lists(tensors, max_size=3) | anything},
    optional={
        "outputs": some.lists(tensors, max_size=2) | anything,
        "id": names | anything,
        "parameters": some.dictionaries(
            some.sampled_from(["binary_data_output", "timeout", "sequence_id"]), anything, max_size=2
        ),
    },
)


@settings(max_examples=60)
@given(requests, some.binary(max_size=40), some.booleans())
def test_any_request_is_parsed_or_refused(content, raw, binary):
    text = json.dumps(content).encode()
    length = str(len(text)) if binary else None
    request = outcome(lambda: parse_infer(text + raw if binary else text, length, LIMIT))
    if isinstance(request, ProtocolError):
        assert 400 <= request.status < 500
        assert request.message
        return
    for each in request.inputs:
        assert np.size(each.content) == np.prod(each.shape) or isinstance(each.content, tuple)


@settings(max_examples=150)
@given(some.binary(max_size=200), some.none() | some.text(max_size=6) | some.integers(-5, 300).map(str))
def test_any_bytes_are_refused(body, length):
    refused = outcome(lambda: parse_infer(body, length, LIMIT))
    assert isinstance(refused, InferRequest) or refused.status == 400


@settings(max_examples=100)
@given(
    some.sampled_from(["gzip", "deflate", ""]), some.binary(max_size=300), some.integers(1, 50), some.integers(1, 400)
)
def test_a_body_comes_back_whole_or_not_at_all(encoding, content, step, limit):
    packed = {"gzip": gzip.compress, "deflate": zlib.compress, "": bytes}[encoding](content)
    body = Body(encoding, limit)

    def fed():
        for start in range(0, len(packed), step):
            body.feed(packed[start : start + step])
        return body.whole()

    whole = outcome(fed)
    assert whole == content if max(len(content), len(packed)) <= limit else whole.status == 413


@pytest.mark.parametrize("binary", [True, False])
def test_an_answer_holds_every_value(binary):
    values = np.float32([[0.1, -1e-30], [3e38, 2.5]])
    labels = ("ä".encode(), b"b")
    outputs = (OutputTensor("x", (2, 2), values, binary), OutputTensor("label", (2, 1), labels, binary))
    body, length = encode_infer(InferResponse("run", "1", "id", outputs))
    header = json.loads(body[:length])
    if binary:
        size = header["outputs"][0]["parameters"]["binary_data_size"]
        assert body[length : length + size] == values.tobytes()
        assert body[length + size :] == b"\2\0\0\0\xc3\xa4\1\0\0\0b"
    else:
        assert length is None
        assert np.array_equal(np.float32(header["outputs"][0]["data"]).reshape(2, 2), values)
        assert header["outputs"][1]["data"] == ["ä", "b"]


def test_deep_and_large_json_is_refused():
    for text in (b'{"a":' * 100 + b"1" + b"}" * 100, b"[" * 200_000, b'{"a": 1e', b'{"a": Infinity}', b'"a"'):
        with pytest.raises(ProtocolError) as caught:
            parse_json(text, LIMIT)
        assert caught.value.status == 400
    with pytest.raises(ProtocolError, match="larger"):
        parse_json(b'{"a": "' + bytes(LIMIT) + b'"}', LIMIT)


@settings(max_examples=150)
@given(some.binary(max_size=300))
def test_any_message_of_grpc_is_parsed_or_refused(content):
    pytest.importorskip("grpc", reason="needs tlkit[serve-grpc]")
    from google.protobuf.message import DecodeError

    from tlkit.serving.grpc import parse
    from tlkit.serving.messages import messages

    try:
        request = messages()["ModelInferRequest"].FromString(content)
    except DecodeError:
        return
    parsed = outcome(lambda: parse(request))
    assert isinstance(parsed, InferRequest) or parsed.status == 400


@settings(max_examples=80)
@given(
    some.lists(some.integers(-(2**62), 2**62), max_size=5),
    names,
    some.lists(some.binary(max_size=20), max_size=3),
    some.lists(some.integers(0, 2**32 - 1), max_size=5),
)
def test_any_tensor_of_grpc_is_parsed_or_refused(shape, datatype, raw, values):
    pytest.importorskip("grpc", reason="needs tlkit[serve-grpc]")
    from tlkit.serving.grpc import parse
    from tlkit.serving.messages import messages

    contents = {"uint_contents": values, "bytes_contents": raw}
    described = {"name": "images", "datatype": datatype, "shape": shape, "contents": contents}
    for more in ({}, {"raw_input_contents": raw[:1]}):
        request = messages()["ModelInferRequest"](inputs=[described], **more)
        parsed = outcome(lambda request=request: parse(request))
        assert isinstance(parsed, InferRequest) or parsed.status == 400
