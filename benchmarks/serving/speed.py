"""Throughput and latency against the bare session, LitServe and FastAPI; twice the capacity; reloads."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
from _bench import PYTHON, RIVALS, Bar, Report, missing, ratios, spread

from serving.server import Running, ask, load, memory, serving, tensor_body

CLIENTS = (1, 8, 64)
QUEUE, DEADLINE = 128, 2.0  # images, seconds
IMAGES = 8  # per request with a tensor
INFER = "/v2/models/run/infer"


def speed(args: Any, settings: Mapping[str, Any], work: Path, bundle: Path, jpegs: Path) -> int:
    """Measure, and write the results."""
    report = Report(
        "serve",
        "A server and its clients on one machine. The bare session is ONNX Runtime as the server opens it, called by "
        "as many threads as it has workers. Rivals run the same graph in fp32; for int8 the graph is another.",
        settings,
    )
    bugs = 0
    with serving(work, bundle, "--port", 0) as server:
        tensors(report, bundle, server, args, work)
        pictures(report, bundle, server, args, jpegs, work)
        bugs += server.bugs()
    models = work / "models"
    shutil.copytree(bundle, models / "run" / "1")
    limits = ("--max-queue", QUEUE, "--deadline", DEADLINE)
    with serving(work, models, "--watch", "--port", 0, *limits) as server:
        overload(report, bundle, server, args, work)
        reloads(report, server.port, args, models, bundle, min(jpegs.iterdir()))
        bugs += server.bugs()
    report.bars.append(Bar("lines of stderr that tell of a bug", [bugs], "=", 0, digits=0))
    return report.save()


def answered(found: Mapping[str, Any], images: int = 1) -> float:
    """Return images per second of the requests that were answered."""
    return float(images * found["statuses"].get("200", 0) / found["seconds"])


def milliseconds(times: list[float]) -> str:
    """Return the p50 and p99."""
    shares = np.percentile(times or [float("nan")], [50, 99])
    return f"{shares[0]:.1f}, {shares[1]:.1f}"


def bare(bundle: Path, seconds: float) -> tuple[float, list[float]]:
    """Return images per second of the bare session on all cores, and milliseconds of a call with one image."""
    from tlkit.runtime.session import OnnxSession
    from tlkit.serving.adaptive import adapted
    from tlkit.util.resources import cores

    opened = OnnxSession(bundle / "onnx/fp32/model.onnx", workers=cores(), threads=1)
    size = json.loads(opened.metadata["tlkit.preprocessing"])["size"]
    images = np.random.default_rng(0).integers(0, 256, (opened.batch_size, size, size, 3), np.uint8)
    session = adapted(opened, images)
    done = Counter[int]()

    def work(number: int) -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            session.run(images, ["probabilities"])
            done[number] += len(images)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(session.workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    times = []
    end = time.perf_counter() + seconds
    while (before := time.perf_counter()) < end:
        session.run(images[:1], ["probabilities"])
        times.append(1e3 * (time.perf_counter() - before))
    session.close()
    return sum(done.values()) / seconds, times


def tensors(report: Report, bundle: Path, server: Running, args: Any, work: Path) -> None:
    """Measure requests with tensors against the bare session."""
    many, one = tensor_body(work, bundle, IMAGES), tensor_body(work, bundle, 1)
    speeds: dict[str, list[float]] = {"bare session": [], **{f"{n} clients": [] for n in CLIENTS}}
    times: dict[str, list[float]] = {f"{n} clients": [] for n in CLIENTS}
    over, alone, served = list[float](), list[float](), list[float]()
    for _ in range(args.repeat):
        speed, calls = bare(bundle, args.seconds)
        speeds["bare session"].append(speed)
        answers = load(server.port, INFER, one[0], 1, args.seconds, one[1])["ms"]
        over.append(statistics.median(answers) - statistics.median(calls))
        alone, served = alone + calls, served + answers
        for clients in CLIENTS:
            found = load(server.port, INFER, many[0], clients, args.seconds, many[1])
            speeds[f"{clients} clients"].append(answered(found, IMAGES))
            times[f"{clients} clients"] += found["ms"]
    report.figures["tensors, images per second"] = speeds
    report.figures["one tensor, ms over the session, p50"] = over
    for name, row in (("one tensor, bare session", alone), ("one tensor, 1 client", served)):
        speed = f"{1e3 / statistics.mean(row):.0f}"
        report.rows.append({"": name, "images/s": speed, "p50, p99 ms": milliseconds(row), "MiB": ""})
    for name, values in speeds.items():
        row = {"": f"tensors of {IMAGES}, {name}", "images/s": spread(values, 0)}
        report.rows.append({**row, "p50, p99 ms": milliseconds(times[name]) if name in times else "", "MiB": ""})
    report.rows[-1]["MiB"] = f"{server.memory():.0f}"
    best = ratios(speeds["8 clients"], speeds["bare session"])
    report.bars.append(Bar("tensors, 8 clients / bare session", best, "≥", 0.9, "x"))
    report.bars.append(Bar("p50 of one tensor over the session", over, "≤", 1.0, " ms"))


def pictures(report: Report, bundle: Path, server: Running, args: Any, jpegs: Path, work: Path) -> None:
    """Measure JPEGs, interleaved with the rivals that are installed."""
    graph = bundle / "onnx/fp32/model.onnx"
    encoded = jpegs.with_name("encoded")  # what LitServe hands to its workers must be JSON
    encoded.mkdir()
    for file in jpegs.iterdir():
        text = json.dumps({"image": base64.b64encode(file.read_bytes()).decode()})
        (encoded / file.name).write_text(text)
    sides = {"tlkit": Side(server.port, server.process.pid, jpegs, "image/jpeg")}
    with ExitStack() as running:
        if (bundle / "onnx/int8").exists():
            other = running.enter_context(serving(work, bundle, "--port", 0, "--precision", "int8"))
            sides["tlkit int8"] = Side(other.port, other.process.pid, jpegs, "image/jpeg")
        for name, script, packages, bodies, kind in (
            ("FastAPI", "serve_fastapi.py", ("fastapi", "uvicorn"), jpegs, "image/jpeg"),
            ("LitServe", "serve_litserve.py", ("litserve", "fastapi"), encoded, "application/json"),
        ):
            if why := missing(*packages):
                report.notes.append(f"{name}: {why}")
                continue
            port = free_port()
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            command = [PYTHON, str(RIVALS / script), str(graph), str(port)]
            process = subprocess.Popen(command, **quiet, start_new_session=True)
            running.callback(end, process)
            sides[name] = Side(port, process.pid, bodies, kind)
            wait_for(port)
        for clients in CLIENTS:
            for _ in range(args.repeat):
                for side in sides.values():
                    side.measure(clients, args.seconds)
            compared(report, clients, sides)


@dataclass
class Side:
    """A server that labels JPEGs, and what was measured of it, by number of clients."""

    port: int
    process: int
    bodies: Path
    kind: str
    speeds: defaultdict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    times: defaultdict[int, list[float]] = field(default_factory=lambda: defaultdict(list))

    def measure(self, clients: int, seconds: float) -> None:
        found = load(self.port, "/predict", self.bodies, clients, seconds, f"Content-Type:{self.kind}")
        self.speeds[clients].append(answered(found))
        self.times[clients] += found["ms"]


def end(process: subprocess.Popen[bytes]) -> None:
    """End a rival and the processes that it started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


