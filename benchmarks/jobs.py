"""Embedding jobs: killed at random, listed and resumed at volume, against one file, and searched.

- `kills`: `tlkit embed` to a folder is killed (SIGKILL) at random times, the whole of it or one worker, and given again
  until it ends. Then parts and counts must be those of one clean run. The backbone is the tiny one of tests/kit.
- `manifest`: a source of so many keys is listed into a manifest, in a process of its own; a job of so many shards, all
  of them done but one, is resumed.
- `speed`: the same images to one file and to a folder, by one process and by two.
- `search`: exact search of the features of a job against faiss, on the same threads.
- `index`: the recall and the time of the approximate search against the exact one.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _bench import (
    DATA,
    PYTHON,
    ROOT,
    SETTINGS,
    TLKIT,
    Bar,
    Report,
    existing,
    exported,
    interleave,
    parsed,
    parser,
    ratios,
    repeated,
    run,
    seconds,
    shown,
    spread,
    workspace,
)

LINKS = 50_000  # to one file; file systems allow some 65,000
DIMENSIONS = 32  # of the made up features that are indexed
PARTS = ("kills", "manifest", "speed", "search", "index")


def main() -> int:
    options = parser(__doc__, repeat=3)
    options.add_argument("parts", nargs="*", default=PARTS, metavar="PART", help=f"some of {', '.join(PARTS)}")
    options.add_argument("--images", type=Path, default=DATA / "ants_bees", help="a folder with JPEGs somewhere in it")
    options.add_argument("--count", type=int, default=2_000, help="images to embed for `speed`")
    options.add_argument("--kills", type=int, default=60, help="processes to kill")
    options.add_argument("--keys", type=int, default=10**7, help="keys of the manifest")
    options.add_argument("--shards", type=int, default=10**5, help="shards of the job that is resumed")
    options.add_argument("--rows", type=int, default=10**5, help="rows to search")
    options.add_argument("--width", type=int, default=1280, help="features of each row that is indexed")
    options.add_argument("--seed", type=int, default=0, help="of the times and victims")
    args = parsed(options, count=12, kills=1, keys=5_000, shards=20, rows=500)
    parts: dict[str, Callable[[Any], int]] = {
        "kills": kills,
        "manifest": manifest,
        "speed": speed,
        "search": search,
        "index": index,
    }
    return max(parts[name](args) for name in args.parts)


def kills(args: Any) -> int:
    report = Report(
        "jobs-kills",
        f"{args.kills} kills of `tlkit embed photos -o features --workers 2` at random times: of all its processes, of "
        "the first one alone, and of a worker. The job is given again until it ends, and its parts are compared with "
        "those of one clean run.",
        {"kills": args.kills, "seed": args.seed},
    )
    chance = random.Random(args.seed)
    with workspace() as work:
        environment = _tiny(work)
        workers = 1 if SETTINGS.smallest else 2
        line = f"embed run photos -o features --workers {workers} --shard-rows 16 --max-bad 1"
        streams: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}

        def start() -> subprocess.Popen[bytes]:
            command = [TLKIT, *line.split()]
            return subprocess.Popen(command, cwd=work, env=environment, start_new_session=True, **streams)

        started = time.perf_counter()
        _expect(start().wait() == 0, "the clean run failed")
        whole, duration = _content(work / "features"), time.perf_counter() - started
        _expect(len(whole) >= 3, "the clean run wrote no parts")
        shutil.rmtree(work / "features")
        outcomes, wrong, finished, done = Counter[str](), list[str](), 0, 0
        while done < args.kills:
            process = start()
            time.sleep(chance.uniform(0.0, 1.1 * duration))
            victim = chance.choice(["all", "first", "worker"])
            killed = _kill(process, victim)
            code = process.wait()
            done += killed
            outcomes[f"{victim if killed else 'none'}: exit {code}"] += 1
            print(f"{done} of {args.kills}: {victim if killed else 'none'}: exit {code}", file=sys.stderr)
            if code in (0, 5) or killed:
                _settle(work)
            else:
                wrong.append(f"exit {code}: {process.stderr.read().decode()[-300:] if process.stderr else ''}")
            if code == 0:
                finished += 1
                if _content(work / "features") != whole:
                    wrong.append("another content after exit 0")
                shutil.rmtree(work / "features")
        code = start().wait()
        if code or _content(work / "features") != whole:
            wrong.append(f"the last run: exit {code}")
        left = [file.name for file in work.rglob(".*") if file.is_file() and "cache" not in str(file)]
    report.figures |= {"outcomes": dict(outcomes), "finished jobs": finished, "wrong": wrong, "left": left}
    report.rows = [{"killed": what, "times": str(count)} for what, count in sorted(outcomes.items())]
    report.bars += [
        Bar("runs that end wrongly, or with other parts", [len(wrong)], "=", 0, digits=0),
        Bar("temporary files and locks left at the end", [len(left)], "=", 0, digits=0),
    ]
    report.notes.append(f"{finished} jobs came to their end among the kills; a clean run takes {duration:.1f} s.")
    return report.save()


def _expect(held: bool, what: str) -> None:
    if not held:
        sys.exit(what)


def _tiny(work: Path) -> dict[str, str]:
    """Make photos and an exported bundle of the tiny backbone, and return the environment that knows it."""
    sys.path.insert(0, str(ROOT))
    from tests.kit.components import environment
    from tests.kit.tiny import write_images

    variables = {**os.environ, **environment(work / "site")}
    write_images(work / "photos", 4 if SETTINGS.smallest else 60)
    (work / "photos/dark/00.png").write_bytes(b"no image")
    os.environ.update(variables)
    options = "--backbone tiny --head line --strategy frozen --max-bad 1"
    run([TLKIT, "train", str(work / "photos"), "-o", str(work / "run"), *options.split()])
    run([TLKIT, "export", str(work / "run"), "--onnx"])
    return variables


def _kill(process: subprocess.Popen[bytes], victim: str) -> bool:
    """Kill a process, its group or one of its children; return whether there was one."""
    if process.poll() is not None:
        return False
    try:
        if victim == "all":
            os.killpg(process.pid, signal.SIGKILL)
        elif victim == "first":
            os.kill(process.pid, signal.SIGKILL)
        else:  # threads start them
            children = Path(f"/proc/{process.pid}/task").glob("*/children")
            os.kill(max(int(each) for file in children for each in file.read_text().split()), signal.SIGKILL)
    except (OSError, ValueError):
        return False
    return True


def _settle(work: Path) -> None:
    """Wait until the workers of a killed process have ended."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = subprocess.run(["pgrep", "-f", f"{PYTHON}.*tlkit.worker"], capture_output=True, text=True, check=False)
        own = [pid for pid in found.stdout.split() if _cwd(pid) == str(work)]
        if not own:
            return
        time.sleep(0.05)


