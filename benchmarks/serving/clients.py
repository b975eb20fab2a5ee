"""Every public method of NVIDIA's clients, unmodified; and what is served compared with what `predict` gives."""

from __future__ import annotations

import base64
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from _bench import ROOT, Bar, Report, missing

from serving.server import Running, ask, serving

sys.path.insert(0, str(ROOT))

COUNT = 40  # pictures that are compared
GRPC = ("--grpc-port", 0) if find_spec("grpc") else ()


def clients(work: Path, bundle: Path, jpegs: Path) -> int:
    """Try, and write the results."""
    report = Report(
        "serve-clients",
        'Each public method of the clients, called on a server: "works", or the error that the client raises. A method '
        "that is not there in a client is left blank. Pictures are files of JPEG, sent one by one.",
        {"pictures": COUNT},
    )
    files = sorted(jpegs.iterdir())[:COUNT]
    precisions = sorted(each.name for each in (bundle / "onnx").iterdir() if each.is_dir())
    for precision in precisions:
        with serving(work, bundle, "--port", 0, *GRPC, "--precision", precision) as server:
            if precision == "fp32":
                methods(report, server, files[0].read_bytes())
            compare(report, server, bundle / f"onnx/{precision}/model.onnx", files, precision)
            report.bars.append(Bar(f"bugs on stderr, {precision}", [server.bugs()], "=", 0, digits=0))
    return report.save()


def methods(report: Report, server: Running, picture: bytes) -> None:
    """Report the outcome of every method."""
    if why := missing("tritonclient"):
        report.notes.append(f"tritonclient: {why}")
        return
    from tests.kit.triton import KINDS, WORKS, Clients, expected

    outcomes = {
        kind: Clients(kind, server.grpc_port if kind.startswith("grpc") else server.port).tried(picture)
        for kind in KINDS
    }
    names = sorted({name for found in outcomes.values() for name in found}, key=lambda name: (not expected(name), name))
    for name in names:
        report.rows.append({"method": name, **{kind: outcomes[kind].get(name, "") for kind in KINDS}})
    report.figures["methods"] = outcomes
    wrong = [
        f"{kind}.{name}"
        for kind, found in outcomes.items()
        for name, outcome in found.items()
        if (outcome == WORKS) != expected(name)
    ]
    count = sum(map(len, outcomes.values()))
    report.bars.append(
        Bar(f"of {count} methods, not as they should be: {wrong or 'none'}", [len(wrong)], "=", 0, digits=0)
    )


def compare(report: Report, server: Running, file: Path, files: list[Path], precision: str) -> None:
    """Compare probabilities over each protocol with those of `tlkit.load`, to the bit."""
    import tlkit

    ways = {"REST, JSON": by_json, "REST, binary": by_bytes}
    if GRPC:
        ways["gRPC"] = by_grpc
    different = dict.fromkeys(ways, 0)
    with tlkit.load(file) as model:
        for each in files:
            wanted = np.float32(model.predict([each], topk=len(model.labels))[0].probabilities).tobytes()
            for name, way in ways.items():
                served = np.sort(way(server, each.read_bytes()))[::-1]
                different[name] += served.tobytes() != wanted
    report.figures[f"pictures that differ, {precision}"] = different
    what = f"of {len(files)} pictures, {precision}, over {' and '.join(ways)}: not the bits of predict"
    report.bars.append(Bar(what, [sum(different.values())], "=", 0, digits=0))
    report.notes.append(f"{precision}: {len(files)} pictures over {', '.join(ways)}, compared with `tlkit.load`.")


def by_json(server: Running, content: bytes) -> Any:
    tensor = {"name": "images", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(content).decode()]}
    body = json.dumps({"inputs": [tensor], "outputs": [{"name": "probabilities"}]}).encode()
    _, answer = ask(server.port, "POST", "/v2/models/run/infer", body)
    return np.float32(json.loads(answer)["outputs"][0]["data"])


def by_bytes(server: Running, content: bytes) -> Any:
    packed = len(content).to_bytes(4, "little") + content
    tensor = {"name": "images", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(packed)}}
    asked = {"name": "probabilities", "parameters": {"binary_data": True}}
    text = json.dumps({"inputs": [tensor], "outputs": [asked]}).encode()
    length = str(len(text))
    _, answer = ask(server.port, "POST", "/v2/models/run/infer", text + packed, Inference_Header_Content_Length=length)
    _, end = json.JSONDecoder().raw_decode(answer.decode("latin-1"))
    return np.frombuffer(answer[end:], np.float32)


def by_grpc(server: Running, content: bytes) -> Any:
    import grpc

    from tlkit.serving.messages import SERVICE, messages

    request = messages()["ModelInferRequest"](
        model_name="run",
        inputs=[{"name": "images", "datatype": "BYTES", "shape": [1]}],
        outputs=[{"name": "probabilities"}],
        raw_input_contents=[len(content).to_bytes(4, "little") + content],
    )
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        answer = channel.unary_unary(f"/{SERVICE}/ModelInfer")(request.SerializeToString(), timeout=60)
    return np.frombuffer(messages()["ModelInferResponse"].FromString(answer).raw_output_contents[0], np.float32)
