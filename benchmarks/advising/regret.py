"""Regret of `auto`: its accuracy on held-out images against the best of all strategies, cuts and heads."""

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
from _bench import SETS, Bar, Report

import tlkit
from advising.sets import BACKBONES, MAX_TESTED, Set, backbone, quiet, seen_in_part, table
from advising.sets import load as load_set
from tlkit.data import dataset as datasets
from tlkit.evaluation.metrics import score
from tlkit.graph import trace
from tlkit.model import trunk as trunks
from tlkit.model.bundle import open_bundle
from tlkit.model.modules import head_logits, load_modules, solve_head
from tlkit.plugin.contract import Head
from tlkit.plugin.registry import load as load_plugins
from tlkit.runtime.features import extract
from tlkit.util.statistics import class_shares, paired_difference, softmax

SIGNIFICANT = 1.96  # standard errors
HEADS = ["logistic", "svm", "rbf-svm", "knn", "nearest-mean"]
COUNTS = (100, 500, 2000)
# Every strategy that fine-tunes a pretrained trunk, with its own options and a head that learns by gradient, by cut,
# and up to how many images it is tried: on many, each takes minutes.
FINE_TUNING: list[tuple[str, Mapping[str, Any], str, int]] = [
    ("probe-then-tune", {}, "last", 2000),
    ("full", {}, "last", 2000),
    ("partial", {"trainable": 4}, "last", 500),
    ("probe-then-tune", {}, "stage7", 500),
    ("probe-then-tune", {}, "stage6", 500),
    ("probe-then-tune", {}, "stage5", 100),
    ("partial", {"trainable": 2}, "last", 100),
    ("gradual", {}, "last", 100),
    ("replace", {}, "last", 100),
]


@dataclass(frozen=True)
class Cell:
    """Some images of a data set to learn from, as a user would have them: without a split of their own."""

    data: Set
    count: int
    seed: int

    @property
    def key(self) -> list[Any]:
        return [self.data.name, self.count, self.seed, self.data.size]

    @property
    def held_out(self) -> np.ndarray:
        """Indices of at most `MAX_TESTED` images to test on."""
        return self.data.test[np.random.default_rng(0).permutation(len(self.data.test))[:MAX_TESTED]]

    @property
    def test(self) -> list[Path]:
        return [self.data.files[row] for row in self.held_out]

    @property
    def truth(self) -> np.ndarray:
        return self.data.labels[self.held_out]

    def source(self, room: Path) -> Path:
        return table(room / "set.csv", self.data, all=self.data.draw(self.count, self.seed))

    def learned(self) -> np.ndarray:
        """Indices of the images that a training would train on."""
        with tempfile.TemporaryDirectory() as folder:
            chosen = {sample.path for sample in datasets.read(self.source(Path(folder))).of("train")}
        return np.array([row for row, path in enumerate(self.data.files) if path in chosen])


def regret(root: Path, work: Path, names: Sequence[str], counts: Sequence[int], draws: Sequence[int]) -> int:
    sizes = [(name, load_set(root, name).size) for name in names]
    report = Report(
        "advise-regret" if set(names) <= set(SETS) else "advise-regret-further",
        "The balanced accuracy on held-out images of what `tlkit train --strategy auto` made of so many images, beside "
        "the best of all that could have been made of them: every cut with every head on frozen features, and every "
        "strategy that fine-tunes the trunk. The best of so many, on the images that it is chosen on, is too good by "
        "chance: the corrected regret takes the best of one half of the held-out images and compares on the other, "
        "both ways.",
        {
            "backbone": BACKBONES[0],
            "heads": ", ".join(HEADS),
            "fine-tuning": "; ".join(f"{_named(*each)} (up to {most} images)" for *each, most in FINE_TUNING),
        }
        | {"pixels": ", ".join(f"{name} {size}" for name, size in sizes if size), "draws": ", ".join(map(str, draws))},
    )
    known, judged = Known(work / "exhaustive.jsonl"), list[Judged]()
    for cell in cells(root, names, counts, draws):
        right = {name: known.right(cell, name, make) for name, make in _options(cell)}
        made = known.get(cell, "auto", lambda cell=cell: _auto(cell))
        right["auto"] = chosen = _array(made["right"])  # with options that none of the others has
        low, high = made["expected"]
        found = {option: balanced_accuracy(each, cell.truth) for option, each in right.items()}
        best = max(found, key=found.__getitem__)
        frozen = max(found[option] for option in found if option.startswith("frozen"))
        plain = [name for name in right if name.startswith("frozen") and name.endswith(", logistic")][-1]
        simple = right[plain]
        result = Judged(
            cell,
            regret=100 * (found[best] - found["auto"]),
            corrected=_corrected(right, chosen, cell.truth),
            gain=100 * (found["auto"] - found[plain]),
            worse=paired_difference(simple, chosen, cell.truth).difference > SIGNIFICANT * _error(simple, chosen, cell),
            error=made["ECE"],
            covered=low <= made["balanced accuracy"] <= high,
        )
        judged.append(result)
        report.figures["/".join(map(str, cell.key))] = {
            "options": found,
            "auto": {name: value for name, value in made.items() if name != "right"},
        }
        report.rows.append(
            {
                "data": cell.data.name,
                "images": str(cell.count),
                "draw": str(cell.seed + 1),
                "auto": made["what"],
                "accuracy": f"{found['auto']:.1%}",
                "expected": f"{low:.1%} to {high:.1%}",
                "ECE": f"{result.error:.3f}",
                "last, logistic": f"{found[plain]:.1%}",
                "best frozen": f"{frozen:.1%}",
                "best of all": f"{best}: {found[best]:.1%}",
                "regret, points": f"{result.regret:.2f}",
                "corrected": f"{result.corrected:.2f}",
                "one held-out image": f"{100 / len(chosen):.2f}",
            }
        )
        print(report.rows[-1], file=sys.stderr, flush=True)
        _judge(report, judged)
    return report.save()


