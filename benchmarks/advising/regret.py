"""What the advice chose against the best of everything that could have been chosen."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _bench import Bar, Report

from advising.sets import BACKBONES, NAMES, Set, ask, backbone, seen, table
from advising.sets import load as load_set
from tlkit.learn.advise.advice import advise
from tlkit.learn.loop.heads import logits
from tlkit.plugin.host import load as load_plugins

HEADS = ("logistic", "svm", "rbf-svm", "knn", "nearest-mean")


DRAWS = ((100, 0), (100, 1), (500, 0), (2000, 0))  # images and seed


def regret(root: Path, work: Path) -> int:
    report = Report(
        "advise-regret",
        "What the advice chose (cut and head, frozen) against the best of all cuts and heads tried exhaustively, on "
        "held-out images. The best of 45 on the very images that it is measured on is too good by chance: the "
        "corrected regret takes the best of one half of the held-out images and compares on the other, both ways.",
        {"backbone": BACKBONES[0], "heads": ", ".join(HEADS), "draws (images, seed)": ", ".join(map(str, DRAWS))},
    )
    known = work / "exhaustive.jsonl"
    plain, corrected = [], []
    for each in NAMES:
        data = load_set(root, each)
        for count, seed in DRAWS:
            rows = data.draw(min(count, len(data.pool)), seed)
            if len(rows) < count and count > 500 and len(rows) <= 500:
                continue  # the set has no more images than the last draw
            right = _exhaustive(known, data, rows, (each, count, seed))
            cut, head, strategy = _advised(data, rows)
            best = max(right, key=lambda option: right[option].mean())
            chosen = right[cut, head]
            lost = 100 * float(right[best].mean() - chosen.mean())
            honest = _corrected(right, chosen)
            plain.append(lost)
            corrected.append(honest)
            report.rows.append(
                {
                    "data": each,
                    "images": str(len(rows)),
                    "seed": str(seed),
                    "advised": f"{cut}, {head}" + ("" if strategy == "frozen" else f" (and to try {strategy})"),
                    "accuracy": f"{chosen.mean():.1%}",
                    "best of all": f"{best[0]}, {best[1]}: {right[best].mean():.1%}",
                    "regret, points": f"{lost:.2f}",
                    "corrected": f"{honest:.2f}",
                    "one held-out image": f"{100 / len(chosen):.2f}",
                }
            )
            print(report.rows[-1], file=sys.stderr, flush=True)
    report.figures = {"regret": plain, "corrected regret": corrected}
    report.bars += [
        Bar("mean regret, points", [statistics.mean(plain)], "≤", 0.7),
        Bar("worst regret, points", [max(plain)], "≤", 2.0),
        Bar("mean corrected regret, points", [statistics.mean(corrected)], "≤", 0.7),
        Bar("worst corrected regret, points", [max(corrected)], "≤", 2.0),
    ]
    report.notes.append("Fine-tuning takes part in none of this; see the results of the strategies for what it brings.")
    return report.save()


def _advised(data: Set, rows: Sequence[int]) -> tuple[str, str, str]:
    """What is advised to whom all of `rows` are there to learn from: cut, head, strategy."""
    with tempfile.TemporaryDirectory() as name:
        held = [row for label in range(len(data.classes)) for row in data.test[data.labels[data.test] == label][:2]]
        file = table(Path(name, "set.csv"), data, train=rows, val=held)
        recommendation = advise(file, ask()).recommendation
    frozen = recommendation.frozen()
    return frozen.cut, frozen.head, recommendation.strategy


def _exhaustive(known: Path, data: Set, rows: Sequence[int], key: tuple[Any, ...]) -> dict[tuple[str, str], np.ndarray]:
    """Which held-out images are called right, for every cut and head; kept in a file, as it takes minutes."""
    name = json.dumps(key)
    if known.exists():
        for line in known.read_text().splitlines():
            entry = json.loads(line)
            if entry["key"] == name:
                return {(cut, head): np.array([mark == "1" for mark in marks]) for cut, head, marks in entry["right"]}
    trunk, features = seen(backbone(BACKBONES[0]), data)
    right = {}
    for index, stage in enumerate(trunk.names):
        at = features.stage(index)
        for head in HEADS:
            solved = load_plugins().get("head", head).solve(at[rows], data.labels[rows], len(data.classes), 0)
            right[stage, head] = logits(solved, at[data.test]).argmax(1) == data.labels[data.test]
    marks = [[cut, head, "".join("1" if one else "0" for one in each)] for (cut, head), each in right.items()]
    known.parent.mkdir(parents=True, exist_ok=True)
    with known.open("a") as text:
        text.write(json.dumps({"key": name, "right": marks}) + "\n")
    return right


def _corrected(right: dict[tuple[str, str], np.ndarray], chosen: np.ndarray, seed: int = 0) -> float:
    """The mean over 20 halvings of the held-out images: the best on one half, less the chosen, on the other; points."""
    random = np.random.default_rng(seed)
    lost = []
    for _ in range(10):
        half = random.permutation(len(chosen)) < len(chosen) // 2
        for one, other in ((half, ~half), (~half, half)):
            best = max(right.values(), key=lambda each: each[one].mean())
            lost.append(100 * (best[other].mean() - chosen[other].mean()))
    return float(np.mean(lost))
