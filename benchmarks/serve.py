"""`tlkit serve` against the bare session, LitServe and a plain FastAPI server: throughput, latency, overload, reloads.

Tensors and JPEGs from 1, 8 and 64 clients, each a connection that sends its next request when the last is answered; a
queue that overflows; requests across reloads; mutated bodies. Clients run on the same machine as the servers.
"""

from __future__ import annotations

import base64
import json
import os
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
from _bench import (
    DATA,
    PYTHON,
    RIVALS,
    SETTINGS,
    TLKIT,
    Bar,
    Report,
    existing,
    exported,
    missing,
    parsed,
    parser,
    ratios,
    repeated,
    shown,
    spread,
    workspace,
)

CLIENTS = (1, 8, 64)
QUEUE, DEADLINE = 128, 2.0  # images, seconds
IMAGES = 8  # per request with a tensor


def main() -> int:
    options = parser(__doc__, repeat=3)
    options.add_argument("--images", type=Path, default=DATA / "ants_bees", help="class folders of JPEGs")
    options.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    options.add_argument("--requests", type=int, default=10_000, help="across all reloads")
    options.add_argument("--reloads", type=int, default=20)
    options.add_argument("--bodies", type=int, default=100_000, help="that are mutated")
    args = parsed(options, seconds=0.1, requests=40, reloads=2, bodies=200)
    images = existing(args.images, "--images")
    report = Report(
        "serve",
        "A server and its clients on one machine. The bare session is ONNX Runtime as the server opens it, called by "
        "as many threads as it has workers.",
        {"images": shown(images), "turns": args.repeat, "seconds": args.seconds},
    )
    with workspace() as work:
        bundle = exported(work)
        models = work / "models"
        shutil.copytree(bundle, models / "run" / "1")
        jpegs = repeated(images, work / "jpegs", 12 if SETTINGS.smallest else 200)
        with serving(models, work) as (port, process, errors):
            tensors(report, bundle, port, args, work)
            pictures(report, bundle, port, args, jpegs)
            overload(report, port, process, args, work)
            reloads(report, port, args, models, bundle, min(jpegs.iterdir()))
            mutated(report, port, args)
        bugs = errors.read_text().count("a bug in tlkit")
        report.bars.append(Bar("lines of stderr that tell of a bug", [bugs], "=", 0, digits=0))
    return report.save()


@contextmanager
def serving(models: Path, work: Path) -> Iterator[tuple[int, subprocess.Popen[str], Path]]:
    """Run the server; gives its port, its process and the file of its stderr."""
    errors = work / "errors.txt"
    command = [TLKIT, "serve", models, "--watch", "--port", "0"]
    command += ["--max-queue", str(QUEUE), "--deadline", str(DEADLINE)]
    with errors.open("w") as stream:
        process = subprocess.Popen([str(each) for each in command], stderr=stream, text=True)
    try:
        while "ready: " not in errors.read_text():
            if process.poll() is not None:
                sys.exit(f"the server ended: {errors.read_text()}")
            time.sleep(0.05)
        found = re.search(r"http://[^:]+:(\d+)", errors.read_text())
        assert found is not None  # noqa: S101 - it is there before "ready"
        yield int(found[1]), process, errors
    finally:
        process.terminate()
        process.wait(30)


