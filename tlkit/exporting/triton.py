"""A model repository for Triton, KServe and OpenVINO Model Server: one trunk, and an ensemble with it for every head.

    <trunk>/config.pbtxt   1/model.onnx          images -> features
    <name>-head/config.pbtxt   1/model.onnx      features -> logits, probabilities
    <name>/config.pbtxt   labels.txt   1/        images -> features, logits, probabilities, through both

Bundles with the same trunk share its model, whose name ends in its hash; to add a head leaves it untouched. The format
is that of Triton's model_config.proto in protobuf's text format.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from tlkit.errors import UsageError, one_line
from tlkit.exporting.gate import CombinedExport, Gate
from tlkit.exporting.shared_trunk import by_name
from tlkit.graph import metadata
from tlkit.graph.compose import add_probabilities
from tlkit.model import exports
from tlkit.model.bundle import Bundle
from tlkit.model.cut import JOINT
from tlkit.model.exports import Export, Exports
from tlkit.model.reference_images import parity_images
from tlkit.plugin.contract import FEATURES, IMAGES, LOGITS, PROBABILITIES
from tlkit.runtime.session import OnnxSession, load_graph, on_disk
from tlkit.util import files
from tlkit.verification.parity import Verdict

CONFIG, LABELS = "config.pbtxt", "labels.txt"
MAX_BATCH_SIZE = 64  # images in a batch that the server may put together
MAX_DELAY = 500  # microseconds that it may wait for others to join one
MARK = "# written by tlkit"
UINT8, FP32 = "TYPE_UINT8", "TYPE_FP32"


@dataclass(frozen=True, slots=True, repr=False)
class TritonRepository(CombinedExport):
    """The folder, the verdict on each ensemble by its bundle's name, and the models that were written."""

    models: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"folder": str(self.folder), "models": list(self.models), "ensembles": self.facts()}

    def __repr__(self) -> str:
        return self.told(f"{', '.join(self.models)}; each ensemble compared with its own model")


def export_triton(
    bundles: Sequence[Bundle], repository: Path, *, precision: str = exports.PRECISION, data: Path | None = None
) -> TritonRepository:
    """Write the models of bundles from their ONNX graphs, which have to be there; others in the repository stay.

    Every ensemble is compared with its own model first: a GateError leaves what was there before.
    """
    written: dict[str, None] = {}
    verdicts: dict[str, Verdict] = {}
    for name, bundle in by_name(bundles).items():
        export = Exports.of(bundle).get(precision=precision)
        graphs = {part: load_graph(export.file(part)) for part in exports.GRAPHS}
        trunk, head = trunk_name(bundle, graphs["trunk"]), f"{name}-head"
        add_probabilities(graphs["head"].graph, LOGITS, PROBABILITIES, bundle.record.activation)
        for model in (trunk, head, name):
            _check_ours(repository / model)
        verdicts[name] = _verdict(bundle, export, graphs["head"], data)

        size, width, classes = bundle.record.preprocessing.size, bundle.record.width, len(bundle.record.labels)
        images, features = {IMAGES: (UINT8, (size, size, 3))}, {FEATURES: (FP32, (width,))}
        answers: Shapes = {LOGITS: (FP32, (classes,)), PROBABILITIES: (FP32, (classes,))}
        answers = {**answers, **dict.fromkeys(bundle.record.scores, (FP32, ()))}
        facts = {metadata.BUNDLE: bundle.digest, metadata.PRECISION: precision}
        if not (repository / trunk / CONFIG).exists():
            _write_graph(repository / trunk, graphs["trunk"], images, features, {})
            written[trunk] = None
        _write_graph(repository / head, graphs["head"], features, answers, facts)
        facts[metadata.PREPROCESSING] = metadata.preprocessing_json(bundle.record.preprocessing)
        steps = [_step(trunk, [IMAGES], [FEATURES]), _step(head, [FEATURES], [*answers])]
        _write_ensemble(repository / name, bundle.record.labels, steps, images, {**features, **answers}, facts)
        written |= dict.fromkeys((head, name))
    return TritonRepository(repository, verdicts, tuple(written))


Shapes = Mapping[str, tuple[str, tuple[int, ...]]]  # by name: the type, and the axes behind the batch


def trunk_name(bundle: Bundle, graph: onnx.ModelProto) -> str:
    """Return the name of a trunk's model: the same for the same graph, whatever its metadata."""
    bare = onnx.ModelProto.FromString(graph.SerializeToString())
    del bare.metadata_props[:]
    digest = hashlib.sha256(bare.SerializeToString()).hexdigest()
    return f"{bundle.record.backbone.name}-{bundle.record.cut.replace(JOINT, '-')}-{digest[:12]}"


