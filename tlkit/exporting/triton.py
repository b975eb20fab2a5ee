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

import onnx

from tlkit.errors import GateError, UsageError, one_line
from tlkit.exporting.shared_trunk import by_name
from tlkit.graph import metadata
from tlkit.graph.compose import add_probabilities
from tlkit.model import exports
from tlkit.model.bundle import Bundle
from tlkit.model.reference_images import parity_images
from tlkit.plugin.contract import FEATURES, IMAGES, LOGITS, PROBABILITIES
from tlkit.runtime.session import OnnxSession, on_disk
from tlkit.util import files
from tlkit.verification.parity import Verdict, compare

CONFIG, LABELS = "config.pbtxt", "labels.txt"
BIGGEST = 64  # images in a batch that the server may put together
WAIT = 500  # microseconds that it may wait for others to join one
MARK = "# written by tlkit"
UINT8, FP32 = "TYPE_UINT8", "TYPE_FP32"


@dataclass(frozen=True, slots=True)
class Repository:
    """Where it is, the models in it that were written, and the verdict on each ensemble."""

    place: Path
    models: tuple[str, ...]
    verdicts: dict[str, Verdict]


def publish_triton(bundles: Sequence[Bundle], repository: Path, *, precision: str = exports.PRECISION) -> Repository:
    """Write the models of bundles from their ONNX graphs, which have to be there; others in the repository stay.

    Every head is held against its own model first: a `GateError` leaves what was there before.
    """
    named = by_name(bundles)
    written: dict[str, None] = {}
    verdicts = {}
    for name, bundle in named.items():
        graphs = {
            part: onnx.load_model(exports.graph_file(bundle.root, part, precision=precision)) for part in exports.GRAPHS
        }
        trunk, head = trunk_name(bundle, graphs["trunk"]), f"{name}-head"
        add_probabilities(graphs["head"].graph, LOGITS, PROBABILITIES)
        for model in (trunk, head, name):
            _check_ours(repository / model)
        size, width, classes = bundle.record.preprocessing.size, bundle.record.width, len(bundle.record.labels)
        shapes = {IMAGES: (UINT8, (size, size, 3)), FEATURES: (FP32, (width,))}
        answers = {LOGITS: (FP32, (classes,)), PROBABILITIES: (FP32, (classes,))}
        verdicts[name] = _verdict(bundle, graphs, precision)

        facts = {metadata.BUNDLE: bundle.digest, metadata.PRECISION: precision}
        if not (repository / trunk / CONFIG).exists():
            _write_graph(repository, trunk, graphs["trunk"], pick(shapes, IMAGES), pick(shapes, FEATURES), {})
            written[trunk] = None
        _write_graph(repository, head, graphs["head"], pick(shapes, FEATURES), answers, facts)
        _write_ensemble(repository, name, bundle, trunk, head, shapes, answers, facts)
        written |= dict.fromkeys((head, name))
    return Repository(repository, tuple(written), verdicts)


Shape = tuple[str, tuple[int, ...]]  # the type, and the axes behind the batch


def pick(shapes: Mapping[str, Shape], name: str) -> dict[str, Shape]:
    """One of them alone."""
    return {name: shapes[name]}


def trunk_name(bundle: Bundle, graph: onnx.ModelProto) -> str:
    """The name of a trunk's model: the same for the same graph, whatever stands in its metadata."""
    bare = onnx.ModelProto.FromString(graph.SerializeToString())
    del bare.metadata_props[:]
    return (
        f"{bundle.record.backbone.name}-{bundle.record.cut}-{hashlib.sha256(bare.SerializeToString()).hexdigest()[:12]}"
    )


def _check_ours(place: Path) -> None:
    """Refuse to write over a model that somebody else put there."""
    config = place / CONFIG
    if place.exists() and not (config.exists() and config.read_text().startswith(MARK)):
        raise UsageError("there is a model of this name that tlkit did not write", file=place, do="rename one of them")


