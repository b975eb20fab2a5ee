"""Requests that are damaged, slow, lying, endless or bombs; another client is served all the while."""

from __future__ import annotations

import base64
import gzip
import json
import random
import re
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from io import BytesIO
from pathlib import Path
from typing import Any

from _bench import PYTHON, SETTINGS, Bar, Report

from serving.clients import GRPC
from serving.server import Running, ask, serving

INFER = "/v2/models/run/infer"
CODE = """
import sys, tlkit
limits = {"reading": float(sys.argv[2]), "deadline": 5.0}
port = 0 if sys.argv[3:] else None
say = lambda text: print(text, file=sys.stderr, flush=True)
tlkit.serve(sys.argv[1], port=0, grpc_port=port, limits=limits, said=say)
"""
Answer = tuple[str, bytes]


@dataclass(frozen=True)
class Scale:
    """Size of the attacks: seconds for a body, of which headers get a third, clients at once, pixels, bytes."""

    reading: float = 6.0  # the default of the server is five times as much
    clients: int = 50
    side: int = 30_000
    bomb: int = 1 << 30
    message: int = 100 << 20
    slow: int = 60
    pause: float = 0.2


SMALLEST = Scale(0.6, 5, 10_001, 1 << 27, 65 << 20, 10, 0.1)


def hostile(bodies: int, work: Path, bundle: Path, jpegs: Path) -> int:
    """Attack, and write the results."""
    scale = SMALLEST if SETTINGS.smallest else Scale()
    report = Report(
        "serve-hostile",
        "One server under attack. The witness is a client that sends one picture after the other meanwhile; its "
        "longest wait is that for an answer. MiB are those of the server before and after.",
        {"mutated bodies": bodies, "seconds for a body": scale.reading, "clients at once": scale.clients},
    )
    picture = min(jpegs.iterdir()).read_bytes()
    with serving(work, bundle, scale.reading, *GRPC[:1], command=(PYTHON, "-c", CODE)) as server:
        attacks(report, server, picture, scale)
        mutated(report, server, bodies)
        bugs = server.bugs()
        said = server.errors.read_text().splitlines()[2:]  # after that it listens, and that it is ready
    report.bars.append(Bar("lines of a bug or a traceback on stderr", [bugs], "=", 0, digits=0))
    report.bars.append(Bar("other lines on stderr", [len(said)], "=", 0, digits=0))
    report.notes += said[:10]
    return report.save()


def raw(server: Running, *parts: bytes, pause: float = 0.0) -> str:
    """Send bytes as they are; return the status of every answer until the connection is closed."""
    got = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
        except OSError:
            pass
        try:
            while part := connection.recv(1 << 16):
                got += part
        except OSError:
            pass
    return " ".join([*re.findall(r"HTTP/1.1 (\d+)", got.decode("latin-1")), "closed"])


def posted(server: Running, path: str, body: bytes, **headers: str) -> str:
    return str(ask(server.port, "POST", path, body, **headers)[0])


def called(server: Running, content: bytes, *, compressed: bool = False) -> str:
    """Return the code of a call of gRPC."""
    import grpc

    options = [("grpc.max_send_message_length", -1)]
    kind = grpc.Compression.Gzip if compressed else grpc.Compression.NoCompression
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", options=options, compression=kind) as channel:
        return code_of(lambda: channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(content, timeout=60))


def code_of(call: Callable[[], Any]) -> str:
    import grpc

    try:
        call()
    except grpc.RpcError as error:
        return str(error.code().name)  # type: ignore[attr-defined]  # it is a call as well
    return "OK"


def many(count: int, attack: Callable[[], str]) -> str:
    """Return the outcomes of an attack by many at once."""
    found = Counter[str]()

    def one() -> None:
        found[attack()] += 1

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ", ".join(sorted(found))