def _cwd(pid: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return ""


def _content(out: Path) -> dict[str, bytes]:
    return {str(file.relative_to(out)): file.read_bytes() for file in sorted(out.rglob("*.parquet"))}


def manifest(args: Any) -> int:
    report = Report(
        "jobs-manifest",
        f"{args.keys:,} records of a source that makes them up, listed, sorted and written as a manifest; a job of "
        f"{args.shards:,} shards of one image, of which all but one are done, resumed and audited.",
        {"keys": args.keys, "shards": args.shards},
    )
    with workspace() as work:
        listed = json.loads(run([PYTHON, __file__, "--list", str(args.keys), str(work / "m")]).output.splitlines()[-1])
        resumed = _resume(work, args.shards)
    report.figures |= {"listing": listed, "resuming": resumed}
    report.rows = [
        {"": "keys per second", "value": f"{args.keys / listed['seconds']:,.0f}"},
        {"": "CPU seconds per million keys", "value": f"{1e6 * listed['cpu'] / args.keys:.1f}"},
        {"": "memory above that of the imports, MB", "value": f"{listed['mb']:.0f}"},
        {"": "bytes per key", "value": f"{listed['bytes'] / args.keys:.1f}"},
        {"": "CPU seconds per million files of a folder", "value": f"{1e6 * resumed['list'] / args.shards:.1f}"},
        {"": "CPU seconds to see which shards are done", "value": f"{resumed['look cpu']:.2f}"},
        {"": "seconds for that", "value": f"{resumed['look']:.2f}"},
        {"": "CPU seconds to audit all files", "value": f"{resumed['audit']:.2f}"},
    ]
    report.bars += [
        Bar("memory of the manifest", [listed["mb"]], "≤", 300, " MB", 0),
        Bar("seconds to resume", [resumed["look"]], "≤", 5, " s"),
    ]
    return report.save()


def list_keys(keys: int, out: Path) -> None:
    """List so many records in this process, and print what it took."""
    from tlkit.embedding.manifest import Opened, list_images, write_manifest

    class Made:
        only_images = True

        def records(self, _place: str) -> Any:
            from tlkit.plugin.contract import Record

            for number in range(keys):
                mixed = number * 2_654_435_761 % 2**32
                yield Record(f"{mixed % 1000:03}/{mixed:010}-{number:09}.jpg", "", 120_000, f"17{number:017}")

    import numpy  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    out.mkdir()
    started, used = time.perf_counter(), time.process_time()
    opened: Any = Opened(Made(), "nowhere", None)  # type: ignore[arg-type]
    rows = write_manifest(list_images([opened], Counter()), out / "manifest.parquet", lambda *_: None)
    took, cpu = time.perf_counter() - started, time.process_time() - used
    _expect(rows == keys, "keys are missing in the manifest")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    size = (out / "manifest.parquet").stat().st_size
    print(json.dumps({"seconds": took, "cpu": cpu, "mb": peak - before, "bytes": size}))


def _resume(work: Path, shards: int) -> dict[str, float]:
    """Return the CPU seconds to list the images of so many shards, to look at their job and to audit it.

    Its files are links to those of one. What another load takes from the seconds to look is no part of CPU seconds.
    """
    from dataclasses import asdict, replace

    from tlkit.embedding import audit
    from tlkit.embedding.job import open_job
    from tlkit.features import embed

    _tiny(work)
    sys.path.insert(0, str(work / "site"))
    for number in range(shards):
        place = work / "many" / f"{number // 1000:03}"
        place.mkdir(parents=True, exist_ok=True)
        first = number - number % LINKS
        _link(
            work / "photos/light/01.png", work / f"many/{first // 1000:03}/{first:06}.png", place / f"{number:06}.png"
        )
    from tlkit import places
    from tlkit.embedding import shard as sharding
    from tlkit.embedding.manifest import list_images, write_manifest

    opened = places.open_places(places.find_places(work / "many", None, {}))
    used = time.process_time()
    write_manifest(list_images(opened, Counter()), work / "listed.parquet", lambda *_: None)
    listing = time.process_time() - used
    embed_shard = sharding.embed_shard

    def linked(job: Any, shard: int, *more: Any) -> Any:
        """Embed the first shard; the others have the same image, and get its files under their names."""
        if shard == 0:
            linked.first = embed_shard(job, shard, *more)  # type: ignore[attr-defined]
            return
        first = linked.first  # type: ignore[attr-defined]
        out, before = job.folder.root, shard - shard % LINKS
        for name in (job.part, job.rejects):
            _link(out / name(0), out / name(before), out / name(shard))
        names = [name.replace("part-00000", f"part-{shard:05}") for name in first.files]
        facts = asdict(replace(first, shard=shard, files=dict(zip(names, first.files.values(), strict=True))))
        (out / job.commit(shard)).write_text(json.dumps(facts))

    sharding.embed_shard = linked
    try:
        embed(
            work / "run", work / "many", work / "out", settings={"shard_rows": 1}, progress=lambda *_: lambda *_: None
        )
    finally:
        sharding.embed_shard = embed_shard
    job = open_job(work / "out")
    commit, neighbor = (work / "out" / job.commit(shard) for shard in (shards - 1, shards - 2))
    commit.unlink()
    started, used = time.perf_counter(), time.process_time()
    found = audit.status(open_job(work / "out"))
    look, look_cpu = time.perf_counter() - started, time.process_time() - used
    _expect(found.missing == (shards - 1,), "the shard that is missing is not found")
    commit.write_text(json.dumps(json.loads(neighbor.read_text()) | {"shard": shards - 1}))
    used = time.process_time()
    audit.check(job, range(shards - 1))
    return {"list": listing, "look": look, "look cpu": look_cpu, "audit": time.process_time() - used}


def _link(origin: Path, before: Path, file: Path) -> None:
    """Link a file to one before it; the first of those that the file system lets share their content is a copy."""
    if before == file:
        if origin != file:
            shutil.copyfile(origin, file)
    else:
        os.link(before, file)


def speed(args: Any) -> int:
    images = existing(args.images, "--images")
    report = Report(
        "jobs-speed",
        f"`tlkit embed` of {args.count} JPEGs (EfficientNet-Lite0, fp32), whole processes: to one file, to the "
        "folder of a job by one process, and by two.",
        {"images": shown(images), "count": args.count, "turns": args.repeat},
    )
    with workspace() as work:
        bundle = str(exported(work))
        folder = str(repeated(images, work / "images", args.count))
        one = [TLKIT, "embed", bundle, folder, "-o"]

        def job(*more: str) -> Any:
            def fresh() -> Any:
                shutil.rmtree(work / "job", ignore_errors=True)
                return run([*one, str(work / "job"), *more])

            return fresh

        sides = {
            "one file": [*one, str(work / "f.parquet")],
            "a job": job(),
            "a job, 2 processes": job("--workers", "2"),
        }
        runs = interleave(sides, args.repeat)
        bytes_per_row = sum(file.stat().st_size for file in (work / "job").glob("*.parquet")) / args.count
    times = {name: seconds(each) for name, each in runs.items()}
    report.figures |= {"seconds": times, "bytes per row": bytes_per_row}
    for name, each in times.items():
        rate = spread([args.count / value for value in each], 1)
        report.rows.append({"": name, "seconds": spread(each), "images/s": rate})
    slower = [100 * (ratio - 1) for ratio in ratios(times["a job"], times["one file"])]
    report.bars += [
        Bar("a job takes longer than one file by", slower, "≤", 3, " %", 1),
        Bar("two processes take", ratios(times["a job, 2 processes"], times["a job"]), "≤", 1, "x the time of one"),
    ]
    report.notes.append(f"A row of 1280 float32 features takes {bytes_per_row:,.0f} bytes.")
    return report.save()


def search(args: Any) -> int:
    import numpy as np

    from tlkit.embedding.search import FeatureSet, Transform
    from tlkit.util.statistics import unit

    report = Report(
        "jobs-search",
        f"Exact search of {args.rows:,} rows of 1280 features, 1 and 64 queries, the best 10 by cosine: "
        "`FeatureSet.search` against faiss `IndexFlatIP` on rows of length 1, both with the rows in memory.",
        {"rows": args.rows, "turns": args.repeat},
    )
    random_rows = np.random.default_rng(args.seed).normal(size=(args.rows, 1280)).astype(np.float32)
    queries = random_rows[:: max(1, args.rows // 64)][:64] + np.float32(0.1)
    with workspace() as work:
        found = FeatureSet(_features(work, random_rows), Transform())
        started = time.perf_counter()
        ours = found.search(queries, 10)
        first = time.perf_counter() - started
        sides: dict[str, Any] = {"tlkit, 64 queries": lambda: found.search(queries, 10)}
        sides["tlkit, 1 query"] = lambda: found.search(queries[:1], 10)
        try:
            import faiss

            faiss.omp_set_num_threads(len(os.sched_getaffinity(0)))
            flat = faiss.IndexFlatIP(1280)
            flat.add(unit(random_rows))
            wanted = unit(queries)
            sides |= {
                "faiss, 64 queries": lambda: flat.search(wanted, 10),
                "faiss, 1 query": lambda: flat.search(wanted[:1], 10),
            }
            theirs = flat.search(wanted, 10)[1]
            same = float((np.sort(theirs) == np.sort(ours.rows)).mean())
        except ImportError:
            report.notes.append("faiss: not measured: faiss is not installed")
            same = None
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(3 * args.repeat):
            for name, call in sides.items():
                started = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - started)
    report.figures |= {"seconds": times, "first search, file read": first, "same neighbors": same}
    report.rows = [{"": name, "ms": spread([1000 * value for value in each], 1)} for name, each in times.items()]
    if same is not None:
        report.bars.append(Bar("neighbors that faiss finds as well", [same], "=", 1))
        for count in ("64 queries", "1 query"):
            ratio = ratios(times[f"tlkit, {count}"], times[f"faiss, {count}"])
            report.bars.append(Bar(f"the time of faiss, {count}", [statistics.median(ratio)], "≤", 1.3, "x"))
    report.notes.append(f"The first search, which reads and scales the file, takes {first:.2f} s.")
    return report.save()


def _features(work: Path, rows: Any) -> Path:
    """Write a file of features as `embed` does."""
    import pyarrow as pa
    from pyarrow import parquet

    from tlkit.util.parquet import strings, vectors

    table = pa.table({"path": strings(map(str, range(len(rows)))), "features": vectors(rows)})
    facts = {"tlkit.preprocessing": "{}"}
    parquet.write_table(table.replace_schema_metadata(facts), work / "f.parquet", row_group_size=1024)
    return work / "f.parquet"


def index(args: Any) -> int:
    import numpy as np

    import tlkit
    from tlkit.embedding.index import ApproximateSearch, place_of
    from tlkit.embedding.search import FeatureSet

    report = Report(
        "jobs-index",
        f"An index of {args.rows:,} rows of {args.width} features against the exact search, the best 10 by cosine. "
        f"Rows are made up: {DIMENSIONS} normal dimensions, spread over all features by a random matrix, ReLU, noise.",
        {"rows": args.rows, "width": args.width, "turns": args.repeat},
    )
    chance = np.random.default_rng(args.seed)
    spread_over = chance.normal(size=(DIMENSIONS, args.width)).astype(np.float32)
    made = [chance.normal(size=(min(8192, args.rows - at), DIMENSIONS)) for at in range(0, args.rows, 8192)]
    rows = np.concatenate([np.maximum(each.astype(np.float32) @ spread_over, 0) for each in made])
    rows += 0.1 * chance.normal(size=rows.shape).astype(np.float32)
    with workspace() as work:
        place = _features(work, rows)
        for recall in (0.95, 0.99):
            started = time.perf_counter()
            record = tlkit.index(place, min_recall=recall)
            took = time.perf_counter() - started
            opened = ApproximateSearch(FeatureSet(place))
            times = {count: list[float]() for count in (1, 64)}
            for _ in range(10 * args.repeat):
                for count, each in times.items():
                    started = time.perf_counter()
                    opened.search(rows[:count], 10)
                    each.append(time.perf_counter() - started)
            size = sum(file.stat().st_size for file in place_of(place).iterdir())
            report.figures[f"at least {recall}"] = {**record.to_json(), "built": took, "bytes": size, "seconds": times}
            row = {"recall asked for": f"{recall:g}", "found": f"{record.recall:.3f}", "s to build": f"{took:.0f}"}
            row |= {"bytes per row": f"{size / args.rows:,.0f}", "expansion": str(record.expansion)}
            row |= {f"ms, {n} at once": spread([1e3 * value for value in each], 2) for n, each in times.items()}
            row["times the exact search"] = f"{record.exact_ms / record.ms:.1f}"
            report.rows.append(row)
            report.bars.append(Bar(f"recall@10, {recall:g} asked for", [record.recall], "≥", recall))
    report.notes.append("The last column is the time of the exact search over that of the index, 256 queries at once.")
    return report.save()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--list"]:
        list_keys(int(sys.argv[2]), Path(sys.argv[3]))
        sys.exit()
    sys.exit(main())
