"""Order of stages, backbones and data sets by each score, against the accuracy of a logistic head."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from _bench import Report
from scipy.stats import spearmanr

from advising.sets import BACKBONES, NAMES, backbone, seen
from advising.sets import load as load_set
from tests.kit.transferability import leep, nce
from tlkit.advice.domain_shift import ActivationMoments, classifier_confidence
from tlkit.advice.probes import nearest_mean, ridge
from tlkit.advice.scores import h_score, logme
from tlkit.graph import trace
from tlkit.graph.moments import moments_graph
from tlkit.model.batchnorm import pretraining_statistics
from tlkit.model.modules import head_logits
from tlkit.plugin.registry import load as load_plugins

SCORES = ("ridge probe", "nearest mean", "LogME", "H-score", "LEEP", "NCE", "shift")


def scores(root: Path, count: int = 500) -> int:
    report = Report(
        "advise-scores",
        f"Rank correlation of each score, from {count} images, with the accuracy of a logistic head on held-out "
        "images: over the stages of a backbone on a data set (mean of these), and over backbones and stages of each "
        "data set. LEEP and NCE need the classifier, so they order backbones only.",
        {"backbones": ", ".join(BACKBONES), "images": count, "seed": 0},
    )
    found: list[dict[str, Any]] = []
    for name in BACKBONES:
        component = backbone(name)
        for each in NAMES:
            data = load_set(root, each)
            trunk, features = seen(component, data)
            rows, classes = data.draw(count, 0), len(data.classes)
            labels = data.labels[rows]
            moments = ActivationMoments(pretraining_statistics(trunk))
            graph = moments_graph(trace.stage_graph(trunk), moments.norms)
            moments.collect(graph, trunk.preprocessing, [data.files[row] for row in rows[:96]])
            distance = moments.shift().stages
            confidence = classifier_confidence(component.classifier(), features.at(trunk.cut)[rows])
            head = load_plugins().get("head", "logistic")
            for stage in trunk.names:
                at = features.at(stage)
                solved = head.solve(at[rows], labels, classes, 0)
                truth = float((head_logits(solved, at[data.test]).argmax(1) == data.labels[data.test]).mean())
                deepest = stage == trunk.names[-1] and confidence is not None
                found.append(
                    {
                        "backbone": name,
                        "data": each,
                        "stage": stage,
                        "accuracy": truth,
                        "ridge probe": ridge(at[rows], labels, classes).balanced_accuracy,
                        "nearest mean": nearest_mean(at[rows], labels, classes).balanced_accuracy,
                        "LogME": logme(at[rows], labels, classes),
                        "H-score": h_score(at[rows], labels),
                        "LEEP": leep(confidence.probabilities, labels, classes) if deepest else None,
                        "NCE": nce(confidence.probabilities.argmax(axis=1), labels) if deepest else None,
                        "shift": -distance[stage] if stage in distance else None,
                    }
                )
            print(name, each, file=sys.stderr, flush=True)
    report.figures["all"] = found
    for score in SCORES:
        within = [_rank(found, score, each, (name,)) for each in NAMES for name in BACKBONES]
        across = [_rank(found, score, each, BACKBONES) for each in NAMES]
        last = [one for one in found if one["stage"] == "last"]
        deepest, pairs = [_rank(last, score, None, BACKBONES)], _pairs(last, score)
        report.figures[score] = {"within": within, "across": across, "deepest": deepest, "pairs": pairs}
        report.rows.append(
            {
                "score": score,
                "stages of one backbone": _shown(within),
                "stages and backbones of one data set": _shown(across),
                "pairs of backbones on one data set, in the right order": f"{sum(pairs)} of {len(pairs)}",
                "deepest stages over backbones and data sets": _shown(deepest),
            }
        )
    report.notes.append(
        "Spearman's rho: mean and, in brackets, the minimum and the maximum. The advice follows the probe."
    )
    return report.save()


def _pairs(last: Sequence[dict[str, Any]], score: str) -> list[bool]:
    """True for each pair of backbones on a data set if the one that a score prefers is more accurate."""
    return [
        (one[score] > other[score]) == (one["accuracy"] > other["accuracy"])
        for one, other in combinations(last, 2)
        if one["data"] == other["data"] and one["accuracy"] != other["accuracy"] and one[score] is not None
    ]


def _rank(found: Sequence[dict[str, Any]], score: str, data: str | None, names: Sequence[str]) -> float | None:
    chosen = [
        one
        for one in found
        if one[score] is not None and one["backbone"] in names and (data is None or one["data"] == data)
    ]
    if len(chosen) < 4:
        return None
    return float(spearmanr([one[score] for one in chosen], [one["accuracy"] for one in chosen]).statistic)


def _shown(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{statistics.mean(known):.2f} ({min(known):.2f} to {max(known):.2f})"
