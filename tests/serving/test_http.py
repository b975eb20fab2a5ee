"""The protocol over HTTP against a real server: what is served is what `predict` says, within limits."""

from __future__ import annotations

import base64
import gzip
import json
import shutil
import socket
import struct
import time
import zlib
from http.client import HTTPConnection
from io import BytesIO
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from tests.kit.serving import open_graph, serving, until
from tlkit.data.preprocessing import load
from tlkit.errors import GateError, ResourceError
from tlkit.runtime.evidence import Evidence, overlay
from tlkit.serving.limits import Limits  # of the standard library alone

LIMITS = Limits(body=1 << 20, json=1 << 18, images=16, pixels=1_000_000, reading=0.6, headers=4096, deadline=5)
SECRET = "open sesame"  # noqa: S105 - of a test


@pytest.fixture(scope="module")
def server(tiny_run):
    lines = []
    with serving([tiny_run], limits=LIMITS, log=lines.append) as running:
        running.lines = lines
        yield running


@pytest.fixture(scope="module")
def files(tiny_run):
    return sorted((tiny_run / "golden").glob("*.png"))


@pytest.fixture(scope="module")
def predicted(tiny_run, files):
    """The probabilities of `predict`, one image at a time as an idle server runs it."""
    with open_graph(tiny_run, "model") as model:
        return np.array([model.predict([file], topk=3)[0].probabilities for file in files])


def call(server, method, path, body=None, **headers):
    connection = HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer, content


def ask(server, path, content):
    answer, body = call(server, "POST", path, json.dumps(content))
    return answer.status, json.loads(body)


def infer(server, *inputs, **more):
    return ask(server, "/v2/models/run/infer", {"inputs": list(inputs), **more})


def pictures(*files):
    data = [base64.b64encode(file.read_bytes()).decode() for file in files]
    return {"name": "images", "datatype": "BYTES", "shape": [len(data)], "data": data}


def zeros(count=1, side=32):
    return {
        "name": "images",
        "datatype": "UINT8",
        "shape": [count, side, side, 3],
        "data": [0] * (3 * count * side * side),
    }


def outputs(answer):
    return {each["name"]: np.array(each["data"]).reshape(each["shape"]) for each in answer["outputs"]}


def test_health_and_metadata(server, tiny_run):
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/run/ready", "/v2/models/run/versions/1/ready"):
        assert call(server, "GET", path)[0].status == 200
    facts = json.loads(call(server, "GET", "/v2/models/run")[1])
    assert facts["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 32, 32, 3]}]
    assert {each["name"] for each in facts["outputs"]} == {"features", "logits", "probabilities", "label"}
    assert facts["parameters"]["tlkit.verified"] == "passed"
    assert facts["parameters"]["tlkit.bundle"] == json.loads((tiny_run / "bundle.json").read_text())["digest"]
    assert "statistics" in json.loads(call(server, "GET", "/v2")[1])["extensions"]
    assert ask(server, "/v2/repository/index", {}) == (
        200,
        [{"name": "run", "version": "1", "state": "READY", "reason": ""}],
    )


def test_pictures_are_labelled_as_predict_does(server, files, predicted, tiny_run):
    with open_graph(tiny_run, "model") as model:
        expected = [model.predict([file])[0] for file in files]
    for file, row, prediction in zip(files, predicted, expected, strict=True):
        status, answer = infer(server, pictures(file))
        assert status == 200
        got = outputs(answer)
        assert sorted(got["probabilities"][0], reverse=True) == row.tolist()
        assert got["label"].tolist() == [[prediction.label]]


def test_a_picture_by_curl(server, files, predicted):
    answer, content = call(server, "POST", "/predict?topk=2", files[0].read_bytes(), Content_Type="image/png")
    facts = json.loads(content)
    assert answer.status == 200
    assert [each["probability"] for each in facts["predictions"]] == predicted[0, :2].tolist()


def test_the_evidence_for_a_label_is_that_of_the_exported_model(server, files, tiny_run):
    with open_graph(tiny_run, "model") as model, Evidence.of(model) as evidence:
        image = load(files[0], model.preprocessing)
        expected = [overlay(image, evidence.maps(image[None], [label])[0]) for label in range(2)]
        names = model.labels
    for label, drawing in zip(names, expected, strict=False):
        answer, content = call(server, "POST", f"/evidence?label={quote(label)}", files[0].read_bytes())
        assert (answer.status, answer.getheader("content-type")) == (200, "image/png")
        assert np.array_equal(np.asarray(Image.open(BytesIO(content))), drawing)
    assert not np.array_equal(*expected)
    for query, body in (
        ("?label=nobody", files[0].read_bytes()),
        ("", b""),
        (f"?label={quote(names[0])}", b"no image"),
    ):
        assert call(server, "POST", f"/evidence{query}", body)[0].status == 400


def test_a_tensor_as_json_and_as_binary_gives_the_same(server):
    images = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), np.uint8)
    described = {"name": "images", "datatype": "UINT8", "shape": [3, 32, 32, 3]}
    status, answer = infer(server, {**described, "data": images.tolist()}, outputs=[{"name": "logits"}])
    assert status == 200
    header = {
        "inputs": [{**described, "parameters": {"binary_data_size": images.nbytes}}],
        "parameters": {"binary_data_output": True},
        "outputs": [{"name": "logits"}],
    }
    text = json.dumps(header).encode()
    got, body = call(
        server,
        "POST",
        "/v2/models/run/infer",
        text + images.tobytes(),
        Inference_Header_Content_Length=str(len(text)),
    )
    length = int(got.getheader("Inference-Header-Content-Length"))
    values = np.frombuffer(body[length:], np.float32).reshape(3, 3)
    assert np.array_equal(values, outputs(answer)["logits"].astype(np.float32))
    assert json.loads(body[:length])["outputs"][0]["parameters"] == {"binary_data_size": values.nbytes}


