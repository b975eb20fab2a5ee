"""Gain of a soup, the average of the weights of several fine-tunings, over one of them, at the cut that `auto` uses.

Wortsman et al., "Model Soups: Averaging Weights of Multiple Fine-Tuned Models Improves Accuracy Without Increasing
Inference Time", ICML 2022: all start from the same weights, so that they may be averaged.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from _bench import SETTINGS, Report
from tlkit_standard.strategies.plans import AUTO

from advising.regret import Cell, Known, cells, correct, train
from advising.sets import BACKBONES, backbone, quiet
from advising.ways import PLAIN, balanced, cut_of
from tlkit.graph import trace
from tlkit.model.bundle import open_bundle
from tlkit.model.modules import head_logits, load_modules, solve_head
from tlkit.plugin.contract import Head
from tlkit.plugin.registry import load as load_plugins
from tlkit.runtime.features import extract

TRAININGS = 3  # that are averaged


def soup(root: Path, work: Path, names: Sequence[str], counts: Sequence[int], draws: Sequence[int]) -> int:
    """Train and average for every cell; what is done is kept in `work`."""
    report = Report(
        "advise-soup",
        f"The balanced accuracy on held-out images of the average of the trunks of {TRAININGS} fine-tunings by "
        f"`{PLAIN}` with the options of `auto`, up to the stage at which it would cut, against that of these "
        "fine-tunings. They have other seeds of views, of their order and of the first head. The head is solved again "
        "on the averaged trunk, as on each trained one.",
        {"backbone": BACKBONES[0], "head": "logistic", "draws": ", ".join(map(str, draws)), **AUTO},
    )
    known, gains = Known(work / "soup.jsonl"), dict[str, list[float]]()
    for cell in cells(root, names, counts, draws):
        kitchen = _Kitchen(cell, work / "soup" / "-".join(map(str, cell.key)), known)
        each, whole = [kitchen.one(seed) for seed in range(TRAININGS)], kitchen.average()
        mean = statistics.mean(each)
        gains.setdefault(cell.data.name, []).append(whole - mean)
        report.figures["/".join(map(str, cell.key))] = {"cut": kitchen.cut, "each": each, "soup": whole}
        row = {"data": cell.data.name, "images": str(cell.count), "draw": str(cell.seed + 1), "cut": kitchen.cut}
        row |= {"each": ", ".join(f"{one:.1f} %" for one in each), "mean of these": f"{mean:.1f} %"}
        report.rows.append(row | {"soup": f"{whole:.1f} %", "gain, points": f"{whole - mean:+.2f}"})
    every = [gain for of_set in gains.values() for gain in of_set]
    said = f"{statistics.mean(every):+.2f} points on average, {min(every):+.2f} to {max(every):+.2f}"
    report.notes.append(
        f"A soup gains {said}, more than nothing in {sum(gain > 0 for gain in every)} of {len(every)} rows."
    )
    for name in gains:
        others = [gain for other, of_set in gains.items() if other != name for gain in of_set]
        if others:
            means = [statistics.mean(side) for side in (others, gains[name])]
            report.notes.append("Without {}: {:+.2f} points on average; there {:+.2f}.".format(name, *means))
    return report.save()


class _Kitchen:
    """The fine-tunings of a cell, which stay in a folder until their average is known."""

    def __init__(self, cell: Cell, folder: Path, known: Known) -> None:
        self.cell, self.folder, self.known, self.cut = cell, folder, known, cut_of(cell)
        self.head = "line" if SETTINGS.smallest else "logistic"  # the tiny head that learns by gradient

    def one(self, seed: int) -> float:
        """The balanced accuracy of one fine-tuning."""
        right = self.known.right(self.cell, f"{seed}, {self.cut}", lambda: correct(self.cell, self._bundle(seed)))
        return balanced(self.cell, right)

    def average(self) -> float:
        """The balanced accuracy of the average of all."""
        right = balanced(self.cell, self.known.right(self.cell, f"soup, {self.cut}", self._averaged))
        shutil.rmtree(self.folder, ignore_errors=True)
        return right

    def _bundle(self, seed: int) -> Path:
        out = self.folder / str(seed)
        if not out.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            train(self.cell, out, PLAIN, AUTO, self.cut, self.head, seed=seed, resume=True)
        return out

    def _averaged(self) -> np.ndarray:
        head: Head = load_plugins().get("head", self.head)
        opened = [open_bundle(self._bundle(seed)) for seed in range(TRAININGS)]
        (trunk, module), *others = [load_modules(each, backbone(BACKBONES[0]), head) for each in opened]
        states = [each.state_dict() for each in (trunk, *(other for other, _ in others))]
        # The running statistics of all are those of the pretraining, so that none has to be computed again.
        mean = {name: torch.stack([state[name].double() for state in states]).mean(0) for name in states[0]}
        trunk.load_state_dict({name: mean[name].to(tensor.dtype) for name, tensor in states[0].items()})
        cell, rows = self.cell, self.cell.learned()
        paths = [*(cell.data.files[row] for row in rows), *cell.test]
        graph = trace.stage_graph(trunk)
        features = extract(paths, graph, trunk.preprocessing, trunk.names, self.cut, quiet).array
        learned, tested = features[: len(rows)], features[len(rows) :]
        solved = solve_head(head, learned, cell.data.labels[rows], len(cell.data.classes), 0)
        return head_logits(module if solved is None else solved, tested).argmax(1) == cell.truth
