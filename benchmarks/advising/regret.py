"""What `auto` trained against the best of all strategies, cuts and heads tried exhaustively, on held-out images."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _bench import SIZES, Bar, Report

from advising.sets import BACKBONES, NAMES, Set, ask, backbone, quiet, table
from advising.sets import load as load_set
from tlkit.advice.auto import train_auto
from tlkit.data import dataset as folder
from tlkit.graph import trace
from tlkit.model import trunk as trunks
from tlkit.model.bundle import open_bundle
from tlkit.model.modules import head_logits, load_modules
from tlkit.plugin.contract import DatasetStatistics, Head
from tlkit.plugin.options import configure
from tlkit.plugin.registry import load as load_plugins
from tlkit.runtime.features import extract
from tlkit.training.config import RunOptions, TrainingConfig
from tlkit.training.device import DeviceOptions
from tlkit.training.heads import solve_or_fit
from tlkit.training.inputs import Examples
from tlkit.training.run import train

HEADS = ("logistic", "svm", "rbf-svm", "knn", "nearest-mean", "mlp")
COUNTS = (100, 500, 2000)
# Every strategy that moves a pretrained trunk, with its own options and a head that learns by gradient, by cut; and up
# to how many images it is tried: on many, each takes minutes.
MOVING: tuple[tuple[str, Mapping[str, Any], str, int], ...] = (
    ("probe-then-tune", {}, "last", 2000),
    ("full", {}, "last", 2000),
    ("partial", {"trainable": 4}, "last", 500),
    ("probe-then-tune", {}, "stage7", 500),
    ("probe-then-tune", {}, "stage6", 500),
    ("probe-then-tune", {}, "stage5", 100),
    ("partial", {"trainable": 2}, "last", 100),
    ("gradual", {}, "last", 100),
    ("replace", {}, "last", 100),
)


@dataclass(frozen=True)
class Cell:
    """Some images of a data set to learn from, as a user would have them: without a split of their own."""

    data: Set
    count: int
    seed: int

    @property
    def key(self) -> list[Any]:
        return [self.data.name, self.count, self.seed, self.size]

    @property
    def size(self) -> int | None:
        """Pixels of the input's side, where the images are smaller than what the backbone was pretrained on."""
        return SIZES.get(self.data.name)

    @property
    def test(self) -> list[Path]:
        return [self.data.files[row] for row in self.data.test]

    @property
    def truth(self) -> np.ndarray:
        return self.data.labels[self.data.test]

    def source(self, room: Path) -> Path:
        return table(room / "set.csv", self.data, all=self.data.draw(self.count, self.seed))


def regret(root: Path, work: Path, names: Sequence[str] = NAMES, counts: Sequence[int] = COUNTS, seed: int = 0) -> int:
    report = Report(
        "advise-regret",
        "The accuracy on held-out images of what `tlkit train --strategy auto` made of so many images, against the "
        "best of all that could have been made of them: every cut with every head on frozen features, and every "
        "strategy that moves the trunk. The best of so many on the very images that it is measured on is too good by "
        "chance: the corrected regret takes the best of one half of the held-out images and compares on the other, "
        "both ways.",
        {
            "backbone": BACKBONES[0],
            "heads": ", ".join(HEADS),
            "moving": "; ".join(f"{_named(*each)} (up to {most} images)" for *each, most in MOVING),
        }
        | {"pixels": ", ".join(f"{name} {size}" for name, size in SIZES.items()), "seed": seed},
    )
    known, lost, corrected = Known(work / "exhaustive.jsonl"), [], []
    for cell in _cells(root, names, counts, seed):
        right = {name: known.get(cell, name, make) for name, make in _options(cell)}
        started = time.perf_counter()
        chosen, what = _auto(cell)
        seconds = time.perf_counter() - started
        right["auto"] = chosen  # with options that none of the others has
        best = max(right, key=lambda option: right[option].mean())
        still = max(right[option].mean() for option in right if option.startswith("frozen"))
        lost.append(100 * float(right[best].mean() - chosen.mean()))
        corrected.append(_corrected(right, chosen))
        report.figures["/".join(map(str, cell.key))] = {
            "options": {name: float(each.mean()) for name, each in right.items()},
            "auto": {"what": what, "accuracy": float(chosen.mean()), "seconds": seconds},
        }
        report.rows.append(
            {
                "data": cell.data.name,
                "images": str(cell.count),
                "auto": what,
                "accuracy": f"{chosen.mean():.1%}",
                "best frozen": f"{still:.1%}",
                "best of all": f"{best}: {right[best].mean():.1%}",
                "regret, points": f"{lost[-1]:.2f}",
                "corrected": f"{corrected[-1]:.2f}",
                "one held-out image": f"{100 / len(chosen):.2f}",
            }
        )
        print(report.rows[-1], file=sys.stderr, flush=True)
    report.figures |= {"regret": lost, "corrected regret": corrected}
    report.notes.append(
        "How auto moves a trunk (its rate, the average of its weights, from what share of wrong answers on) was chosen "
        "on these held-out images with 100 and 500 to learn from; those with more were not looked at before."
    )
    for what, values in (("regret", lost), ("corrected regret", corrected)):
        report.bars.append(Bar(f"mean {what}, points", [statistics.mean(values)], "≤", 0.7))
        report.bars.append(Bar(f"worst {what}, points", [max(values)], "≤", 2.0))
    return report.save()


