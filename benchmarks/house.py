"""Budgets of the code: `python benchmarks/house.py` prints each with its value today and that of the first edition.

Nothing but the standard library is needed, except for the three journeys: these run `tlkit` with the tiny components of
`tests/kit` and are left out where PyTorch is not installed.

- Lines are those of all Python files of `tlkit/` and of the standard plugin, tests excluded.
- Entry points (`__init__`, `__main__`, commands, `defaults`) may be shorter than 40 lines.
- A function's lines run from `def` to its last line; decorators are not counted.
- The classes that tell a training are those defined in `tlkit/training/`. The first edition had 37 in `learn/*.py` and
  `learn/loop/`, which were the same room.
- A journey follows one command (`train --strategy full`, `export --precision int8`, `advise`) and counts the files of
  `tlkit/` that a call from another file of `tlkit/` enters, in any thread: each is a place where a reader has to open
  another file. On the first edition's last commit this counts 43, 34 and 37; the counts by hand that the
  budgets were derived from were 43, 47 and 42.
- Reads of manifests are the times that `export` opens a `manifest.json` to read it.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import os
import statistics
import sys
import tempfile
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ENTRY_POINTS = ("__init__.py", "__main__.py", "version.py")
JOURNEYS = {
    "train --strategy full": "train photos -o run --strategy full --backbone tiny --head line --set strategy.epochs=1",
    "export --precision int8": "export run --onnx --precision int8",
    "advise": "advise photos --backbone tiny",
}


@dataclass(frozen=True)
class Budget:
    """A figure of the first edition, today's, and the largest or smallest that the design allows."""

    what: str
    first: float | None
    today: float | None  # None: could not be measured here
    limit: float
    detail: tuple[str, ...] = ()

    @property
    def met(self) -> bool:
        return self.today is not None and self.today <= self.limit

    def __str__(self) -> str:
        figures = ["-" if each is None else f"{each:,g}" for each in (self.first, self.today, self.limit)]
        mark = "-" if self.today is None else "met" if self.met else "MISSED"
        return f"{self.what:<52}{figures[0]:>10}{figures[1]:>10}{'≤ ' + figures[2]:>12}  {mark}"


@dataclass(frozen=True)
class Function:
    """A function or method with its lines."""

    place: str
    lines: int


class Source:
    """The Python files of `tlkit/` and the standard plugin."""

    def __init__(self, root: Path = ROOT) -> None:
        found = [*root.glob("tlkit/**/*.py"), *root.glob("plugins/tlkit_standard/**/*.py")]
        self.files = {
            file.relative_to(root): file.read_text(encoding="utf-8")
            for file in sorted(found)
            if "tests" not in file.parts
        }
        self.trees = {name: ast.parse(text) for name, text in self.files.items()}
        self.lines = {name: len(text.splitlines()) for name, text in self.files.items()}

    @property
    def modules(self) -> dict[Path, int]:
        """Lines by module, entry points left out."""
        return {name: lines for name, lines in self.lines.items() if name.name not in ENTRY_POINTS}

    @property
    def short(self) -> list[Path]:
        """Modules of less than 40 lines, but commands, `defaults` and the standard plugin's files of one component."""
        found = [name for name, lines in self.modules.items() if lines < 40 and name.parts[0] == "tlkit"]
        return [name for name in found if name not in self.commands() and name.stem != "defaults"]

    def commands(self) -> list[Path]:
        """Modules of the command line with a `command`."""
        return [
            name
            for name, tree in self.trees.items()
            if name.parts[:2] == ("tlkit", "cli")
            and any(isinstance(node, ast.FunctionDef) and node.name == "command" for node in tree.body)
        ]

    def rooms(self) -> Counter[str]:
        """Modules by package, `__init__` left out."""
        return Counter(str(name.parent) for name in self.modules if name.parts[0] == "tlkit" and len(name.parts) > 2)

    def functions(self) -> list[Function]:
        return [
            Function(f"{name}:{node.lineno} {node.name}", (node.end_lineno or node.lineno) - node.lineno + 1)
            for name, tree in self.trees.items()
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]

    def classes(self, room: str) -> list[str]:
        return [
            f"{name}:{node.lineno} {node.name}"
            for name, tree in self.trees.items()
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef) and str(name).startswith(f"tlkit/{room}/")
        ]


def shape(source: Source) -> list[Budget]:
    """The budgets that the text of the code tells."""
    modules, rooms = source.modules, source.rooms()
    long = [Function(str(name), lines) for name, lines in modules.items() if lines > 350]
    functions = [each for each in source.functions() if each.lines > 60]
    commands = [Function(str(name), source.lines[name]) for name in source.commands() if source.lines[name] > 80]
    crowded = {room: count for room, count in rooms.items() if count > 14}
    training = source.classes("training")
    return [
        Budget("lines of tlkit/ and the standard plugin", 19340, sum(source.lines.values()), 19300),
        Budget("lines of the median module", 100, statistics.median(modules.values()), 120),
        Budget("lines of the longest module", 354, max(modules.values()), 350),
        Budget("modules over 350 lines", 1, len(long), 0, _shown(long)),
        Budget("modules under 40 lines", 9, len(source.short), 0, tuple(map(str, source.short))),
        Budget("functions over 60 lines", 4, len(functions), 0, _shown(functions)),
        Budget(
            "modules in the largest room", 28, max(rooms.values()), 14, tuple(f"{k}: {v}" for k, v in crowded.items())
        ),
        Budget("commands over 80 lines", 8, len(commands), 0, _shown(commands)),
        Budget("classes that tell a training", 37, len(training), 20, tuple(training)),
    ]


