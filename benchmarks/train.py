"""Train a classifier: `tlkit train --strategy frozen` against fastai's `fine_tune(4)`, same weights, whole processes.

tlkit runs four times per turn: with an empty cache, with the exported trunk in the cache but no features, with another
head on features that are there, and without options: `auto`, which begins with the same and goes on for as long as it
finds something better. What that last one does after start-up is timed in a process of its own,
which imports `tlkit.training.run` (and PyTorch with it), starts the clock, and runs the same command line; plugins and
scikit-learn are imported after that, so they count as work.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from _bench import (
    CACHE,
    DATA,
    PYTHON,
    RIVALS,
    SETTINGS,
    TLKIT,
    Bar,
    Report,
    Run,
    cpu,
    existing,
    interleave,
    missing,
    parsed,
    parser,
    ratios,
    run,
    seconds,
    shown,
    spread,
    weights,
    workspace,
)

FIRST, EXPORTED, OTHER, WORK, AUTO = (
    "tlkit, very first run",
    "tlkit, trunk exported before",
    "tlkit, other head on cached features",
    "the same, after imports",
    "tlkit without options, very first run",
)
FASTAI = "fastai, fine_tune(4)"
FROZEN = ("--strategy", "frozen")

AFTER_IMPORTS = """
import sys, time
import tlkit.training.run
from tlkit.cli import run
started = time.perf_counter()
code = run(sys.argv[1:])
print(time.perf_counter() - started)
sys.exit(code)
"""


def main() -> int:
    options = parser(__doc__, repeat=5)
    options.add_argument("--data", type=Path, default=DATA / "ants_bees", help="a folder with train/ and val/")
    options.add_argument("--head", default="svm", help="the other head (default: svm)")
    options.add_argument("--fastai", type=int, default=1, metavar="N", help="runs of fastai, minutes each (default: 1)")
    args = parsed(options, head="line")
    data = existing(args.data, "--data")
    report = Report(
        "train",
        "From a folder of images to a classifier on EfficientNet-Lite0 with the same weights, train and val as given: "
        "`tlkit train --strategy frozen` to a bundle; `tlkit train` without options, until it finds nothing better; "
        "and fastai's quick start, `vision_learner` and `fine_tune(4)` at 224 pixels (`rivals/fastai_train.py`).",
        {"data": shown(data), "other head": args.head, "turns": args.repeat, "fastai runs": args.fastai},
    )
    with workspace() as work:
        tlkit = Tlkit(data, work, args.head)
        ours = interleave(
            {
                FIRST: tlkit.first,
                EXPORTED: tlkit.exported,
                OTHER: tlkit.other,
                WORK: tlkit.work,
                AUTO: tlkit.auto,
            },
            args.repeat,
        )
        lacking = missing("fastai", "timm")
        theirs = [] if lacking else _fastai(data, work, args.fastai)

    for side in (FIRST, EXPORTED, OTHER, AUTO):
        _add(report, side, ours[side])
    _add_work(report, ours[WORK], ours[OTHER], args.head)
    accuracy = [100 * _result(each)["metrics"]["accuracy"] for each in ours[FIRST]]
    report.bars.append(Bar("accuracy on val", accuracy, "≥", 94, " %", 1))
    if lacking:
        report.notes.append(f"fastai: {lacking}")
    else:
        _add_fastai(report, theirs, ours)
    return report.save()


def _fastai(data: Path, work: Path, turns: int) -> list[Run]:
    run([PYTHON, "-c", "import fastai.vision.all"])  # so that no run reads packages from a cold disk
    fastai = [PYTHON, str(RIVALS / "fastai_train.py"), str(data), str(weights(work))]
    return interleave({FASTAI: lambda: run(fastai)}, turns)[FASTAI]


def _add_fastai(report: Report, theirs: list[Run], ours: dict[str, list[Run]]) -> None:
    accuracies = [json.loads(each.output) for each in theirs]
    best, last = [max(each) for each in accuracies], [each[-1] for each in accuracies]
    report.figures[FASTAI] = {"seconds": seconds(theirs), "CPU seconds": cpu(theirs), "accuracy by epoch": accuracies}
    report.rows.append(
        {
            "": FASTAI,
            "seconds": spread(seconds(theirs), 1),
            "CPU seconds": spread(cpu(theirs), 1),
            "accuracy on val": f"best epoch {_percent(best)}, last {_percent(last)}",
        }
    )
    report.notes.append(
        f"fastai ran {len(theirs)} time(s), after tlkit's turns, on the same machine; each of tlkit's runs is compared "
        "with it. Its accuracy is that after the best of its epochs, which one would have to know, and after the last."
    )
    for what, side, limit in (
        ("times as fast as fastai, very first run", FIRST, 12),
        ("the same, trunk exported before", EXPORTED, 25),
    ):
        report.bars.append(Bar(what, ratios(seconds(theirs), seconds(ours[side])), "≥", limit, "x", 1))


def _add_work(report: Report, work: list[Run], other: list[Run], head: str) -> None:
    work_seconds = [float(each.output.splitlines()[-1]) for each in work]
    decoded = [json.loads(each.output)["decoded"] for each in other]
    report.figures["seconds of work after imports"] = work_seconds
    report.notes.append(
        f"The work of a second head is what `tlkit train --head {head}` takes once `tlkit.training.run`, and "
        "PyTorch with it, is imported; plugins and scikit-learn are imported within it."
    )
    report.bars += [
        Bar("images decoded for another head", decoded, "=", 0, "", 0),
        Bar("seconds of work for another head", work_seconds, "<", 5, " s"),
    ]


class Tlkit:
    """`tlkit train` with the cache in the state that is to be measured."""

    def __init__(self, data: Path, work: Path, head: str) -> None:
        self.data = data
        self.bundle = work / "run"
        self.cache = work / CACHE
        self.head = head

    def first(self) -> Run:
        shutil.rmtree(self.cache, ignore_errors=True)
        return self._train([TLKIT], *FROZEN)

    def exported(self) -> Run:
        shutil.rmtree(self.cache / "features")
        return self._train([TLKIT], *FROZEN)

    def other(self) -> Run:
        return self._train([TLKIT], *FROZEN, "--head", self.head)

    def work(self) -> Run:
        return self._train([PYTHON, "-c", AFTER_IMPORTS], *FROZEN, "--head", self.head)

    def auto(self) -> Run:
        shutil.rmtree(self.cache, ignore_errors=True)
        return self._train([TLKIT])

    def _train(self, tlkit: list[str], *more: str) -> Run:
        shutil.rmtree(self.bundle, ignore_errors=True)
        chosen = ["--backbone", SETTINGS.backbone, *more]
        return run([*tlkit, "train", str(self.data), "-o", str(self.bundle), "--json", *chosen])


def _result(done: Run) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(done.output)
    return result


def _add(report: Report, side: str, runs: list[Run]) -> None:
    results = [_result(each) for each in runs]
    accuracies = [result["metrics"]["accuracy"] for result in results]
    decoded = [result["decoded"] for result in results]
    report.figures[side] = {
        "seconds": seconds(runs),
        "CPU seconds": cpu(runs),
        "accuracy": accuracies,
        "decoded": decoded,
    }
    report.rows.append(
        {
            "": f"{side} ({results[0]['head']})",
            "seconds": spread(seconds(runs)),
            "CPU seconds": spread(cpu(runs)),
            "accuracy on val": _percent(accuracies),
            "images decoded": spread(decoded, 0),
        }
    )


def _percent(shares: list[float]) -> str:
    return spread([100 * share for share in shares], 1, " %")


if __name__ == "__main__":
    sys.exit(main())
