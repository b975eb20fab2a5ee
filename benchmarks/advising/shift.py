"""On which side of alike and unlike each data set falls with each backbone, and from how many images on."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

from _bench import Bar, Report, spread

from advising.sets import BACKBONES, NAMES, backbone
from advising.sets import load as load_set
from tlkit.deploy import export
from tlkit.deploy.moments import moments_graph
from tlkit.learn.advise.shift import ALIKE, UNLIKE, Moments
from tlkit.model import trunk as trunks
from tlkit.model.norms import norms

SIDES = {"ants_bees": "alike", "sign_digits": "unlike", "cifar10": "unlike", "fashion_mnist": "unlike"}


def shift(root: Path, repeat: int) -> int:
    report = Report(
        "advise-shift",
        "How far each data set is from the images of the pretraining, and on which side of the borders that falls: "
        f"alike below {ALIKE}, unlike above {UNLIKE}. The median symmetric KL divergence over channels and layers, "
        f"over {repeat} draws of images; in brackets the least and the greatest.",
        {"backbones": ", ".join(BACKBONES), "draws": repeat, "seed": 0},
    )
    right, margins, wrong = [], [], 0
    for name in BACKBONES:
        trunk = trunks.build(backbone(name))
        remembered = norms(trunk)
        graph = moments_graph(export.taps_graph(trunk), remembered)
        for each in NAMES:
            data = load_set(root, each)
            values, sides = {}, []
            for count in (32, 96):
                found = []
                for seed in range(repeat):
                    moments = Moments(remembered)
                    moments.look(graph, trunk.pixels, [data.files[row] for row in data.draw(count, seed)])
                    found.append(moments.shift(seed))
                values[count] = [float(one.overall or 0.0) for one in found]
                sides += [one.likeness for one in found]
            worst = max(values[96]) if SIDES[each] == "alike" else min(values[96])
            margin = ALIKE / worst if SIDES[each] == "alike" else worst / UNLIKE
            wrong += ("unlike" if SIDES[each] == "alike" else "alike") in sides
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