def load(port: int, path: str, body: Path, clients: int, seconds: float, *headers: str) -> dict[str, Any]:
    """Run the clients, in a process of their own."""
    command = [PYTHON, str(RIVALS / "serve_load.py"), str(port), path, str(body), "--clients", str(clients)]
    command += ["--seconds", str(seconds), *(f"--header={each}" for each in headers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"the clients failed: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout))


def answered(found: Mapping[str, Any], images: int = 1) -> float:
    """Return images per second of the requests that were answered."""
    return float(images * found["statuses"].get("200", 0) / found["seconds"])


def tensor_body(work: Path, bundle: Path, count: int) -> tuple[Path, str]:
    """Return the file of a request with a tensor, and its header."""
    size = json.loads((bundle / "bundle.json").read_text())["preprocessing"]["size"]
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
    tensor = {"name": "images", "datatype": "UINT8", "shape": images.shape}
    described = {
        "inputs": [{**tensor, "parameters": {"binary_data_size": images.nbytes}}],
        "outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}],
    }
    text = json.dumps(described).encode()
    file = work / f"tensor-{count}"
    file.write_bytes(text + images.tobytes())
    return file, f"Inference-Header-Content-Length:{len(text)}"


def bare(bundle: Path, seconds: float) -> tuple[float, list[float]]:
    """Return images per second of the bare session on all cores, and milliseconds of a call with one image."""
    from tlkit.runtime.session import OnnxSession
    from tlkit.util.resources import cores

    session = OnnxSession(bundle / "onnx/fp32/model.onnx", workers=cores(), threads=1)
    size = json.loads(session.metadata["tlkit.preprocessing"])["size"]
    images = np.random.default_rng(0).integers(0, 256, (session.batch_size, size, size, 3), np.uint8)
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


def tensors(report: Report, bundle: Path, port: int, args: Any, work: Path) -> None:
    """Measure requests with tensors against the bare session."""
    path, many, one = "/v2/models/run/infer", tensor_body(work, bundle, IMAGES), tensor_body(work, bundle, 1)
    speeds: dict[str, list[float]] = {"bare session": [], **{f"{n} clients": [] for n in CLIENTS}}
    over: list[float] = []
    for _ in range(args.repeat):
        speed, alone = bare(bundle, args.seconds)
        speeds["bare session"].append(speed)
        for clients in CLIENTS:
            found = load(port, path, many[0], clients, args.seconds, many[1])
            speeds[f"{clients} clients"].append(answered(found, IMAGES))
        served = load(port, path, one[0], 1, args.seconds, one[1])["ms"]
        over.append(statistics.median(served) - statistics.median(alone))
    report.figures["tensors, images per second"] = speeds
    report.figures["one tensor, ms over the session, p50"] = over
    for name, values in speeds.items():
        report.rows.append({"": f"tensors of {IMAGES}, {name}", "images/s": spread(values, 0), "p50, p99 ms": ""})
    best = ratios(speeds["8 clients"], speeds["bare session"])
    report.bars.append(Bar("tensors, 8 clients / bare session", best, "≥", 0.9, "x"))
    report.bars.append(Bar("p50 of one tensor over the session", over, "≤", 1.0, " ms"))


def pictures(report: Report, bundle: Path, port: int, args: Any, jpegs: Path) -> None:
    """Measure JPEGs, interleaved with the rivals that are installed."""
    graph = bundle / "onnx/fp32/model.onnx"
    rivals = {"FastAPI": ("serve_fastapi.py", ("fastapi", "uvicorn"), "image/jpeg")}
    rivals["LitServe"] = ("serve_litserve.py", ("litserve", "fastapi"), "application/json")
    encoded = jpegs.with_name("encoded")  # what LitServe hands to its workers must be JSON
    encoded.mkdir()
    for file in jpegs.iterdir():
        text = json.dumps({"image": base64.b64encode(file.read_bytes()).decode()})
        (encoded / file.name).write_text(text)
    sides: dict[str, int] = {"tlkit": port}
    running = []
    for name, (script, packages, _) in rivals.items():
        if why := missing(*packages):
            report.notes.append(f"{name}: {why}")
            continue
        sides[name] = free_port()
        command = [PYTHON, str(RIVALS / script), str(graph), str(sides[name])]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        running.append(subprocess.Popen(command, **quiet, start_new_session=True))
    try:
        for each in sides.values():
            wait_for(each)
        for clients in CLIENTS:
            speeds: dict[str, list[float]] = {name: [] for name in sides}
            times: dict[str, list[float]] = {name: [] for name in sides}
            for _ in range(args.repeat):
                for name, each in sides.items():
                    kind = rivals[name][2] if name in rivals else "image/jpeg"
                    bodies = encoded if kind == "application/json" else jpegs
                    found = load(each, "/predict", bodies, clients, args.seconds, f"Content-Type:{kind}")
                    speeds[name].append(answered(found))
                    times[name] += found["ms"]
            compared(report, clients, speeds, times)
    finally:
        for rival in running:
            end(rival)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a rival and the processes that it started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


def compared(report: Report, clients: int, speeds: Mapping[str, list[float]], times: Mapping[str, list[float]]) -> None:
    """Report the JPEGs of each server."""
    report.figures[f"JPEGs, {clients} clients, images per second"] = speeds
    for name, values in speeds.items():
        shares = np.percentile(times[name] or [float("nan")], [50, 99])
        row = {"": f"JPEGs, {clients} clients, {name}", "images/s": spread(values, 0)}
        report.rows.append({**row, "p50, p99 ms": f"{shares[0]:.1f}, {shares[1]:.1f}"})
        if min(values) == 0:
            report.notes.append(f"{name} answered nothing to {clients} clients")
        elif name != "tlkit":
            faster = ratios(speeds["tlkit"], values)
            report.bars.append(Bar(f"JPEGs, {clients} clients, tlkit / {name}", faster, "≥", 1.5, "x"))


def overload(report: Report, port: int, process: subprocess.Popen[str], args: Any, work: Path) -> None:
    """Ask for more than the queue holds."""
    bundle = next(path.parent for path in (work / "models").rglob("bundle.json"))
    body, header = tensor_body(work, bundle, IMAGES)
    path = "/v2/models/run/infer"
    peak = answered(load(port, path, body, 8, args.seconds, header), IMAGES)
    before = memory(process.pid)
    found = load(port, path, body, 64, 4 * args.seconds, header)
    after = memory(process.pid)
    load(port, path, body, 64, 4 * args.seconds, header)
    later = memory(process.pid)
    report.figures["overload"] = {**found, "ms": [], "peak": peak, "MiB": [before, after, later]}
    told = ", ".join(f"{status}: {count}" for status, count in sorted(found["statuses"].items()))
    report.notes.append(f"Overload with 64 clients of {IMAGES} images, by status: {told}.")
    report.bars += [
        Bar("goodput under overload / peak", [answered(found, IMAGES) / peak], "≥", 0.9, "x"),
        Bar("longest wait of a client", [found["longest"]], "≤", DEADLINE + 0.5, " s"),
        Bar("memory after a second overload / after the first", [later / after], "≤", 1.1, "x"),
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


def mutated(report: Report, port: int, args: Any) -> None:
    """Send bodies that were damaged; the server refuses them or answers, and goes on."""
    chance = random.Random(0)
    zeros = {"name": "images", "datatype": "BYTES", "shape": [1], "data": ["aGVsbG8="], "parameters": {"x": 1}}
    valid = json.dumps({"inputs": [zeros], "outputs": [{"name": "logits"}], "id": "7"}).encode()
    statuses = Counter[int]()
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    leaks = 0
    for _ in range(args.bodies):
        body = bytearray(valid)
        for _ in range(chance.randint(1, 6)):
            place = chance.randrange(len(body))
            body[place : place + chance.randint(0, 3)] = chance.randbytes(chance.randint(0, 3))
        headers = {"Inference-Header-Content-Length": str(chance.randint(0, 300))} if chance.random() < 0.3 else {}
        connection.request("POST", "/v2/models/run/infer", bytes(body), headers)
        answer = connection.getresponse()
        text = answer.read()
        statuses[answer.status] += 1
        leaks += b"Traceback" in text or b'File "' in text
    alive = ask(port, "GET", "/v2/health/ready")[0] == 200
    report.figures["mutated bodies"] = dict(statuses)
    faults = statuses[500] + leaks + (not alive)
    report.bars.append(Bar(f"faults of {args.bodies:,} mutated bodies", [faults], "=", 0, digits=0))


def ask(port: int, method: str, path: str) -> tuple[int, bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content


def memory(process: int) -> float:
    """Return the resident memory of a process in MiB, where /proc tells."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 1.0
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(found[1]) / 1024 if found else 1.0


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


if __name__ == "__main__":
    sys.exit(main())