@dataclass(frozen=True)
class Judged:
    """Result of `auto` on a cell: regrets and gain in points, and the calibration error."""

    cell: Cell
    regret: float
    corrected: float
    gain: float
    worse: bool
    error: float
    covered: bool


def _judge(report: Report, judged: Sequence[Judged]) -> None:
    """Fill in what the cells so far show, and write it: each takes minutes, and there are many."""
    gains = [each.gain for each in judged]
    report.bars.clear()
    mean = f"{statistics.mean(gains):+.2f} points on average ({min(gains):+.2f} to {max(gains):+.2f})"
    report.notes[:] = [f"Against frozen features of the last stage with a logistic head: {mean}."]
    regrets = {"regret": [each.regret for each in judged], "corrected regret": [each.corrected for each in judged]}
    report.figures |= regrets
    for what, values in regrets.items():
        draws = dict[tuple[str, int], list[float]]()
        for each, value in zip(judged, values, strict=True):
            draws.setdefault((each.cell.data.name, each.cell.count), []).append(value)
        report.bars.append(Bar(f"mean {what}, points", [statistics.mean(values)], "≤", 0.5))
        worst = max(map(statistics.mean, draws.values()))
        report.bars.append(Bar(f"worst {what}, points, mean over the draws of a set", [worst], "≤", 2.0))
        report.notes.append(f"The worst {what} of a single draw is {max(values):.2f} points.")
    errors = [each.error for each in judged]
    report.bars += [
        Bar(
            "draws on which auto is significantly worse than last, logistic",
            [sum(each.worse for each in judged)],
            "=",
            0,
        ),
        Bar("mean ECE on held-out images", [statistics.mean(errors)], "≤", 0.05, "", 3),
        Bar("worst ECE on held-out images", [max(errors)], "≤", 0.05, "", 3),
        Bar(
            "expected ranges that hold the accuracy, share",
            [statistics.mean(each.covered for each in judged)],
            "≥",
            0.9,
        ),
    ]
    report.save()


def _error(one: np.ndarray, other: np.ndarray, cell: Cell) -> float:
    return paired_difference(one, other, cell.truth).standard_error


def cells(root: Path, names: Sequence[str], counts: Sequence[int], draws: Sequence[int]) -> Iterator[Cell]:
    """Small ones first. A set with fewer images than asked for is taken whole, once."""
    taken = set()
    for count, most in zip(counts, draws, strict=True):
        for name in names:
            data = load_set(root, name)
            images = min(count, len(data.pool))
            for seed in range(most if images < len(data.pool) else 1):
                if (name, images, seed) not in taken:
                    taken.add((name, images, seed))
                    yield Cell(data, images, seed)


