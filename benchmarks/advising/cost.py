"""The time of advice in passes over the images, a pass being the features of all stages through the runtime."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from _bench import Bar, Report, spread, workspace

import tlkit
from advising.sets import BACKBONES, backbone, quiet, table
from advising.sets import load as load_set
from tlkit.data import dataset
from tlkit.graph import trace
from tlkit.graph.moments import moments_graph
from tlkit.model import trunk as trunks
from tlkit.model.batchnorm import pretraining_statistics
from tlkit.runtime.features import extract
from tlkit.util.files import cache_dir

SIZES = [("ants_bees", 244), ("cifar10", 500), ("cifar10", 2000), ("sign_digits", 1500)]


def cost(root: Path, repeat: int) -> int:
    report = Report(
        "advise-cost",
        "The time of `advise` (in one process, imports and the export of the trunk aside) against one pass over the "
        "same images: the features of all stages through the deployed runtime. Neither features nor shifts are known.",
        {"backbone": BACKBONES[0], "turns": repeat},
    )
    ratios: list[float] = []
    with workspace() as room:
        trunk = trunks.build(backbone(BACKBONES[0]))
        graph = trace.stage_graph(trunk)
        moments_graph(graph, pretraining_statistics(trunk))
        for each, count in SIZES:
            data = load_set(root, each)
            source = table(room / "set.csv", data, all=data.draw(count, 0))
            paths = [sample.path for sample in dataset.read(source).of("train")]
            one_pass = partial(extract, paths, graph, trunk.preprocessing, trunk.names, None, quiet)
            passes, advices = [], []
            for _ in range(repeat):
                passes.append(_timed(one_pass))
                advices.append(_timed(partial(tlkit.advise, source, backbones=BACKBONES[:1])))
            own = [one / other for one, other in zip(advices, passes, strict=True)]
            if count >= 500:
                ratios += own
            report.figures[f"{each} {count}"] = {"pass": passes, "advise": advices}
            report.rows.append(
                {
                    "data": f"{each}, {len(paths)} images to learn from",
                    "a pass": spread(passes, 2, " s"),
                    "advise": spread(advices, 2, " s"),
                    "passes": spread(own),
                }
            )
            print(report.rows[-1], file=sys.stderr, flush=True)
    report.bars.append(Bar("passes that advice takes, from 400 images to learn from on", ratios, "≤", 1.5, "x"))
    report.notes.append("On fewer images what does not grow with them (a few heads to solve) weighs more.")
    return report.save()


def _timed(what: Callable[[], object]) -> float:
    """Seconds it takes with no feature and no domain shift known, but with the trunk's graphs there."""
    for name in ("features", "domain-shifts"):
        shutil.rmtree(cache_dir(name))
    started = time.perf_counter()
    what()
    return time.perf_counter() - started
