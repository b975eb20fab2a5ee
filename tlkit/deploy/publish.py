"""From a bundle to its by-products, each checked on real images before it takes its place."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from safetensors.numpy import save

from tlkit import __version__
from tlkit.data.images import Rejected, load
from tlkit.deploy import built, export, metadata, opening, source
from tlkit.deploy.parity import TOLERANCES, HeadOf, Verdict, compare, head_of
from tlkit.deploy.progress import Progress, silent
from tlkit.deploy.refit import Refitted
from tlkit.deploy.session import OnnxSession
from tlkit.errors import DataError, GateError, ResourceError, TlkitError, UsageError
from tlkit.model.bundle import Bundle
from tlkit.plugin.contract import FEATURES, LOGITS, Backbone, Head, Session, Shapes, Target
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
    trunk, module = export.modules(bundle, backbone, head)
    expected = export.reference(trunk, module, images)
    trunk_graph = export.trunk_graph(onnx.load_model(export.taps_graph(trunk)), bundle.record.cut)
    graphs = graphs_of(bundle, trunk_graph, export.head_graph(module, bundle.record.width))
    return publish_graphs(bundle, graphs, expected, images, drawn_from)


def half_trunk(bundle: Bundle, backbone: Backbone, head: Head) -> onnx.ModelProto:
    """The graph of a bundle's trunk with its stages in half precision."""
    return export.half_graph(export.modules(bundle, backbone, head)[0])


def graphs_of(
    bundle: Bundle,
    trunk: onnx.ModelProto,
    head: onnx.ModelProto,
    precision: str = built.PRECISION,
    head_from: str = built.FROM_BUNDLE,
) -> dict[str, onnx.ModelProto]:
    """A bundle's three graphs by name, each of which says what it is."""
    record = bundle.record
    for part in (trunk, head):
        del part.metadata_props[:]  # of graphs that were exported before, in another precision
    graphs = {"trunk": trunk, "head": head, "model": export.model_graph(trunk, head)}
    names = {
        metadata.BUNDLE: bundle.digest,
        metadata.BACKBONE: record.backbone.name,
        metadata.CUT: record.cut,
        metadata.HEAD: record.head.name,
        metadata.HEAD_FROM: head_from,
        metadata.PRECISION: precision,
    }
    for graph in graphs.values():
        export.describe(graph, metadata.facts(record.pixels, record.labels, names))
    return graphs


def publish_graphs(
    bundle: Bundle,
    graphs: Mapping[str, onnx.ModelProto],
    expected: Mapping[str, NDArray[np.float32]],
    images: NDArray[np.uint8],
    drawn_from: str,
    *,
    precision: str = built.PRECISION,
    refitted: Refitted | None = None,
    more: Mapping[str, object] | None = None,
) -> Published:
    """Write graphs that give `expected` for `images`; a `GateError` leaves what was there before.

    `refitted` is their head, where it is not the bundle's own.
    """
    verdicts: dict[str, Verdict] = {}
    below = precision != built.PRECISION

    def fill(place: Path) -> dict[str, object]:
        for name, graph in graphs.items():
            file = place / f"{name}.onnx"
            onnx.save_model(graph, file)
            inputs = expected[FEATURES] if name == "head" else images
            tolerance = TOLERANCES[built.PRECISION if name == "head" else precision]  # a head is float in all of them
            head = head_of(OnnxSession(place / "head.onnx")) if name == "model" and below else None
            verdicts[name] = compare(expected, OnnxSession(file), inputs, tolerance=tolerance, head=head)
            _gate(name, verdicts[name], bundle)
        _keep_expected(bundle, OnnxSession(place / "model.onnx"), place, precision)
        if refitted is not None:
            refitted.save(place)
        return {"parity": {name: verdict.to_json() for name, verdict in verdicts.items()}, **(more or {})}

    head_from = built.FROM_BUNDLE if refitted is None else built.FROM_EXPORT
    facts = _facts(bundle, len(images), drawn_from) | {built.HEAD_FROM: head_from}
    place = built.write(bundle.root, built.TARGET, precision, facts, fill)
    return Published(place, len(images), drawn_from, verdicts)


