"""A bundle at any time: how soon `tlkit train` writes the first usable one, and what is there when it is killed.

The first run has an empty cache: importing PyTorch and reading every image are part of its time. The standard backbones
come with their graph for images of their own size, and of some others; at 232 pixels, the network has to be traced as
well. Then `tlkit train --budget` is killed at random moments after the first bundle is in place, and resumed, again and
again; each time the bundle is opened, with all its hashes, and its golden images go through its modules. At the end it
is resumed once more, and compared with a run that nobody killed.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from _bench import DATA, SETTINGS, TLKIT, Bar, Report, existing, parsed, parser, run, shown, spread, workspace

from tlkit.data.preprocessing import load
from tlkit.model.bundle import RECORD, Bundle, open_bundle
from tlkit.model.modules import load_modules, run_modules
from tlkit.plugin.contract import FEATURES
from tlkit.plugin.registry import load as load_plugins

LONGEST = 20.0  # seconds to a kill, from the start of a process or its first bundle
SIZE = 232  # pixels of the input, at which no backbone comes with a graph
WITHIN = 1e-3  # of the greatest feature, from one batch size to another


def main() -> int:
    options = parser(__doc__, repeat=3)
    options.add_argument("--data", type=Path, default=DATA / "ants_bees", help="a folder of labelled images")
    options.add_argument("--kills", type=int, default=20, help="how often it is killed")
    options.add_argument("--budget", default="none", help="of the run that is killed")
    options.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parsed(options, kills=0, budget="none")
    data = existing(args.data, "--data")
    report = Report(
        "anytime",
        (__doc__ or "").split("\n\n")[1].replace("\n", " "),
        {"data": shown(data), "turns": args.repeat, "kills": args.kills, "budget": args.budget},
    )
    with workspace() as work:
        first, traced = list[float](), list[float]()
        for turn in range(args.repeat):
            first.append(_first(data, work / f"first-{turn}"))
            if not SETTINGS.smallest:
                traced.append(_first(data, work / f"traced-{turn}", "--size", str(SIZE)))
        report.figures |= {"seconds to the first bundle": first, f"at {SIZE} pixels, traced": traced}
        report.bars.append(Bar("seconds to the first usable bundle, empty cache", first, "≤", 12, " s"))
        found = _killed(data, work / "killed", args.kills, args.budget, random.Random(args.seed))
        report.figures["after each kill"] = found
        accuracies = [each["accuracy"] for each in found]
        pairs = itertools.pairwise(found)
        worse = sum(one["run"] == other["run"] and one["accuracy"] > other["accuracy"] for one, other in pairs)
        report.bars.append(Bar("kills that left no valid bundle", [sum(not each["valid"] for each in found)], "=", 0))
        report.bars.append(Bar("times that it was worse on val than before", [worse], "=", 0))
        line = [TLKIT, "train", str(data), "--budget", args.budget, "--backbone", SETTINGS.backbone, "-o"]
        run([*line, str(work / "killed"), *(["--resume"] if args.kills else [])])
        run([*line, str(work / "whole")])
        ends = [open_bundle(work / name) for name in ("killed", "whole")]
        report.bars.append(Bar("runs whose end differs from that of a run nobody killed", [_differ(*ends)], "=", 0))
        report.rows.append(
            {
                "seconds to the first bundle": spread(first),
                f"at {SIZE} pixels, traced": spread(traced) if traced else "-",
                "kills": str(len(found)),
                "of these with a valid bundle": str(sum(each["valid"] for each in found)),
                "accuracy on val, first and last": f"{accuracies[0]:.1%}, {accuracies[-1]:.1%}" if found else "-",
                "at the end": f"{ends[0].record.strategy.name}, {ends[0].record.metrics['val']['accuracy']:.1%}",
            }
        )
        report.notes.append(
            "Each kill is SIGKILL, up to 20 seconds after the start of a resumed run, or after the first bundle."
        )
    return report.save()


def _differ(one: Bundle, other: Bundle) -> int:
    return int(one.digest != other.digest)


def _first(data: Path, out: Path, *more: str) -> float:
    """The seconds from the start of a process to the moment at which its first bundle is there."""
    line = [TLKIT, "train", str(data), "-o", str(out), "--backbone", SETTINGS.backbone, *more]
    if SETTINGS.smallest:
        return run(line).seconds
    shutil.rmtree(os.environ["TLKIT_CACHE"], ignore_errors=True)
    started = time.perf_counter()
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not (out / RECORD).exists():
            if process.poll() not in (None, 0):
                sys.exit(f"this failed with exit code {process.returncode}: {' '.join(line)}")
            time.sleep(0.005)
        return time.perf_counter() - started


def _killed(data: Path, out: Path, kills: int, budget: str, moments: random.Random) -> list[dict[str, Any]]:
    """Return what is there after each kill of a training that is resumed after it."""
    found = list[dict[str, Any]]()
    line = [TLKIT, "train", str(data), "-o", str(out), "--backbone", SETTINGS.backbone, "--budget", budget, "--resume"]
    number = 0  # of the run: one that ends before it is killed is followed by another
    while len(found) < kills:
        with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and not (out / RECORD).exists():
                time.sleep(0.005)
            wait = moments.uniform(0.0, LONGEST)
            end = time.perf_counter() + wait
            while process.poll() is None and time.perf_counter() < end:
                time.sleep(0.005)
            killed = process.poll() is None
            process.kill()
        if killed:
            found.append({"run": number, "seconds": wait, **_state(out)})
            print(found[-1], file=sys.stderr, flush=True)
        else:
            number += 1
            shutil.rmtree(out)
    return found


def _state(out: Path) -> dict[str, Any]:
    """Return whether a bundle is valid, by its hashes and golden images, and its accuracy on the validation images."""
    try:
        bundle = open_bundle(out)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with it is the result
        return {"valid": False, "accuracy": 0.0, "reason": str(error)}
    plugins = load_plugins()
    record = bundle.record
    modules = load_modules(bundle, plugins.get("backbone", record.backbone.name), plugins.get("head", record.head.name))
    images = np.stack([load(content, record.preprocessing) for content in bundle.golden_bytes()])
    got, expected = run_modules(*modules, images)[FEATURES], bundle.expected()[FEATURES]
    close = float(np.abs(got - expected).max() / np.abs(expected).max()) < WITHIN
    return {"valid": close, "accuracy": record.metrics["val"]["accuracy"], "strategy": record.strategy.name}


if __name__ == "__main__":
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    sys.exit(main())