def _check_ours(place: Path) -> None:
    """Refuse to write over a model that somebody else put there, or that holds files of others."""
    if not place.exists():
        return
    try:
        written = (place / CONFIG).read_text(encoding="utf-8", errors="replace").startswith(MARK)
    except OSError:
        written = False
    if not written:
        raise UsageError("there is a model of this name that tlkit did not write", file=place, do="rename one of them")
    exports.check_strangers(place, {CONFIG, LABELS, "1/model.onnx"})


def _write_graph(
    place: Path, graph: onnx.ModelProto, inputs: Shapes, outputs: Shapes, facts: Mapping[str, str]
) -> None:
    def fill(place: Path) -> list[str]:
        del graph.metadata_props[:]
        onnx.save_model(graph, place / "1" / "model.onnx")
        return [
            'backend: "onnxruntime"',
            'default_model_filename: "model.onnx"',
            f"dynamic_batching {{ max_queue_delay_microseconds: {MAX_DELAY} }}",
        ]

    _write(place, inputs, outputs, facts, fill)


def _write_ensemble(
    place: Path, labels: Sequence[str], steps: Sequence[str], inputs: Shapes, outputs: Shapes, facts: Mapping[str, str]
) -> None:
    """Write the ensemble of trunk and head, whose probabilities come with the names of the classes."""
    outputs = {name: (dtype, dims or (1,)) for name, (dtype, dims) in outputs.items()}  # reshaped by the head's model

    def fill(place: Path) -> list[str]:
        (place / LABELS).write_text("".join(f"{one_line(label)}\n" for label in labels), "utf-8")
        return ['platform: "ensemble"', f"ensemble_scheduling {{\n  step [\n{','.join(steps)}\n  ]\n}}"]

    _write(place, inputs, outputs, facts, fill)


def _write(
    place: Path, inputs: Shapes, outputs: Shapes, facts: Mapping[str, str], fill: Callable[[Path], list[str]]
) -> None:
    """Write a model's folder atomically; `fill` writes the files and returns lines of its configuration."""
    with files.atomic_dir(place, replace=_check_ours) as temporary, files.translate_os_errors(place):
        (temporary / "1").mkdir()
        lines = [
            MARK,
            f"name: {quoted(place.name)}",
            f"max_batch_size: {MAX_BATCH_SIZE}",
            *fill(temporary),
        ]
        lines += [_tensor("input", inputs, name) for name in inputs]
        labelled = PROBABILITIES if (temporary / LABELS).exists() else None
        lines += [_tensor("output", outputs, name, labels=name == labelled) for name in outputs]
        for key, value in facts.items():
            lines.append(f"parameters {{ key: {quoted(key)} value {{ string_value: {quoted(value)} }} }}")
        (temporary / CONFIG).write_text("\n".join(lines) + "\n", "utf-8")


def _tensor(kind: str, shapes: Shapes, name: str, *, labels: bool = False) -> str:
    dtype, dims = shapes[name]
    more = f" label_filename: {quoted(LABELS)}" if labels else ""
    # Triton has no tensors without an axis behind the batch: a score per row is an axis of one, which it reshapes.
    more += "" if dims else " reshape { shape: [ ] }"
    return f"{kind} {{ name: {quoted(name)} data_type: {dtype} dims: [{', '.join(map(str, dims or (1,)))}]{more} }}"


def _step(model: str, inputs: Sequence[str], outputs: Sequence[str]) -> str:
    maps = [f"input_map {{ key: {quoted(name)} value: {quoted(name)} }}" for name in inputs]
    maps += [f"output_map {{ key: {quoted(name)} value: {quoted(name)} }}" for name in outputs]
    inside = "\n      ".join([f"model_name: {quoted(model)}", "model_version: -1", *maps])
    return f"    {{\n      {inside}\n    }}"


def quoted(text: str) -> str:
    """Return a string of protobuf's text format, which knows the escapes of JSON's strings in ASCII but for \\u."""
    return json.dumps(text, ensure_ascii=False)


def _verdict(bundle: Bundle, export: Export, head: onnx.ModelProto, data: Path | None) -> Verdict:
    """Compare trunk and head, run one after the other as the server does, with the bundle's model."""
    parity = parity_images(bundle, data)
    expected = OnnxSession(export.file("model")).run(parity.images)
    features = OnnxSession(export.file("trunk")).run(parity.images)[FEATURES]
    gate = Gate(bundle, parity, {**expected, FEATURES: features})
    with on_disk(head) as file:
        gate.admit("ensemble", OnnxSession(file), what="the ensemble")
    return gate.verdicts["ensemble"]
