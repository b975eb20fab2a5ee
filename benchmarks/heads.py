"""Heads in core operators against skl2onnx's `ai.onnx.ml` graphs of the same pipelines, at batch 1 and 64.

The time of a call, and how many labels are not scikit-learn's own, on the features that EfficientNet-Lite0 has of a
folder of images.
"""

from __future__ import annotations

import csv
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from _bench import (
    DATA,
    PYTHON,
    RIVALS,
    SETTINGS,
    TLKIT,
    Bar,
    Report,
    existing,
    exported,
    parsed,
    parser,
    ratios,
    run,
    shown,
    spread,
    workspace,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

LIMITS = {"1": 4.0, "64": 10.0}


def main() -> int:
    options = parser(__doc__, repeat=5)
    options.add_argument("--images", type=Path, default=DATA / "sign_digits", help="class folders of images")
    args = parsed(options)
    images = existing(args.images, "--images")
    report = Report(
        "heads",
        "An RBF support vector machine, alone and behind PCA, fitted by tlkit and by scikit-learn with the same "
        "settings; run by ONNX Runtime as tlkit exports it (core operators) and as skl2onnx does (`ai.onnx.ml`).",
        {"images": shown(images), "turns": args.repeat},
    )
    with workspace() as work:
        features, labels = work / "features.npy", work / "labels.npy"
        run([TLKIT, "embed", str(exported(work)), str(images), "-o", str(features)])
        with Path(f"{features}.csv").open(newline="") as stream:
            names = [Path(row["path"]).parent.name for row in csv.DictReader(stream)]
        np.save(labels, np.unique(names, return_inverse=True)[1])
        lacking = None if find_spec("skl2onnx") else "skl2onnx is not installed: tlkit's side alone was measured"
        script = [PYTHON, str(RIVALS / "head_speed.py"), str(features), str(labels), str(args.repeat)]
        script += ["--seconds", "0.02" if SETTINGS.smallest else "0.5", *(["--alone"] if lacking else [])]
        found = json.loads(run(script).output)
    if lacking:
        report.notes.append(lacking)
    for name, facts in found.items():
        _add(report, name, facts)
    return report.save()


def _add(report: Report, name: str, facts: Mapping[str, object]) -> None:
    report.figures[name] = facts
    times = facts["ms"]
    assert isinstance(times, dict)  # noqa: S101 - our own JSON
    for batch, sides in times.items():
        row = {"": f"{name}, batch {batch}"}
        row |= {f"{side}, ms per call": spread(values, 3) for side, values in sides.items()}
        if "skl2onnx" in sides:
            faster = ratios(sides["skl2onnx"], sides["tlkit"])
            row["skl2onnx / tlkit"] = spread(faster, 1, "x")
            report.bars.append(Bar(f"{name}, batch {batch}", faster, "≥", LIMITS[batch], "x"))
        report.rows.append(row)
    differ = facts["labels that differ"]
    assert isinstance(differ, dict)  # noqa: S101
    if "skl2onnx" in differ:
        report.notes.append(f"{name}: labels of skl2onnx's graph that are not scikit-learn's: {differ['skl2onnx']}")
    report.bars.append(
        Bar(f"{name}: labels not scikit-learn's, of {facts['rows']}", [differ["tlkit"]], "=", 0, digits=0)
    )


if __name__ == "__main__":
    sys.exit(main())