def publish_target(
    bundle: Bundle,
    target: Target,
    *,
    precision: str = built.PRECISION,
    shapes: Shapes | None = None,
    data: Path | None = None,
    progress: Progress = silent,
) -> Published:
    """Build a target's files from the ONNX graphs of a bundle and hold them against these where they can be run."""
    wanted = graphs_for(target, precision)
    images, drawn_from = parity_images(bundle, data)
    sources = {name: built.graph_file(bundle.root, name, precision=wanted) for name in built.GRAPHS}
    expected = OnnxSession(sources["model"]).run(images)
    machine = dict(target.machine())
    origin = bundle.root / built.TARGET / wanted
    verdicts: dict[str, Verdict] = {}
    unproven: list[str] = []

    def fill(place: Path) -> dict[str, object]:
        head: HeadOf | None = None
        for name, graph in sources.items():
            file = place / f"{name}{target.suffix}"
            target.build_watched(graph, file, shapes or Shapes(), progress)
            try:
                if (why := target.unfit(machine)) is not None:  # built for others than this one
                    unproven.append(why)
                    continue
                session = target.open(file)
            except ResourceError as error:
                unproven.append(error.what)
                continue
            inputs = expected[FEATURES] if name == "head" else images
            if name == "head" and precision != built.PRECISION:
                head = head_of(session)
            verdicts[name] = compare(expected, session, inputs, tolerance=TOLERANCES[precision], head=head)
            _gate(name, verdicts[name], bundle)
            if name == "model":
                _keep_expected(bundle, session, place, precision)
        if built.refitted(origin) is not None:
            shutil.copyfile(origin / built.REFITTED, place / built.REFITTED)
        return {"parity": {name: verdict.to_json() for name, verdict in verdicts.items()}, "unproven": unproven[:1]}

    facts = _facts(bundle, len(images), drawn_from) | {
        "options": to_json(target),
        "shapes": asdict(shapes or Shapes()),
        "machine": machine,
        built.HEAD_FROM: built.head_from(origin),
        **opening.facts(target, sources),
    }
    place = built.write(bundle.root, target.name, precision, facts, fill)
    opening.remember(target, place)
    return Published(place, len(images), drawn_from, verdicts, unproven[0] if unproven else None)


def graphs_for(target: Target, precision: str) -> str:
    """The precision of the ONNX graphs that a target wants for one.

    Refuses one that it has no use for, and a target that can't be built here.
    """
    flavours = (precision, built.SYMMETRIC) if precision == "int8" else (precision,)
    wanted = next((flavour for flavour in flavours if flavour in target.precisions), None)
    if wanted is None:
        known = dict.fromkeys(map(built.plain, target.precisions))
        what = f"target {target.name} takes no {precision} graph"
        raise UsageError(what, do=f"choose one of {', '.join(known)} with --precision")
    if (why := target.missing()) is not None:
        raise ResourceError(f"target {target.name} can't be built here: {why}")
    return wanted


def _keep_expected(bundle: Bundle, session: Session, place: Path, precision: str) -> None:
    """Below fp32, write what a model gives for the golden images: no other machine will have to allow for more."""
    if precision != built.PRECISION and bundle.record.golden:
        got = session.run(golden_pixels(bundle), [FEATURES, LOGITS])
        (place / built.EXPECTED).write_bytes(save({name: np.ascontiguousarray(array) for name, array in got.items()}))


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
    for named in dict.fromkeys([data, None]):
        try:
            place, dataset = source.dataset(bundle, named)
        except TlkitError:
            if named is not None:
                raise
            continue
        images = _load_some(bundle, [sample.path for sample in dataset.of("val")])
        if len(images):
            return images, f"the validation split of {place}"
    if not bundle.record.golden:
        raise UsageError(
            "there are no images to check the export on: the folder it was trained on is not there, and the bundle "
            "keeps no golden images",
            file=bundle.root,
            do="name a folder with --data",
        )
    return golden_pixels(bundle), "the golden images"


def golden_pixels(bundle: Bundle) -> NDArray[np.uint8]:
    """The golden images `(N, S, S, 3)` as they are loaded here."""
    return np.stack([load(content, bundle.record.pixels) for content in bundle.golden_bytes()])


def _load_some(bundle: Bundle, files: Sequence[Path]) -> NDArray[np.uint8]:
    """Up to `PARITY_IMAGES` of the files, evenly spaced; one that can't be used is passed over."""
    images = []
    for file in source.spread(files, PARITY_IMAGES):
        try:
            images.append(load(file, bundle.record.pixels))
        except Rejected:
            continue
    if files and not images:
        raise DataError("none of its validation images can be used", file=files[0].parent)
    size = bundle.record.pixels.size
    return np.stack(images) if images else np.empty((0, size, size, 3), np.uint8)