def compared(report: Report, clients: int, sides: Mapping[str, Side]) -> None:
    """Report the JPEGs of each server."""
    speeds = {name: side.speeds[clients] for name, side in sides.items()}
    report.figures[f"JPEGs, {clients} clients, images per second"] = speeds
    for name, side in sides.items():
        row = {"": f"JPEGs, {clients} clients, {name}", "images/s": spread(speeds[name], 0)}
        row |= {"p50, p99 ms": milliseconds(side.times[clients]), "MiB": f"{memory(side.process):.0f}"}
        report.rows.append(row)
    ours = [name for name in sides if name.startswith("tlkit")]
    for rival in [name for name in sides if name not in ours]:
        if min(speeds[rival]) == 0:
            report.notes.append(f"{rival} did not answer {clients} clients")
            continue
        for name in ours:
            faster = ratios(speeds[name], speeds[rival])
            report.bars.append(Bar(f"JPEGs, {clients} clients, {name} / {rival}", faster, "≥", 1.5, "x"))


def overload(report: Report, bundle: Path, server: Running, args: Any, work: Path) -> None:
    """Ask for as much as 64 clients that never wait can, and then for twice what the server can answer."""
    body, header = tensor_body(work, bundle, IMAGES)
    peak = answered(load(server.port, INFER, body, 8, 2 * args.seconds, header), IMAGES)
    before = server.memory()
    flood = load(server.port, INFER, body, 64, 2 * args.seconds, header)
    after = server.memory()
    found = load(server.port, INFER, body, 64, 6 * args.seconds, header, rate=2 * peak / IMAGES)
    later = server.memory()
    report.figures["overload"] = {**found, "ms": [], "peak": peak, "MiB": [before, after, later]}
    for what, each in (("Twice the capacity", found), (f"64 clients of {IMAGES} images that never wait", flood)):
        told = ", ".join(f"{status}: {count}" for status, count in sorted(each["statuses"].items()))
        sent = sum(each["statuses"].values()) / each["seconds"]
        speed = f"{answered(each, IMAGES):.0f} images/s of at most {peak:.0f}, longest wait {each['longest']:.2f} s"
        report.notes.append(f"{what}, a queue of {QUEUE} images: {sent:.0f} requests/s, by status {told}; {speed}.")
    report.bars += [
        Bar("goodput at twice the capacity / peak", [answered(found, IMAGES) / peak], "≥", 0.9, "x"),
        Bar("longest wait of a client", [max(found["longest"], flood["longest"])], "≤", DEADLINE + 0.5, " s"),
        Bar("memory after twice the capacity / before it", [later / after], "≤", 1.1, "x"),
    ]


def reloads(report: Report, port: int, args: Any, models: Path, bundle: Path, picture: Path) -> None:
    """Exchange the bundle while requests come."""
    statuses, counted = Counter[int](), threading.Lock()
    body = picture.read_bytes()

    def client() -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        while True:
            with counted:
                if statuses.total() >= args.requests and len(list((models / "run").iterdir())) > args.reloads:
                    return
            connection.request("POST", "/predict", body)
            answer = connection.getresponse()
            answer.read()
            with counted:
                statuses[answer.status] += 1

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    for version in range(2, args.reloads + 2):
        shutil.copytree(bundle, models.with_name("beside"))
        models.with_name("beside").rename(models / "run" / str(version))
        while json.loads(ask(port, "GET", "/v2/models/run")[1])["versions"] != [str(version)]:
            time.sleep(0.02)
    for thread in threads:
        thread.join()
    report.figures["reloads"] = dict(statuses)
    failed = statuses.total() - statuses[200]
    what = f"failed of {statuses.total():,} requests across {args.reloads} reloads"
    report.bars.append(Bar(what, [failed], "=", 0, digits=0))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as made:
        return int(made.getsockname()[1])


def wait_for(port: int, patience: float = 60) -> None:
    """Wait until a server listens."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    sys.exit("a server does not listen")
