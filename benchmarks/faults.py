"""Faults that `tlkit verify` finds, of those planted, and alarms where there is none.

- `alarms`: every standard backbone with every standard head is trained on handwritten digits, exported in every
  precision and verified.
- `planted`: each fault of `tests/kit/faults.py` is planted into EfficientNet-Lite0's model in every precision, recorded
  as if it had been exported so, and verified; so is a session that drops the last batch. The images are photographs in
  color: in gray ones red and blue can't be told apart.

Each part writes results of its own.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _bench import DATA, ROOT, SETTINGS, TLKIT, Bar, Report, existing, parsed, parser, run, shown, workspace

sys.path.insert(0, str(ROOT))
from demo.digits import write
from tests.kit.exporting import replayed
from tests.kit.faults import FAULTS, OF_NOVELTY, Drops, caught, planted
from tests.kit.tiny import resign

BACKBONES = ["efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2"]
HEADS = ["logistic", "svm", "rbf-svm", "knn", "nearest-mean", "mlp"]
PRECISIONS = ["fp32", "fp16", "int8"]
GATE = 6  # the exit code of a verdict that failed
PHOTOS = 20  # of each class, for planted
DROPPED = "a dropped last batch"
FOUND, MISSED = "found", "missed"


def main() -> int:
    options = parser(__doc__, repeat=1)
    options.add_argument("parts", nargs="*", default=["alarms", "planted"], metavar="PART", help="alarms, planted")
    options.add_argument("--per-class", type=int, default=10, help="digits of each class to train on")
    options.add_argument("--data", type=Path, default=DATA / "ants_bees/train", help="class folders, for planted")
    args = parsed(options, per_class=4)
    if args.smallest:
        BACKBONES[:], HEADS[:], PRECISIONS[:] = [SETTINGS.backbone], ["line"], ["fp32", "int8"]
    parts: dict[str, Callable[[Any, Path], int]] = {"alarms": alarms, "planted": plant}
    codes = []
    for part in args.parts:
        with workspace() as work:
            codes.append(parts[part](args, work))
    return max(codes)


def alarms(args: Any, work: Path) -> int:
    """Every standard backbone, head and precision without a fault."""
    report = Report(
        "faults-alarms",
        "`tlkit verify` of every standard backbone and head in every precision, without a fault, on scikit-learn's "
        "handwritten digits.",
        {"per class": args.per_class},
    )
    write(work / "photos", args.per_class)
    false: list[str] = []
    for backbone in BACKBONES:
        for head in HEADS:
            bundle = _exported(work, work / "photos", backbone, head)
            false += _alarms(bundle, report)
    report.figures["false alarms"] = false
    count = len(BACKBONES) * len(HEADS) * len(PRECISIONS)
    report.bars.append(Bar(f"false alarms in {count} exports", [len(false)], "=", 0, digits=0))
    return report.save()


def plant(args: Any, work: Path) -> int:
    """One bundle, with each fault in each precision."""
    report = Report(
        "faults-planted",
        "`tlkit verify` of EfficientNet-Lite0 with a logistic head, with each fault planted in each precision, on "
        "photographs in color.",
        {"data": shown(args.data), "per class": PHOTOS},
    )
    for label in sorted(each for each in existing(args.data, "--data").iterdir() if each.is_dir()):
        (work / "photos" / label.name).mkdir(parents=True)
        for file in sorted(label.iterdir())[:PHOTOS]:
            (work / "photos" / label.name / file.name).symlink_to(file)
    bundle = _exported(work, work / "photos", BACKBONES[0], HEADS[0])
    results = {precision: _planted(bundle, work / "planted", precision) for precision in PRECISIONS}
    for name in (*FAULTS, *OF_NOVELTY, DROPPED):
        row = {precision: results[precision].get(name, "changes nothing") for precision in PRECISIONS}
        report.rows.append({"fault": name, **row})
    verdicts = [verdict for found in results.values() for verdict in found.values()]
    report.figures |= {"verdicts": results}
    report.bars.append(
        Bar(f"planted faults found, of {len(verdicts)}", [verdicts.count(FOUND)], "=", len(verdicts), digits=0)
    )
    report.notes.append("EfficientNet-Lite0 normalizes the three channels equally: their order changes nothing.")
    return report.save()


def _exported(work: Path, photos: Path, backbone: str, head: str) -> Path:
    """A bundle of a frozen trunk, exported in every precision."""
    bundle = work / f"{backbone}-{head}"
    chosen = ["--strategy", "frozen", "--backbone", backbone, "--head", head]
    run([TLKIT, "train", str(photos), "-o", str(bundle), *chosen])
    for precision in PRECISIONS:
        run([TLKIT, "export", str(bundle), "--onnx", "--precision", precision])
    return bundle


def _alarms(bundle: Path, report: Report) -> list[str]:
    """The precisions in which verify finds something."""
    done = subprocess.run([TLKIT, "verify", str(bundle), "--json"], capture_output=True, text=True, check=False)
    if done.returncode not in (0, GATE):
        sys.exit(f"verify failed: {done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    if set(found) != {f"onnx/{precision}" for precision in PRECISIONS}:
        sys.exit(f"verified {sorted(found)}")
    alarms = [f"{bundle.name}, {place}" for place, verdict in found.items() if not verdict["passed"]]
    report.figures.setdefault("verified", []).extend(f"{bundle.name}, {place}" for place in found)
    return alarms


def _planted(bundle: Path, place: Path, precision: str) -> dict[str, str]:
    """The verdict on each fault; one that changes nothing in this model is left out."""
    found: dict[str, str] = {}
    for name in (*FAULTS, *OF_NOVELTY):
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(bundle, place)
        if not planted(name, place / "onnx" / precision / "model.onnx"):
            continue
        resign(place, "model.onnx", precision)
        found[name] = MISSED if replayed(place, precision).passed else FOUND
    found[DROPPED] = FOUND if caught(lambda: replayed(bundle, precision, session=Drops)) else MISSED
    return found


if __name__ == "__main__":
    sys.exit(main())
