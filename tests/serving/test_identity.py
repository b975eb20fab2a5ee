"""Answers of a server are what `predict` says of the same files, to the bit: in each precision, over each protocol."""

from __future__ import annotations

import base64
import json
from http.client import HTTPConnection

import numpy as np
import pytest

from tests.kit.serving import open_graph, serving

OUTPUTS = ("probabilities", "logits", "features", "novelty")


def by_json(server, content):
    data = [base64.b64encode(content).decode()]
    tensor = {"name": "images", "datatype": "BYTES", "shape": [1], "data": data}
    answer, _ = posted(
        server, json.dumps({"inputs": [tensor], "outputs": [{"name": name} for name in OUTPUTS]}).encode()
    )
    return {each["name"]: np.float32(each["data"]) for each in json.loads(answer)["outputs"]}


def by_bytes(server, content):
    packed = len(content).to_bytes(4, "little") + content
    tensor = {"name": "images", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(packed)}}
    asked = {"outputs": [{"name": name} for name in OUTPUTS], "parameters": {"binary_data_output": True}}
    text = json.dumps({"inputs": [tensor], **asked}).encode()
    answer, length = posted(server, text + packed, **{"Inference-Header-Content-Length": str(len(text))})
    sizes = [each["parameters"]["binary_data_size"] for each in json.loads(answer[: int(length)])["outputs"]]
    return arrays(sizes, answer[int(length) :])


def by_grpc(server, content):
    import grpc

    from tlkit.serving.messages import SERVICE, messages

    made = messages()
    request = made["ModelInferRequest"](
        model_name="run",
        inputs=[{"name": "images", "datatype": "BYTES", "shape": [1]}],
        outputs=[{"name": name} for name in OUTPUTS],
        raw_input_contents=[len(content).to_bytes(4, "little") + content],
    )
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        answer = made["ModelInferResponse"].FromString(call(request.SerializeToString(), timeout=20))
    return arrays(map(len, answer.raw_output_contents), b"".join(answer.raw_output_contents))


def posted(server, body, **headers):
    connection = HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request("POST", "/v2/models/run/infer", body, headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    assert answer.status == 200, content
    return content, answer.getheader("Inference-Header-Content-Length")


def arrays(sizes, raw):
    ends = np.cumsum(list(sizes))
    parts = (np.frombuffer(raw[end - size : end], np.float32) for end, size in zip(ends, np.diff(ends, prepend=0)))  # noqa: B905
    return dict(zip(OUTPUTS, parts, strict=True))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_served_is_predicted_to_the_bit(precision, novel_run):
    pytest.importorskip("grpc", reason="needs tlkit[serve-grpc]")
    files = sorted((novel_run / "golden").glob("*.png"))
    assert len(files) >= 4
    with (
        serving([novel_run], precision=precision, grpc_port=0) as server,
        open_graph(novel_run, "model", precision) as model,
    ):
        assert server.repository.get("run").precision == precision
        for file in files:
            expected = next(iter(model.stream([file], OUTPUTS))).arrays
            for answer in (by_json, by_bytes, by_grpc):
                for name, values in answer(server, file.read_bytes()).items():
                    assert values.tobytes() == expected[name].tobytes(), (answer.__name__, name)
            best = sorted(expected["probabilities"][0].tolist(), reverse=True)
            assert best[:1] == list(model.predict([file])[0].probabilities)