def _shown(found: list[Function]) -> tuple[str, ...]:
    return tuple(f"{each.place}: {each.lines} lines" for each in found)


class Trace:
    """Files of `tlkit/` that are entered from another one, and manifests that are read, while a command runs."""

    def __init__(self) -> None:
        self.package = str(ROOT / "tlkit") + os.sep
        self.entered: dict[str, str] = {}  # file → the file that called it first
        self.manifests = 0

    def call(self, frame: FrameType, event: str, _argument: object) -> None:
        """Note a call: the hook of `sys.settrace`, which is told of calls alone as nothing is returned."""
        file, caller = frame.f_code.co_filename, frame.f_back
        if event != "call" or not file.startswith(self.package) or frame.f_code.co_name == "<module>":
            return
        while caller is not None and not caller.f_code.co_filename.startswith(self.package):
            caller = caller.f_back
        origin = None if caller is None else caller.f_code
        if origin is None or (origin.co_filename != file and origin.co_name != "<module>"):
            self.entered.setdefault(file, "" if origin is None else origin.co_filename)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """The hook of `sys.addaudithook`."""
        if event == "open" and (file := Path(str(arguments[0]))).name == "manifest.json":
            synced = file.parent.suffix == ".part"  # opened to be made durable, not to be read
            self.manifests += arguments[2] & os.O_ACCMODE == os.O_RDONLY and not synced

    def run(self, command: list[str]) -> dict[str, Any]:
        """Run `tlkit` with these arguments in this process."""
        from tlkit.cli import run

        sys.addaudithook(self.audit)
        threading.settrace(self.call)
        sys.settrace(self.call)
        try:
            code = run(command)
        finally:
            sys.settrace(None)
            threading.settrace(None)  # type: ignore[arg-type]
        entered = {file.removeprefix(self.package): by.removeprefix(self.package) for file, by in self.entered.items()}
        return {"code": code, "entered": entered, "manifests": self.manifests}


def journeys(given: Any = None) -> list[Budget]:
    """The budgets that running three commands tells, in processes that are forked by those `given` or others."""
    traced = _traced(given)
    first = {"train --strategy full": 43, "export --precision int8": 34, "advise": 37}
    limits = {"train --strategy full": 25, "export --precision int8": 20, "advise": 25}
    found = []
    for name, limit in limits.items():
        done = traced.get(name)
        entered = None if done is None else done["entered"]
        detail = () if entered is None else tuple(f"{file} ← {by or 'a thread'}" for file, by in entered.items())
        count = None if entered is None else len(entered)
        found.append(Budget(f"files entered by `{name}`", first[name], count, limit, detail))
    export = traced.get("export --precision int8")
    reads = None if export is None else export["manifests"]
    return [*found, Budget("reads of manifests by `export --precision int8`", 9, reads, 2)]


def _traced(given: Any) -> dict[str, dict[str, Any]]:
    sys.path.insert(0, str(ROOT))
    try:
        import torch  # noqa: F401 - only whether it is installed

        from tests.kit.components import environment
        from tests.kit.forks import Forks
        from tests.kit.tiny import write_images
    except ImportError as error:
        print(f"the journeys are not measured: {error}", file=sys.stderr)
        return {}
    found = {}
    with tempfile.TemporaryDirectory() as name, contextlib.nullcontext(given) if given else Forks() as forks:
        work = Path(name)
        write_images(work / "photos", 40)
        variables = environment(work / "site")
        for title, command in JOURNEYS.items():
            if title.startswith("export"):  # the graphs in fp32 are there, as they mostly are
                forks.run(["tlkit", *command.replace(" --precision int8", "").split()], cwd=work, env=variables)
            dump = work / "trace.json"
            done = forks.run([__file__, "--trace", dump, *command.split()], cwd=work, env=variables)
            if done.code:
                sys.exit(f"tlkit {command} failed:\n{done.out}{done.err}")
            found[title] = json.loads(dump.read_text())
    return found


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", action="store_true", help="print all figures with their details as JSON")
    options.add_argument("--verbose", action="store_true", help="list what exceeds each budget")
    options.add_argument("--no-journeys", action="store_true", help="leave out what has to be run")
    options.add_argument("--trace", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.trace:
        result = Trace().run(args.trace[1:])
        Path(args.trace[0]).write_text(json.dumps(result))
        return int(result["code"])
    found = [*shape(Source()), *([] if args.no_journeys else journeys())]
    if args.json:
        print(json.dumps([{**vars(each), "met": each.met} for each in found], indent=2))
        return 0
    print(f"{'':<52}{'first':>10}{'today':>10}{'budget':>12}")
    for each in found:
        print(each)
        if args.verbose and not each.met:
            print(*(f"    {line}" for line in each.detail), sep="\n")
    return 0 if all(each.met for each in found if each.today is not None) else 1


if __name__ == "__main__":
    sys.exit(main())
