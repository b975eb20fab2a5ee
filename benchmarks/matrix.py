"""The whole way of one network of each family: trained, exported to every runtime, verified, and used.

Networks of torchvision, transformers and a few of timm, with random weights that are read from a file, at the smallest
images that they take. Each is trained frozen and with every stage trainable, on images that differ in brightness, and
exported to each target in each precision. An export is verified on the golden images; then it predicts and embeds, and
is compared with the graph in fp32. What has no device here, as TensorRT-RTX has none without a GPU, is built alone.

Each cell is made in a process of its own with a limit of CPU time, and is a file in `--rows`, where the bundles lie as
well: what was interrupted is continued, and what is there is not made again. Remove a file to make its cell again.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
import sys
import time
import tomllib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from _bench import ROOT, SETTINGS, Bar, Report, parsed, parser

sys.path.insert(0, str(ROOT))

from architectures import LIBRARIES, families, kept, preload

from tests.kit.distribution import describe, entry_points
from tests.kit.tiny import write_images

# One network of timm per kind, with the smallest size of images at which it has all of its stages.
TIMM = {
    "ConvNeXt": ("convnext_atto", 64),
    "ViT": ("vit_tiny_patch16_224", 64),
    "MobileNetV4": ("mobilenetv4_conv_small_035", 64),
    "FastViT": ("fastvit_t8", 64),
    "Swin": ("swin_tiny_patch4_window7_224", 224),
}
EXPORTS = (
    *(("onnx", "fp32"), ("onnx", "fp16"), ("onnx", "int8"), ("openvino", "fp32"), ("openvino", "int8")),
    *(("tensorrt-rtx", "fp16"), ("tensorrt-rtx", "int8"), ("ort", "fp32"), ("executorch", "fp32")),
)
COLUMNS = ("frozen", "full", *(f"{target} {precision}" for target, precision in EXPORTS))
SMALLEST = ("frozen", "full", "onnx fp32", "onnx int8", "tensorrt-rtx fp16")
PACKAGES = (*LIBRARIES, "openvino", "ort", "executorch")

Row = dict[str, Any]


@dataclass(frozen=True)
class Network:
    """Network to take the whole way: the component, and the folder for its bundles."""

    family: str
    component: Any
    work: Path

    @property
    def name(self) -> str:
        return str(self.component.name)

    @property
    def options(self) -> dict[str, object]:
        """The options of the component, with the file of its weights."""
        from tlkit.plugin.options import changed

        given = {f"backbone.{key}": value for key, value in changed(self.component).items()}
        return given if SETTINGS.smallest else {**given, "backbone.checkpoint": str(self.weights())}

    def weights(self) -> Path:
        """Return a file, or a folder for transformers, with random weights in which every layer has an effect."""
        place = self.work / "weights"
        file = place if self.name.startswith("transformers/") else place / "weights.safetensors"
        if not file.exists():
            partial = self.work / "partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            save(self.component, partial)
            partial.rename(place)
        return file

    def images(self) -> Path:
        place = self.work.parent / "images"
        return place if place.exists() else write_images(place, 16)

    def bundle(self, strategy: str = "frozen", **options: object) -> Path:
        """Return a bundle trained by a strategy, and train it if it is not there yet."""
        import tlkit

        run = self.work / strategy
        if not run.exists():
            tlkit.train(
                self.images(),
                run,
                backbone=self.name,
                strategy=strategy,
                options={**self.options, **options},
                golden=4,
            )
        return run


def main() -> int:
    options = parser(__doc__, repeat=1)
    options.add_argument("libraries", nargs="*", metavar="LIBRARY", help=f"of {', '.join(LIBRARIES)} (default: all)")
    options.add_argument("--columns", nargs="*", default=COLUMNS, choices=COLUMNS, help="cells to make (default: all)")
    options.add_argument("--rows", type=Path, help="folder of what was made so far (default: build/matrix)")
    options.add_argument("--only", default="*", metavar="PATTERN", help="networks whose name matches (default: all)")
    options.add_argument("--report", action="store_true", help="write the table of what was made so far, no more")
    args = parsed(options, columns=SMALLEST)
    folder = (args.rows or (args.results / "rows" if SETTINGS.smallest else ROOT / "build/matrix")).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TLKIT_CACHE"] = str(folder / "cache")
    warnings.simplefilter("ignore")
    find_packages(folder / "site")
    rows: list[Row] = []
    for network in networks(args.libraries or LIBRARIES, folder):
        if not fnmatch.fnmatchcase(network.name, args.only):
            continue
        row: Row = {"name": network.name, "family": network.family, "pixels": network.component.preprocessing.size}
        for column in args.columns:
            record = folder / f"{network.work.name}.{column.replace(' ', '-')}.json"
            if not (record.exists() or args.report):
                preload(network.name.partition("/")[0])
            if record.exists() or not args.report:
                row[column] = kept(record, partial(attempted, network, column))
        rows.append(row)
    return report(rows, args.columns).save()


def find_packages(site: Path) -> None:
    """Have this process find our own packages, as if those that are not installed were."""
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir(parents=True)
    sys.path.insert(0, str(site))
    for name in PACKAGES:
        try:
            metadata.distribution(f"tlkit-{name}")
        except metadata.PackageNotFoundError:
            folder = ROOT / "plugins" / f"tlkit-{name}"
            project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
            describe(site, project["name"], entry_points(project), project["version"])
            sys.path.insert(0, str(folder))


def networks(libraries: list[str], folder: Path) -> Iterator[Network]:
    """Yield one network of each family; at the smallest setting the tiny one of the tests."""
    if SETTINGS.smallest:
        from tests.kit.tiny import Tiny

        yield Network("tiny", Tiny(), folder / "tiny")
        return
    for library in libraries:
        version = metadata.version(library)
        for family, component in timm() if library == "timm" else ((a.family, a.small()) for a in families(library)):
            yield Network(family, component, folder / f"{component.name.replace('/', '--')}-{version}")


def timm() -> Iterator[tuple[str, Any]]:
    from tlkit_timm.backbone import PREFIX, Timm

    for family, (name, size) in TIMM.items():
        yield family, Timm(PREFIX + name, size=size)


def save(component: Any, place: Path) -> None:
    """Save a network with random weights as its library does, its batch norms fitted to pictures."""
    import torch
    from safetensors.torch import save_file

    from tlkit.conformance.backbone.vary import vary
    from tlkit.conformance.pictures import preprocessed

    torch.manual_seed(0)
    library = component.name.partition("/")[0]
    if library == "transformers":
        from tlkit_transformers import networks

        network: Any = networks.built(component)
    elif library == "torchvision":
        from tlkit_torchvision import networks

        network = networks.model(component, pretrained=False)[0]
    else:
        network = component.model(pretrained=False)
    given = component.preprocessing
    mean, std = (torch.tensor(each)[:, None, None] for each in (given.mean, given.std))
    pixels = (torch.from_numpy(preprocessed(given)).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.inference_mode():
        vary(network, lambda: network(pixels))
    if library == "transformers":
        network.save_pretrained(place)
    else:
        save_file(network.state_dict(), place / "weights.safetensors")


def attempted(network: Network, column: str) -> Row:
    """Return a cell: what was measured, or the reason why there is nothing to measure."""
    from tlkit.errors import TlkitError

    steps: dict[str, Callable[[Network], Row]] = {"frozen": frozen, "full": tuned}
    started = time.process_time()
    try:
        row = {"state": "pass", **steps[column](network)} if column in steps else exported(network, *column.split())
    except TlkitError as refusal:
        row = {"state": "refused", "reason": str(refusal).replace(f"{network.work}/", "")}
    except Exception as error:  # noqa: BLE001 - whatever it is, it belongs in the table
        row = {"state": "failed", "reason": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}
    return row | {"seconds": time.process_time() - started}


def frozen(network: Network) -> Row:
    """Train with a frozen trunk, whose tensors are those of the weights file."""
    return {"accuracy": accuracy(network.bundle())}


def tuned(network: Network) -> Row:
    """Train with every stage trainable, export and verify; returns how many tensors of the trunk changed."""
    import numpy as np

    options = {"strategy.epochs": 2, "strategy.batch_size": 8, "strategy.augment": False}
    run = network.bundle("full", **options)
    before, after = tensors(network.bundle()), tensors(run)
    changed = sum(not np.array_equal(before[name], after[name]) for name in after)
    if not changed:
        raise AssertionError("no tensor of the trunk changed")
    row = {"accuracy": accuracy(run), "changed": changed, **compared(network, run, "onnx", "fp32")}
    shutil.rmtree(run)
    return row


def tensors(bundle: Path) -> Mapping[str, Any]:
    from safetensors.numpy import load_file

    return load_file(bundle / "trunk.safetensors")


def accuracy(bundle: Path) -> float:
    import tlkit

    found = tlkit.inspect(bundle).to_json()
    return float(found["metrics"]["accuracy"])


def exported(network: Network, target: str, precision: str) -> Row:
    """Export the frozen bundle to a target, verify it, and use it; of other targets than ONNX nothing stays."""
    bundle = network.bundle()
    try:
        return compared(network, bundle, target, precision)
    finally:
        if (target, precision) != EXPORTS[0]:
            shutil.rmtree(bundle / target / precision, ignore_errors=True)


def compared(network: Network, bundle: Path, target: str, precision: str) -> Row:
    """Return the lowest cosine of the features of an export to those in fp32, and the share of equal labels."""
    import numpy as np

    import tlkit
    from tlkit.verification.parity import cosines

    written = tlkit.export(bundle, target, precision=precision).exports[-1]
    row: Row = {"megabytes": sum(each.stat().st_size for each in written.folder.rglob("*") if each.is_file()) / 1e6}
    if written.unproven is not None:
        return {"state": "built", "reason": written.unproven, **row}
    if not (verdict := tlkit.verify(bundle, targets=target, precisions=precision)).passed:
        raise AssertionError(f"it does not give what was trained: {verdict.to_json()}")
    images = sorted(network.images().rglob("*.png"))
    answers = []
    for place in ((target, precision), ("onnx", "fp32")):
        with tlkit.load(bundle, target=place[0], precision=place[1]) as model:
            answers.append(([each.label for each in model.predict(images)], model.embed(images)))
    (labels, features), (expected, reference) = answers
    tlkit.embed(bundle, images, network.work / "features.npy")
    if not np.allclose(np.load(network.work / "features.npy"), reference, atol=1e-3 * float(np.abs(reference).max())):
        raise AssertionError("embed does not write the features of the model")
    equal = sum(one == other for one, other in zip(labels, expected, strict=True)) / len(images)
    return {"state": "pass", "cosine": float(cosines(reference, features).min()), "equal labels": equal, **row}


def report(rows: list[Row], columns: tuple[str, ...]) -> Report:
    made = Report(
        "matrix",
        "One network of each family, with random weights from a file, at the smallest images that it takes, the whole "
        "way: trained frozen and with every stage trainable (*full*), exported to each target in each precision, "
        "verified on the golden images, opened, and used to predict and to embed. *frozen*: the accuracy on 9 images. "
        "*full*: the tensors that changed. Exports: the lowest cosine of the features of 48 images to those of ONNX in "
        "fp32. *built*: there is no device to run it on.",
        {"columns": len(columns)},
    )
    made.figures["rows"] = rows
    made.rows = [{"network": row["name"], "family": row["family"]} | {c: cell(row, c) for c in columns} for row in rows]
    cells = [(row, column, row.get(column, {"state": "unfinished"})) for row in rows for column in columns]
    done = [each for _, _, each in cells if each["state"] in ("pass", "built")]
    made.bars.append(Bar("cells that pass", [100 * len(done) / max(len(cells), 1)], "≥", 95, " %", 1))
    faults = sum(each["state"] in ("failed", "unfinished") for _, _, each in cells)
    made.bars.append(Bar("cells without a result or a stated reason", [faults], "=", 0, digits=0))
    made.notes += [
        f"{row['name']}, {column}: {each['state']}: {each['reason']}"
        for row, column, each in cells
        if each["state"] in ("failed", "refused")
    ]
    made.notes += [f"built alone: {why}" for why in {each["reason"] for each in done if each["state"] == "built"}]
    made.notes.append(f"{len(done)} of {len(cells)} cells of {len(rows)} networks pass or are built")
    return made


def cell(row: Row, column: str) -> str:
    found: Row = row.get(column, {"state": ""})
    if found["state"] != "pass":
        return f"**{found['state']}**" if found["state"] in ("failed", "refused") else str(found["state"])
    if column == "frozen":
        return f"{found['accuracy']:.2f}"
    return f"{found['changed']} changed" if column == "full" else f"{found['cosine']:.5f}"


if __name__ == "__main__":
    sys.exit(main())
