"""Kills, mutated artifacts, damaged caches and runs at once: nothing lost, nothing learned from damage, no bug told.

Everything runs on the tiny components of the tests, in processes forked from this one. A kill comes before a step that
a writer takes on the disk: opening a file to write, fsync, rename, exchange, removal. With `--minutes` all of it is
done again with other seeds until the time is over.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random  # to draw damage, no secret
from typing import Any

from _bench import ROOT, Bar, Report, parsed, parser, workspace

sys.path.insert(0, str(ROOT))

import numpy as np
from tlkit_standard.strategies import STRATEGIES

from tests.kit.course import fine_tuning
from tests.kit.exporting import exported, replayed
from tests.kit.hostile import before_each_step, finish, forked, kill_at, mutate, mutate_text, start
from tests.kit.tiny import ORIGINS, WIDTHS, Line, Tiny, resign_bundle, write_images
from tlkit import cli
from tlkit.errors import TlkitError
from tlkit.graph import trace
from tlkit.model import trunk as trunks
from tlkit.model.bundle import open_bundle
from tlkit.model.exports import Exports
from tlkit.plugin.contract import Phase
from tlkit.resolve import claimed_to_train
from tlkit.runtime.embedding import embed
from tlkit.runtime.features import extract
from tlkit.runtime.model import Model
from tlkit.training.config import RunOptions, TrainingConfig
from tlkit.training.run import train
from tlkit.training.run_directory import is_unfinished
from tlkit.util.locks import claim

FROZEN = TrainingConfig(Tiny(), replace(STRATEGIES[0], epochs=50, lr=0.1), Line(), ORIGINS, cut="second", golden=4)
TUNED = replace(FROZEN, **fine_tuning(Phase(2, 0.05), Phase(2, 0.05, trunk_lr=0.02, trainable=2, batch_size=16)))
LEFT = 11  # exit code of a check of ours: something was lost or left
MUTATED = ("bundle.json", "trunk.safetensors", "head.safetensors", "golden/expected.safetensors", "golden/0.png")
MUTATED_EXPORTS = ("onnx/fp32/manifest.json", "onnx/fp32/model.onnx")


@dataclass
class Trial:
    """One kind of damage: how often it was done, how the commands ended, and what went wrong."""

    name: str
    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def note(self, end: int, what: str, *, allowed: tuple[int, ...]) -> None:
        self.ends[f"exit {end}"] += 1
        if end not in allowed:
            self.wrong.append(f"{what}: {end}")


def code(function: Callable[[], object]) -> int:
    """Run a function; the exit code that the command line would end with."""
    try:
        function()
    except TlkitError as error:
        return error.exit_code
    return 0


def names(root: Path) -> list[str]:
    """Everything below a folder, but for the learning curves, which a bundle may have and is whole without."""
    found = (str(path.relative_to(root)) for path in root.rglob("*"))
    return sorted(name for name in found if "curves." not in name)


@dataclass(frozen=True)
class Place:
    """Pictures, a bundle with its export, features, and the digest of an undisturbed fine-tuning."""

    root: Path

    @property
    def photos(self) -> Path:
        return self.root / "photos"

    def prepare(self) -> None:
        write_images(self.photos)
        train(self.photos, self.root / "run", FROZEN)
        exported(self.root / "run", Tiny(), Line())
        train(self.photos, self.root / "tuned", TUNED)
        np.save(self.root / "features.npy", self.features())

    def features(self) -> Any:
        files = sorted(self.photos.rglob("*.png"))
        graph = trace.stage_graph(trunks.build(Tiny()))
        return extract(files, graph, Tiny.preprocessing, tuple(WIDTHS), "third", lambda _: None).array

    def are_right(self) -> int:
        with contextlib.redirect_stderr(None):
            return 0 if np.allclose(self.features(), np.load(self.root / "features.npy"), atol=1e-5) else LEFT

    def frozen(self, at: Path) -> None:
        with claimed_to_train(at / "run"):
            if not (at / "run").exists():
                train(self.photos, at / "run", FROZEN)

    def tuned(self, at: Path) -> None:
        with claimed_to_train(at / "run"):
            if not (at / "run").exists():
                options = RunOptions(resume=is_unfinished(at / "run"), checkpoint_seconds=0)
                train(self.photos, at / "run", TUNED, options=options)
        if open_bundle(at / "run").digest != open_bundle(self.root / "tuned").digest:
            sys.exit(LEFT)

    def export(self, at: Path) -> None:
        with claim(at / "run", inside=True):
            exported(at / "run", Tiny(), Line())

    def embed(self, at: Path) -> None:
        model = Model.open(self.root / "run/onnx/fp32/trunk.onnx", graph="trunk")
        with claim(at / "f.parquet"):
            embed(model, sorted(self.photos.rglob("*.png")), at / "f.parquet", lambda _: None)

    def fresh(self, at: Path, name: str) -> Path:
        """Return an empty folder, or for an export one with a bundle."""
        shutil.rmtree(at, ignore_errors=True)
        at.mkdir(parents=True)
        if name == "export":
            shutil.copytree(self.root / "run", at / "run")
        return at


def is_whole(at: Path) -> bool:
    """Return True if a bundle that is there is whole, and what was exported from it passes."""
    if not (at / "run").exists():
        return True
    found = Exports.of(open_bundle(at / "run"))
    return not found.names() or replayed(at / "run").passed


def kills(place: Place, work: Path, count: int, seed: int) -> Iterator[Trial]:
    """Kill writers at steps drawn by chance; then run them again."""
    for name in ("frozen", "tuned", "export", "embed"):
        trial, chance, write = Trial(f"kills of {name}"), Random(seed), getattr(place, name)
        template = place.fresh(work / "whole", name)
        steps = _steps(partial(write, template), work / "steps")
        whole, at = names(template), work / "at"

        def killed(step: int, write: Callable[[Path], object] = write, at: Path = at) -> None:
            with kill_at(step):
                write(at)

        def again(write: Callable[[Path], object] = write, at: Path = at, whole: list[str] = whole) -> int:
            if not is_whole(at):
                return LEFT
            write(at)
            if names(at) != whole:
                print(f"{sorted(set(names(at)) ^ set(whole))} differ", file=sys.stderr)
                return LEFT
            return 0

        for _ in range(count // 4):
            place.fresh(at, name)
            step = chance.randint(1, steps)
            trial.note(forked(partial(killed, step)), f"seed {seed}, step {step}", allowed=(-9, 0))
            trial.note(forked(again), f"seed {seed}, after step {step}", allowed=(0,))
        yield trial


def _steps(write: Callable[[], object], count: Path) -> int:
    """Return the number of steps that a writer takes."""

    def counted() -> None:
        taken = [0]

        def add() -> None:
            taken[0] += 1

        with before_each_step(add):
            write()
        count.write_text(str(taken[0]))

    if forked(counted):
        sys.exit("a writer fails without any kill")
    return int(count.read_text())


def mutations(place: Place, work: Path, count: int, seed: int) -> Trial:
    """Mutate a file of a bundle, half of the time so that its hashes fit again, and read it with a verb."""
    trial, chance = Trial("mutated artifacts"), Random(seed)
    verbs = ("verify {run}", "inspect {run}", f"predict {{run}} {place.photos}", "inspect {run}/onnx/fp32/model.onnx")
    run = work / "mutated"
    for number in range(count):
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(place.root / "run", run)
        resigned = chance.random() < 0.5
        name = chance.choice(MUTATED if resigned else (*MUTATED, *MUTATED_EXPORTS))
        change = mutate_text if name.endswith(".json") else mutate
        (run / name).write_bytes(change((run / name).read_bytes(), chance))
        if resigned:
            with contextlib.suppress(Exception):
                resign_bundle(run)
        verb = chance.choice(verbs).format(run=run)
        named = verb.startswith("verify") and not resigned and name != MUTATED_EXPORTS[0]
        allowed = (3, 4, 5, 6) if named else (0, 3, 4, 5, 6)
        end = forked(partial(_quiet, verb.split()))
        trial.note(end, f"seed {seed}, number {number}, {name}, {verb.split()[0]}", allowed=allowed)
    return trial


def _quiet(arguments: list[str]) -> int:
    """Run a command of tlkit; its exit code."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    return cli.run(arguments)


