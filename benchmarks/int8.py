"""int8 on every kind of processor: four data sets, three backbones, three cuts and three heads.

A head is fitted to fp32 features of two thirds of the training images. The other third decides, with cross-validated
ones of the first two where `tlkit export --max-drop 0.5` would count them too, whether int8 is taken; what it loses is
counted on held-out images, with its standard error. Where a set has few of these, the two sides change places once. The
same file is opened by processes that see a processor with VNNI, with AVX-512 alone and with AVX2 alone, by ONNX Runtime
in a default session, by OpenVINO where it is installed, as it comes and in f32, and on some images by onnxruntime-web
in Node. Trunks and features are shared among heads.

`--speed` measures the speed of int8 against fp32 instead, on each of these processors.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import NormalDist
from types import SimpleNamespace
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
TRAIN, HELD = 720, 2000  # images of a set at the most
FEW = 400  # held-out images; with fewer, those that were trained on are held out in a second turn
WEB, FIRST = "onnxruntime-web", 25  # compared with this processor instead of fp32, on so many held-out images
MAX_DROP, WITHIN = 0.5, 1.0  # percentage points: the budget, and what a single head may lose on other images
CONFIDENCE = 0.95  # that no cell of all is called worse by chance


@dataclass(frozen=True)
class Images:
    """Preprocessed images of a set `(N, S, S, 3)` and their labels: to fit on, to decide on, held out."""

    samples: Sequence[Any]  # to fit on
    fit: NDArray[np.uint8]
    fit_labels: NDArray[np.int64]
    decide: NDArray[np.uint8]
    decide_labels: NDArray[np.int64]
    held: NDArray[np.uint8]
    held_labels: NDArray[np.int64]
    calibration: NDArray[np.int64]  # rows of those to fit on


@dataclass(frozen=True)
class Cell:
    """One head: its accuracy in fp32, and the pairs of int8 and fp32 on held-out images, by runtime."""

    data: str
    backbone: str
    cut: str
    head: str
    fp32: float
    taken: bool
    pairs: Mapping[str, Any]

    def joined(self, other: Cell) -> Cell:
        """Return the cell of both turns."""
        counts = [next(iter(each.pairs.values())).images for each in (self, other)]
        pairs = {
            name: type(each)(*map(sum, zip(astuple(each), astuple(other.pairs[name]), strict=True)))
            for name, each in self.pairs.items()
        }
        fp32 = float(np.average([self.fp32, other.fp32], weights=counts))
        return replace(self, fp32=fp32, taken=self.taken and other.taken, pairs=pairs)


@dataclass(frozen=True)
class Trunk:
    """One trunk in int8: the lowest and mean cosine to fp32 on held-out images, by the runtime that opened it."""

    data: str
    backbone: str
    cut: str
    cosine: Mapping[str, tuple[float, float]]

    def joined(self, other: Trunk) -> Trunk:
        """Return the trunk of both turns."""
        both = {name: (*each, *other.cosine[name]) for name, each in self.cosine.items()}
        return replace(
            self, cosine={name: (min(low, lower), (mean + more) / 2) for name, (low, mean, lower, more) in both.items()}
        )


def main() -> int:
    options = parser(__doc__, repeat=3)
    options.add_argument("--data", type=Path, default=DATA, help=f"a folder with {', '.join(SETS)}")
    options.add_argument("--work", type=Path, default=Path("build/int8"), help="where what was measured is kept")
    options.add_argument("--sets", default=",".join(SETS))
    options.add_argument("--backbones", default=",".join(BACKBONES))
    options.add_argument("--cuts", default=",".join(CUTS))
    options.add_argument("--speed", action="store_true", help="measure speed alone, of the first set's trunks")
    args = parsed(options, sets=SETS[0], backbones="tiny", cuts="third")
    data, sets, cuts = existing(args.data, "--data"), args.sets.split(","), args.cuts.split(",")
    settings = {"data": shown(data), "backbones": args.backbones, "cuts": args.cuts}
    with workspace() as work:
        if args.speed:
            return _speeds(data / sets[0], args.backbones.split(","), cuts, work, {**settings, "turns": args.repeat})
        report = Report(
            "int8",
            "int8 against fp32, by set, backbone, cut and head. Points are percentage points of lost accuracy on "
            "held-out images, ± their standard error; int8 alone is tried, so what is not taken would go on to layers "
            "in float or fp16.",
            {**settings, "sets": args.sets},
        )
        cells: list[Cell] = []
        trunks: list[Trunk] = []
        runtimes = _runtimes(work)
        for name in sets:
            for backbone in args.backbones.split(","):
                kept = (work if args.smallest else args.work) / _key(name, backbone, cuts, sorted(runtimes))
                if not kept.exists():
                    measured = _trunks(data / name, backbone, cuts, runtimes, work)
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    kept.write_text(json.dumps([[asdict(each) for each in part] for part in measured]))
                found = _read(kept)
                trunks.extend(found[0])
                cells.extend(found[1])
                print(f"{name}, {backbone}: {len(cells)} cells", file=sys.stderr)
    _add(report, cells, trunks)
    absent = {"avx2", "avx512", "openvino", WEB} - {*runtimes}
    report.notes.extend(f"{name} was not to be had on this machine" for name in sorted(absent))
    return report.save()


def _speeds(source: Path, backbones: list[str], cuts: list[str], work: Path, settings: Mapping[str, Any]) -> int:
    report = Report("int8-speed", "Images per second of int8 trunks against fp32, by kind of processor.", settings)
    processors = _processors(work)
    for backbone in backbones:
        _, int8, fp32 = next(_graphs(source, backbone, cuts, work))
        for cut in cuts:
            _add_speeds(report, f"{backbone}, {cut}", (int8 / f"{cut}.onnx", fp32 / f"{cut}.onnx"), processors)
    return report.save()


def _key(*decides: object) -> str:
    """Return the name of the file with what was measured of a trunk, by all that decides on it."""
    digest = hashlib.sha256(repr((decides, TRAIN, HELD, FEW, FIRST)).encode())
    for folder in (ROOT / "tlkit", ROOT / "plugins" / "tlkit_standard", ROOT / "benchmarks"):
        for file in sorted(folder.rglob("*.py")):
            digest.update(file.read_bytes())
    return f"{digest.hexdigest()[:16]}.json"


def _read(file: Path) -> tuple[list[Trunk], list[Cell]]:
    from tlkit.exporting.evidence import Pairs

    trunks, cells = json.loads(file.read_text())
    pairs = [{name: Pairs(**counts) for name, counts in cell.pop("pairs").items()} for cell in cells]
    return [Trunk(**each) for each in trunks], [Cell(**each, pairs=its) for each, its in zip(cells, pairs, strict=True)]


def _trunks(
    source: Path, backbone: str, cuts: list[str], runtimes: Mapping[str, Sequence[str]], work: Path
) -> tuple[list[Trunk], list[Cell]]:
    """Measure the cuts of a trunk on a set, in one turn or two."""
    measured = []
    for images, int8, fp32 in _graphs(source, backbone, cuts, work):
        for name, command in runtimes.items():
            run([*command, str(int8), name])
        trunks, cells = list[Trunk](), list[Cell]()
        for cut in cuts:
            graphs = int8 / f"{cut}.onnx", fp32 / f"{cut}.onnx"
            got = {name: np.load(int8 / f"{cut}.{name}.npy") for name in runtimes}
            trunk, found = _measured((source.name, backbone, cut), graphs, images, got)
            trunks.append(trunk)
            cells.extend(found)
        measured.append((trunks, cells))
    (trunks, cells), *second = measured
    for others, more in second:
        trunks = [each.joined(other) for each, other in zip(trunks, others, strict=True)]
        cells = [each.joined(other) for each, other in zip(cells, more, strict=True)]
    return trunks, cells


def _graphs(source: Path, backbone_name: str, cuts: list[str], work: Path) -> Iterator[tuple[Images, Path, Path]]:
    """Yield the images of each turn, and the folders with the cuts of a trunk in int8, beside images.npy, and fp32."""
    from tlkit.exporting.calibration import features, nearest, ranges
    from tlkit.exporting.correction import correct_biases, round_weights
    from tlkit.graph import compose, trace
    from tlkit.graph.quantize import OPERATORS, quantize
    from tlkit.model.reference_images import spread as spaced
    from tlkit.model.trunk import build
    from tlkit.plugin.registry import load

    backbone = load().get("backbone", backbone_name)
    size = SIZES.get(source.name) or backbone.preprocessing.size
    preprocessing = replace(backbone.preprocessing, size=size)
    stages = onnx.load_model(trace.stage_graph(build(backbone, preprocessing=preprocessing)))
    for images in _turns(source, preprocessing):
        int8, fp32 = (Path(tempfile.mkdtemp(dir=work)) for _ in range(2))
        np.save(int8 / "images.npy", images.held)
        calibration = images.fit[images.calibration]
        rows = spaced(range(len(calibration)), 64)
        some, others = calibration[rows], np.delete(calibration, rows, axis=0)
        others = others if len(others) else some
        for cut in cuts:
            graph = compose.cut_graph(stages, cut)
            found = ranges(graph, calibration, preprocessing, OPERATORS)
            rounded = round_weights(graph, some, lambda _: None)
            corrected = correct_biases(graph, found, some, lambda _: None, rounded=rounded)
            either = [quantize(biases, found, rounded=rounded) for biases in (corrected, graph)]
            onnx.save_model(graph, fp32 / f"{cut}.onnx")
            onnx.save_model(nearest(features(graph, others), either, others), int8 / f"{cut}.onnx")
        yield images, int8, fp32


def _turns(source: Path, preprocessing: Any) -> list[Images]:
    from tlkit.data import dataset
    from tlkit.data.preprocessing import load
    from tlkit.model.reference_images import spread as spaced

    found = dataset.read(source)
    train, held = spaced(found.of("train"), TRAIN), spaced(found.of("val"), HELD)
    rest = sorted({*found.of("train")} - {*train}, key=lambda sample: sample.name)
    held += spaced(rest, HELD - len(held))
    random, sides = np.random.default_rng(0), []
    for samples in (train, held):
        order = [samples[row] for row in random.permutation(len(samples))]
        sides.append((order, np.stack([load(each.path, preprocessing) for each in order])))
    turns = []
    for (samples, images), (others, apart) in (sides, sides[::-1])[: 2 if len(held) < FEW else 1]:
        labels, labels_apart = (np.array([each.label for each in side]) for side in (samples, others))
        decide = np.arange(len(samples)) % 3 == 0
        fit = [sample for sample, out in zip(samples, decide, strict=True) if not out]
        calibration = np.array(spaced(range(len(fit)), 128))
        split = images[~decide], labels[~decide], images[decide], labels[decide]
        turns.append(Images(fit, *split, apart, labels_apart, calibration))
    return turns


def _processors(work: Path) -> dict[str, dict[str, str]]:
    """Return the environments in which a process sees this processor and others, by name."""
    sys.path.insert(0, str(ROOT))
    from tests.kit.processors import KINDS, compiled, environment

    found = {"this processor": dict(os.environ)}
    if not SETTINGS.smallest and isinstance(library := compiled(work), Path):
        found |= {kind: environment(library, kind) for kind in KINDS}
    return found


def _runtimes(work: Path) -> dict[str, list[str]]:
    """Return the commands that compute the features of a folder's graphs, by the runtime that opens these.

    This processor is the first.
    """
    script = [PYTHON, str(RIVALS / "int8_features.py")]
    variables = {name: _changed(each) for name, each in _processors(work).items()}
    found = {name: ["env", *each, *script] if each else script for name, each in variables.items()}
    if SETTINGS.smallest:
        return found
    if find_spec("openvino"):
        found["openvino"] = [*script, "--openvino", ""]
        found["openvino-f32"] = [*script, "--openvino", "f32"]
    if shutil.which("npm"):
        install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(work), WEB]
        if not subprocess.run(install, capture_output=True, check=False).returncode:
            found[WEB] = ["node", str(RIVALS / "int8_features.mjs"), str(work), str(FIRST)]
    return found


def _changed(variables: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in variables.items() if os.environ.get(name) != value]


def _measured(
    place: tuple[str, str, str], graphs: tuple[Path, Path], images: Images, got: Mapping[str, NDArray[np.float32]]
) -> tuple[Trunk, list[Cell]]:
    """Compare int8 features of held-out images with fp32, and decide on int8 by those of the others."""
    from tlkit.exporting.candidates import SearchPolicy
    from tlkit.exporting.evidence import CrossValidation, Pairs, lost_class
    from tlkit.model.modules import head_logits
    from tlkit.plugin.contract import FEATURES
    from tlkit.plugin.registry import load
    from tlkit.runtime.session import OnnxSession
    from tlkit.verification.parity import cosines

    def features(session: OnnxSession, array: NDArray[np.uint8]) -> NDArray[np.float32]:
        parts = [session.run(array[start : start + 8])[FEATURES] for start in range(0, len(array), 8)]
        return np.concatenate(parts)

    int8, fp32 = (OnnxSession(graph) for graph in graphs)
    fit, decide, held = (features(fp32, array) for array in (images.fit, images.decide, images.held))
    fit_int8, decide_int8 = (features(int8, array) for array in (images.fit, images.decide))
    classes, cells = int(images.fit_labels.max()) + 1, []
    against = {name: next(iter(got.values())) if name == WEB else held for name in got}
    angles = {name: cosines(against[name][: len(array)], array) for name, array in got.items()}
    trunk = Trunk(*place, {name: (float(each.min()), float(each.mean())) for name, each in angles.items()})
    for name in ("logistic",) if SETTINGS.smallest else HEADS:
        kind = load().get("head", name)
        head = kind.solve(fit, images.fit_labels, classes, 0).eval()

        def labels(array: NDArray[np.float32], head: Any = head) -> NDArray[np.int64]:
            found: NDArray[np.int64] = head_logits(head, array).argmax(1)
            return found

        deciding = labels(decide), labels(decide_int8), images.decide_labels
        evidence, most = Pairs.of(*deciding), SearchPolicy().paired_images
        if len(decide) < most:
            record = SimpleNamespace(labels=range(classes), seed=0)
            bundle = SimpleNamespace(head=kind, bundle=SimpleNamespace(record=record))
            validation: Any = CrossValidation(bundle, images.samples, fit, images.fit_labels)  # type: ignore[arg-type]
            rows = validation.rows(most - len(decide), [images.samples[row].name for row in images.calibration])
            evidence = evidence.joined(validation.pairs(rows, fit_int8[rows]))
        expected = labels(held)
        cells.append(
            Cell(
                *place,
                name,
                fp32=float((expected == images.held_labels).mean()),
                taken=not evidence.exceeds(MAX_DROP) and lost_class(*deciding) is None,
                pairs={
                    runtime: Pairs.of(
                        labels(against[runtime])[: len(array)], labels(array), images.held_labels[: len(array)]
                    )
                    for runtime, array in got.items()
                },
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


def _error(pairs: Any) -> float:
    """Return the standard error of a drop in percentage points, with half an image more on either side."""
    lost, gained, count = pairs.lost + 0.5, pairs.gained + 0.5, pairs.images + 2
    return 100 * math.sqrt(lost + gained - (lost - gained) ** 2 / count) / count


def _add(report: Report, cells: list[Cell], trunks: list[Trunk]) -> None:
    report.figures = {"cells": [asdict(cell) for cell in cells], "trunks": [asdict(trunk) for trunk in trunks]}
    runtimes = list(cells[0].pairs)
    for trunk in trunks:
        mine = [
            cell for cell in cells if (cell.data, cell.backbone, cell.cut) == (trunk.data, trunk.backbone, trunk.cut)
        ]
        low, mean = trunk.cosine[runtimes[0]]
        row = {"": f"{trunk.data}, {trunk.backbone}, {trunk.cut}", "cosine (lowest)": f"{mean:.4f} ({low:.4f})"}
        for cell in mine:
            pairs = cell.pairs[runtimes[0]]
            said = f"{pairs.drop:+.2f} ± {_error(pairs):.2f}" + ("" if cell.taken else ", not taken")
            row[f"{cell.head}: fp32, points lost"] = f"{cell.fp32:.1%}, {said}"
        report.rows.append(row)
    taken = [cell for cell in cells if cell.taken]
    counts = {cell.data: cell.pairs[runtimes[0]].images for cell in cells}
    report.notes.append(
        f"int8 alone was taken in {len(taken)} of {len(cells)} cells; held-out images: "
        + ", ".join(f"{count:,} of {name}" for name, count in counts.items())
    )
    for runtime in runtimes:
        _add_runtime(
            report, runtime, [cell.pairs[runtime] for cell in taken], [each.cosine[runtime] for each in trunks]
        )
    for runtime in [each for each in runtimes[1:] if each != WEB]:
        other = [abs(cell.pairs[runtime].drop - cell.pairs[runtimes[0]].drop) for cell in cells]
        report.notes.append(
            f"{runtime} against {runtimes[0]}: points lost differ by {np.mean(other):.2f}, at most {max(other):.2f}"
        )


def _add_runtime(report: Report, runtime: str, pairs: list[Any], cosines: list[tuple[float, float]]) -> None:
    """Add what a runtime lost against fp32, or onnxruntime-web against this processor."""
    drops, errors = np.array([each.drop for each in pairs]), np.array([_error(each) for each in pairs])
    images = sum(each.images for each in pairs)
    said = (
        f"{runtime}: lowest cosine of an image {min(low for low, _ in cosines):.4f}, lowest mean of a trunk "
        f"{min(mean for _, mean in cosines):.4f}; {sum(each.different for each in pairs) / images:.2%} of images "
        "called otherwise"
    )
    if runtime == WEB:
        report.bars.append(Bar(f"mean points lost, {runtime} against this processor", [float(drops.mean())], "≤", 0.2))
        report.notes.append(f"{said} than on this processor, of the first {FIRST} held-out ones of each trunk and turn")
        return
    report.bars.append(Bar(f"mean points lost, {runtime}", [float(drops.mean())], "≤", 0.2))
    least = drops - NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / len(pairs)) * errors
    report.bars.append(Bar(f"most points lost, {runtime}", [float(drops.max())], "≤", WITHIN))
    report.bars.append(Bar(f"most points lost beyond chance, {runtime}", [float(least.max())], "≤", WITHIN))
    report.notes.append(
        f"{said} than in fp32; {sum(drops > WITHIN)} of {len(pairs)} cells lost more than {WITHIN:g} point, "
        f"{sum(least > WITHIN)} beyond chance (95 % for all cells together), {sum(least > 0)} lost anything beyond "
        f"chance; they deviate from their mean by "
        f"{np.std((drops - drops.mean()) / errors):.2f} standard errors (chance alone: 1)"
    )


if __name__ == "__main__":
    sys.exit(main())
