"""Images to label next: those that `tlkit suggest` chooses against as many at random.

Each set begins with two labelled images of each class. In each round twice as many images as there are classes are
labelled, chosen by the rule of `tlkit suggest`, at random or by a simpler rule, and the default head is fitted on all
that are labelled. Features are computed once. The rule has no parameter.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _bench import DATA, SETS, SETTINGS, Bar, Report, existing, parsed, parser, workspace
from advising.sets import Set, backbone, load, quiet
from tlkit_standard.heads import HEADS

from tlkit.graph import trace
from tlkit.model import trunk as trunks
from tlkit.model.modules import head_logits
from tlkit.runtime.features import extract
from tlkit.suggesting.selection import choose, margins, uncertainty
from tlkit.util.statistics import softmax, unit

RULE, RANDOM, MARGIN, CENTERS = "suggested", "random", "smallest margins", "k-center"
FIRST, MORE = 2, 2  # images of each class to begin with, and per class in a round


class Seen(NamedTuple):
    """A set with the deepest features of its images."""

    data: Set
    array: np.ndarray


def main() -> int:
    options = parser(__doc__, repeat=5)
    options.add_argument("--data", type=Path, default=DATA, help="folder of the four sets")
    options.add_argument("--rounds", type=int, default=10, help="rounds of labelling")
    args = parsed(options, rounds=2)
    with workspace():
        return compare([seen(load(existing(args.data, "--data"), name)) for name in SETS], args.rounds, args.repeat)


def seen(data: Set) -> Seen:
    """The features at the size of input that suits the set."""
    print(data.name, len(data.files), file=sys.stderr, flush=True)
    component = backbone(SETTINGS.backbone)
    trunk = trunks.build(component, preprocessing=None if data.size is None else trunks.resized(component, data.size))
    found = extract(data.files, trace.stage_graph(trunk), trunk.preprocessing, trunk.names, trunk.names[-1], quiet)
    return Seen(data, found.array)


def compare(sets: list[Seen], rounds: int, repeat: int) -> int:
    report = Report(
        "suggest",
        "Accuracy on held-out images, mean of all turns, with as many images labelled by `tlkit suggest` as "
        "at random; and the share of the images that need no label to reach what random choice reaches at the end.",
        {"turns": repeat, "rounds": rounds, "head": "logistic", "images to begin with, of each class": FIRST},
    )
    shares = []
    for each in sets:
        curves = {
            name: np.array([list(turn(each, name, rounds, seed)) for seed in range(repeat)])
            for name in (RANDOM, RULE, MARGIN, CENTERS)
        }
        labels, mean = curves[RANDOM][0, :, 0], {name: curve[..., 1].mean(0) for name, curve in curves.items()}
        row = {"set": each.data.name, "classes": str(len(each.data.classes)), "labelled": f"{labels[-1]:.0f}"}
        row |= {f"{name}, at the end": f"{accuracies[-1]:.1%}" for name, accuracies in mean.items()}
        figures = report.figures[each.data.name] = {"labelled": labels.tolist()}
        for name in (RULE, MARGIN, CENTERS):
            ahead = 100 * (curves[name][:, 1:, 1] - curves[RANDOM][:, 1:, 1]).mean(1)
            error = 1.96 * float(ahead.std(ddof=1)) / repeat**0.5 if repeat > 1 else 0.0
            share = saved(labels, mean[name], mean[RANDOM])
            row[f"{name}: points ahead"] = f"{ahead.mean():+.1f} ± {error:.1f}"
            row[f"{name}: images saved"] = f"{share:.0%}"
            figures[name] = {"points ahead": [float(ahead.mean()), error], "images saved": share}
        figures["accuracy"] = {name: accuracies.tolist() for name, accuracies in mean.items()}
        report.rows.append(row)
        shares.append(100 * figures[RULE]["images saved"])
    report.bars.append(Bar("images saved on the worst set", [min(shares)], "≥", 0, " %", 0))
    report.bars.append(Bar("images saved, mean of the sets", [float(np.mean(shares))], "≥", 20, " %", 0))
    report.notes.append("Points ahead: mean over the rounds, with the 95 % interval over turns.")
    return report.save()


def turn(each: Seen, name: str, rounds: int, seed: int) -> Iterator[tuple[int, float]]:
    """Yield the number of labelled images and the accuracy on the test images, round by round."""
    data, normal = each.data, unit(each.array)
    random = np.random.default_rng(seed)
    order = random.permutation(data.pool)
    classes, batch = range(len(data.classes)), MORE * len(data.classes)
    labeled = np.concatenate([order[data.labels[order] == label][:FIRST] for label in classes])
    for number in range(rounds + 1):
        head = HEADS[0].solve(each.array[labeled], data.labels[labeled], len(data.classes), 0)
        right = probabilities(head, each.array[data.test]).argmax(1) == data.labels[data.test]
        yield len(labeled), float(right.mean())
        rest = np.setdiff1d(order, labeled)
        if number == rounds or len(rest) < batch:
            return
        chosen = random.permutation(len(rest))[:batch]
        margin, nearest = margins(probabilities(head, each.array[rest])), 1 - (normal[rest] @ normal[labeled].T).max(1)
        if name == RULE:
            chosen = choose(normal[rest], uncertainty(margin), nearest, batch).rows
        elif name == MARGIN:
            chosen = np.argsort(margin, kind="stable")[:batch]
        elif name == CENTERS:
            chosen = centers(normal[rest], nearest, batch)
        labeled = np.concatenate([labeled, rest[chosen]])


def centers(features: np.ndarray, nearest: np.ndarray, count: int) -> np.ndarray:
    """The images that are farthest from those that are labelled or chosen, one after the other."""
    chosen = list[int]()
    while len(chosen) < count:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, 1 - features @ features[chosen[-1]])
    return np.array(chosen)


def probabilities(head: Any, rows: np.ndarray) -> np.ndarray:
    """The probabilities that a head gives for features."""
    return softmax(head_logits(head.eval(), rows))


def saved(labels: np.ndarray, rule: np.ndarray, rival: np.ndarray) -> float:
    """The share of the labels that a rule can do without to be as accurate as its rival; negative if it needs more."""
    if rule.max() >= rival[-1]:
        return 1 - reached(labels, rule, rival[-1]) / float(labels[-1])
    return reached(labels, rival, rule.max()) / float(labels[-1]) - 1


def reached(labels: np.ndarray, accuracies: np.ndarray, wished: float) -> float:
    """The number of labels with which a curve first reaches an accuracy, between its points in proportion."""
    best = np.maximum.accumulate(accuracies)
    at = int((best >= wished).argmax())
    if at == 0:
        return float(labels[0])
    share = (wished - best[at - 1]) / (best[at] - best[at - 1])
    return float(labels[at - 1] + share * (labels[at] - labels[at - 1]))


if __name__ == "__main__":
    sys.exit(main())