def caches(place: Place, work: Path, count: int, seed: int) -> Trial:
    """Mutate a cached file; the features have to be those of an intact cache."""
    trial, chance = Trial("damaged caches"), Random(seed)
    warm, damaged = Path(os.environ["TLKIT_CACHE"]), work / "damaged"
    for number in range(count):
        shutil.rmtree(damaged, ignore_errors=True)
        shutil.copytree(warm, damaged)
        files = [*damaged.glob("features/*.sqlite"), *damaged.glob("graphs/*.onnx")]
        file = files[chance.randrange(len(files)) if number % 8 == 0 else 0]  # to make a graph again takes seconds
        file.write_bytes(mutate(file.read_bytes(), chance))
        os.environ["TLKIT_CACHE"] = str(damaged)
        end = forked(place.are_right)
        os.environ["TLKIT_CACHE"] = str(warm)
        trial.note(end, f"seed {seed}, number {number}, {file.parent.name}", allowed=(0,))
    return trial


def together(place: Place, work: Path, pairs: int, cold: int, seed: int) -> Iterator[Trial]:
    """Two trainings to one output, and two extractions with one empty cache."""
    trial, out = Trial("two on one output"), work / "together" / "run"

    def one() -> int:
        def write() -> None:
            with claim(out):
                train(place.photos, out, FROZEN)

        return code(write)

    for number in range(pairs):
        shutil.rmtree(out.parent, ignore_errors=True)
        ends = sorted(finish(pid) for pid in [start(one), start(one)])
        left = names(out.parent)
        whole = code(lambda: open_bundle(out)) == 0 and not [name for name in left if name.startswith(".")]
        allowed = {"0, 2", "0, 5"} if whole else set[str]()
        trial.ends[", ".join(map(str, ends))] += 1
        if ", ".join(map(str, ends)) not in allowed:
            trial.wrong.append(f"seed {seed}, number {number}: {ends}, {left}")
    yield trial
    trial, warm = Trial("two on one cold cache"), os.environ["TLKIT_CACHE"]
    for number in range(cold):
        os.environ["TLKIT_CACHE"] = str(work / "cold" / str(number))
        for end in [finish(pid) for pid in [start(place.are_right), start(place.are_right)]]:
            trial.note(end, f"seed {seed}, number {number}", allowed=(0,))
    os.environ["TLKIT_CACHE"] = warm
    yield trial