def test_classes_are_named(server, files):
    asked = [{"name": "probabilities", "parameters": {"classification": 2}}]
    _, answer = infer(server, pictures(files[0]), outputs=asked)
    tensor = answer["outputs"][0]
    assert (tensor["datatype"], tensor["shape"]) == ("BYTES", [1, 2])
    value, index, label = tensor["data"][0].split(":")
    assert label == ("dark", "light", "middle")[int(index)]
    assert 0.3 < float(value) <= 1


def test_compressed_bodies(server, files):
    text = json.dumps({"inputs": [pictures(files[0])]}).encode()
    for encoding, packed, unpack in (
        ("gzip", gzip.compress(text), gzip.decompress),
        ("deflate", zlib.compress(text), zlib.decompress),
    ):
        headers = {"Content-Encoding": encoding, "Accept-Encoding": encoding}
        answer, body = call(server, "POST", "/v2/models/run/infer", packed, **headers)
        assert answer.status == 200
        assert json.loads(unpack(body))["model_name"] == "run"


def png(side):
    file = BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")
    return file.getvalue()


def tensor_of(**changed):
    return {"inputs": [{**zeros(), **changed}]}


REFUSED = {
    "no JSON": ("/v2/models/run/infer", b"{", 400),
    "no object": ("/v2/models/run/infer", b"[]", 400),
    "deep": ("/v2/models/run/infer", b'{"inputs":' + b"[" * 100_000, 400),
    "NaN": ("/v2/models/run/infer", b'{"inputs": NaN}', 400),
    "no model": ("/v2/models/other/infer", b"{}", 404),
    "no version": ("/v2/models/run/versions/7/infer", b"{}", 404),
    "no route": ("/v3", b"", 404),
    "wrong method": ("/v2/models/run", b"", 405),
    "extension": ("/v2/systemsharedmemory/region/x/register", b"{}", 501),
    "no inputs": ("/v2/models/run/infer", b'{"inputs": []}', 400),
    "wrong name": ("/v2/models/run/infer", tensor_of(name="input"), 400),
    "wrong size": ("/v2/models/run/infer", tensor_of(shape=[1, 31, 32, 3]), 400),
    "wrong side": ("/v2/models/run/infer", {"inputs": [zeros(side=8)]}, 400),
    "negative": ("/v2/models/run/infer", tensor_of(shape=[-1, 32, 32, 3]), 400),
    "fractions": ("/v2/models/run/infer", tensor_of(data=[0.5] * 3072), 400),
    "too large numbers": ("/v2/models/run/infer", tensor_of(data=[256] * 3072), 400),
    "huge numbers": ("/v2/models/run/infer", tensor_of(data=[10**30] * 3072), 400),
    "booleans": ("/v2/models/run/infer", tensor_of(data=[True] * 3072), 400),
    "ragged": ("/v2/models/run/infer", tensor_of(data=[[1], [1, 2]]), 400),
    "wrong datatype": ("/v2/models/run/infer", tensor_of(datatype="FP32"), 400),
    "shared memory": ("/v2/models/run/infer", tensor_of(parameters={"shared_memory_region": "x"}), 400),
    "binary beyond the end": ("/v2/models/run/infer", tensor_of(data=None, parameters={"binary_data_size": 9}), 400),
    "unknown output": ("/v2/models/run/infer", {"inputs": [zeros()], "outputs": [{"name": "x"}]}, 400),
    "too many images": ("/v2/models/run/infer", {"inputs": [zeros(17)]}, 400),
    "no base64": ("/v2/models/run/infer", tensor_of(datatype="BYTES", shape=[1], data=["%"]), 400),
    "no picture": ("/predict", b"no picture", 400),
    "no body": ("/predict", b"", 400),
    "too many pixels": ("/predict", png(1001), 400),
    "topk": ("/predict?topk=0", b"", 400),
    "too large JSON": ("/v2/models/run/infer", b'{"x": "' + bytes(1 << 18) + b'"}', 413),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_requests_get_the_protocols_error(case, server, tiny_run):
    path, body, status = REFUSED[case]
    answer, content = call(server, "POST", path, body if isinstance(body, bytes) else json.dumps(body))
    error = json.loads(content)["error"]
    assert (answer.status, "\n" in error, str(tiny_run) in error) == (status, False, False), error


def test_a_bomb_is_not_unpacked(server):
    bomb = gzip.compress(bytes(1 << 26))
    answer, content = call(server, "POST", "/predict", bomb, Content_Encoding="gzip")
    assert (answer.status, "larger" in json.loads(content)["error"]) == (413, True)
    for encoding, body, status in (("gzip", bomb[:99], 400), ("gzip", b"no", 400), ("br", b"", 415)):
        assert call(server, "POST", "/predict", body, Content_Encoding=encoding)[0].status == status


def raw(server, *parts, pause=0.0):
    """Send bytes as they are; return what comes back until the connection is closed."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(pause)
        got = b""
        try:
            while part := connection.recv(1 << 16):
                got += part
        except ConnectionResetError:
            pass
        return got


def test_slow_and_lying_clients_are_dropped(server):
    assert raw(server, b"GET /v2 HTTP/1.1\r\nHost:") == b""  # slow headers
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    assert b" 408 " in raw(server, head % 100, b"some")  # a body that never comes
    assert b" 413 " in raw(server, head % (LIMITS.body + 1))
    assert b" 413 " in raw(server, head % (1 << 40))
    get = b"GET /v2 HTTP/1.1\r\nHost: x\r\n"
    chunked = b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    for endless in (
        get + b"a: b\r\n" * 2000,
        get + b"a:" + b"b" * 9000,
        b"GET /" + b"a" * 9000,
        chunked + b"1;" + b"a" * 20000,
        chunked + b"1\r\nx\r\n0\r\n" + b"a: b\r\n" * 2000,
    ):
        assert b" 400 " in raw(server, endless[:5000], endless[5000:], pause=0.05)
    assert call(server, "GET", "/v2/health/ready")[0].status == 200


def test_a_request_to_upgrade_is_declined(server, files):
    """Clients for HTTP/2 send one with their first request, curl --http2 and Java's among them."""
    content = files[0].read_bytes()
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    length = b"Content-Length: %d\r\n\r\n" % len(content)
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + upgrade + length
    for parts in ((head + content,), (head[:40], head[40:], content)):
        assert raw(server, *parts, pause=0.02).startswith(b"HTTP/1.1 200 ")


def test_a_form_is_told_what_to_send(server):
    answer, content = call(server, "POST", "/predict", b"--x", Content_Type="multipart/form-data; boundary=x")
    assert (answer.status, "body" in json.loads(content)["error"]) == (415, True)


def test_an_answer_does_not_wait_for_the_acknowledgement_of_its_headers(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        ours = connection.getsockname()
        until(lambda: ours in {each.client for each in server.http.server_state.connections})
        accepted = next(each for each in server.http.server_state.connections if each.client == ours)
        theirs = accepted.transport.get_extra_info("socket")
        assert theirs.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_the_log_and_the_metrics_tell_of_requests(server, files):
    server.lines.clear()
    call(server, "POST", "/predict", files[0].read_bytes())
    until(lambda: server.lines)
    line = json.loads(server.lines[0])
    assert (line["status"], line["model"], line["path"]) == (200, "run", "/predict")
    text = call(server, "GET", "/metrics")[1].decode()
    assert 'tlkit_requests_total{model="run",protocol="http",status="200"}' in text
    assert 'tlkit_rejected_total{reason="image"}' in text
    assert 'tlkit_predictions_total{label="' in text
    statistics = json.loads(call(server, "GET", "/v2/models/run/stats")[1])["model_stats"][0]
    assert statistics["inference_stats"]["success"]["count"] >= 1


def test_openapi_names_routes_that_are_there(server):
    described = json.loads(call(server, "GET", "/openapi.json")[1])["paths"]
    assert len(described) >= 12
    for path, operations in described.items():
        for method in operations:
            status = call(server, method.upper(), path.replace("{model}", "run"), b"{}" if method == "post" else None)
            assert status[0].status in (200, 400), path
    assert b"/v2/models" in call(server, "GET", "/docs")[1]


def test_a_token(tiny_run):
    with serving([tiny_run], token=SECRET) as server:
        assert call(server, "GET", "/v2/health/ready")[0].status == 200
        answer, _ = call(server, "GET", "/v2/models/run")
        assert (answer.status, answer.getheader("WWW-Authenticate")) == (401, "Bearer")
        assert call(server, "GET", "/v2/models/run", Authorization="Bearer open")[0].status == 401
        assert call(server, "GET", "/v2/models/run", Authorization=f"Bearer {SECRET}")[0].status == 200


def test_a_bundle_that_is_not_what_was_trained_is_not_served(own_run):
    import onnx
    from onnx import numpy_helper

    from tests.kit.tiny import resign

    file = own_run / "onnx/fp32/model.onnx"
    graph = onnx.load_model(file)
    weight = graph.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + 1, weight.name))
    onnx.save_model(graph, file)
    resign(own_run, "model.onnx")
    with pytest.raises(GateError, match="not served"), serving([own_run]):
        pass


