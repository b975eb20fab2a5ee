"""On which side of similar and different each data set falls with each backbone, and from how many images on."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import numpy as np
from _bench import Bar, Report, spread

from advising.sets import BACKBONES, NAMES, backbone
from advising.sets import load as load_set
from tlkit.advice.domain_shift import ActivationMoments, DomainShift, ShiftPolicy
from tlkit.graph import trace
from tlkit.graph.moments import MEAN, SQUARE, moments_graph
from tlkit.model import trunk as trunks
from tlkit.model.batchnorm import pretraining_statistics

SIDES = {"ants_bees": "similar", "sign_digits": "different", "cifar10": "different", "fashion_mnist": "different"}

POLICY = ShiftPolicy()
COUNTS = (8, 16, 32, 64, 96, 192)
DRAWS, ALL = 20, 384  # draws of each count, out of so many images


def shift(root: Path, repeat: int) -> int:
    return max(_sides(root, repeat), _stability(root))


def _sides(root: Path, repeat: int) -> int:
    report = Report(
        "advise-shift",
        "How far each data set is from the images of the pretraining, and on which side of the borders that falls: "
        f"similar below {POLICY.similar_below}, different above {POLICY.different_above}. The median symmetric KL "
        f"divergence over channels and layers, over {repeat} draws of images; in brackets the minimum and the maximum.",
        {"backbones": ", ".join(BACKBONES), "draws": repeat, "seed": 0},
    )
    right, margins, wrong = [], [], 0
    for name in BACKBONES:
        trunk = trunks.build(backbone(name))
        remembered = pretraining_statistics(trunk)
        graph = moments_graph(trace.stage_graph(trunk), remembered)
        for each in NAMES:
            data = load_set(root, each)
            values, sides = {}, []
            for count in (32, 96):
                found = []
                for seed in range(repeat):
                    moments = ActivationMoments(remembered)
                    moments.collect(graph, trunk.preprocessing, [data.files[row] for row in data.draw(count, seed)])
                    found.append(moments.shift(seed))
                values[count] = [float(one.overall or 0.0) for one in found]
                sides += [one.domain for one in found]
            worst = max(values[96]) if SIDES[each] == "similar" else min(values[96])
            margin = POLICY.similar_below / worst if SIDES[each] == "similar" else worst / POLICY.different_above
            wrong += ("different" if SIDES[each] == "similar" else "similar") in sides
            right += [float(side == SIDES[each]) for side in sides]
            margins.append(margin)
            last = found[-1].stages
            report.figures[f"{name} {each}"] = {"shift": values, "sides": sides, "stages": last}
            report.rows.append(
                {
                    "backbone": name,
                    "data": each,
                    "32 images": spread(values[32], 3),
                    "96 images": spread(values[96], 3),
                    "side": SIDES[each],
                    "said": ", ".join(f"{side} {sides.count(side)}" for side in sorted(set(sides))),
                    "times beyond the border": f"{margin:.2f}",
                    "first, middle, last stage": ", ".join(
                        f"{list(last.values())[place]:.2f}" for place in (0, len(last) // 2, -1)
                    ),
                }
            )
            print(report.rows[-1], file=sys.stderr, flush=True)
    report.bars.append(Bar("sets that were ever said to lie on the wrong side", [wrong], "=", 0, "", 0))
    report.bars.append(Bar("least margin, times beyond the border at 96 images", [min(margins)], "≥", 1, "x"))
    report.notes.append(
        f"{100 * statistics.mean(right):.0f} % of all draws are said to lie on their side, the rest unclear."
    )
    report.notes.append(
        "No set of ImageNet's own kind but ants_bees is at hand here; what lies between is not covered."
    )
    return report.save()


def _stability(root: Path) -> int:
    """Difference of the shift of a few images from that of all, and the domains that follow."""
    report = Report(
        "advise-shift-images",
        f"The shift from a few images against that from all of those at hand, {ALL} at the most: by how much {DRAWS} "
        "draws differ, median and greatest, and what is said of them.",
        {"backbone": BACKBONES[0], "draws": DRAWS, "seed": 0},
    )
    trunk = trunks.build(backbone(BACKBONES[0]))
    remembered = pretraining_statistics(trunk)
    graph = moments_graph(trace.stage_graph(trunk), remembered)
    off: dict[int, list[float]] = {count: [] for count in COUNTS}
    wrong: dict[int, int] = dict.fromkeys(COUNTS, 0)
    for each in NAMES:
        data = load_set(root, each)
        seen = _Kept(remembered)
        seen.collect(graph, trunk.preprocessing, [data.files[row] for row in data.draw(ALL, 0)])
        whole = seen.some(np.arange(seen.count), 0)
        row = {"data": f"{each}, {seen.count} images: {whole.overall:.3f}"}
        for count in COUNTS:
            rows = [np.random.default_rng([seed, count]).permutation(seen.count)[:count] for seed in range(DRAWS)]
            found = [seen.some(drawn, seed) for seed, drawn in enumerate(rows)]
            away = [abs(float(one.overall or 0.0) / float(whole.overall or 1.0) - 1.0) for one in found]
            sides = [one.domain for one in found]
            off[count] += away
            wrong[count] += sides.count("different" if SIDES[each] == "similar" else "similar")
            unclear = sides.count("unclear")
            said = "" if not unclear else f", {unclear} of {DRAWS} unclear"
            row[f"{count} images"] = f"{statistics.median(away):.0%}, {max(away):.0%}{said}"
            report.figures[f"{each} {count}"] = {"off": away, "sides": sides}
        report.rows.append(row)
        print(row, file=sys.stderr, flush=True)
    every = {f"{count} images": f"{statistics.median(off[count]):.0%}, {max(off[count]):.0%}" for count in COUNTS}
    report.rows.append({"data": "all"} | every)
    told = [wrong[count] for count in COUNTS if count >= POLICY.min_images]
    report.bars.append(
        Bar(f"draws of {POLICY.min_images} images or more said to lie on the wrong side", [max(told)], "=", 0, "", 0)
    )
    report.bars.append(
        Bar(
            f"median difference at {POLICY.min_measured} images, percent",
            [100 * statistics.median(off[POLICY.min_measured])],
            "≤",
            10,
        )
    )
    return report.save()


class _Kept(ActivationMoments):
    """Keeps what the graph gave for each image, to draw from."""

    def some(self, rows: np.ndarray, seed: int) -> DomainShift:
        """The shift of a few of the images seen."""
        few = ActivationMoments(self.norms)
        for index, parts in self._parts.items():
            means, squares = (np.concatenate(side)[rows] for side in zip(*parts, strict=True))
            few.add({f"{MEAN}{index}": means, f"{SQUARE}{index}": squares})
        return few.shift(seed)

    @property
    def count(self) -> int:
        return sum(len(means) for means, _ in next(iter(self._parts.values())))
