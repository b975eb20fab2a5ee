"""Several bundles with the same trunk as one graph: images go through the trunk once, and every head has its outputs.

    trunk.onnx  head-<bundle>.onnx ...  model.onnx  manifest.json

`trunk.onnx` says nothing of any head, so it stays the same file whichever heads come or go. In `model.onnx` the logits
and probabilities of a head stand behind its bundle's name: `pets/logits`, `pets/probabilities`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from onnx import compose

from tlkit.errors import ArtifactError, GateError, UsageError
from tlkit.graph import metadata
from tlkit.graph.compose import add_probabilities
from tlkit.graph.metadata import describe_graph
from tlkit.model import exports
from tlkit.model.bundle import TRUNK, Bundle, read_record
from tlkit.model.reference_images import parity_images
from tlkit.plugin.contract import FEATURES, LOGITS, PROBABILITIES
from tlkit.runtime.heads import OneHead, of_head
from tlkit.runtime.session import OnnxSession
from tlkit.util import files
from tlkit.verification.parity import Verdict, compare
from tlkit.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable

NAME = re.compile(r"[\w.-]+")  # it becomes part of output names


@dataclass(frozen=True, slots=True)
class Shared:
    """Where the files are, and the verdict on each head."""

    place: Path
    verdicts: dict[str, Verdict]


def share(bundles: Sequence[Bundle], out: Path) -> Shared:
    """Write the graphs of bundles that have one trunk; a `GateError` leaves what was there before.

    `out` must be new, or what an earlier call wrote.
    """
    named = by_name(bundles)
    check_trunks(bundles)
    if not (out / exports.BUILT).exists():
        files.check_new(out)
    graphs = {name: onnx.load_model(exports.graph_file(bundle.root, "head")) for name, bundle in named.items()}
    trunk = onnx.load_model(exports.graph_file(bundles[0].root, "trunk"))
    _describe(trunk, bundles[0], {})
    model = joined(trunk, graphs)
    _describe(model, bundles[0], named)
    verdicts: dict[str, Verdict] = {}

    def fill(place: Path) -> dict[str, object]:
        onnx.save_model(trunk, place / "trunk.onnx")
        onnx.save_model(model, place / "model.onnx")
        for name, head in graphs.items():
            onnx.save_model(head, place / f"head-{name}.onnx")
        for name, bundle in named.items():
            verdicts[name] = _verdict(bundle, place / "model.onnx", name)
        return {"parity": {name: verdict.to_json() for name, verdict in verdicts.items()}}

    facts = {
        "bundle": None,  # of several: they stand below
        "tlkit": __version__,
        "heads": {name: {"bundle": bundle.digest} for name, bundle in named.items()},
    }
    exports.write_at(out, exports.TARGET, exports.PRECISION, facts, fill)
    return Shared(out, verdicts)


def joined(trunk: onnx.ModelProto, heads: Mapping[str, onnx.ModelProto]) -> onnx.ModelProto:
    """`images` to `features`, and to `<name>/logits` and `<name>/probabilities` of every head."""
    model, outputs = trunk, [FEATURES]
    for name, head in heads.items():
        part = compose.add_prefix(head, f"{name}/")
        del part.metadata_props[:]  # the labels of one head are not those of another
        logits, probabilities = of_head(name, LOGITS), of_head(name, PROBABILITIES)
        add_probabilities(part.graph, logits, probabilities)
        outputs += [logits, probabilities]
        model = compose.merge_models(model, part, io_map=[(FEATURES, of_head(name, FEATURES))], outputs=outputs)
    return model


def by_name(bundles: Iterable[Bundle]) -> dict[str, Bundle]:
    """The bundles by the names of their folders."""
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
    """Refuse bundles whose trunks are not one and the same."""
    first = _trunk(bundles[0])
    for bundle in bundles[1:]:
        theirs = _trunk(bundle)
        differing = [fact for fact in first if theirs[fact] != first[fact]]
        if differing:
            what = f"its trunk is not that of {bundles[0].root}: another {', another '.join(differing)}"
            raise ArtifactError(what, file=bundle.root, do="export it by itself")


def _trunk(bundle: Bundle) -> dict[str, Any]:
    """What makes a trunk what it is."""
    record = bundle.record
    return {
        "backbone": (record.backbone.name, record.backbone.options),
        "cut": record.cut,
        "pixel recipe": record.preprocessing,
        "state of the weights": read_record(bundle.root)["files"][TRUNK],
    }


def _describe(graph: onnx.ModelProto, bundle: Bundle, named: Mapping[str, Bundle]) -> None:
    """Write into a graph what is needed to use it; of the trunk alone, nothing that is about a head."""
    record = bundle.record
    facts = {
        metadata.BACKBONE: record.backbone.name,
        metadata.CUT: record.cut,
        metadata.PRECISION: exports.PRECISION,
    }
    if named:
        facts[metadata.HEADS] = json.dumps(
            {
                name: {"labels": list(each.record.labels), "bundle": each.digest, "head": each.record.head.name}
                for name, each in named.items()
            }
        )
    describe_graph(graph, metadata.facts(record.preprocessing, (), facts))


def _verdict(bundle: Bundle, file: Path, name: str) -> Verdict:
    images, _ = parity_images(bundle)
    expected = OnnxSession(exports.graph_file(bundle.root, "model")).run(images)
    verdict = compare(expected, OneHead(OnnxSession(file), name), images)
    if not verdict.passed:
        raise GateError(f"the head {name} does not compute what was trained: {verdict.summary()}", file=bundle.root)
    return verdict
