"""Reports to try, and what their trials share: commands of tlkit, images, bundles and plugins, each made once."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from _bench import DATA, PYTHON, ROOT, SETTINGS, TLKIT, _code_of

sys.path.insert(0, str(ROOT))
from tests.kit.distribution import install
from tests.kit.forks import Forks

CASES = ROOT.parent / "shared" / "cases"
# Names of the first edition, in which the plugins of the cases are written, and today's.
RENAMED = {
    "Pixels": "Preprocessing",
    "pixels =": "preprocessing =",
    "crop=": "crop_pct=",
    "Source": "Weights",
    "source =": "weights =",
    "licen.e": "license",
    r"def build\(self, graph, out, shapes\)": "def build(self, made, out, profile, progress)",
}
Commands = Callable[["Workbench"], "Verdict"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The end of a trial: right or not, None if it could not be tried here, and what happened."""

    right: bool | None
    after: str


@dataclass(frozen=True, slots=True)
class Trial:
    """A report tried on tlkit: what is right, and what happened when it was collected."""

    name: str
    right: str
    before: str
    run: Commands


TRIALS: list[Trial] = []


def trial(name: str, right: str, before: str) -> Callable[[Commands], Commands]:
    """Register a function as a trial, in the order of the table."""

    def register(function: Commands) -> Commands:
        TRIALS.append(Trial(name, right, before, function))
        return function

    return register


def judged(**found: bool) -> Verdict:
    """Return the verdict over named findings: right if all are, and what happened are those that are not."""
    wrong = [name.replace("_", " ") for name, right in found.items() if not right]
    return Verdict(not wrong, "not: " + ", ".join(wrong) if wrong else ", ".join(found).replace("_", " "))


def codes(**ended: Outcome) -> str:
    """Return exit codes by name."""
    return ", ".join(f"{name.replace('_', ' ')}: exit {outcome.code}" for name, outcome in ended.items())


@dataclass(frozen=True, slots=True)
class Outcome:
    """The exit code of a command, its results, and what it said beside them."""

    code: int
    out: str
    said: str

    @property
    def facts(self) -> Mapping[str, Any]:
        """Its JSON, of which nothing is accepted that other readers refuse; empty if it is none."""

        def refuse(constant: str) -> None:
            raise ValueError(constant)

        try:
            facts: Mapping[str, Any] = json.loads(self.out, parse_constant=refuse)
        except ValueError:
            return {}
        return facts

    @property
    def last(self) -> str:
        """The last line of what it said, without the place of the images."""
        lines = [line for line in self.said.splitlines() if line.startswith("tlkit: ")] or self.said.splitlines()[-1:]
        return re.sub(r"/\S*/tlkit-bench-[^/\s]*/", "", lines[-1])[:160] if lines else ""

    def refused(self, code: int, *words: str) -> bool:
        """Return True if it ended with this exit code and named these words."""
        return self.code == code and all(word in self.said for word in words)


