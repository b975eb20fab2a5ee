"""Embed a folder of JPEGs: `tlkit embed` against timm with a DataLoader, both layouts, same weights, whole processes.

The steady rate is what more images cost: images added / seconds added from the small folder to the large one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _bench import (
    DATA,
    PYTHON,
    RIVALS,
    TLKIT,
    Bar,
    Report,
    cpu,
    existing,
    exported,
    interleave,
    missing,
    parsed,
    parser,
    ratios,
    repeated,
    seconds,
    shown,
    spread,
    weights,
    workspace,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

OURS, LAST, USUAL = "tlkit embed", "timm, channels last", "timm, usual layout"


def main() -> int:
    options = parser(__doc__, repeat=5)
    options.add_argument("--images", type=Path, default=DATA / "ants_bees", help="a folder with JPEGs somewhere in it")
    options.add_argument("--count", type=int, default=800, help="images to embed; those given are repeated")
    options.add_argument("--few", type=int, default=200, help="images of the small folder")
    args = parsed(options, count=12, few=6)
    images = existing(args.images, "--images")
    report = Report(
        "embed",
        f"The features of {args.count} JPEGs by EfficientNet-Lite0 in fp32, with the same weights: `tlkit embed` of "
        "an exported bundle to Parquet; and timm's network and transform behind a DataLoader of two workers, batches "
        "of 32 in inference mode, to npy (`rivals/timm_embed.py`).",
        {"images": shown(images), "count": args.count, "few": args.few, "turns": args.repeat},
    )
    with workspace() as work:
        lacking = missing("timm", "torchvision")
        file, bundle = "" if lacking else str(weights(work)), str(exported(work))
        commands: dict[str, list[str]] = {}
        for count in (args.few, args.count):
            folder = str(repeated(images, work / "images" / str(count), count))
            commands |= _commands(folder, work / str(count), bundle, file)
        runs = interleave(commands, args.repeat)
        cosines = None if lacking else _cosines(*_outputs(work / str(args.count)))

    whole = {}
    for side in (OURS,) if lacking else (OURS, LAST, USUAL):
        few, many = (runs[_name(side, count)] for count in (args.few, args.count))
        whole[side] = seconds(many)
        rate = [(args.count - args.few) / (b - a) for a, b in zip(seconds(few), seconds(many), strict=True)]
        peaks = [each.peak_mib for each in many]
        report.figures[side] = {
            "seconds": seconds(many),
            "CPU seconds": cpu(many),
            "seconds of few": seconds(few),
            "images/s": rate,
            "peak MiB": peaks,
        }
        report.rows.append(
            {
                "": side,
                "seconds": spread(seconds(many)),
                "CPU seconds": spread(cpu(many)),
                "images/s, whole process": spread([args.count / value for value in seconds(many)], 1),
                "images/s, steady": spread(rate, 1),
                "peak MiB of its largest process": spread(peaks, 0),
            }
        )
    report.notes.append("tlkit also hashes every file, for the column sha256.")
    if cosines is None:
        report.notes.append(f"timm: {lacking}")
        return report.save()
    report.figures["cosine"] = cosines
    report.notes.append(
        f"Features of tlkit and timm agree: cosine at least {cosines['least']:.4f}, median {cosines['median']:.4f}. "
        "They are not the same pixels: timm crops to whole pixels after scaling, which shifts the picture by up to "
        "half a pixel of what the network sees. On the same pixels the networks agree (`reference.md`)."
    )
    report.bars += [
        Bar("times as fast as timm, channels last", ratios(whole[LAST], whole[OURS]), "≥", 3, "x"),
        Bar("times as fast as timm, usual layout", ratios(whole[USUAL], whole[OURS]), "≥", 7, "x"),
    ]
    return report.save()


def _name(side: str, count: int | str) -> str:
    return f"{side}, {count} images"


def _outputs(place: Path) -> tuple[Path, Path]:
    """tlkit's features, and timm's in channels last."""
    return place.with_suffix(".parquet"), place.with_suffix(".npy")


def _commands(folder: str, place: Path, bundle: str, file: str) -> dict[str, list[str]]:
    timm = [PYTHON, str(RIVALS / "timm_embed.py"), folder, file]
    ours, last = map(str, _outputs(place))
    own = {_name(OURS, place.name): [TLKIT, "embed", bundle, folder, "-o", ours]}
    if not file:
        return own
    return own | {
        _name(LAST, place.name): [*timm, last, "--channels-last"],
        _name(USUAL, place.name): [*timm, f"{place} usual.npy"],
    }


def _cosines(ours: Path, theirs: Path) -> dict[str, float]:
    import numpy as np
    from pyarrow import parquet

    table = parquet.read_table(ours)
    a: NDArray[np.float32] = table["features"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
    b: NDArray[Any] = np.load(theirs)
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return {"least": float(cosines.min()), "median": float(np.median(cosines))}


if __name__ == "__main__":
    sys.exit(main())
