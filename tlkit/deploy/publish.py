"""From a bundle to its by-products, each checked on real images before it takes its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from tlkit import __version__
from tlkit.data import folder
from tlkit.data.images import Rejected, load
from tlkit.deploy import built, export
from tlkit.deploy.parity import Verdict, compare
from tlkit.deploy.session import OnnxSession
from tlkit.errors import DataError, GateError, ResourceError, TlkitError, UsageError
from tlkit.model.bundle import Bundle
from tlkit.plugin.contract import FEATURES, Backbone, Head, Shapes, Target
from tlkit.plugin.settings import to_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

PARITY_IMAGES = 64


@dataclass(frozen=True, slots=True)
class Published:
    """Where the files are, which images they were checked on, and the verdict on each.

    `unproven` says why there is no verdict, where what was built can't be run on this machine.
    """

    place: Path
    images: int
    drawn_from: str
    verdicts: dict[str, Verdict]
    unproven: str | None = None


def publish_onnx(bundle: Bundle, backbone: Backbone, head: Head, *, data: Path | None = None) -> Published:
    """Write `trunk.onnx`, `head.onnx` and `model.onnx`; a `GateError` leaves what was there before."""
    images, drawn_from = parity_images(bundle, data)
    record = bundle.record
    trunk, module = export.modules(bundle, backbone, head)
    expected = export.reference(trunk, module, images)

    trunk_graph = export.trunk_graph(onnx.load_model(export.taps_graph(trunk)), record.cut)
    head_graph = export.head_graph(module, record.width)
    graphs = {"trunk": trunk_graph, "head": head_graph, "model": export.model_graph(trunk_graph, head_graph)}
    names = {"backbone": record.backbone.name, "cut": record.cut, "head": record.head.name}
    verdicts: dict[str, Verdict] = {}

    def fill(place: Path) -> dict[str, object]:
        for name, graph in graphs.items():
            export.describe(graph, labels=record.labels, pixels=record.pixels, bundle=bundle.digest, names=names)
            file = place / f"{name}.onnx"
            onnx.save_model(graph, file)
            inputs = expected[FEATURES] if name == "head" else images
            verdicts[name] = compare(expected, OnnxSession(file), inputs)
            _gate(name, verdicts[name], bundle)
        return {"parity": {name: verdict.to_json() for name, verdict in verdicts.items()}}

    place = built.write(bundle.root, built.TARGET, built.PRECISION, _facts(bundle, len(images), drawn_from), fill)
    return Published(place, len(images), drawn_from, verdicts)


def publish_target(
    bundle: Bundle, target: Target, *, shapes: Shapes | None = None, data: Path | None = None
) -> Published:
    """Build a target's files from the ONNX graphs of a bundle and hold them against these where they can be run."""
    if (why := target.missing()) is not None:
        raise ResourceError(f"target {target.name} can't be built here: {why}")
    images, drawn_from = parity_images(bundle, data)
    sources = {name: built.graph_file(bundle.root, name) for name in built.GRAPHS}
    expected = OnnxSession(sources["model"]).run(images)
    verdicts: dict[str, Verdict] = {}
    unproven: list[str] = []

    def fill(place: Path) -> dict[str, object]:
        for name, graph in sources.items():
            file = place / f"{name}{target.suffix}"
            target.build(graph, file, shapes or Shapes())
            try:
                session = target.open(file)
            except ResourceError as error:
                unproven.append(error.what)
                continue
            verdicts[name] = compare(expected, session, expected[FEATURES] if name == "head" else images)
            _gate(name, verdicts[name], bundle)
        return {"parity": {name: verdict.to_json() for name, verdict in verdicts.items()}, "unproven": unproven[:1]}

    facts = _facts(bundle, len(images), drawn_from) | {"options": to_json(target), "shapes": asdict(shapes or Shapes())}
    place = built.write(bundle.root, target.name, built.PRECISION, facts, fill)
    return Published(place, len(images), drawn_from, verdicts, unproven[0] if unproven else None)


def _gate(name: str, verdict: Verdict, bundle: Bundle) -> None:
    if not verdict.passed:
        raise GateError(f"{name} does not compute what was trained: {verdict.summary()}", file=bundle.root)


def _facts(bundle: Bundle, images: int, drawn_from: str) -> dict[str, object]:
    """What the record of every by-product says."""
    return {
        "bundle": bundle.digest,
        "tlkit": __version__,
        "versions": {package: version(package) for package in ("torch", "onnx", "onnxruntime")},
        "parity_images": {"count": images, "from": drawn_from},
    }


def parity_images(bundle: Bundle, data: Path | None = None) -> tuple[NDArray[np.uint8], str]:
    """Images `(N, S, S, 3)` to check on, and where they were drawn from.

    From the validation split of `data`, or of the folder that was trained on if it is still there, or else the golden
    images of the bundle.
    """
    for source in (data, Path(bundle.record.data["source"])):
        if source is None:
            continue
        try:
            dataset = folder.read(source, labels=bundle.record.labels, val=bundle.record.data["val"])
        except TlkitError:
            if data is not None:
                raise
            continue
        images = _load_some(bundle, [sample.path for sample in dataset.of("val")])
        if len(images):
            return images, f"the validation split of {source}"
    golden = bundle.golden_bytes()
    if not golden:
        raise UsageError(
            "there are no images to check the export on: the folder it was trained on is not there, and the bundle "
            "keeps no golden images",
            file=bundle.root,
            do="name a folder with --data",
        )
    return np.stack([load(content, bundle.record.pixels) for content in golden]), "the golden images"


def _load_some(bundle: Bundle, files: Sequence[Path]) -> NDArray[np.uint8]:
    """Up to `PARITY_IMAGES` of the files, evenly spaced; one that can't be used is passed over."""
    step = max(1, len(files) // PARITY_IMAGES)
    images = []
    for file in files[::step][:PARITY_IMAGES]:
        try:
            images.append(load(file, bundle.record.pixels))
        except Rejected:
            continue
    if files and not images:
        raise DataError("none of its validation images can be used", file=files[0].parent)
    size = bundle.record.pixels.size
    return np.stack(images) if images else np.empty((0, size, size, 3), np.uint8)
