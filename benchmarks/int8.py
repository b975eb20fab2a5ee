"""int8 on every kind of processor: four data sets, three backbones, three cuts and three heads.

A head is fitted to fp32 features of two thirds of the training images. The other third decides, as `tlkit export
--max-drop 0.5` does, whether int8 is taken; what it loses is counted on held-out images. The same file is opened by
processes that see a processor with VNNI, with AVX-512 alone and with AVX2 alone, by ONNX Runtime in a default session,
and by OpenVINO where it is installed. Trunks and features are shared among heads.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
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
    args = parsed(options, sets=SETS[0], backbones="tiny", cuts="third")
    data, sets = existing(args.data, "--data"), args.sets.split(",")
    report = Report(
        "int8",
        "int8 against fp32, by set, backbone, cut and head. Points are percentage points of lost accuracy on "
        "held-out images; int8 alone is tried, so what is not taken would go on to layers in float or fp16.",
        {"data": shown(data), "sets": args.sets, "backbones": args.backbones, "cuts": args.cuts, "turns": args.repeat},
    )
    cells: list[Cell] = []
    trunks: list[Trunk] = []
    speeds: dict[str, list[float]] = {}
    with workspace() as work:
        for name in sets:
            for backbone in args.backbones.split(","):
                for cut, graphs, found in _trunks(data / name, name, backbone, args.cuts.split(","), work):
                    trunks.append(found[0])
                    cells.extend(found[1])
                    if name == sets[0]:
                        speeds |= _speeds(f"{backbone} {cut}", graphs, args.repeat)
                print(f"{name}, {backbone}: {len(cells)} cells", file=sys.stderr)
    _add(report, cells, trunks, speeds)
    return report.save()


def _trunks(
    source: Path, name: str, backbone_name: str, cuts: list[str], work: Path
) -> Iterator[tuple[str, dict[str, Path], tuple[Trunk, list[Cell]]]]:
    """Yield each cut with the files of its graphs, its trunk and its cells."""
    from tlkit.exporting.calibration import ranges
    from tlkit.exporting.correction import correct_biases
    from tlkit.graph import compose, trace
    from tlkit.graph.quantize import OPERATORS, quantize
    from tlkit.model.reference_images import spread as spaced
    from tlkit.model.trunk import build
    from tlkit.plugin.registry import load

    backbone = load().get("backbone", backbone_name)
    preprocessing = replace(backbone.preprocessing, size=SIZES.get(name, backbone.preprocessing.size))
    images = _images(source, preprocessing)
    stages = onnx.load_model(trace.stage_graph(build(backbone, preprocessing=preprocessing)))
    folder = Path(tempfile.mkdtemp(dir=work))
    np.save(folder / "images.npy", np.concatenate([images.held, images.decide]))
    calibration = images.fit[:: max(1, len(images.fit) // 128)][:128]
    fp32 = {cut: compose.cut_graph(stages, cut) for cut in cuts}
    plain = Path(tempfile.mkdtemp(dir=work))
    for cut, graph in fp32.items():
        found = ranges(graph, calibration, preprocessing, OPERATORS)
        some = np.stack(spaced(list(calibration), 64))
        onnx.save_model(graph, plain / f"{cut}.onnx")
        onnx.save_model(quantize(correct_biases(graph, found, some, lambda _: None), found), folder / f"{cut}.onnx")
    runtimes = _run_everywhere(folder, work)
    for cut in cuts:
        graphs = {"fp32": plain / f"{cut}.onnx", "int8": folder / f"{cut}.onnx"}
        got = {runtime: np.load(folder / f"{cut}.{runtime}.npy") for runtime in runtimes}
        yield cut, graphs, _measured((name, backbone_name, cut), graphs["fp32"], images, got)


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


def _run_everywhere(folder: Path, work: Path) -> tuple[str, ...]:
    """Run the graphs of a folder in every runtime that can be had here, and return their names."""
    sys.path.insert(0, str(ROOT))
    from tests.kit.processors import KINDS, compiled, environment

    script = [PYTHON, str(RIVALS / "int8_features.py"), str(folder)]
    runs: dict[str, tuple[list[str], dict[str, str]]] = {"this processor": ([], dict(os.environ))}
    if not SETTINGS.smallest and isinstance(library := compiled(work), Path):
        runs |= {kind: ([], environment(library, kind)) for kind in KINDS}
    if not SETTINGS.smallest and find_spec("openvino"):
        runs["openvino"] = (["--openvino"], dict(os.environ))
    for name, (more, variables) in runs.items():
        if name in KINDS:
            subprocess.run([*script, name, *more], env=variables, check=True)
        else:
            run([*script, name, *more])
    return tuple(runs)


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


def _speeds(name: str, graphs: Mapping[str, Path], turns: int) -> dict[str, list[float]]:
    """Return int8 / fp32 in images per second, by batch size, turn by turn."""

    def rate(precision: str, batch: int) -> float:
        command = [*session_speed(), str(graphs[precision]), str(batch)]
        command[command.index("--seconds") + 1] = "0.05" if SETTINGS.smallest else "0.7"
        return float(run(command).output)

    return {
        f"{name}, batch {batch}": [rate("int8", batch) / rate("fp32", batch) for _ in range(turns)]
        for batch in BATCHES[: 1 if SETTINGS.smallest else None]
    }


def _add(report: Report, cells: list[Cell], trunks: list[Trunk], speeds: Mapping[str, list[float]]) -> None:
    report.figures = {
        "cells": [asdict(cell) for cell in cells],
        "trunks": [asdict(trunk) for trunk in trunks],
        "int8 / fp32": speeds,
    }
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
    for name, values in speeds.items():
        report.notes.append(f"int8 / fp32, {name}: {spread(values, 2, 'x')}")
    for batch, least in zip(BATCHES, (2.3, 2.7), strict=True):
        values = speeds.get(f"{BACKBONES[0]} last, batch {batch}")
        if values:
            report.bars.append(Bar(f"int8 / fp32, {BACKBONES[0]}, last, batch {batch}", values, "≥", least, "x"))


if __name__ == "__main__":
    sys.exit(main())
