"""Rules that choose cut and head, each chosen on all sets but one and tested on that one."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from _bench import Bar, Report

from advising.sets import BACKBONES, NAMES, Set, seen_in_part
from advising.sets import load as load_set
from tlkit.advice.backbone_analysis import stratified
from tlkit.advice.probes import ridge
from tlkit.evaluation.metrics import score
from tlkit.model.modules import head_logits
from tlkit.plugin.registry import load as load_plugins
from tlkit.util.statistics import softmax, wilson

HEADS = ["logistic", "svm", "rbf-svm", "knn", "nearest-mean"]
DRAWS = [(100, 5), (500, 5), (2000, 1)]  # images of a draw, a fifth of them to validate on, and draws
FEW = 300  # images of a cheaper comparison
SKIPPED = 3  # shallow stages, which were never the best by far


@dataclass(frozen=True)
class Rule:
    """A way to choose cut and head.

    `stages` best ones of the probe are compared under the first head, by the mean of both scores; `score` is the
    accuracy less half the log loss. Another head has to lead by `margin` standard errors of its accuracy.
    """

    images: str = "all"  # or FEW, that heads are compared on
    stages: int = 3
    margin: float = 1.5

    def __str__(self) -> str:
        return f"{self.images} images, {self.stages} stages, margin {self.margin:g}"

    def chosen(self, cell: dict[str, Any]) -> tuple[str, str]:
        key = "cv" if self.images == "all" else "cv of few"
        stages = sorted(cell["stages"], key=lambda name: -_score(*cell["stages"][name]["probe"][:2]))[: self.stages]

        def first(name: str) -> float:
            own = cell["stages"][name]
            return _score(*own["probe"][:2]) + _score(*own["heads"][HEADS[0]][key])

        stage = max(stages, key=first)
        heads = cell["stages"][stage]["heads"]
        best = max(heads, key=lambda head: (heads[head][key][0], -heads[head][key][1]))
        share, images = heads[best][key][0], cell["images"] if self.images == "all" else min(FEW, cell["images"])
        error = (max(share * (1 - share), 1e-4) / images) ** 0.5
        leads = share - heads[HEADS[0]][key][0] > self.margin * error
        return stage, best if leads else HEADS[0]


SHIPPED = Rule()
BEFORE = Rule(str(FEW), 1, 0.5)
RULES = [Rule(*each) for each in product(("all", str(FEW)), (1, 2, 3), (0.0, 0.5, 0.75, 1.0, 1.5))]


def _score(accuracy: float, log_loss: float) -> float:
    return accuracy - log_loss / 2


def rules(root: Path, work: Path) -> int:
    report = Report(
        "advise-rules",
        "The balanced accuracy on held-out images that a rule for cut and head loses against the best of all cuts and "
        "heads on frozen features of one stage, in percentage points, mean over draws. Each rule was chosen on the "
        "other sets. The best of so many is too good by chance, whatever the rule. `auto` may also join two stages "
        "(see advise-joined).",
        {"backbone": BACKBONES[0], "heads": ", ".join(HEADS), "draws": ", ".join(f"{n} x {m}" for m, n in DRAWS)},
    )
    cells = list(_cells(root, work / "rules.jsonl"))
    lost = {rule: {name: _lost(cells, name, rule.chosen) for name in NAMES} for rule in RULES}
    plain = {name: _lost(cells, name, lambda cell: (next(iter(cell["stages"])), HEADS[0])) for name in NAMES}
    for name in NAMES:
        others = [each for each in NAMES if each != name] or [name]
        rule = min(RULES, key=lambda each: np.mean([lost[each][other] for other in others]))
        report.rows.append(
            {
                "tested on": name,
                "rule chosen on the others": str(rule),
                "it loses": f"{lost[rule][name]:.2f}",
                f"auto ({SHIPPED})": f"{lost[SHIPPED][name]:.2f}",
                f"before ({BEFORE})": f"{lost[BEFORE][name]:.2f}",
                "last, logistic": f"{plain[name]:.2f}",
            }
        )
    report.figures = {str(rule): each for rule, each in lost.items()} | {"last, logistic": plain}
    means = {rule: float(np.mean(list(each.values()))) for rule, each in lost.items()}
    covered = [_is_covered(cell) for cell in cells]
    errors = [
        cell["stages"][stage]["heads"][head]["test"][2] for cell in cells for stage, head in [SHIPPED.chosen(cell)]
    ]
    report.bars = [
        Bar("mean that auto loses less than before, points", [means[BEFORE] - means[SHIPPED]], "≥", 0.0),
        Bar(
            "mean that auto loses less than last, logistic, points",
            [float(np.mean(list(plain.values()))) - means[SHIPPED]],
            "≥",
            0.0,
        ),
        Bar("expected ranges that hold the accuracy on held-out images, share", [float(np.mean(covered))], "≥", 0.9),
        Bar("mean ECE on held-out images", [float(np.mean(errors))], "≤", 0.05, "", 3),
    ]
    return report.save()


def _lost(cells: Sequence[dict[str, Any]], name: str, chosen: Callable[[dict[str, Any]], tuple[str, str]]) -> float:
    """The mean over a set's draws of what a choice loses against the best, in percentage points."""
    found = []
    for cell in cells:
        if cell["key"][0] == name:
            of = {
                (stage, head): each["test"][0]
                for stage, own in cell["stages"].items()
                for head, each in own["heads"].items()
            }
            found.append(100 * (max(of.values()) - of[chosen(cell)]))
    return float(np.mean(found))


