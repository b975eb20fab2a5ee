"""Export several bundles with the same trunk as one graph: images go through the trunk once, for all heads.

    trunk.onnx  head-<bundle>.onnx ...  model.onnx  manifest.json

`trunk.onnx` has no metadata of heads, so it stays the same file whichever heads come or go. In `model.onnx` the logits
and probabilities of a head are named after its bundle: `pets/logits`, `pets/probabilities`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import compose

from tlkit.errors import ArtifactError, UsageError
from tlkit.exporting.gate import CombinedExport, Gate
from tlkit.graph import metadata
from tlkit.graph.compose import add_probabilities
from tlkit.model import exports
from tlkit.model.bundle import TRUNK, Bundle, read_record
from tlkit.model.exports import Exports
from tlkit.model.reference_images import parity_images
from tlkit.plugin.contract import FEATURES, LOGITS, PROBABILITIES
from tlkit.runtime.session import HeadSession, OnnxSession, head_output, load_graph
from tlkit.util import files
from tlkit.verification.parity import Verdict
from tlkit.version import __version__

NAME = re.compile(r"[\w.-]+")  # it becomes part of output names


class SharedTrunk(CombinedExport):
    """The folder that was written, and the verdict on each head by its bundle's name."""

    def to_json(self) -> dict[str, Any]:
        return {"folder": str(self.folder), "heads": self.facts()}

    def __repr__(self) -> str:
        return self.told("each head compared with its own model")


def export_shared_trunk(bundles: Sequence[Bundle], out: Path, *, data: Path | None = None) -> SharedTrunk:
    """Write one graph of bundles that have the same trunk, from their fp32 graphs; a GateError writes nothing.

    `out` must be new, or what an earlier call wrote and nothing else.
    """
    named = by_name(bundles)
    check_trunks(bundles)
    _check_ours(out)
    own = {name: Exports.of(bundle).get() for name, bundle in named.items()}
    graphs = {name: load_graph(export.file("head")) for name, export in own.items()}
    trunk = load_graph(next(iter(own.values())).file("trunk"))
    _describe(trunk, bundles[0], {})
    model = joined(trunk, graphs, {name: bundle.record.activation for name, bundle in named.items()})
    _describe(model, bundles[0], named)
    verdicts: dict[str, Verdict] = {}

    def fill(folder: Path) -> dict[str, object]:
        onnx.save_model(trunk, folder / "trunk.onnx")
        onnx.save_model(model, folder / "model.onnx")
        for name, head in graphs.items():
            onnx.save_model(head, folder / f"head-{name}.onnx")
        shared = OnnxSession(folder / "model.onnx")
        for name, bundle in named.items():
            parity = parity_images(bundle, data)
            gate = Gate(bundle, parity, OnnxSession(own[name].file("model")).run(parity.images))
            gate.admit(name, HeadSession(shared, name), what=f"the head {name}")
            verdicts.update(gate.verdicts)
        return {"parity": {name: verdict.to_json() for name, verdict in verdicts.items()}}

    facts = {
        "bundle": None,  # of several: they stand below
        "tlkit": __version__,
        "heads": {name: {"bundle": bundle.digest} for name, bundle in named.items()},
    }
    exports.write_export(out, exports.TARGET, exports.PRECISION, facts, fill)
    return SharedTrunk(out, verdicts)


def _check_ours(out: Path) -> None:
    """Refuse to write over anything but an earlier shared trunk."""
    try:
        ours = "heads" in exports.read_manifest(out, "")
    except ArtifactError:
        ours = False
    if ours:
        exports.check_replaceable(out)
    else:
        files.check_new(out)


def joined(
    trunk: onnx.ModelProto, heads: Mapping[str, onnx.ModelProto], activations: Mapping[str, str]
) -> onnx.ModelProto:
    """Return the graph from `images` to `features`, and to `<name>/logits` and so on of every head."""
    model, outputs = trunk, [FEATURES]
    for name, head in heads.items():
        part = compose.add_prefix(head, f"{name}/")
        del part.metadata_props[:]  # the labels of one head are not those of another
        logits, probabilities = head_output(name, LOGITS), head_output(name, PROBABILITIES)
        outputs += [*(output.name for output in part.graph.output), probabilities]
        add_probabilities(part.graph, logits, probabilities, activations[name])
        model = compose.merge_models(model, part, io_map=[(FEATURES, head_output(name, FEATURES))], outputs=outputs)
    return model


def by_name(bundles: Sequence[Bundle]) -> dict[str, Bundle]:
    """Return the bundles by the names of their folders."""
    named: dict[str, Bundle] = {}
    for bundle in bundles:
        name = bundle.root.resolve().name
        if not NAME.fullmatch(name):
            raise UsageError(f"{name!r} can't be part of an output's name", file=bundle.root, do="rename the folder")
        if name in named:
            raise UsageError(f"two bundles have the name {name!r}", file=bundle.root, do="rename one of the folders")
        named[name] = bundle
    return named


def check_trunks(bundles: Sequence[Bundle]) -> None:
    """Refuse bundles whose trunks differ."""
    first = _trunk(bundles[0])
    for bundle in bundles[1:]:
        theirs = _trunk(bundle)
        differing = [fact for fact in first if theirs[fact] != first[fact]]
        if differing:
            what = f"its trunk is not that of {bundles[0].root}: another {', another '.join(differing)}"
            raise ArtifactError(what, file=bundle.root, do="export it by itself")


def _trunk(bundle: Bundle) -> dict[str, Any]:
    """Return the facts that identify a trunk."""
    record = bundle.record
    return {
        "backbone": (record.backbone.name, record.backbone.options),
        "cut": record.cut,
        "preprocessing": record.preprocessing,
        "state of the weights": read_record(bundle.root)["files"][TRUNK],
    }


def _describe(graph: onnx.ModelProto, bundle: Bundle, named: Mapping[str, Bundle]) -> None:
    """Write the metadata of a graph; that of the trunk alone says nothing about a head."""
    record = bundle.record
    heads = {name: metadata.HeadMetadata.of(each) for name, each in named.items()}
    described = metadata.GraphMetadata(
        preprocessing=record.preprocessing,
        backbone=record.backbone.name,
        cut=record.cut,
        precision=exports.PRECISION,
        heads=heads,
    )
    described.write(graph)
