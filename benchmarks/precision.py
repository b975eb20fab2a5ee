"""int8 against fp32: images per second of the trunk and end to end, and the accuracy drop of int8.

The trunk of EfficientNet-Lite0 alone at batch 1 and 16, and in eager PyTorch; `tlkit predict` over a folder of JPEGs at
its steady rate (as in embed.py); and what `tlkit export --precision int8 --max-drop 0.5 --refit-head` chooses for each
data set.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from _bench import (
    DATA,
    PYTHON,
    RIVALS,
    SETTINGS,
    TLKIT,
    Bar,
    Report,
    Run,
    existing,
    interleave,
    missing,
    parsed,
    parser,
    ratios,
    repeated,
    run,
    seconds,
    session_speed,
    shown,
    spread,
    workspace,
)

SETS = ("ants_bees", "sign_digits", "cifar10", "fashion_mnist")
BATCHES = (1, 16)
PRECISIONS = ("fp32", "int8")
MAX_DROP = 0.5
EAGER = "PyTorch eager, channels last"


def main() -> int:
    options = parser(__doc__, repeat=5)
    options.add_argument("--data", type=Path, default=DATA, help=f"a folder with {', '.join(SETS)}")
    options.add_argument("--sets", default=",".join(SETS), help="those of them to measure accuracy on")
    options.add_argument("--count", type=int, default=800, help="images to label; those given are repeated")
    options.add_argument("--few", type=int, default=200, help="images of the small folder")
    args = parsed(options, sets=SETS[0], count=12, few=6)
    data, sets = existing(args.data, "--data"), args.sets.split(",")
    report = Report(
        "precision",
        "EfficientNet-Lite0 in fp32 and in int8 (QDQ, uint8 activations, int8 weights by channel, calibrated on 128 "
        "images of the training split), by ONNX Runtime on the CPU.",
        {"data": shown(data), "sets": args.sets, "count": args.count, "few": args.few, "turns": args.repeat},
    )
    with workspace() as work:
        chosen = {name: _exported(data / name, work / name) for name in sets}
        bundle = work / sets[0]
        run([TLKIT, "export", str(bundle), "--onnx", "--precision", "int8"])  # wherever the precision search ended
        graphs = {precision: bundle / "onnx" / precision for precision in PRECISIONS}
        speed = interleave(_speed(graphs), args.repeat)
        folders = {count: repeated(data / sets[0], work / str(count), count) for count in (args.few, args.count)}
        ends = interleave(
            {
                f"predict {precision} {count}": [TLKIT, "predict", str(place), str(folder)]
                for precision, place in graphs.items()
                for count, folder in folders.items()
            },
            args.repeat,
        )
    _add_speed(report, speed)
    _add_ends(report, ends, args.few, args.count)
    for name, search in chosen.items():
        _add_set(report, name, search)
    return report.save()


def _exported(source: Path, bundle: Path) -> dict[str, Any]:
    """Train and export a bundle; return its precision search."""
    run([TLKIT, "train", str(source), "-o", str(bundle), *SETTINGS.frozen])
    options = ["--precision", "int8", "--max-drop", str(MAX_DROP), "--refit-head", "--json"]
    done = run([TLKIT, "export", str(bundle), "--onnx", *options])
    search: dict[str, Any] = json.loads(done.output)["searches"]["int8"]
    return search


def _speed(graphs: dict[str, Path]) -> dict[str, list[str]]:
    script = session_speed()
    sides = {
        f"{precision}, batch {batch}": [*script, str(place / "trunk.onnx"), str(batch)]
        for batch in BATCHES
        for precision, place in graphs.items()
    }
    if SETTINGS.smallest:
        return sides
    return sides | {EAGER: [PYTHON, str(RIVALS / "eager_speed.py"), str(BATCHES[-1])]}


def _add_speed(report: Report, runs: dict[str, list[Run]]) -> None:
    rates = {side: [float(each.output) for each in done] for side, done in runs.items()}
    report.figures["images/s"] = rates
    report.rows += [{"": f"trunk, {side}", "images/s": spread(rate, 1)} for side, rate in rates.items()]
    for batch in BATCHES:
        int8, fp32 = (rates[f"{precision}, batch {batch}"] for precision in ("int8", "fp32"))
        report.bars.append(Bar(f"int8 / fp32, batch {batch}", ratios(int8, fp32), "≥", 1.8, "x"))
    last = rates[f"fp32, batch {BATCHES[-1]}"]
    if EAGER not in rates:
        report.notes.append(f"{EAGER}: {missing()}")
        return
    report.bars.append(Bar(f"fp32 / PyTorch eager, batch {BATCHES[-1]}", ratios(last, rates[EAGER]), "≥", 3, "x"))


def _add_ends(report: Report, runs: dict[str, list[Run]], few: int, count: int) -> None:
    steady = {}
    for precision in PRECISIONS:
        short, long = (seconds(runs[f"predict {precision} {number}"]) for number in (few, count))
        steady[precision] = [(count - few) / (b - a) for a, b in zip(short, long, strict=True)]
        report.rows.append({"": f"JPEG files to labels, {precision}, steady", "images/s": spread(steady[precision], 1)})
    report.figures["images/s end to end"] = steady
    end = ratios(steady["int8"], steady["fp32"])
    report.bars.append(Bar("int8 / fp32 end to end", end, "≥", 1.7, "x"))


def _add_set(report: Report, name: str, search: dict[str, Any]) -> None:
    tried = search["candidates"]
    report.figures[f"precision search on {name}"] = tried
    first, last = tried[0], tried[-1]
    head = first["head"]
    own = first["drop"] + 100 * (first["accuracy"] - head["own_accuracy"])
    again = f"the head fitted again {'lost ' + format(first['drop'], '.2f') if head['kept'] else 'was no better'}"
    report.notes.append(
        f"{name}: {last['name']} taken, accuracy {last['accuracy']:.1%}, {last['drop']:.2f} points lost, "
        f"{last['agreement']:.1%} of {last['images']} images called as in fp32"
        f"; int8 with the head that was trained lost {own:.2f}, {again}"
    )
    report.bars.append(Bar(f"points lost by int8 on {name}, the better head", [first["drop"]], "≤", MAX_DROP))


if __name__ == "__main__":
    sys.exit(main())