def test_a_port_that_is_taken_is_one_line(server):
    from tlkit.serving.run import listen

    with pytest.raises(ResourceError, match="--port"):
        listen("127.0.0.1", server.port)


def test_bytes_of_a_tensor_are_split_as_numpy_packs_them(server, files):
    content = files[0].read_bytes()
    packed = struct.pack("<I", len(content)) + content
    header = {"inputs": [{"name": "images", "datatype": "BYTES", "shape": [1, 1]}]}
    header["inputs"][0]["parameters"] = {"binary_data_size": len(packed)}
    text = json.dumps(header).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))}
    assert call(server, "POST", "/v2/models/run/infer", text + packed, **headers)[0].status == 200
    for broken in (packed[:-1], packed + b"x"):
        header["inputs"][0]["parameters"]["binary_data_size"] = len(broken)
        text = json.dumps(header).encode()
        headers = {"Inference-Header-Content-Length": str(len(text))}
        assert call(server, "POST", "/v2/models/run/infer", text + broken, **headers)[0].status == 400


def test_several_models_and_a_shared_trunk(tiny_run, tmp_path, files, predicted):
    shutil.copytree(tiny_run, tmp_path / "pets")
    shutil.copytree(tiny_run, tmp_path / "birds")
    with serving([tmp_path]) as server:
        schedulers = {id(each.scheduler) for each in server.repository.all()}
        assert len(schedulers) == 1  # the bundles have the same trunk
        assert ask(server, "/v2/models/run/infer", {})[0] == 404
        assert call(server, "POST", "/predict", files[0].read_bytes())[0].status == 400  # of which model?
        for name in ("pets", "birds"):
            answer, body = call(server, "POST", f"/predict?model={name}&topk=3", files[0].read_bytes())
            assert answer.status == 200
            got = [each["probability"] for each in json.loads(body)["predictions"]]
            assert got == pytest.approx(predicted[0], abs=1e-6)
