"""Kills, mutated artifacts, damaged caches and runs at once: nothing lost, nothing learned from damage, no bug told.

Everything runs on the tiny components of the tests, in processes forked from this one. A kill comes before a step that
a writer takes on the disk: opening a file to write, fsync, rename, exchange, removal. Cases are numbered, and a case of
a number is the same in every run: `--journal` keeps those that are done, and skips them the next time.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import io
import json
import os
import select
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from random import Random  # to draw damage, no secret
from typing import IO, Any

from _bench import ROOT, Bar, Report, parsed, parser, workspace

sys.path.insert(0, str(ROOT))

import numpy as np
import onnx
from tlkit_standard.strategies import STRATEGIES

from tests.kit.components import environment
from tests.kit.course import fine_tuning
from tests.kit.exporting import exported, replayed
from tests.kit.forks import PRELOADED
from tests.kit.hostile import HANGS, Watch, before_each_step, finish, forked, kill_at, mutate, mutate_text, start
from tests.kit.tiny import ORIGINS, WIDTHS, Line, Tiny, resign_bundle, write_images
from tlkit import cli
from tlkit.errors import TlkitError
from tlkit.graph import cache as graphs_cache
from tlkit.graph import trace
from tlkit.model import trunk as trunks
from tlkit.model.bundle import open_bundle
from tlkit.model.exports import Exports
from tlkit.plugin.contract import Phase
from tlkit.resolve import claimed_to_train
from tlkit.runtime.embedding import embed
from tlkit.runtime.features import extract
from tlkit.runtime.model import Model
from tlkit.training.checkpoint import Checkpoint, Checkpoints
from tlkit.training.config import RunOptions, TrainingConfig
from tlkit.training.run import train
from tlkit.training.run_directory import is_unfinished
from tlkit.util.locks import claim

FROZEN = TrainingConfig(Tiny(), replace(STRATEGIES[0], epochs=20, lr=0.1), Line(), ORIGINS, cut="second", golden=4)
TUNED = replace(FROZEN, **fine_tuning(Phase(2, 0.05), Phase(2, 0.05, trunk_lr=0.02, trainable=2, batch_size=16)))
WRITERS = ("frozen", "tuned", "export", "embed", "advise")
LEFT = 11  # exit code of a check of ours: something was lost or left
SLOW = 10.0  # seconds that a command on a mutated artifact may take
SHARES = 20  # of the cases of every trial, one after the other, so that a run that is cut short has some of each
SIGNED = ("bundle.json", "trunk.safetensors", "head.safetensors", "golden/expected.safetensors", "golden/0.png")
BUNDLE_VERBS: tuple[str, ...] = (
    "verify {2}",
    "inspect {2}",
    "predict {2} {1} --json",
    "inspect {2}/onnx/fp32/model.onnx",
)
GRAPH_VERBS: tuple[str, ...] = ("inspect {0}", "predict {0} {1} --json", "eval {0} {1}")
EXPORTED = ("onnx/fp32/manifest.json", "onnx/fp32/model.onnx")
FACTS = ("labels", "preprocessing", "heads", "cut", "bundle", "head")  # of the metadata of a graph
VALUES = ('""', "[]", "{", "null", "-1", "1e999", "NaN", r'"\ud800"', '[["a"]]', '{"a": {}}', r'"\u001b[31m"')

Damage = Callable[[Random], tuple[str, bool]]  # how it ended, and whether that is as it should be


@dataclass
class Trial:
    """One kind of damage: its cases, how they ended, and those that ended wrong."""

    name: str
    count: int
    case: Damage
    forks: bool = True  # processes of its own; the others share one, as long as it lives
    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    done: set[int] = field(default_factory=set)

    def add(self, number: int, end: str, right: bool) -> None:
        self.done.add(number)
        self.ends[end] += 1
        if not right:
            self.wrong.append(f"number {number}: {end}")

    def run(self, number: int) -> tuple[str, bool]:
        return self.case(Random(f"{self.name} {number}"))


def names(root: Path) -> list[str]:
    """Everything below a folder, but for the learning curves, which a bundle may have and is whole without."""
    found = (str(path.relative_to(root)) for path in root.rglob("*"))
    return sorted(name for name in found if "curves." not in name and not name.startswith("cache/datasets"))


def ended(*ends: int, right: bool) -> tuple[str, bool]:
    return "exit " + ", ".join(map(str, ends)), right


@contextlib.contextmanager
def cache(folder: Path) -> Iterator[None]:
    """Use another cache."""
    before = os.environ["TLKIT_CACHE"]
    os.environ["TLKIT_CACHE"] = str(folder)
    try:
        yield
    finally:
        os.environ["TLKIT_CACHE"] = before


@dataclass(frozen=True)
class Place:
    """Pictures, a bundle with its export, features, checkpoints, and the digest of an undisturbed fine-tuning."""

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
        (self.root / "checkpoints").mkdir()
        weights = trunks.build(Tiny()).stages.state_dict()
        for epoch in (1, 2):
            tensors = {f"{epoch}.{name}": tensor for name, tensor in weights.items()}
            Checkpoints(self.root / "checkpoints", warn=print).save(Checkpoint(0, epoch, 0, 1.0, [{}], tensors))
        self.advise(self.root)
        modules = [name for name in sys.modules if name.partition(".")[0] in ("sklearn", "tlkit", "tlkit_standard")]
        (self.root / "modules.json").write_text(json.dumps(modules))

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

    def advise(self, at: Path) -> None:
        code, _ = quiet(["advise", str(self.photos), "--backbone", "tiny", "--html", str(at / "advice.html")])
        if code:
            sys.exit(code)

    def fresh(self, at: Path, writer: str, warm: bool) -> Path:
        """Return a folder with a cache of its own, and for an export with a bundle."""
        shutil.rmtree(at, ignore_errors=True)
        shutil.copytree(os.environ["TLKIT_CACHE"], at / "cache")
        if not warm:
            shutil.rmtree(at / "cache/features", ignore_errors=True)
        if writer == "export":
            shutil.copytree(self.root / "run", at / "run")
        return at


def skip_long_work(place: Place) -> None:
    """Take every step on the disk and leave out long computing: curves and maps, and what PyTorch has traced before.

    What the writers import is imported once, before the processes of the cases are forked.
    """
    usual: Any = vars(trace)["_export"]

    def traced(module: Any, example: Any, name: str, outputs: Sequence[str], *, optimize: bool) -> Any:
        key = hashlib.sha256(json.dumps([type(module).__name__, name, *outputs, optimize]).encode())
        for tensor_name, tensor in sorted(module.state_dict().items()):
            key.update(tensor_name.encode() + tensor.numpy().tobytes())
        known = place.root / f"{key.hexdigest()}.onnx"
        if not known.exists():
            onnx.save_model(usual(module, example, name, outputs, optimize=optimize), known)
        return onnx.load_model(known)

    vars(trace)["_export"] = traced
    for name in PRELOADED:
        with contextlib.suppress(ImportError):
            import_module(name)
    with contextlib.suppress(ImportError):
        figure: Any = import_module("matplotlib.figure").Figure
        figure.savefig = lambda _self, file, **_options: Path(file).write_bytes(b"drawn")
    manifold: Any = import_module("sklearn.manifold")
    manifold.TSNE.fit_transform = lambda _self, features: features[:, :2]


def quiet(arguments: Sequence[str]) -> tuple[int, str]:
    """Run a command of tlkit in this process; its exit code and its results."""
    results = io.StringIO()
    with contextlib.redirect_stdout(results), contextlib.redirect_stderr(io.StringIO()):
        return cli.run(arguments), results.getvalue()


def kills(place: Place, work: Path, writer: str, count: int) -> Trial:
    """Kill a writer before a step, and run it again; half of the time with an empty cache of features."""
    write, at, steps, whole = getattr(place, writer), work / writer, [0, 0], ["", ""]

    def kill(chance: Random) -> tuple[str, bool]:
        warm = chance.random() < 0.5
        if not steps[warm]:
            steps[warm], whole[warm] = _undisturbed(write, place.fresh(at, writer, warm))
        place.fresh(at, writer, warm)
        step = chance.randint(1, steps[warm])

        def killed() -> None:
            with kill_at(step):
                write(at)

        def again() -> int:
            if not is_whole(at):
                return LEFT
            write(at)
            if "\n".join(names(at)) == whole[warm]:
                return 0
            print(f"{writer}, step {step}: {set(names(at)) ^ set(whole[warm].splitlines())} differ", file=sys.stderr)
            return LEFT

        with cache(at / "cache"):
            first, second = forked(killed), forked(again)
        return ended(first, second, right=first in (-9, 0) and second == 0)

    return Trial(f"kills of {writer}", count, kill)


def _undisturbed(write: Callable[[Path], object], at: Path) -> tuple[int, str]:
    """Return the number of steps that a writer takes, and the names of all that it leaves."""
    note = at.with_name("steps")

    def counted() -> None:
        taken = [0]

        def add() -> None:
            taken[0] += 1

        with before_each_step(add):
            write(at)
        note.write_text(str(taken[0]))

    with cache(at / "cache"):
        if forked(counted):
            sys.exit("a writer fails without any kill")
    return int(note.read_text()), "\n".join(names(at))


def is_whole(at: Path) -> bool:
    """Return True if a bundle that is there is whole, and what was exported from it passes."""
    if not (at / "run").exists():
        return True
    found = Exports.of(open_bundle(at / "run"))
    return not found.names() or replayed(at / "run").passed


def mutations(place: Place, work: Path, count: int) -> Trial:
    """Mutate an artifact and read it with a verb; a prediction from what was not signed again is the one before."""
    run, few, said = work / "mutated/run", work / "mutated/photos", list[str]()

    def prepare() -> None:
        shutil.rmtree(work / "mutated", ignore_errors=True)
        shutil.copytree(place.root / "run", run)
        shutil.copytree(place.root / "checkpoints", work / "mutated/checkpoints")
        shutil.copy(run / "onnx/fp32/model.onnx", work / "mutated/model.onnx")
        for file in sorted(place.photos.rglob("*00.png")):
            (few / file.parent.name).mkdir(parents=True)
            shutil.copy(file, few / file.parent.name)
        said[:] = [quiet(["predict", str(run), str(few), "--json"])[1]]

    def mutated(chance: Random) -> tuple[str, bool]:
        if not said:
            prepare()
        kind = chance.choice(("signed", "signed", "bundle", "bundle", "alone", "metadata", "checkpoint"))
        if kind == "checkpoint":
            return _checkpoint(work / "mutated/checkpoints", chance)
        if kind in ("alone", "metadata"):
            file, verbs = work / "mutated/model.onnx", GRAPH_VERBS
        else:
            file, verbs = run / chance.choice(SIGNED if kind == "signed" else (*SIGNED, *EXPORTED)), BUNDLE_VERBS
        verb = chance.choice(verbs).format(file, few, run)
        before, record = file.read_bytes(), (run / "bundle.json").read_bytes()
        change = mutate_text if file.suffix == ".json" else mutate
        file.write_bytes(_with_metadata(before, chance) if kind == "metadata" else change(before, chance))
        if kind == "signed":
            with contextlib.suppress(Exception):
                resign_bundle(run)
        try:
            end, results = quiet(verb.split())
        finally:
            (run / "bundle.json").write_bytes(record)
            file.write_bytes(before)
        refused = verb.startswith("verify") and kind == "bundle" and file.name != "manifest.json"
        right = end in (3, 4, 5, 6) or (end == 0 and not refused)
        if end == 0 and "predict" in verb and kind in ("signed", "bundle"):
            right = results == said[0]
        shown = f"{kind} {file.relative_to(work / 'mutated')}, {verb.split()[0]}: exit {end}"
        return f"exit {end}" if right else shown, right

    return Trial("mutated artifacts", count, mutated, forks=False)


def _checkpoint(folder: Path, chance: Random) -> tuple[str, bool]:
    """Mutate the newest checkpoint: the one before is found, with a warning."""
    warned = list[str]()
    kept = Checkpoints(folder, warn=warned.append)
    newest = kept.files()[0]
    before = newest.read_bytes()
    newest.write_bytes(mutate(before, chance))
    try:
        found = kept.newest()
    finally:
        newest.write_bytes(before)
    right = found is not None and found.epoch == 1 and len(warned) == 1
    return ("the one before" if right else f"checkpoint {found and found.epoch}, {warned}"), right


def _with_metadata(content: bytes, chance: Random) -> bytes:
    graph = onnx.load_model_from_string(content)
    facts = {prop.key: prop.value for prop in graph.metadata_props}
    known = [name for name in FACTS if f"tlkit.{name}" in facts]
    onnx.helper.set_model_props(graph, {**facts, f"tlkit.{chance.choice(known)}": chance.choice(VALUES)})
    return bytes(graph.SerializeToString())


def caches(place: Place, work: Path, count: int) -> Trial:
    """Mutate a cached file; the features have to be those of an intact cache. What is damaged is made again."""
    warm, damaged = Path(os.environ["TLKIT_CACHE"]), work / "damaged"

    def mutated(chance: Random) -> tuple[str, bool]:
        shutil.rmtree(damaged, ignore_errors=True)
        shutil.copytree(warm, damaged)
        rows, graphs = sorted(damaged.glob("features/*.sqlite")), sorted(damaged.glob("graphs/*.onnx"))
        file = chance.choice(graphs if chance.random() < 0.25 else rows)
        file.write_bytes(mutate(file.read_bytes(), chance))
        vars(graphs_cache)["_intact"].clear()  # as a new process begins
        with cache(damaged):
            try:
                end = place.are_right()
            except TlkitError as error:
                end = error.exit_code
        return ended(end, right=end == 0)

    return Trial("damaged caches", count, mutated, forks=False)


def together(place: Place, work: Path, pairs: int) -> Trial:
    """Train twice at once to one output."""
    out = work / "together/run"

    def one() -> int:
        try:
            with claim(out):
                train(place.photos, out, FROZEN)
        except TlkitError as error:
            return error.exit_code
        return 0

    def both(_: Random) -> tuple[str, bool]:
        shutil.rmtree(out.parent, ignore_errors=True)
        first, second = sorted(finish(pid) for pid in [start(one), start(one)])
        left = [name for name in names(out.parent) if name.startswith(".")]
        whole = out.exists() and open_bundle(out).root == out and not left
        return ended(first, second, right=whole and (first, second) in ((0, 2), (0, 5)))

    return Trial("two on one output", pairs, both)


def cold(place: Place, work: Path, pairs: int) -> Trial:
    """Extract features twice at once with one empty cache."""

    def both(_: Random) -> tuple[str, bool]:
        shutil.rmtree(work / "cold", ignore_errors=True)
        with cache(work / "cold"):
            first, second = (finish(pid) for pid in [start(place.are_right), start(place.are_right)])
            third = forked(place.are_right)
        return ended(first, second, third, right=first == second == third == 0)

    return Trial("two on one cold cache", pairs, both)


def perform(trial: Trial, numbers: Sequence[int], until: float) -> Iterator[tuple[int, str, bool]]:
    """Run cases of a trial until a moment."""
    if trial.forks:
        for number in numbers:
            if time.monotonic() < until:
                yield number, *trial.run(number)
        return
    left = list(numbers)
    while left and time.monotonic() < until:
        for number, end, right in _in_one_process(trial, left, until):
            left.remove(number)
            yield number, end, right


def _in_one_process(trial: Trial, numbers: Sequence[int], until: float) -> Iterator[tuple[int, str, bool]]:
    """Run cases in one process until it ends; a signal or a hang is the end of the case that it was at."""
    reading, writing = os.pipe()

    def work() -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # where native code complains
        with open(writing, "w") as results:
            for number in numbers:
                results.write(json.dumps([number, *trial.run(number)]) + "\n")
                results.flush()
                if time.monotonic() > until:
                    return

    pid = start(work)
    os.close(writing)
    watch, left = Watch(pid, SLOW, SLOW), list(numbers)
    with open(reading) as results:
        while (line := _line(results, watch)) is not None and line:
            left.remove(json.loads(line)[0])
            watch.again()
            yield tuple(json.loads(line))
    end = HANGS if line is None else finish(pid)
    if line is None:
        watch.end()
        os.waitpid(pid, 0)
    if end:
        yield left[0], f"exit {end}", False


def _line(results: IO[str], watch: Watch) -> str | None:
    """Return the next line of a process, empty at its end; None if it hangs."""
    while not select.select([results], [], [], 0.5)[0]:
        if watch.hangs():
            return None
    return results.readline()


def main() -> int:
    options = parser(__doc__, repeat=1)
    for name, count in {"kills": 500, "mutations": 10_000, "caches": 2_000, "pairs": 50, "cold": 20}.items():
        options.add_argument(f"--{name}", type=int, default=count, metavar="N", help=f"default: {count}")
    options.add_argument("--minutes", type=float, default=float("inf"), help="end after that long")
    options.add_argument("--journal", type=Path, metavar="FILE", help="keep the cases that are done, and skip them")
    args = parsed(options, kills=5, mutations=14, caches=4, pairs=1, cold=0)
    until = time.monotonic() + 60 * args.minutes
    asked = {name: getattr(args, name) for name in ("kills", "mutations", "caches", "pairs", "cold")}
    report = Report("hostile", (__doc__ or "").split("\n\n")[1].replace("\n", " "), {**asked, "repeat": args.repeat})
    with workspace() as work:
        own = {"TLKIT_CACHE": str(work / "warm"), "OMP_NUM_THREADS": "1"}  # what is damaged is no graph of others
        os.environ.update({**environment(work / "site"), **own})
        sys.path.insert(0, str(work / "site"))
        place = Place(work / "place")
        skip_long_work(place)
        if forked(place.prepare):
            sys.exit("the bundle could not be made")
        for name in json.loads((place.root / "modules.json").read_text()):
            import_module(name)
        gc.freeze()  # or collections of garbage would copy the pages that forks share
        trials = [kills(place, work, writer, args.kills // len(WRITERS)) for writer in WRITERS]
        trials += [mutations(place, work, args.mutations), caches(place, work, args.caches)]
        trials += [together(place, work, args.pairs), cold(place, work, args.cold)]
        known = _run(trials, args.repeat, until, args.journal)
    for trial in trials:
        report.figures[trial.name] = {"ends": dict(trial.ends), "wrong": trial.wrong}
        ends = ", ".join(f"{count} times {end}" for end, count in sorted(trial.ends.items()))
        report.rows.append({"": trial.name, "cases": f"{len(trial.done):,}", "ends": ends})
        report.bars.append(Bar(f"{trial.name}: wrong ends", [len(trial.wrong)], "=", 0, digits=0))
    report.notes.append(
        "Of a kill, the ends are those of the run that is killed (-9) and of the one after it; 11 would be a check "
        "that failed, 124 a hang, another negative number a signal."
    )
    if known:
        report.notes.append(f"{known:,} of the cases are of earlier runs, by the journal.")
    return report.save()


def _run(trials: Sequence[Trial], rounds: int, until: float, journal: Path | None) -> int:
    """Run the cases of all trials, a share of each at a time; return the number of those that the journal knows."""
    by_name = {trial.name: trial for trial in trials}
    for line in journal.read_text().splitlines() if journal is not None and journal.exists() else ():
        name, number, end, right = json.loads(line)
        by_name[name].add(number, end, right)
    known = sum(len(trial.done) for trial in trials)
    with contextlib.ExitStack() as stack:
        kept = None if journal is None else stack.enter_context(journal.open("a"))
        for share in range(SHARES * rounds):
            for trial in trials:
                first, last = (share * trial.count // SHARES, (share + 1) * trial.count // SHARES)
                numbers = [number for number in range(first, last) if number not in trial.done]
                for number, end, right in perform(trial, numbers, until):
                    trial.add(number, end, right)
                    if kept is not None:
                        kept.write(json.dumps([trial.name, number, end, right]) + "\n")
                        kept.flush()
                    if not right:
                        print(f"{trial.name}, number {number}: {end}", file=sys.stderr)
    return known


if __name__ == "__main__":
    sys.exit(main())