def _is_covered(cell: dict[str, Any]) -> bool:
    """True if the accuracy of what auto chooses is in the range that it says in advance."""
    stage, head = SHIPPED.chosen(cell)
    own = cell["stages"][stage]
    share = own["heads"][head]["cv"][0]
    measured = wilson(round(share * cell["images"]), cell["images"])
    low, high = min(measured[0], own["probe"][2]), max(measured[1], own["probe"][3])
    return low <= own["heads"][head]["test"][0] <= high


def _cells(root: Path, file: Path) -> Iterator[dict[str, Any]]:
    """The evidence and the held-out accuracy of every cut and head, kept in a file, as each draw takes minutes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = file.read_text().splitlines() if file.exists() else []
    known = {json.dumps(cell["key"]): cell for cell in map(json.loads, lines)}
    for count, draws in DRAWS:
        for name, seed in product(NAMES, range(draws)):
            data = load_set(root, name)
            if count > DRAWS[0][0] and count // 2 > len(data.pool):
                continue  # the whole set was drawn before
            key = json.dumps([name, count, seed])
            if key not in known:
                known[key] = _measured(data, count, seed)
                with file.open("a") as text:
                    text.write(json.dumps(known[key]) + "\n")
                print(key, file=sys.stderr, flush=True)
            yield known[key]


def _measured(data: Set, count: int, seed: int) -> dict[str, Any]:
    trunk, features, place, test = seen_in_part(BACKBONES[0], data)
    drawn = data.draw(min(count, len(data.pool)), seed)
    rows = drawn[: int(0.8 * len(drawn))]
    labels, classes = data.labels[rows], len(data.classes)
    few = stratified(labels, np.ones(len(labels), bool), FEW, 0)
    stages = {}
    for number in reversed(range(min(SKIPPED, len(trunk.names) - 1), len(trunk.names))):
        mine, theirs = (np.ascontiguousarray(features.at(trunk.names[number])[place[each]]) for each in (rows, test))
        probe = ridge(mine, labels, classes)
        own: dict[str, Any] = {}
        for head in HEADS:
            component = load_plugins().get("head", head)
            solved = component.solve(mine, labels, classes, 0)
            found = score(softmax(head_logits(solved, theirs)), data.labels[test])
            cheaper = solved if len(few) == len(rows) else component.solve(mine[few], labels[few], classes, 0)
            own[head] = {
                "cv": _evidence(solved),
                "cv of few": _evidence(cheaper),
                "test": [found.balanced_accuracy, found.log_loss, found.ece],
            }
        stages[trunk.names[number]] = {
            "probe": [probe.balanced_accuracy, probe.log_loss, *probe.interval],
            "heads": own,
        }
    return {"key": [data.name, count, seed], "images": len(rows), "stages": stages}


def _evidence(solved: Any) -> list[float]:
    return [float(solved.report["cv_balanced_accuracy"]), float(solved.report["cv_log_loss"])]
