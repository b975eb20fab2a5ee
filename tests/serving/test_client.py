"""NVIDIA's own clients, unmodified: every public method of each works, or raises the protocol's error."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time

import numpy as np
import pytest

from tests.kit.modes import pictures_of_every_mode
from tests.kit.serving import open_graph, serving, until
from tests.kit.triton import KINDS, NEEDS, WORKS, Clients, expected
from tests.project.documents import blocks
from tlkit.exporting.triton import export_triton
from tlkit.model.bundle import open_bundle
from tlkit.serving.limits import Limits

pytest.importorskip("tritonclient", reason="needs tritonclient[grpc,http]")


def clients_of(kind, server):
    pytest.importorskip(NEEDS[kind], reason="needs tritonclient[grpc,http]")
    return Clients(kind, server.grpc_port if kind.startswith("grpc") else server.port)


@pytest.fixture(scope="module")
def server(tiny_run):
    pytest.importorskip("grpc", reason="needs tlkit[serve-grpc]")
    with serving([tiny_run], grpc_port=0, limits=Limits(body=1 << 20, images=16)) as running:
        yield running


@pytest.fixture
def client(request, server):
    """Clients of one kind: `client(lambda made: made.infer(...))`."""
    return clients_of(request.param, server)


every_kind = pytest.mark.parametrize("client", KINDS, indirect=True)


@every_kind
def test_every_public_method_works_or_gives_the_protocols_error(client, tiny_run):
    outcomes = client.tried(min((tiny_run / "golden").glob("*.png")).read_bytes())
    assert len(outcomes) >= 24
    assert {name for name, outcome in outcomes.items() if outcome == WORKS} == set(filter(expected, outcomes))
    for outcome in set(outcomes.values()) - {WORKS}:
        assert re.search(r"not supported|Method not found", outcome)


@every_kind
def test_inference_gives_what_predict_gives(client, tiny_run):
    files = sorted((tiny_run / "golden").glob("*.png"))
    with open_graph(tiny_run, "model") as model:
        for file in files:
            expected = model.predict([file], topk=3)[0]
            picture = client.given(np.array([file.read_bytes()], object))
            answer = client(lambda made, picture=picture: made.infer("run", picture))
            probabilities = answer.as_numpy("probabilities")
            assert sorted(probabilities[0].tolist(), reverse=True) == list(expected.probabilities)
            assert answer.as_numpy("label")[0, 0].decode() == expected.label


@every_kind
def test_tensors_classes_and_compression(client, tiny_run):
    images = np.random.default_rng(1).integers(0, 255, (3, 32, 32, 3), np.uint8)
    with open_graph(tiny_run, "model") as model:
        expected = model.session.run(images)
    answer = client(lambda made: made.infer("run", client.given(images), request_id="7"))
    for name, values in expected.items():
        assert answer.as_numpy(name) == pytest.approx(values, abs=1e-6), name
    asked = [client.module.InferRequestedOutput("probabilities", class_count=2)]
    classes = client(lambda made: made.infer("run", client.given(images), outputs=asked))
    best = classes.as_numpy("probabilities")[:, 0]
    assert [each.decode().split(":")[1] for each in best] == [str(i) for i in expected["probabilities"].argmax(1)]
    if client.kind.startswith("http"):
        for algorithm in ("gzip", "deflate"):
            packed = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
            again = client(lambda made, more=packed: made.infer("run", client.given(images), **more))
            assert np.array_equal(again.as_numpy("logits"), answer.as_numpy("logits"))


@every_kind
def test_what_is_wrong_is_an_error_of_the_client(client):
    from tritonclient.utils import InferenceServerException

    def refused(match, name="run", images=None, **more):
        images = np.zeros((1, 32, 32, 3), np.uint8) if images is None else images
        with pytest.raises(InferenceServerException, match=match) as caught:
            client(lambda made: made.infer(name, client.given(images), **more))
        assert "/" not in caught.value.message()

    refused("is not served", "other")
    refused("is not served", model_version="9")
    refused("must have the shape", images=np.zeros((1, 31, 32, 3), np.uint8))
    refused("1 to 16 images", images=np.zeros((17, 32, 32, 3), np.uint8))
    refused("not an image", images=np.array([b"no picture"], object))
    refused("not supported", sequence_id=3)
    refused("no output", outputs=[client.module.InferRequestedOutput("nothing")])
    large = np.zeros((120, 60, 60, 3), np.uint8)
    refused("larger than", images=large)


@pytest.mark.parametrize("client", ["grpc"], indirect=True)
def test_a_stream_answers_each_request(client):
    import queue

    got = queue.Queue()

    def stream(made):
        made.start_stream(callback=lambda result, error: got.put((result, error)))
        made.async_stream_infer("run", client.given(np.zeros((2, 32, 32, 3), np.uint8)))
        made.async_stream_infer("run", client.given(np.zeros((2, 9, 9, 3), np.uint8)))
        answers = [got.get(timeout=20) for _ in range(2)]
        made.stop_stream()
        return answers

    (result, none), (nothing, error) = client(stream)
    assert (none, nothing) == (None, None)
    assert result.as_numpy("logits").shape == (2, 3)
    assert "must have the shape" in str(error)


def test_messages_have_the_numbers_of_the_specification():
    pytest.importorskip("grpc", reason="needs tlkit[serve-grpc]")
    from tritonclient.grpc import model_config_pb2, service_pb2

    from tlkit.serving.messages import messages

    def repeated(field):  # protobuf 5 has no `is_repeated`
        return field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED

    def flattened(descriptors):
        for each in descriptors:
            yield each.name, each
            yield from flattened(each.nested_types)

    theirs = dict(flattened(model_config_pb2.DESCRIPTOR.message_types_by_name.values()))
    theirs |= dict(flattened(service_pb2.DESCRIPTOR.message_types_by_name.values()))
    enum, int32 = 14, 5  # the same on the wire
    checked = 0
    for name, made in messages().items():
        wire = {each.name: (each.number, repeated(each)) for each in theirs[name].fields}
        types = {each.name: int32 if each.type == enum else each.type for each in theirs[name].fields}
        for ours in made.DESCRIPTOR.fields:
            assert (ours.number, repeated(ours)) == wire[ours.name], (name, ours.name)
            assert ours.type == types[ours.name], (name, ours.name)
            checked += 1
    assert checked > 100


def test_names_types_and_shapes_are_those_of_a_triton_repository(server, tiny_run, tmp_path):
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

    export_triton([open_bundle(tiny_run)], tmp_path / "repository")
    text = (tmp_path / "repository/run/config.pbtxt").read_text()
    theirs, ours = text_format.Parse(text, ModelConfig()), server.repository.get("run").config(16)
    assert theirs.name == ours["name"]
    assert [(each.name, DataType.Name(each.data_type), list(each.dims)) for each in theirs.input] == [
        (each["name"], each["data_type"], each["dims"]) for each in ours["input"]
    ]
    expected = [(each.name, DataType.Name(each.data_type), list(each.dims)) for each in theirs.output]
    assert expected == [
        (each["name"], each["data_type"], each["dims"]) for each in ours["output"] if each["name"] != "label"
    ]


def test_grpc_keeps_its_limits_and_its_token(tiny_run):
    grpc = pytest.importorskip("grpc", reason="needs tlkit[serve-grpc]")
    from tritonclient import grpc as module
    from tritonclient.utils import InferenceServerException

    lines = []
    with serving([tiny_run], grpc_port=0, token="open sesame", log=lines.append) as server:  # noqa: S106 - of a test
        made = module.InferenceServerClient(f"127.0.0.1:{server.grpc_port}")
        assert made.is_server_ready()
        with pytest.raises(InferenceServerException, match="bearer token"):
            made.get_model_metadata("run")
        assert made.get_model_metadata("run", headers={"authorization": "Bearer open sesame"}).name == "run"
        until(lambda: len(lines) == 3)
        assert [json.loads(line)["status"] for line in lines] == ["OK", "UNAUTHENTICATED", "OK"]
        channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", compression=grpc.Compression.Gzip)
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as refused:  # a bomb is not unpacked
            call(bytes(1 << 26), metadata=[("authorization", "Bearer open sesame")])
        assert refused.value.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.RESOURCE_EXHAUSTED)
        made.close()
        channel.close()


def test_grpc_refuses_what_is_no_request(tiny_run, capfd):
    grpc = pytest.importorskip("grpc", reason="needs tlkit[serve-grpc]")
    infer = "/inference.GRPCInferenceService/ModelInfer"
    with (
        serving([tiny_run], grpc_port=0, limits=Limits(reading=0.3)) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):

        def refused(requests, code):
            with pytest.raises(grpc.RpcError) as caught:
                channel.stream_unary(infer)(requests, timeout=20)
            assert caught.value.code() == code
            assert "Traceback" not in caught.value.details()

        for content in (b"\xff", b"\x0a\xff", bytes(99)):
            refused(iter([content]), grpc.StatusCode.INVALID_ARGUMENT)
        refused(iter([]), grpc.StatusCode.INVALID_ARGUMENT)
        refused((time.sleep(1) or each for each in [b""]), grpc.StatusCode.DEADLINE_EXCEEDED)
        with pytest.raises(grpc.RpcError):
            list(channel.stream_stream("/inference.GRPCInferenceService/Nothing")(iter([b""]), timeout=20))
        errors = list(
            channel.stream_stream(infer.replace("ModelInfer", "ModelStreamInfer"))(iter([b"\xff", b""]), timeout=20)
        )
        assert len(errors) == 2
    assert capfd.readouterr().err == ""


def test_the_client_of_the_documents_works(server, tiny_run, checkout, tmp_path, monkeypatch, capsys):
    pytest.importorskip("geventhttpclient", reason="needs tritonclient[http]")
    texts = [block.text for block in blocks(checkout / "docs/serving.md") if "localhost:8000" in block.text]
    python = [text for text in texts if "tritonclient" in text]
    assert len(python) == 1
    file = min((tiny_run / "golden").glob("*.png"))
    shutil.copy(file, tmp_path / "a.jpg")
    monkeypatch.chdir(tmp_path)
    exec(compile(python[0].replace("localhost:8000", f"127.0.0.1:{server.port}"), "serving.md", "exec"), {})  # noqa: S102
    with open_graph(tiny_run, "model") as model:
        assert capsys.readouterr().out.split()[0] == model.predict([file])[0].label


def test_a_client_that_makes_the_pixels_gets_what_predict_gives(server, tiny_run, checkout, tmp_path, monkeypatch):
    """The script of the README with the lines of docs/deployment.md for Triton, on pictures of every mode."""
    pytest.importorskip("geventhttpclient", reason="needs tritonclient[http]")
    (script,) = (block.text for block in blocks(checkout / "README.md") if "sys.argv" in block.text)
    (lines,) = (block.text for block in blocks(checkout / "docs/deployment.md") if "tritonclient" in block.text)
    first, last = re.split(r"# from `opened`.*\n", lines.replace("localhost:8000", f"127.0.0.1:{server.port}"))
    begin, rest = script.split("session = ")
    pixels = rest[rest.index("opened = ") : rest.index("probabilities = ")]
    client = compile(begin + first + pixels + last, "client.py", "exec")
    answered = 0
    with open_graph(tiny_run, "model") as model:
        for file in pictures_of_every_mode(tmp_path):
            monkeypatch.setattr("sys.argv", ["client.py", "", str(file)])
            found = {}
            with contextlib.suppress(SystemExit):  # it refuses what it would decode otherwise
                exec(client, found)  # noqa: S102
                expected = model.predict([file], topk=3)[0]
                assert sorted(found["probabilities"])[::-1] == pytest.approx(expected.probabilities, abs=0.01)
                answered += 1
    assert answered >= 20