class Known:
    """Results of options, kept in a file, as each takes minutes; "right" has a 1 for each correct image."""

    def __init__(self, file: Path) -> None:
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = file.read_text().splitlines() if file.exists() else []
        self.known: dict[str, dict[str, Any]] = {
            json.dumps(entry.pop("key")): entry for entry in map(json.loads, lines)
        }

    def get(self, cell: Cell, option: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """As it was, or as it is made now."""
        key = json.dumps([*cell.key, option])
        if key not in self.known:
            self.known[key] = make()
            with self.file.open("a") as text:
                text.write(json.dumps({"key": json.loads(key), **self.known[key]}) + "\n")
            print(key, f"{_array(self.known[key]['right']).mean():.1%}", file=sys.stderr, flush=True)
        return self.known[key]

    def right(self, cell: Cell, option: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """Correct held-out images `(N,)` of an option."""
        return _array(self.get(cell, option, lambda: {"right": _marks(make())})["right"])


def _marks(right: np.ndarray) -> str:
    return "".join("1" if one else "0" for one in right)


def _array(marks: str) -> np.ndarray:
    return np.array([mark == "1" for mark in marks])


def _options(cell: Cell) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    """All that could be trained, by name, and how."""
    for stage in trunks.build(backbone(BACKBONES[0])).names:
        for head in HEADS:
            yield f"frozen, {stage}, {head}", lambda stage=stage, head=head: _solved(cell, stage, head)
    for *way, most in FINE_TUNING:
        if cell.count <= most:
            yield _named(*way), lambda way=way: trained(cell, *way)


def _named(strategy: str, settings: Mapping[str, Any], cut: str) -> str:
    return ", ".join([strategy, cut, *(f"{name} {value}" for name, value in settings.items())])


def _solved(cell: Cell, stage: str, head: str) -> np.ndarray:
    """Correct held-out images `(N,)` of a head on frozen features of the images that a training would train on."""
    _, features, place, _ = seen_in_part(BACKBONES[0], cell.data)
    rows, at = cell.learned(), features.at(stage)
    learned, tested = (np.ascontiguousarray(at[place[each]]) for each in (rows, cell.held_out))
    component: Head = load_plugins().get("head", head)
    solved = solve_head(component, learned, cell.data.labels[rows], len(cell.data.classes), 0)
    if solved is None:
        sys.exit(f"the head {head} can't be solved")
    return head_logits(solved, tested).argmax(1) == cell.truth


def trained(
    cell: Cell, strategy: str, settings: Mapping[str, Any], cut: str, head: str = "logistic", **more: Any
) -> np.ndarray:
    """Correct held-out images `(N,)` of a bundle that one strategy trains."""
    with tempfile.TemporaryDirectory() as folder:
        return correct(cell, train(cell, Path(folder, "run"), strategy, settings, cut, head, **more))


def train(cell: Cell, out: Path, strategy: str, settings: Mapping[str, Any], cut: str, head: str, **more: Any) -> Path:
    """The bundle `out`, trained by one strategy."""
    with tempfile.TemporaryDirectory() as folder:
        tlkit.train(
            cell.source(Path(folder)),
            out,
            backbone=BACKBONES[0],
            strategy=strategy,
            head=head,
            cut=cut,
            size=cell.data.size,
            options={f"strategy.{name}": value for name, value in settings.items()},
            device="cpu",
            **more,
        )
    return out


def correct(cell: Cell, bundle: Path) -> np.ndarray:
    """Correct held-out images `(N,)` of a bundle."""
    return _logits(cell, bundle).argmax(1) == cell.truth


def _auto(cell: Cell) -> dict[str, Any]:
    """Correct held-out images of `auto`, its choice, its metrics on them, and the range said in advance."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out, source = Path(folder, "run"), cell.source(Path(folder))
        made = tlkit.train(
            source, out, backbone=BACKBONES[0], strategy="auto", size=cell.data.size, device="cpu", budget=None
        )
        seconds, logits = time.perf_counter() - started, _logits(cell, out)
        metrics, recommendation = score(softmax(logits), cell.truth), made.advice.recommendation
        return {
            "right": _marks(logits.argmax(1) == cell.truth),
            "what": f"{made.strategy}, {made.cut}, {made.head}",
            "accuracy": metrics.accuracy,
            "balanced accuracy": metrics.balanced_accuracy,
            "expected": recommendation.accuracy or (0.0, 1.0),
            "ECE": metrics.ece,
            "seconds": seconds,
            "reasons": list(recommendation.reasons),
        }


def _logits(cell: Cell, bundle: Path) -> np.ndarray:
    """The logits `(N, classes)` of a bundle for the held-out images."""
    opened = open_bundle(bundle)
    head: Head = load_plugins().get("head", opened.record.head.name)
    trunk, module = load_modules(opened, backbone(BACKBONES[0]), head)
    graph = trace.stage_graph(trunk)
    features = extract(cell.test, graph, trunk.preprocessing, trunk.names, opened.record.cut, quiet)
    return head_logits(module, features.array)


def balanced_accuracy(right: np.ndarray, truth: np.ndarray) -> float:
    """Balanced accuracy of marks `(N,)`."""
    return float((right * class_shares(truth)).sum())


def _corrected(right: Mapping[str, np.ndarray], chosen: np.ndarray, truth: np.ndarray, seed: int = 0) -> float:
    """The mean over 20 halvings of the held-out images: the best on one half, less the chosen, on the other; points."""
    random = np.random.default_rng(seed)
    lost = []
    for _ in range(10):
        half = random.permutation(len(chosen)) < len(chosen) // 2
        for one, other in ((half, ~half), (~half, half)):
            best = max(right.values(), key=lambda each: balanced_accuracy(each[one], truth[one]))
            lost.append(
                100 * (balanced_accuracy(best[other], truth[other]) - balanced_accuracy(chosen[other], truth[other]))
            )
    return float(np.mean(lost))
