"""int8 on every kind of processor: four data sets, three backbones, three cuts and three heads.

A head is fitted to fp32 features of two thirds of the training images. The other third decides, as `tlkit export
--max-drop 0.5` does, whether int8 is taken; what it loses is counted on held-out images. The same file is opened by
processes that see a processor with VNNI, with AVX-512 alone and with AVX2 alone, by ONNX Runtime in a default session,
and by OpenVINO where it is installed. Trunks and features are shared among heads. The speed of int8 against fp32 is
measured on each of these processors as well; `--speed` measures nothing else.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from _bench import (
    DATA,
    PYTHON,
    RIVALS,
    ROOT,
    SETS,
    SETTINGS,
    SIZES,
    Bar,
    Report,
    existing,
    parsed,
    parser,
    run,
    session_speed,
    shown,
    spread,
    workspace,
)
from numpy.typing import NDArray

BACKBONES = ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2")
CUTS = ("stage4", "stage6", "last")
HEADS = ("logistic", "svm", "knn")
BATCHES = (1, 16)
TRAIN, HELD = 720, 400  # images of a set at the most
MAX_DROP, WITHIN = 0.5, 1.0  # percentage points: the budget, and what a single head may lose on other images


@dataclass(frozen=True)
class Images:
    """Preprocessed images of a set `(N, S, S, 3)` and their labels: to fit on, to decide on, held out."""

    fit: NDArray[np.uint8]
    fit_labels: NDArray[np.int64]
    decide: NDArray[np.uint8]
    decide_labels: NDArray[np.int64]
    held: NDArray[np.uint8]
    held_labels: NDArray[np.int64]


@dataclass(frozen=True)
class Cell:
    """One head in int8 against fp32. `lost` are percentage points on held-out images, by the runtime that opened it."""

    data: str
    backbone: str
    cut: str
    head: str
    fp32: float
    taken: bool
    lost: Mapping[str, float]
    agreement: float
    images: int


@dataclass(frozen=True)
class Trunk:
    """One trunk in int8: the lowest and mean cosine to fp32 on held-out images, by the runtime that opened it."""

    data: str
    backbone: str
    cut: str
    cosine: Mapping[str, tuple[float, float]]


def main() -> int:
    options = parser(__doc__, repeat=3)
    options.add_argument("--data", type=Path, default=DATA, help=f"a folder with {', '.join(SETS)}")
    options.add_argument("--sets", default=",".join(SETS))
    options.add_argument("--backbones", default=",".join(BACKBONES))
    options.add_argument("--cuts", default=",".join(CUTS))
    options.add_argument("--speed", action="store_true", help="measure speed alone, of the first set's trunks")
    args = parsed(options, sets=SETS[0], backbones="tiny", cuts="third")
    data, sets, cuts = existing(args.data, "--data"), args.sets.split(","), args.cuts.split(",")
    settings = {"data": shown(data), "backbones": args.backbones, "cuts": args.cuts, "turns": args.repeat}
    report = Report(
        "int8",
        "int8 against fp32, by set, backbone, cut and head. Points are percentage points of lost accuracy on "
        "held-out images; int8 alone is tried, so what is not taken would go on to layers in float or fp16.",
        {**settings, "sets": args.sets},
    )
    speed = Report("int8-speed", "Images per second of int8 trunks against fp32, by kind of processor.", settings)
    cells: list[Cell] = []
    trunks: list[Trunk] = []
    with workspace() as work:
        processors = _processors(work)
        for name in sets[: 1 if args.speed else None]:
            for backbone in args.backbones.split(","):
                images, int8, fp32 = _graphs(data / name, SIZES.get(name), backbone, cuts, work)
                for cut in cuts if name == sets[0] else ():
                    _add_speeds(speed, f"{backbone}, {cut}", (int8 / f"{cut}.onnx", fp32 / f"{cut}.onnx"), processors)
                runtimes = () if args.speed else _run_everywhere(int8, processors)
                for cut in cuts if runtimes else ():
                    got = {runtime: np.load(int8 / f"{cut}.{runtime}.npy") for runtime in runtimes}
                    trunk, found = _measured((name, backbone, cut), fp32 / f"{cut}.onnx", images, got)
                    trunks.append(trunk)
                    cells.extend(found)
                print(f"{name}, {backbone}: {len(cells)} cells", file=sys.stderr)
    code = speed.save()
    if args.speed:
        return code
    _add(report, cells, trunks)
    return max(code, report.save())


def _graphs(
    source: Path, size: int | None, backbone_name: str, cuts: list[str], work: Path
) -> tuple[Images, Path, Path]:
    """Return the images of a set, and the folders with the cuts of a trunk in int8, beside images.npy, and in fp32."""
    from tlkit.exporting.calibration import ranges
    from tlkit.exporting.correction import correct_biases
    from tlkit.graph import compose, trace
    from tlkit.graph.quantize import OPERATORS, quantize
    from tlkit.model.reference_images import spread as spaced
    from tlkit.model.trunk import build
    from tlkit.plugin.registry import load

    backbone = load().get("backbone", backbone_name)
    preprocessing = replace(backbone.preprocessing, size=size or backbone.preprocessing.size)
    images = _images(source, preprocessing)
    stages = onnx.load_model(trace.stage_graph(build(backbone, preprocessing=preprocessing)))
    int8, fp32 = (Path(tempfile.mkdtemp(dir=work)) for _ in range(2))
    np.save(int8 / "images.npy", np.concatenate([images.held, images.decide]))
    calibration = images.fit[:: max(1, len(images.fit) // 128)][:128]
    for cut in cuts:
        graph = compose.cut_graph(stages, cut)
        found = ranges(graph, calibration, preprocessing, OPERATORS)
        some = np.stack(spaced(list(calibration), 64))
        onnx.save_model(graph, fp32 / f"{cut}.onnx")
        onnx.save_model(quantize(correct_biases(graph, found, some, lambda _: None), found), int8 / f"{cut}.onnx")
    return images, int8, fp32


def _images(source: Path, preprocessing: Any) -> Images:
    from tlkit.data import dataset
    from tlkit.data.preprocessing import load
    from tlkit.model.reference_images import spread as spaced

    found = dataset.read(source)
    sides = (spaced(found.of("train"), TRAIN), spaced(found.of("val"), HELD))
    (train, labels), (held, held_labels) = (
        (np.stack([load(each.path, preprocessing) for each in side]), np.array([each.label for each in side]))
        for side in sides
    )
    decide = np.arange(len(train)) % 3 == 0
    return Images(train[~decide], labels[~decide], train[decide], labels[decide], held, held_labels)


def _processors(work: Path) -> dict[str, dict[str, str]]:
    """Return the environments in which a process sees this processor and others, by name."""
    sys.path.insert(0, str(ROOT))
    from tests.kit.processors import KINDS, compiled, environment

    found = {"this processor": dict(os.environ)}
    if not SETTINGS.smallest and isinstance(library := compiled(work), Path):
        found |= {kind: environment(library, kind) for kind in KINDS}
    return found


def _run_everywhere(folder: Path, processors: Mapping[str, dict[str, str]]) -> tuple[str, ...]:
    """Run the graphs of a folder in every runtime that can be had here, and return their names."""
    script = [PYTHON, str(RIVALS / "int8_features.py"), str(folder)]
    for name, variables in processors.items():
        if name == "this processor":
            run([*script, name])
        else:
            subprocess.run([*script, name], env=variables, check=True)
    if SETTINGS.smallest or not find_spec("openvino"):
        return tuple(processors)
    run([*script, "openvino", "--openvino"])
    return (*processors, "openvino")


def _measured(
    place: tuple[str, str, str], graph: Path, images: Images, got: Mapping[str, NDArray[np.float32]]
) -> tuple[Trunk, list[Cell]]:
    """Compare int8 features of held-out images, and then of those to decide on, with fp32."""
    from tlkit.exporting.evidence import Pairs
    from tlkit.model.modules import head_logits
    from tlkit.plugin.contract import FEATURES
    from tlkit.plugin.registry import load
    from tlkit.runtime.session import OnnxSession
    from tlkit.verification.parity import cosines

    session = OnnxSession(graph)

    def features(array: NDArray[np.uint8]) -> NDArray[np.float32]:
        parts = [session.run(array[start : start + 8])[FEATURES] for start in range(0, len(array), 8)]
        return np.concatenate(parts)

    fit, decide, held = (features(array) for array in (images.fit, images.decide, images.held))
    count, classes, cells = len(held), int(images.fit_labels.max()) + 1, []
    angles = {name: cosines(held, array[:count]) for name, array in got.items()}
    trunk = Trunk(*place, {name: (float(each.min()), float(each.mean())) for name, each in angles.items()})
    for name in ("logistic",) if SETTINGS.smallest else HEADS:
        head = load().get("head", name).solve(fit, images.fit_labels, classes, 0).eval()

        def labels(array: NDArray[np.float32], head: Any = head) -> NDArray[np.int64]:
            found: NDArray[np.int64] = head_logits(head, array).argmax(1)
            return found

        first = next(iter(got.values()))
        evidence = Pairs.of(labels(decide), labels(first[count:]), images.decide_labels)
        expected = labels(held)
        pairs = {
            runtime: Pairs.of(expected, labels(array[:count]), images.held_labels) for runtime, array in got.items()
        }
        here = next(iter(pairs.values()))
        cells.append(
            Cell(
                *place,
                name,
                fp32=float((expected == images.held_labels).mean()),
                taken=not evidence.exceeds(MAX_DROP),
                lost={runtime: each.drop for runtime, each in pairs.items()},
                agreement=1 - here.different / here.images,
                images=count,
            )
        )
    return trunk, cells


def _add_speeds(report: Report, name: str, graphs: tuple[Path, Path], processors: Mapping[str, dict[str, str]]) -> None:
    """Add int8 / fp32 in images per second, by kind of processor and batch size, turn by turn."""

    def rate(graph: Path, batch: int, variables: dict[str, str]) -> float:
        command = [*session_speed(), str(graph), str(batch)]
        command[command.index("--seconds") + 1] = "0.05" if SETTINGS.smallest else "0.7"
        if SETTINGS.smallest:
            return float(run(command).output)
        return float(subprocess.run(command, env=variables, check=True, capture_output=True, text=True).stdout)

    row = {"": name}
    for kind, variables in processors.items():
        for batch in BATCHES[: 1 if SETTINGS.smallest else None]:
            values = [
                rate(graphs[0], batch, variables) / rate(graphs[1], batch, variables)
                for _ in range(report.settings["turns"])
            ]
            report.figures[f"{name}, {kind}, batch {batch}"] = values
            row[f"{kind}, batch {batch}"] = spread(values, 2, "x")
            if name == f"{BACKBONES[0]}, last":
                least = {"this processor": {1: 2.3, 16: 2.7}}.get(kind, {}).get(batch, 1.0)
                report.bars.append(Bar(f"int8 / fp32, {name}, {kind}, batch {batch}", values, "≥", least, "x"))
    report.rows.append(row)
    report.notes = ["Where int8 is slower than fp32, `tlkit export` says so."]


def _add(report: Report, cells: list[Cell], trunks: list[Trunk]) -> None:
    report.figures = {"cells": [asdict(cell) for cell in cells], "trunks": [asdict(trunk) for trunk in trunks]}
    runtimes = list(cells[0].lost)
    for trunk in trunks:
        mine = [
            cell for cell in cells if (cell.data, cell.backbone, cell.cut) == (trunk.data, trunk.backbone, trunk.cut)
        ]
        low, mean = trunk.cosine[runtimes[0]]
        row = {"": f"{trunk.data}, {trunk.backbone}, {trunk.cut}", "cosine (lowest)": f"{mean:.4f} ({low:.4f})"}
        for cell in mine:
            said = f"{cell.lost[runtimes[0]]:+.2f}" + ("" if cell.taken else ", not taken")
            row[f"{cell.head}: fp32, points lost"] = f"{cell.fp32:.1%}, {said}"
        report.rows.append(row)
    taken = [cell for cell in cells if cell.taken]
    report.notes.append(
        f"int8 alone was taken in {len(taken)} of {len(cells)} cells; it lost more than {WITHIN:g} points in "
        f"{sum(cell.lost[runtimes[0]] > WITHIN for cell in taken)} of these, where one image is "
        f"{100 / max(cell.images for cell in cells):.2f} to {100 / min(cell.images for cell in cells):.2f} points"
    )
    for runtime in runtimes:
        lost = [cell.lost[runtime] for cell in taken]
        report.bars.append(Bar(f"mean points lost, {runtime}", [float(np.mean(lost))], "≤", 0.2))
        report.bars.append(Bar(f"most points lost, {runtime}", [float(np.max(lost))], "≤", WITHIN))
        lowest = min(trunk.cosine[runtime][0] for trunk in trunks)
        least = min(trunk.cosine[runtime][1] for trunk in trunks)
        report.notes.append(f"{runtime}: lowest cosine of an image {lowest:.4f}, lowest mean of a trunk {least:.4f}")
    for runtime in runtimes[1:]:
        other = [abs(cell.lost[runtime] - cell.lost[runtimes[0]]) for cell in cells]
        report.notes.append(
            f"{runtime} against {runtimes[0]}: points lost differ by {np.mean(other):.2f}, at most {max(other):.2f}"
        )


if __name__ == "__main__":
    sys.exit(main())
