"""From `tlkit plugins new` to a package that can be published: a component of each kind, as a new author writes it.

`authored/` holds what an author put in place of the scaffold's code: linear discriminant analysis (a head), chain-thaw
(a strategy), a database of SQLite (a source), the relative Mahalanobis distance (a detector), SqueezeNet with a weights
file (a backbone) and programs of `torch.export` (a target). For each, the scaffold is written, its module replaced, and
what its README asks for is run: conformance checks, tests, types, wheel. The checks of a network of the size of
ResNet-18 are timed as well.
"""

from __future__ import annotations

import difflib
import os
import shutil
import sys
import time
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from _bench import PYTHON, ROOT, SETTINGS, TLKIT, Bar, Report, parsed, parser, run, workspace

sys.path.insert(0, str(ROOT))

from tests.kit.distribution import describe, entry_points
from tlkit import resolve
from tlkit.plugin import registry

AUTHORED = ROOT / "benchmarks" / "authored"
KINDS = {
    "strategy": "chain-thaw",
    "head": "lda",
    "detector": "relative-mahalanobis",
    "source": "sqlite",
    "target": "torch-export",
    "backbone": "squeezenet",
}
RESNET = "torchvision/resnet18"
CHECKED = 60.0  # seconds of CPU time that its checks may take: no longer on an idle core
MINUTES = 10.0  # of commands, for one package: the rest of an hour is the author's


def main() -> int:
    args = parsed(parser(__doc__, repeat=1))
    report = Report(
        "authoring",
        "A component of each kind, as a new author writes it (`benchmarks/authored`), from `tlkit plugins new` to a "
        "wheel. *written*: lines that are not the scaffold's; *kept*: lines of the scaffold's module that are left. "
        "The others are seconds of whole processes, in the order of the README of the scaffold.",
        {"turns": args.repeat},
    )
    with workspace() as work:
        for kind in list(KINDS)[: 1 if SETTINGS.smallest else None]:
            steps, written, left = packaged(work, kind)
            report.figures[kind] = {"seconds": steps, "written": written, "kept": left}
            row = {"kind": kind, "package": f"tlkit-{KINDS[kind]}", "written": str(written), "kept": str(left)}
            report.rows.append(row | {step: f"{seconds:.1f}" for step, seconds in steps.items()})
            report.bars.append(Bar(f"{kind}: commands", [sum(steps.values()) / 60], "<", MINUTES, " min", 1))
        if not SETTINGS.smallest:
            with installed(work, ROOT / "plugins/tlkit-torchvision"):
                done = run([TLKIT, "plugins", "check", RESNET])
            report.figures[RESNET] = {"seconds": done.seconds, "cpu": done.cpu}
            report.bars.append(Bar(f"`tlkit plugins check {RESNET}`: CPU time", [done.cpu], "<", CHECKED, " s", 1))
            report.notes.append(f"`tlkit plugins check {RESNET}` took {done.seconds:.1f} s, with the load given below.")
    report.notes.append("Each passes every check, its tests and strict types, and its wheel holds its module alone.")
    return report.save()


def packaged(work: Path, kind: str) -> tuple[dict[str, float], int, int]:
    """Return the seconds of each step, the lines written, and the lines of the scaffold that are left."""
    name = KINDS[kind]
    folder, module = work / f"tlkit-{name}", f"tlkit_{name.replace('-', '_')}"
    steps = {"new": timed(TLKIT, "plugins", "new", folder.name, "--kind", kind, "-o", str(folder))}
    scaffold = (folder / module / "__init__.py").read_text().splitlines()
    shutil.copytree(AUTHORED / folder.name, folder, dirs_exist_ok=True)
    files = sorted((AUTHORED / folder.name).rglob("*.py"))
    written, left = compared(scaffold, [line for file in files for line in file.read_text().splitlines()])
    with installed(work, folder):
        for step, command in commands(name, folder):
            steps[step] = timed(*command)
    if wheels := sorted(folder.glob("dist/*.whl")):
        with zipfile.ZipFile(wheels[0]) as wheel:
            strange = [each for each in wheel.namelist() if not each.startswith((f"{module}/", f"{module}-"))]
        if strange:
            raise AssertionError(f"{wheels[0].name} holds {strange}")
    return steps, written, left


@contextmanager
def installed(work: Path, folder: Path) -> Iterator[None]:
    """Have commands find the package in a folder, as if it were installed."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    (site := work / "site" / folder.name).mkdir(parents=True)
    describe(site, project["name"], entry_points(project), project["version"])
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(site), str(folder), *filter(None, [before])])
    sys.path[:0] = [str(site), str(folder)]
    for loaded in (registry.load, resolve.load_plugins):  # for commands in this process
        loaded.cache_clear()
    try:
        yield
    finally:
        os.environ["PYTHONPATH"] = before
        del sys.path[:2]


def commands(name: str, folder: Path) -> Iterator[tuple[str, Sequence[str]]]:
    yield "check", (TLKIT, "plugins", "check", name)
    if SETTINGS.smallest:
        return
    settings = ["--rootdir", str(folder), "-c", str(folder / "pyproject.toml")]
    yield "pytest", (PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", *settings, str(folder / "tests"))
    types = ["--cache-dir", str(folder.parent / "types"), "--config-file", str(folder / "pyproject.toml")]
    yield "mypy", (PYTHON, "-m", "mypy", *types, *typed(folder))
    yield "wheel", (PYTHON, "-m", "build", "--no-isolation", "--wheel", str(folder))


def typed(folder: Path) -> list[str]:
    return [str(file) for file in (*folder.glob("tlkit_*/*.py"), *folder.glob("tests/*.py"))]


def compared(scaffold: list[str], lines: list[str]) -> tuple[int, int]:
    """Return the number of lines that are not the scaffold's, and of those that are."""
    kinds = [line[0] for line in difflib.ndiff(scaffold, lines)]
    return kinds.count("+"), kinds.count(" ")


def timed(*command: str) -> float:
    started = time.perf_counter()
    run(command)
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
