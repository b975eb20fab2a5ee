"""`tlkit verify`: whether it finds every planted fault, and is silent where there is none.

Every standard backbone with every standard head is exported in every precision and verified (false alarms). Then each
fault of `tests/deploy/faults.py` is planted into EfficientNet-Lite0's model in every precision, recorded as if it had
been exported so, and verified; so is a session that drops the last batch.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from _bench import ROOT, TLKIT, Bar, Report, parser, run, workroom

sys.path.insert(0, str(ROOT))
from demo.digits import write
from tests.deploy.faults import FAULTS, Drops, planted
from tests.tiny import resign
from tlkit.deploy.verify import replay
from tlkit.model.bundle import open_bundle

BACKBONES = ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2")
HEADS = ("logistic", "svm", "rbf-svm", "knn", "nearest-mean", "mlp")
PRECISIONS = ("fp32", "fp16", "int8")
GATE = 6  # the exit code of a verdict that failed


def main() -> int:
    options = parser(__doc__, repeat=1)
    options.add_argument("--per-class", type=int, default=10, help="handwritten digits of each class to train on")
    args = options.parse_args()
    report = Report(
        "faults",
        "`tlkit verify` on scikit-learn's handwritten digits: every standard backbone, head and precision without a "
        "fault; and EfficientNet-Lite0 with a logistic head with each fault planted.",
        {"per class": args.per_class},
    )
    alarms: list[str] = []
    missed: list[str] = []
    tried = 0
    with workroom() as work:
        write(work / "photos", args.per_class)
        for backbone in BACKBONES:
            for head in HEADS:
                bundle = work / f"{backbone}-{head}"
                chosen = ["--strategy", "frozen", "--backbone", backbone, "--head", head]
                run([TLKIT, "train", str(work / "photos"), "-o", str(bundle), *chosen])
                alarms += _alarms(bundle, report)
        bundle = work / f"{BACKBONES[0]}-{HEADS[0]}"
        for precision in PRECISIONS:
            found, lost = _planted(bundle, work / "planted", precision)
            tried += len(found) + len(lost)
            missed += [f"{name}, {precision}" for name in lost]
    report.figures |= {"false alarms": alarms, "missed": missed, "planted": [*FAULTS, "a dropped last batch"]}
    count = len(BACKBONES) * len(HEADS) * len(PRECISIONS)
    report.bars.append(Bar(f"false alarms in {count} exports", [len(alarms)], "=", 0, digits=0))
    report.bars.append(Bar(f"planted faults found, of {tried}", [tried - len(missed)], "=", tried, digits=0))
    report.rows += [
        {"fault": name, "missed in": ", ".join(p for p in missed if p.startswith(name)) or "none"} for name in FAULTS
    ]
    return report.save()


def _alarms(bundle: Path, report: Report) -> list[str]:
    """The precisions in which verify finds something, with what it says."""
    for precision in PRECISIONS:
        run([TLKIT, "export", str(bundle), "--onnx", "--precision", precision])
    done = subprocess.run([TLKIT, "verify", str(bundle), "--json"], capture_output=True, text=True, check=False)
    if done.returncode not in (0, GATE):
        sys.exit(f"verify failed: {done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    if set(found) != {f"onnx/{precision}" for precision in PRECISIONS}:
        sys.exit(f"verified {sorted(found)}")
    alarms = [f"{bundle.name}, {place}" for place, verdict in found.items() if not verdict["passed"]]
    report.figures.setdefault("verified", []).extend(f"{bundle.name}, {place}" for place in found)
    return alarms


def _planted(bundle: Path, place: Path, precision: str) -> tuple[list[str], list[str]]:
    """The faults that verify finds, and those that it does not; what changes nothing in this model is left out."""
    found: list[str] = []
    missed: list[str] = []
    for name in FAULTS:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(bundle, place)
        if not planted(name, place / "onnx" / precision / "model.onnx"):
            continue
        resign(place, "model.onnx", precision)
        passed = replay(open_bundle(place), "onnx", precision).passed
        (missed if passed else found).append(name)
    passed = replay(open_bundle(bundle), "onnx", precision, Drops).passed
    (missed if passed else found).append("a dropped last batch")
    return found, missed


if __name__ == "__main__":
    sys.exit(main())
