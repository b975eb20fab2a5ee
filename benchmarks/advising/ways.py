"""Gain of other ways to fine-tune, and of blended weights, over the one that `auto` uses, at the cut that it uses."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _bench import SETTINGS, Report
from tlkit_standard.strategies.plans import AUTO

from advising.regret import Cell, Known, balanced_accuracy, cells, trained
from advising.sets import BACKBONES, backbone
from tlkit import resolve
from tlkit.advice.run import advise

AVERAGED = {"ema": AUTO["ema"]}
PLAIN = "probe-then-tune"  # as auto runs it
WAYS: dict[str, tuple[str, Mapping[str, Any], Mapping[str, Any]]] = {
    PLAIN: ("probe-then-tune", AUTO, {}),
    "l2-sp": ("l2-sp", AUTO, {}),
    "bias-norm": ("bias-norm", AVERAGED, {}),
    "lora": ("lora", AVERAGED, {}),
    "surgical": ("surgical", AVERAGED, {}),
    "blended": ("probe-then-tune", AUTO, {"blend": "auto"}),
}  # name: strategy, its options, other arguments of `tlkit.train`


def ways(root: Path, work: Path, names: Sequence[str], counts: Sequence[int], draws: Sequence[int]) -> int:
    """Train each way once for every cell; what is done is kept in `work`."""
    report = Report(
        "advise-ways",
        "The balanced accuracy on held-out images of ways to fine-tune a trunk up to the stage at which `auto` would "
        f"cut it, against that of `{PLAIN}` with the options of `auto`, in percentage points. Blended: with "
        "`--blend auto`.",
        {"backbone": BACKBONES[0], "head": "logistic", "draws": ", ".join(map(str, draws))}
        | {name: f"{way} {dict(options)}" for name, (way, options, _) in WAYS.items()},
    )
    head = "line" if SETTINGS.smallest else "logistic"  # the tiny head that learns by gradient
    known = Known(work / "ways.jsonl")
    gains: dict[str, list[float]] = {name: [] for name in WAYS if name != PLAIN}
    for cell in cells(root, names, counts, draws):
        cut = cut_of(cell)
        found = {name: _balanced(cell, known, name, cut, head) for name in WAYS}
        row = {"data": cell.data.name, "images": str(cell.count), "draw": str(cell.seed + 1), "cut": cut}
        for name, each in gains.items():
            each.append(found[name] - found[PLAIN])
        report.figures["/".join(map(str, cell.key))] = {"cut": cut, **found}
        more = {name: f"{each[-1]:+.2f}" for name, each in gains.items()}
        report.rows.append({**row, PLAIN: f"{found[PLAIN]:.1f} %", **more})
    for name, each in gains.items():
        said = f"{statistics.mean(each):+.2f} points on average, {min(each):+.2f} to {max(each):+.2f}"
        report.notes.append(f"{name}: {said}, more in {sum(gain > 0 for gain in each)} of {len(each)} rows.")
    return report.save()


def cut_of(cell: Cell) -> str:
    """Return the stage up to which `auto` would fine-tune."""
    request = resolve.advice_request(
        [backbone(BACKBONES[0])], val=0.2, group=None, max_bad=0.01, seed=0, size=cell.data.size
    )
    with tempfile.TemporaryDirectory() as folder:
        advice = advise(cell.source(Path(folder)), request)
    return advice.recommendation.cut if advice.evidence is None else advice.evidence.cut.name


def _balanced(cell: Cell, known: Known, name: str, cut: str, head: str) -> float:
    strategy, options, more = WAYS[name]
    right = known.right(cell, f"{name}, {cut}", lambda: trained(cell, strategy, options, cut, head, **more))
    return balanced(cell, right)


def balanced(cell: Cell, right: np.ndarray) -> float:
    """The balanced accuracy in percent, from the correct held-out images `(N,)`."""
    return 100 * balanced_accuracy(right, cell.truth)