def _write_graph(
    repository: Path,
    name: str,
    graph: onnx.ModelProto,
    inputs: Mapping[str, Shape],
    outputs: Mapping[str, Shape],
    facts: Mapping[str, str],
) -> None:
    def fill(place: Path) -> list[str]:
        del graph.metadata_props[:]
        onnx.save_model(graph, place / "1" / "model.onnx")
        return [
            'backend: "onnxruntime"',
            'default_model_filename: "model.onnx"',
            f"dynamic_batching {{ max_queue_delay_microseconds: {WAIT} }}",
        ]

    _write(repository / name, inputs, outputs, facts, fill)


def _write_ensemble(
    repository: Path,
    name: str,
    bundle: Bundle,
    trunk: str,
    head: str,
    shapes: Mapping[str, Shape],
    answers: Mapping[str, Shape],
    facts: Mapping[str, str],
) -> None:
    """The trunk, then the head; its answers come with the names of the classes."""

    def fill(place: Path) -> list[str]:
        (place / LABELS).write_text("".join(f"{one_line(label)}\n" for label in bundle.record.labels))
        steps = [_step(trunk, [IMAGES], [FEATURES]), _step(head, [FEATURES], [LOGITS, PROBABILITIES])]
        return ['platform: "ensemble"', f"ensemble_scheduling {{\n  step [\n{','.join(steps)}\n  ]\n}}"]

    recipe = metadata.recipe(bundle.record.preprocessing)
    outputs = {**pick(shapes, FEATURES), **answers}
    _write(repository / name, pick(shapes, IMAGES), outputs, {**facts, metadata.PREPROCESSING: recipe}, fill)


def _write(
    place: Path,
    inputs: Mapping[str, Shape],
    outputs: Mapping[str, Shape],
    facts: Mapping[str, str],
    fill: Callable[[Path], list[str]],
) -> None:
    """Make a model's folder whole or not at all; `fill` writes the files and returns what its configuration says."""
    with files.atomic_dir(place, replace=True) as temporary, files.translate_os_errors(place):
        (temporary / "1").mkdir()
        lines = [
            MARK,
            f"name: {quoted(place.name)}",
            f"max_batch_size: {BIGGEST}",
            *fill(temporary),
            *(_tensor("input", name, shape, labels=False) for name, shape in inputs.items()),
            *(
                _tensor("output", name, shape, labels=name == PROBABILITIES and (temporary / LABELS).exists())
                for name, shape in outputs.items()
            ),
            *(
                f"parameters {{ key: {quoted(key)} value {{ string_value: {quoted(value)} }} }}"
                for key, value in facts.items()
            ),
        ]
        (temporary / CONFIG).write_text("\n".join(lines) + "\n")


def _tensor(kind: str, name: str, shape: Shape, *, labels: bool) -> str:
    dtype, dims = shape
    more = f" label_filename: {quoted(LABELS)}" if labels else ""
    return f"{kind} {{ name: {quoted(name)} data_type: {dtype} dims: [{', '.join(map(str, dims))}]{more} }}"


def _step(model: str, inputs: Sequence[str], outputs: Sequence[str]) -> str:
    maps = [f"input_map {{ key: {quoted(name)} value: {quoted(name)} }}" for name in inputs]
    maps += [f"output_map {{ key: {quoted(name)} value: {quoted(name)} }}" for name in outputs]
    inside = "\n      ".join([f"model_name: {quoted(model)}", "model_version: -1", *maps])
    return f"    {{\n      {inside}\n    }}"


def quoted(text: str) -> str:
    """A string of protobuf's text format, which knows the escapes of JSON's strings in ASCII but for \\u."""
    return json.dumps(text, ensure_ascii=False)


def _verdict(bundle: Bundle, graphs: Mapping[str, onnx.ModelProto], precision: str) -> Verdict:
    """Trunk and head one after the other, as the server runs them, against the bundle's model."""
    images, _ = parity_images(bundle)
    expected = OnnxSession(exports.graph_file(bundle.root, "model", precision=precision)).run(images)
    features = OnnxSession(exports.graph_file(bundle.root, "trunk", precision=precision)).run(images)[FEATURES]
    with on_disk(graphs["head"]) as head:
        verdict = compare(expected, OnnxSession(head), features)
    if not verdict.passed:
        raise GateError(f"the ensemble does not compute what was exported: {verdict.summary()}", file=bundle.root)
    return verdict