def _cells(root: Path, names: Sequence[str], counts: Sequence[int], seed: int) -> Iterator[Cell]:
    """Small ones first. A set with fewer images than asked for is taken whole, once."""
    taken = set()
    for count in counts:
        for name in names:
            data = load_set(root, name)
            images = min(count, len(data.pool))
            if (name, images) not in taken:
                taken.add((name, images))
                yield Cell(data, images, seed)


class Known:
    """What each option called right, kept in a file, as it takes minutes."""

    def __init__(self, file: Path) -> None:
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = file.read_text().splitlines() if file.exists() else []
        self.marks = {json.dumps(entry["key"]): entry["right"] for entry in map(json.loads, lines)}

    def get(self, cell: Cell, option: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """As it was, or as it is made now."""
        key = json.dumps([*cell.key, option])
        if key not in self.marks:
            self.marks[key] = "".join("1" if one else "0" for one in make())
            with self.file.open("a") as text:
                text.write(json.dumps({"key": json.loads(key), "right": self.marks[key]}) + "\n")
            print(key, self.marks[key].count("1") / len(self.marks[key]), file=sys.stderr, flush=True)
        return np.array([mark == "1" for mark in self.marks[key]])


def _options(cell: Cell) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    """All that could be trained, by name, and how."""
    stages = trunks.build(backbone(BACKBONES[0])).names
    for index, stage in enumerate(stages):
        for head in HEADS:
            yield f"frozen, {stage}, {head}", lambda index=index, head=head: _frozen(cell, index, head)
    for *way, most in MOVING:
        if cell.count <= most:
            yield _named(*way), lambda way=way: _moved(cell, *way)


def _named(strategy: str, settings: Mapping[str, Any], cut: str) -> str:
    return ", ".join([strategy, cut, *(f"{name} {value}" for name, value in settings.items())])


def _frozen(cell: Cell, index: int, name: str) -> np.ndarray:
    """A head on the features of a stage, fitted to the images that `train` would train on."""
    with tempfile.TemporaryDirectory() as room:
        dataset = folder.read(cell.source(Path(room)), val=0.2)
    trunk = _trunk(cell)
    sides = []
    for split in ("train", "val"):
        samples = dataset.of(split)
        features = _features([sample.path for sample in samples], trunk).stage(index)
        sides.append(Examples(features, np.array([sample.label for sample in samples])))
    head: Head = load_plugins().get("head", name)
    strategy = load_plugins().get("strategy", "frozen")
    phases = strategy.phases(trunk.names, DatasetStatistics(len(sides[0].labels), len(dataset.labels), 1, 1))
    module, _ = solve_or_fit(head, phases, *sides, len(dataset.labels), seed=0)
    return head_logits(module, _features(cell.test, trunk).stage(index)).argmax(1) == cell.truth


def _trunk(cell: Cell) -> trunks.Trunk:
    component = backbone(BACKBONES[0])
    return trunks.build(component, preprocessing=None if cell.size is None else trunks.resized(component, cell.size))


def _features(files: Sequence[Path], trunk: trunks.Trunk, cut: str | None = None) -> Any:
    return extract(files, trace.stage_graph(trunk), trunk.preprocessing, trunk.names, cut, quiet)


def _moved(cell: Cell, name: str, settings: Mapping[str, Any], cut: str) -> np.ndarray:
    """A strategy that moves the trunk, as `train` runs it."""
    plugins = load_plugins()
    strategy, head = configure(plugins.get("strategy", name), settings), plugins.get("head", "logistic")
    components = (backbone(BACKBONES[0]), strategy, head)
    recipe = TrainingConfig(
        *components, {component.kind: plugins.origin(component) for component in components}, cut=cut, size=cell.size
    )
    with tempfile.TemporaryDirectory() as room:
        out = Path(room, "run")
        train(cell.source(Path(room)), out, recipe, options=RunOptions(DeviceOptions("cpu")))
        return _called(cell, out)


def _auto(cell: Cell) -> tuple[np.ndarray, str]:
    """What auto makes of it, and what that is."""
    with tempfile.TemporaryDirectory() as room:
        out = Path(room, "run")
        _, advice = train_auto(cell.source(Path(room)), out, ask(size=cell.size), RunOptions(DeviceOptions("cpu")))
        made = advice.recommendation
        what = f"{made.strategy}, {made.cut}, {made.head}"
        return _called(cell, out), what


def _called(cell: Cell, bundle: Path) -> np.ndarray:
    """Which held-out images a bundle calls right."""
    opened = open_bundle(bundle)
    head: Head = load_plugins().get("head", opened.record.head.name)
    trunk, module = load_modules(opened, backbone(BACKBONES[0]), head)
    return head_logits(module, _features(cell.test, trunk, opened.record.cut).array).argmax(1) == cell.truth


def _corrected(right: Mapping[str, np.ndarray], chosen: np.ndarray, seed: int = 0) -> float:
    """The mean over 20 halvings of the held-out images: the best on one half, less the chosen, on the other; points."""
    random = np.random.default_rng(seed)
    lost = []
    for _ in range(10):
        half = random.permutation(len(chosen)) < len(chosen) // 2
        for one, other in ((half, ~half), (~half, half)):
            best = max(right.values(), key=lambda each: each[one].mean())
            lost.append(100 * (best[other].mean() - chosen[other].mean()))
    return float(np.mean(lost))