def main() -> int:
    options = parser(__doc__, repeat=1)
    for name, count in {"kills": 500, "mutations": 10_000, "caches": 2_000, "pairs": 50, "cold": 20}.items():
        options.add_argument(f"--{name}", type=int, default=count, metavar="N", help=f"default: {count}")
    options.add_argument("--minutes", type=float, default=0, help="go on with other seeds for that long")
    args = parsed(options, kills=4, mutations=6, caches=4, pairs=1, cold=0)
    counts = {name: getattr(args, name) for name in ("kills", "mutations", "caches", "pairs", "cold")}
    report = Report("hostile", (__doc__ or "").split("\n\n")[1].replace("\n", " "), {**counts, "minutes": args.minutes})
    trials: dict[str, Trial] = {}
    end = time.monotonic() + 60 * args.minutes
    with workspace() as work:
        place, seed = Place(work / "place"), 0
        if forked(place.prepare):
            sys.exit("the bundle could not be made")
        while not seed or time.monotonic() < end:
            for each in _round(place, work, counts, seed):
                known = trials.setdefault(each.name, each)
                if known is not each:
                    known.ends.update(each.ends)
                    known.wrong.extend(each.wrong)
            seed += 1
    for name, trial in trials.items():
        report.figures[name] = {"ends": dict(trial.ends), "wrong": trial.wrong}
        ends = ", ".join(f"{count} times {end}" for end, count in sorted(trial.ends.items()))
        report.rows.append({"": name, "ends": ends, "wrong": str(len(trial.wrong))})
        report.bars.append(Bar(f"{name}: wrong ends", [len(trial.wrong)], "=", 0))
    report.notes.append("A negative end is a signal, 124 two minutes without an end, 11 a check that failed.")
    return report.save()


def _round(place: Place, work: Path, counts: dict[str, int], seed: int) -> Iterator[Trial]:
    yield from kills(place, work, counts["kills"], seed)
    yield mutations(place, work, counts["mutations"], seed)
    yield caches(place, work, counts["caches"], seed)
    yield from together(place, work, counts["pairs"], counts["cold"], seed)


if __name__ == "__main__":
    sys.exit(main())