class Workbench:
    """A folder to work in, with commands in which `{photos}`, `{good}`, … are made when they are first named."""

    def __init__(self, work: Path, forks: Forks) -> None:
        self.work, self.forks = work, forks
        self._places = 0

    def __getitem__(self, name: str) -> Path:
        place: Path = getattr(self, name)
        return place

    def tlkit(self, line: str, env: Mapping[str, str] | None = None, *, fresh: bool = False, **more: Any) -> Outcome:
        """Run a command of tlkit with `env` added to the environment: in a fork of one process, or a `fresh` process.

        `more` is given to `subprocess.run`. If the script runs at its smallest, the command runs in this process.
        """
        words = [word.format_map(self) for word in line.split()]
        if SETTINGS.in_process:
            output, errors = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
                code = _code_of(TLKIT, *words)
            return Outcome(int(str(code or 0)), output.getvalue(), errors.getvalue())
        if fresh or more:
            return self.run([TLKIT, *words], env, **more)
        done = self.forks.run(["tlkit", *words], cwd=self.work, env=env)
        return Outcome(done.code, done.out, done.err)

    def run(self, command: list[str], env: Mapping[str, str] | None = None, **more: Any) -> Outcome:
        """Run a command."""
        environment = {**os.environ, **(env or {})}
        done = subprocess.run(command, capture_output=True, env=environment, check=False, cwd=self.work, **more)
        return Outcome(done.returncode, *(text.decode("utf-8", "replace") for text in (done.stdout, done.stderr)))

    def python(self, source: str, *arguments: object, env: Mapping[str, str] | None = None, **more: Any) -> Outcome:
        """Run a script."""
        return self.run([PYTHON, "-c", source, *map(str, arguments)], env, **more)

    def done(self, line: str, env: Mapping[str, str] | None = None, **more: Any) -> Outcome:
        """Run a command of tlkit that has to succeed."""
        outcome = self.tlkit(line, env, **more)
        if outcome.code:
            raise RuntimeError(f"exit code {outcome.code}: tlkit {line}: {outcome.last}")
        return outcome

    def written(self, script: str, *arguments: object) -> Path:
        """Return the folder that a script of `../shared/cases/data` writes, written once."""
        place = self.work / script
        if not place.exists():
            subprocess.run([PYTHON, str(CASES / f"data/{script}.py"), str(place), *map(str, arguments)], check=True)
        return place

    def place(self, name: str) -> Path:
        """Return a path that nothing is at."""
        self._places += 1
        return self.work / f"{name}-{self._places}"

    @property
    def out(self) -> Path:
        """A path that nothing is at."""
        return self.place("out")

    def copied(self, bundle: Path) -> Path:
        """Return a copy of a bundle."""
        return shutil.copytree(bundle, self.place("copy"))

    @cached_property
    def photos(self) -> Path:
        """24 + 24 pictures to train on."""
        return self._pictures("photos", "train", 24)

    @cached_property
    def test(self) -> Path:
        """8 + 8 other pictures."""
        return self._pictures("test", "val", 8)

    def _pictures(self, name: str, split: str, count: int) -> Path:
        for label in ("ants", "bees"):
            folder = self.work / name / label
            folder.mkdir(parents=True)
            for file in sorted((DATA / "ants_bees" / split / label).glob("*.jpg"))[:count]:
                shutil.copy(file, folder)
        return self.work / name

    @cached_property
    def any(self) -> Path:
        """A bundle, trained once and exported."""
        photos = self.written("c12_damaged_val_image")
        self.done(f"train {photos} -o {self.work}/any {' '.join(SETTINGS.frozen)} --max-bad 0.5")
        self.done(f"export {self.work}/any --onnx")
        return self.work / "any"

    @cached_property
    def cut(self) -> Path:
        """A bundle cut at stage3, exported to ONNX."""
        return self._trained("cut", "--cut stage3")

    @cached_property
    def good(self) -> Path:
        """A bundle of the whole trunk, exported to ONNX in fp32 and int8."""
        bundle = self._trained("good", "--cut last")
        self.done(f"export {bundle} --onnx --precision int8")
        return bundle

    def _trained(self, name: str, options: str) -> Path:
        self.done(f"train {{photos}} -o {self.work / name} --strategy frozen {options}")
        self.done(f"export {self.work / name} --onnx")
        return self.work / name

    def plugin(self, distribution: str, file: str, *, source: str | None = None, site: Path | None = None) -> Path:
        """Install a plugin of the cases in a folder to put on PYTHONPATH, and return that."""
        site = site or self.place("site")
        site.mkdir(exist_ok=True)
        text = source or adapted(file)
        install(site, distribution, text)
        return site


def adapted(file: str) -> str:
    """Return a plugin of the cases in today's names."""
    text = (CASES / "deploy" / file).read_text("utf-8")
    for before, now in RENAMED.items():
        text = re.sub(before, now, text)
    return text


def on(*sites: Path) -> dict[str, str]:
    """Return the environment of a process in which the plugins in these folders are installed."""
    more = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    return {"PYTHONPATH": os.pathsep.join([*map(str, sites), *more])}
