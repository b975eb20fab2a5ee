"""Three heads on one shared trunk against one model: images per second of the graphs alone."""

from __future__ import annotations

import sys
from pathlib import Path

from _bench import (
    DATA,
    SETTINGS,
    TLKIT,
    Bar,
    Report,
    existing,
    interleave,
    parsed,
    parser,
    ratios,
    run,
    session_speed,
    shown,
    spread,
    workspace,
)

HEADS = ("logistic", "svm", "mlp")
BATCHES = (1, 16)
MOST = 1.1


def main() -> int:
    options = parser(__doc__, repeat=7)
    options.add_argument("--images", type=Path, default=DATA / "ants_bees", help="class folders of images")
    args = parsed(options)
    images = existing(args.images, "--images")
    report = Report(
        "shared",
        f"EfficientNet-Lite0 with {', '.join(HEADS)} heads as one graph with three heads' outputs (`tlkit export "
        "--shared-trunk`), against the first of them alone; ONNX Runtime on all cores.",
        {"images": shown(images), "turns": args.repeat},
    )
    with workspace() as work:
        bundles = [str(work / head) for head in HEADS]
        for head, bundle in zip(HEADS, bundles, strict=True):
            run([TLKIT, "train", str(images), "-o", bundle, *SETTINGS.frozen, "--head", head])
        run([TLKIT, "export", *bundles, "--onnx", "--shared-trunk", "-o", str(work / "shared")])
        graphs = {"one head": f"{bundles[0]}/onnx/fp32/model.onnx", "three heads": str(work / "shared" / "model.onnx")}
        script = session_speed()
        runs = interleave(
            {
                f"{name}, batch {batch}": [*script, graph, str(batch)]
                for batch in BATCHES
                for name, graph in graphs.items()
            },
            args.repeat,
        )
    rates = {side: [float(each.output) for each in done] for side, done in runs.items()}
    report.figures["images/s"] = rates
    report.rows += [{"": side, "images/s": spread(rate, 1)} for side, rate in rates.items()]
    for batch in BATCHES:
        slower = ratios(rates[f"one head, batch {batch}"], rates[f"three heads, batch {batch}"])
        report.bars.append(Bar(f"time of three heads / one, batch {batch}", slower, "≤", MOST, "x"))
    return report.save()


if __name__ == "__main__":
    sys.exit(main())