def huge_png(side: int) -> bytes:
    """Return a PNG of black pixels, of which a bit each is stored."""
    packed, row = zlib.compressobj(1), bytes(1 + (side + 7) // 8)
    data = b"".join([*(packed.compress(row) for _ in range(side)), packed.flush()])

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def table(server: Running, scale: Scale) -> Iterator[tuple[str, Callable[[], str], str]]:
    """Yield what is sent, a function that sends it, and the outcomes that are expected as a pattern."""
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\n"
    length = head + b"Content-Length: %d\r\n\r\n"
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n"
    slow, pause, clients, side = [b"a"] * scale.slow, scale.pause, scale.clients, scale.side
    yield (
        f"{clients} clients, a byte of headers every {pause} s",
        lambda: many(clients, lambda: raw(server, b"GET /v2 HTTP/1.1\r\nHost: ", *slow, pause=pause)),
        "closed",
    )
    yield (
        f"{clients} clients, a byte of the body every {pause} s",
        lambda: many(clients, lambda: raw(server, length % 1000, *slow, pause=pause)),
        "408 closed",
    )
    yield "Content-Length of 1 TB", lambda: raw(server, length % (1 << 40), b"some"), "413 closed"
    yield "Content-Length beyond what is sent", lambda: raw(server, length % 100, b"some"), "408 closed"
    yield "Content-Length short of what is sent", lambda: raw(server, length % 4, b"x" * 99), "(400 )+closed"
    yield (
        "two of Content-Length",
        lambda: raw(server, head + b"Content-Length: 1\r\n", length[len(head) :] % 4),
        "400 closed",
    )
    yield "Content-Length of -1", lambda: raw(server, length % -1), "400 closed"
    yield "headers of 1 MB", lambda: raw(server, head + b"a: b\r\n" * 170_000), "(400 )?closed"
    yield "one header of 1 MB", lambda: raw(server, head + b"a: " + b"b" * (1 << 20)), "(400 )?closed"
    yield "trailers of 1 MB", lambda: raw(server, chunked + b"0\r\n" + b"a: b\r\n" * 170_000), "(400 )?closed"
    yield "a chunk's extension of 1 MB", lambda: raw(server, chunked + b"1;" + b"a" * (1 << 20)), "(400 )?closed"
    bomb = gzip.compress(bytes(scale.bomb), 6)
    yield (
        f"gzip of {scale.bomb >> 20:,} MiB of zeros",
        lambda: posted(server, "/predict", bomb, Content_Encoding="gzip"),
        "413",
    )
    packed = zlib.compress(bytes(scale.bomb), 6)
    yield (
        f"deflate of {scale.bomb >> 20:,} MiB of zeros",
        lambda: posted(server, INFER, packed, Content_Encoding="deflate"),
        "413",
    )
    yield "JSON, 100,000 lists deep", lambda: posted(server, INFER, b'{"inputs":' + b"[" * 100_000), "400"
    huge = huge_png(side)
    element = base64.b64encode(huge).decode()
    text = json.dumps({"inputs": [{"name": "images", "datatype": "BYTES", "shape": [1], "data": [element]}]}).encode()
    yield f"PNG of {side:,} x {side:,}, /predict", lambda: posted(server, "/predict", huge), "400"
    yield (
        f"PNG of {side:,} x {side:,}, {clients} times",
        lambda: many(clients, lambda: posted(server, INFER, text)),
        "400",
    )
    yield "300 connections that say nothing", lambda: many(300, lambda: raw(server)), "closed"
    if GRPC:
        yield f"gRPC, PNG of {side:,} x {side:,}", lambda: called(server, message(huge)), "INVALID_ARGUMENT"
        yield "gRPC, gzip of 60 MiB of zeros", lambda: called(server, bytes(60 << 20), compressed=True), "UNIMPLEMENTED"
        yield f"gRPC, {scale.message >> 20} MiB", lambda: called(server, bytes(scale.message)), "RESOURCE_EXHAUSTED"
        yield (
            f"gRPC, {clients} calls without a request",
            lambda: many(clients, lambda: waiting(server, 2 * scale.reading)),
            "DEADLINE_EXCEEDED",
        )


def waiting(server: Running, seconds: float) -> str:
    """Return the code of a call whose request does not come."""
    import grpc

    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        requests = (time.sleep(seconds) or each for each in [b""])
        call = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
        return code_of(lambda: call(requests, timeout=60))


def message(picture: bytes) -> bytes:
    from tlkit.serving.messages import messages

    inputs = [{"name": "images", "datatype": "BYTES", "shape": [1]}]
    raw_contents = [len(picture).to_bytes(4, "little") + picture]
    made = messages()["ModelInferRequest"](model_name="run", inputs=inputs, raw_input_contents=raw_contents)
    return bytes(made.SerializeToString())


@dataclass
class Witness:
    """A client that behaves: statuses, and the longest wait in seconds."""

    statuses: Counter[int] = field(default_factory=Counter)
    longest: float = 0.0


@contextmanager
def witness(server: Running, picture: bytes) -> Iterator[Witness]:
    """Send one picture after the other until the end of the block."""
    seen, over = Witness(), threading.Event()

    def work() -> None:
        connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
        while not over.is_set():
            before = time.perf_counter()
            try:
                connection.request("POST", "/predict", picture)
                answer = connection.getresponse()
                answer.read()
                seen.statuses[answer.status] += 1
            except OSError:
                connection.close()
                seen.statuses[0] += 1
            seen.longest = max(seen.longest, time.perf_counter() - before)
            over.wait(0.02)
        connection.close()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def attacks(report: Report, server: Running, picture: bytes, scale: Scale) -> None:
    """Run every attack, one after the other."""
    wrong, failed, longest = [], 0, 0.0
    first = server.memory()
    for what, attack, expected in table(server, scale):
        before, started = server.memory(), time.perf_counter()
        with witness(server, picture) as seen:
            outcome = attack()
            taken = time.perf_counter() - started
            while not seen.statuses:
                time.sleep(0.01)
        if not re.fullmatch(expected, outcome):
            wrong.append(f"{what}: {outcome}")
        failures = seen.statuses.total() - seen.statuses[200]
        failed, longest = failed + failures, max(longest, seen.longest)
        told = f"{seen.statuses.total()}, {failures}, {seen.longest:.2f} s"
        grown = f"{before:.0f}, {server.memory():.0f}"
        row = {"sent": what, "answer": outcome, "refused after": f"{taken:.2f} s"}
        report.rows.append({**row, "witness: requests, failed, longest wait": told, "MiB": grown})
    last = server.memory()
    report.figures["attacks"] = {"wrong": wrong, "witness failed": failed, "longest": longest, "MiB": [first, last]}
    report.notes += wrong
    report.bars += [
        Bar(f"of {len(report.rows)} attacks, not refused as they should be", [len(wrong)], "=", 0, digits=0),
        Bar("requests of the witness that failed", [failed], "=", 0, digits=0),
        Bar("longest wait of the witness", [longest], "≤", 5.0, " s"),
        Bar("MiB that all attacks left", [last - first], "≤", 300, digits=0),
    ]


def damage(chance: random.Random, content: bytes) -> bytes:
    """Return bytes with one to six places changed, removed or added."""
    body = bytearray(content)
    for _ in range(chance.randint(1, 6)):
        place = chance.randrange(len(body) + 1)
        body[place : place + chance.randint(0, 3)] = chance.randbytes(chance.randint(0, 3))
    return bytes(body)


def mutated(report: Report, server: Running, count: int) -> None:
    """Send requests that were damaged, over both protocols; the server refuses or answers them, and goes on."""
    from PIL import Image

    buffer = BytesIO()
    Image.effect_noise((6, 6), 80).save(buffer, "PNG")
    picture = buffer.getvalue()
    protocols: dict[str, Callable[[Running, int, bytes], Mapping[str, int]]] = {"REST": mutated_rest}
    if GRPC:
        protocols["gRPC"] = mutated_grpc
    for name, send in protocols.items():
        share = count // len(protocols)
        first = send(server, share // 2, picture)
        middle = server.memory()
        second = send(server, share - share // 2, picture)
        statuses = Counter(first) + Counter(second)
        report.figures[f"mutated, {name}"] = dict(statuses)
        report.notes.append(f"{name}, mutated: " + ", ".join(f"{key}: {statuses[key]:,}" for key in sorted(statuses)))
        faults = sum(statuses[each] for each in ("500", "0", "INTERNAL", "UNKNOWN", "UNAVAILABLE", "leak"))
        faults += ask(server.port, "GET", "/v2/health/ready")[0] != 200
        report.bars.append(Bar(f"faults of {share:,} mutated bodies, {name}", [faults], "=", 0, digits=0))
        grown = server.memory() / middle
        report.bars.append(Bar(f"memory after all / after half of them, {name}", [grown], "≤", 1.1, "x"))


def mutated_rest(server: Running, count: int, picture: bytes) -> Mapping[str, int]:
    chance, statuses = random.Random(count), Counter[str]()
    tensor: dict[str, Any] = {"name": "images", "datatype": "BYTES", "shape": [1]}
    asked = {"outputs": [{"name": "logits", "parameters": {"classification": 1}}], "id": "7"}
    plain = {**tensor, "data": [base64.b64encode(picture).decode()], "parameters": {"x": 1}}
    packed = len(picture).to_bytes(4, "little") + picture
    header = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": len(packed)}}], **asked}).encode()
    text = json.dumps({"inputs": [plain], **asked}).encode()
    length = {"Inference-Header-Content-Length": str(len(header))}
    zipped = gzip.compress(text)
    cases: list[tuple[str, bytes, dict[str, str]]] = [
        (INFER, text, {}),
        (INFER, header + packed, length),
        (INFER, zipped, {"Content-Encoding": "gzip"}),
        ("/predict", picture, {}),
        ("/v2/repository/index", b'{"ready": true}', {}),
    ]
    connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
    for path, body, headers in cases:  # as they are
        connection.request("POST", path, body, headers)
        assert connection.getresponse().read()  # noqa: S101
    for _ in range(count):
        path, body, headers = chance.choice(cases)
        if path == INFER and chance.random() < 0.2:
            headers = {**headers, "Inference-Header-Content-Length": str(chance.randint(0, 300))}
        try:
            connection.request("POST", path, damage(chance, body), headers)
            answer = connection.getresponse()
            content = answer.read()
        except OSError:
            connection.close()
            statuses["0"] += 1
            continue
        statuses[str(answer.status)] += 1
        statuses["leak"] += b"Traceback" in content or b'File "' in content
    connection.close()
    return +statuses


def mutated_grpc(server: Running, count: int, picture: bytes) -> Mapping[str, int]:
    import grpc

    from tlkit.serving.messages import SERVICE, messages

    chance, statuses = random.Random(count), Counter[str]()
    described = {"name": "images", "datatype": "BYTES", "shape": [1]}
    typed = messages()["ModelInferRequest"](
        model_name="run",
        inputs=[{**described, "contents": {"bytes_contents": [picture]}}],
        outputs=[{"name": "logits"}],
    )
    typed.outputs[0].parameters["classification"].int64_param = 1
    cases = [
        ("ModelInfer", message(picture)),
        ("ModelInfer", bytes(typed.SerializeToString())),
        *((f"Model{each}", b"\x0a\x03run\x12\x011") for each in ("Metadata", "Config", "Statistics", "Ready")),
        ("RepositoryIndex", b"\x10\x01"),
    ]
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        calls = {name: channel.unary_unary(f"/{SERVICE}/{name}") for name, _ in cases}
        for name, body in cases:  # as they are
            calls[name](body, timeout=60)
        for _ in range(count):
            name, body = chance.choice(cases)
            statuses[code_of(lambda name=name, body=body: calls[name](damage(chance, body), timeout=60))] += 1
    return statuses
