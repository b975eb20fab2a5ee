"""Planted duplicates, re-encoded near duplicates, wrong labels and a shortcut, and what the audit finds."""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _bench import Bar, Report
from PIL import Image

from advising.sets import BACKBONES, NAMES, Set, backbone
from advising.sets import load as load_set
from tlkit.audit.run import Audit, audit
from tlkit.data import dataset
from tlkit.model import trunk


def audits(root: Path, repeat: int) -> int:
    report = Report(
        "advise-audit",
        "Faults planted in 600 images of each set, 120 of them to validate on, and what the audit finds of them: "
        "20 copies into the other split, 20 pictures encoded again (JPEG, quality 40 to 90, half of them at 0.6 of "
        "their size), 5 % wrong labels. Precision takes everything else that it names for a mistake, though the sets "
        "have faults of their own.",
        {"backbone": BACKBONES[0], "draws": repeat},
    )
    kinds = ("exact", "near", "labels")
    every: dict[str, list[tuple[int, int, int]]] = {kind: [] for kind in kinds}
    caught = []
    for each in NAMES:
        data = load_set(root, each)
        for seed in range(repeat):
            with tempfile.TemporaryDirectory() as name:
                planted = _plant(Path(name), data, seed)
                found = _audit(Path(name, "set"))
                counts = _found(found, planted)
                suspects = [shortcut.property for shortcut in found.shortcuts]
                caught.append(float(not suspects))
            for kind in kinds:
                every[kind].append(counts[kind])
            report.figures[f"{each} {seed}"] = {**counts, "shortcuts without one planted": suspects}
            print(each, seed, counts, suspects, file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as name:
            _plant(Path(name), data, 0, shortcut=True)
            told = [shortcut.property for shortcut in _audit(Path(name, "set")).shortcuts]
        mine = {kind: np.sum(every[kind][-repeat:], axis=0) for kind in kinds}
        report.figures[f"{each} with a shortcut"] = told
        report.rows.append(
            {
                "data": each,
                **{f"{kind}: precision, recall": _rates(mine[kind]) for kind in kinds},
                "shortcut planted (a class in PNG)": ", ".join(told) or "not found",
            }
        )
    sums = {kind: np.sum(every[kind], axis=0) for kind in kinds}
    report.rows.append({"data": "all", **{f"{kind}: precision, recall": _rates(sums[kind]) for kind in kinds}})
    for kind, least in (("exact", 1.0), ("near", 0.95), ("labels", 0.8)):
        hits, planted_count, _ = sums[kind]
        report.bars.append(Bar(f"recall of {kind}", [float(hits / max(1, planted_count))], "≥", least))
    planted_found = [row["shortcut planted (a class in PNG)"] for row in report.rows[:-1]]
    report.bars.append(
        Bar("sets whose planted shortcut is found", [sum("format" in f for f in planted_found)], "=", 4, "", 0)
    )
    report.bars.append(
        Bar("share of sets without a planted shortcut that are not accused", [statistics.mean(caught)], "=", 1)
    )
    return report.save()


def _audit(source: Path) -> Audit:
    return audit(dataset.read(source), trunk.build(backbone(BACKBONES[0])))


def _rates(counts: Sequence[int]) -> str:
    hits, planted, named = (int(count) for count in counts)
    return f"{hits / named if named else 0:.2f}, {hits / max(1, planted):.2f} ({hits} of {planted}, {named} named)"


def _plant(room: Path, data: Set, seed: int, *, shortcut: bool = False) -> dict[str, set[Any]]:
    """A folder of images with faults; which, by kind: pairs of names, and names with a wrong label."""
    random = np.random.default_rng(seed)
    rows = data.draw(600, seed)
    names: list[Path] = []
    wrong: set[str] = set()
    for number, row in enumerate(rows):
        split = "val" if number % 5 == 4 else "train"
        label = int(data.labels[row])
        moved = random.random() < 0.05
        shown = (label + int(random.integers(1, len(data.classes)))) % len(data.classes) if moved else label
        suffix = (".png" if label == 0 else ".jpg") if shortcut else data.files[row].suffix.lower()
        file = room / "set" / split / data.classes[shown] / f"{number}{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        if shortcut:
            with Image.open(data.files[row]) as picture:
                picture.convert("RGB").save(file, quality=92)
        else:
            shutil.copy(data.files[row], file)
        names.append(file)
        if moved:
            wrong.add(file.relative_to(room / "set").as_posix())
    exact, near = set(), set()
    chosen = random.permutation(len(names))[:40]
    for place, number in enumerate(chosen):
        source = names[number]
        other = (
            source.parents[1].with_name("val" if source.parents[1].name == "train" else "train") / source.parent.name
        )
        other.mkdir(parents=True, exist_ok=True)
        if place < 20:
            target = other / f"copy{place}{source.suffix}"
            shutil.copy(source, target)
        else:
            target = other / f"again{place}.jpg"
            with Image.open(source) as picture:
                scale = 0.6 if place % 2 else 1.0
                size = tuple(max(8, round(side * scale)) for side in picture.size)
                picture.convert("RGB").resize(size).save(target, quality=int(random.integers(40, 91)))
        pair = frozenset(each.relative_to(room / "set").as_posix() for each in (source, target))
        (exact if place < 20 else near).add(pair)
        if source.relative_to(room / "set").as_posix() in wrong:
            wrong.add(target.relative_to(room / "set").as_posix())
    return {"exact": exact, "near": near, "labels": wrong}


def _found(found: Any, planted: dict[str, set[Any]]) -> dict[str, tuple[int, int, int]]:
    """For each kind: planted and found, planted, named."""
    pairs = {
        kind: {frozenset((one.first, one.second)) for one in found.near_duplicates if one.exact is (kind == "exact")}
        for kind in ("exact", "near")
    }
    named = {**pairs, "labels": {each.name for each in found.label_issues}}
    return {kind: (len(named[kind] & planted[kind]), len(planted[kind]), len(named[kind])) for kind in named}
