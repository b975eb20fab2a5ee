"""Frozen features of two stages joined, against those of the best stage alone."""

from __future__ import annotations

import json
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from _bench import Bar, Report

from advising.sets import BACKBONES, NAMES, Set, backbone, seen_in_part
from advising.sets import load as load_set
from tlkit.advice.backbone_analysis import BackboneAnalysis, stage_evidence
from tlkit.advice.selection import best_stage, compare_heads
from tlkit.evaluation.metrics import score
from tlkit.model.cut import JOINT
from tlkit.model.modules import head_logits
from tlkit.plugin.contract import DatasetStatistics
from tlkit.plugin.registry import load as load_plugins
from tlkit.util.statistics import softmax

HEAD = "logistic"
DRAWS = [(100, 5), (500, 3)]  # images of a draw, and draws


def joined(root: Path, work: Path) -> int:
    report = Report(
        "advise-joined",
        "The balanced accuracy on held-out images that frozen features of the two best stages, joined, gain over those "
        "of the best stage, in percentage points, mean over draws. The stages are the best ones on the images to learn "
        "from.",
        {"head": HEAD, "draws": ", ".join(f"{n} x {m}" for m, n in DRAWS), "backbones": ", ".join(BACKBONES[:2])},
    )
    gains = list[float]()
    for name, (count, draws), each in product(BACKBONES[:2], DRAWS, NAMES):
        found = [_kept(root, work / "joined.jsonl", (name, each, count, seed)) for seed in range(draws)]
        single, both = (np.array([one[key] for one in found]) for key in ("single", "joined"))
        gains.append(100 * float((both - single).mean()))
        report.rows.append(
            {
                "backbone": name,
                "set": each,
                "images": str(count),
                "best stage": f"{100 * single.mean():.1f} %",
                "joined, gain": f"{gains[-1]:+.2f}",
            }
        )
    report.figures = {"gains": gains}
    report.bars = [Bar("mean gain, points", [float(np.mean(gains))], "≥", 0.0)]
    report.notes = [f"The least mean gain of a row is {min(gains):+.2f} points, the greatest {max(gains):+.2f}."]
    return report.save()


def _kept(root: Path, file: Path, key: tuple[str, str, int, int]) -> dict[str, Any]:
    """Return what `_measured` returns, and keep it in a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = file.read_text().splitlines() if file.exists() else []
    known = {tuple(line["key"]): line for line in map(json.loads, lines)}
    if key not in known:
        known[key] = {"key": key, **_measured(load_set(root, key[1]), *key)}
        with file.open("a") as text:
            text.write(json.dumps(known[key]) + "\n")
        print(key, file=sys.stderr, flush=True)
    return known[key]


def _measured(data: Set, name: str, _: str, count: int, seed: int) -> dict[str, Any]:
    trunk, features, place, test = seen_in_part(name, data)
    rows = data.draw(min(count, len(data.pool)), seed)
    labels, classes = data.labels[rows], len(data.classes)
    drawn = features.rows(place[rows].tolist())
    shift = SimpleNamespace(stages={})
    analysis = BackboneAnalysis(backbone(name), trunk, drawn, shift, None, 1.0, 0)  # type: ignore[arg-type]
    stages = stage_evidence(analysis, np.arange(len(rows)), labels, classes)
    analysis = BackboneAnalysis(backbone(name), trunk, drawn, shift, None, 1.0, 0, stages)  # type: ignore[arg-type]
    counts = np.bincount(labels)
    known = DatasetStatistics(len(rows), classes, int(counts.min()), int(counts.max()))
    head = load_plugins().get("head", HEAD)
    found = compare_heads(analysis, [head], labels, known, 0, most=len(rows))
    single = best_stage(stages, found).name
    both = next((each.stage for each in found if JOINT in each.stage), single)

    def accuracy(cut: str) -> float:
        solved = head.solve(np.ascontiguousarray(drawn.at(cut)), labels, classes, 0)
        rest = np.ascontiguousarray(features.at(cut)[place[test]])
        return score(softmax(head_logits(solved, rest)), data.labels[test]).balanced_accuracy

    return {"single": accuracy(single), "joined": accuracy(both), "cut": both}
