"""Peak memory of `tlkit embed` at a thousand and at ten thousand images: it must not grow with their number."""

from __future__ import annotations

import sys
from pathlib import Path

from _bench import (
    DATA,
    TLKIT,
    Bar,
    Report,
    existing,
    exported,
    interleave,
    parsed,
    parser,
    ratios,
    repeated,
    shown,
    spread,
    workspace,
)


def main() -> int:
    options = parser(__doc__, repeat=3)
    options.add_argument("--images", type=Path, default=DATA / "ants_bees", help="a folder with JPEGs somewhere in it")
    options.add_argument("--few", type=int, default=1_000, help="images of the small folder")
    options.add_argument("--many", type=int, default=10_000, help="images of the large folder")
    args = parsed(options, few=6, many=12)
    images = existing(args.images, "--images")
    report = Report(
        "memory",
        "The greatest resident memory of `tlkit embed` (EfficientNet-Lite0, fp32, to Parquet), as the kernel counted "
        "it for the whole process.",
        {"images": shown(images), "few": args.few, "many": args.many, "turns": args.repeat},
    )
    with workspace() as work:
        bundle = str(exported(work))
        folders = {count: str(repeated(images, work / "images" / str(count), count)) for count in (args.few, args.many)}
        commands = {
            f"{count:,} images": [TLKIT, "embed", bundle, folder, "-o", str(work / f"{count}.parquet")]
            for count, folder in folders.items()
        }
        runs = interleave(commands, args.repeat)

    for name, done in runs.items():
        peaks = [each.peak_mib for each in done]
        report.figures[name] = {"peak MiB": peaks}
        report.rows.append({"": name, "peak MiB": spread(peaks, 0)})
    few, many = ([each.peak_mib for each in done] for done in runs.values())
    growth = [100 * (ratio - 1) for ratio in ratios(many, few)]
    report.bars.append(Bar("growth of the peak", growth, "≤", 10, " %", 1))
    return report.save()


if __name__ == "__main__":
    sys.exit(main())
