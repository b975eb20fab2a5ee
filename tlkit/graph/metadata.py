"""Metadata of exported graphs: one schema, written and read here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import onnx
from onnx import helper

from tlkit.errors import ArtifactError, UsageError
from tlkit.plugin.contract import ACTIVATIONS, FEATURES, LOGITS, PROBABILITIES, BuildSource, Preprocessing
from tlkit.util.schema import parse_json, read_as
from tlkit.version import __version__

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from tlkit.model.bundle import Bundle

PREFIX = "tlkit."
PREPROCESSING, LABELS, VERSION = PREFIX + "preprocessing", PREFIX + "labels", PREFIX + "version"
BUNDLE, HEAD, HEAD_FROM = PREFIX + "bundle", PREFIX + "head", PREFIX + "head_from"
HEADS, PRECISION = PREFIX + "heads", PREFIX + "precision"
ACTIVATION, SOFTMAX = PREFIX + "activation", "softmax"
COVERAGE = PREFIX + "coverage"  # thresholds of sets of labels, as JSON
NOVELTY = PREFIX + "novelty"  # the threshold from which on an image is unknown


class HeadMetadata(NamedTuple):
    """The head of a graph: its labels in the order of the logits, the digest of its bundle, its name and activation.

    `novelty` is the threshold of the score of that name, if there is one; `coverage` thresholds of sets of labels, as
    JSON.
    """

    labels: tuple[str, ...] = ()
    bundle: str = ""
    head: str = ""
    activation: str = SOFTMAX
    novelty: float | None = None
    coverage: str = ""

    @classmethod
    def of(cls, bundle: Bundle) -> HeadMetadata:
        """Return that of the head of a bundle."""
        record = bundle.record
        novelty, coverage = record.novelty.get("threshold"), record.coverage.get("thresholds", "")
        return cls(record.labels, bundle.digest, record.head.name, record.activation, novelty, coverage)

    def to_props(self) -> dict[str, str]:
        """Return it as the strings that a graph stores, without those that are empty. Nor is softmax written."""
        props = {LABELS: labels_json(self.labels), BUNDLE: self.bundle, HEAD: self.head, COVERAGE: self.coverage}
        props[ACTIVATION] = "" if self.activation == SOFTMAX else self.activation
        props[NOVELTY] = "" if self.novelty is None else json.dumps(self.novelty)
        return {name: value for name, value in props.items() if value}


NO_HEAD = HeadMetadata()


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphMetadata:
    """Everything that is needed to use a graph; a trunk alone, or a graph with several heads, has no `head`."""

    preprocessing: Preprocessing
    head: HeadMetadata = NO_HEAD
    backbone: str = ""
    cut: str = ""
    head_from: str = ""  # "bundle", or "export" if the head was refitted
    precision: str = ""
    heads: Mapping[str, HeadMetadata] = field(default_factory=dict)

    @classmethod
    def of(cls, bundle: Bundle, precision: str = "", head_from: str = "") -> GraphMetadata:
        """Return that of a graph of a bundle."""
        record, head = bundle.record, HeadMetadata.of(bundle)
        graph = cls(preprocessing=record.preprocessing, head=head, backbone=record.backbone.name, cut=record.cut)
        return replace(graph, precision=precision, head_from=head_from)

    def to_props(self) -> dict[str, str]:
        """Return the metadata as the strings that a graph stores."""
        props = {PREPROCESSING: preprocessing_json(self.preprocessing), VERSION: __version__, **self.head.to_props()}
        names = ("backbone", "cut", "head_from", "precision")
        props |= {PREFIX + name: value for name in names if (value := getattr(self, name))}
        if self.heads:
            props[HEADS] = json.dumps({name: head._asdict() for name, head in self.heads.items()})
        return props

    def write(self, graph: onnx.ModelProto) -> None:
        """Replace the metadata of a graph."""
        helper.set_model_props(graph, self.to_props())
        graph.producer_name, graph.producer_version = "tlkit", __version__


@contextmanager
def reading(file: Path | None) -> Iterator[None]:
    """Raise what is missing or invalid in the metadata of a graph as an ArtifactError."""
    try:
        yield
    except (KeyError, ValueError) as error:
        what = f"the metadata of the graph is invalid: {type(error).__name__}: {error}"
        raise ArtifactError(what, file=file, do="export it again") from error


def read_metadata(props: Mapping[str, str], file: Path) -> tuple[Preprocessing, tuple[str, ...]]:
    """Return the preprocessing and the labels of a graph. Raises ArtifactError if they are missing or invalid."""
    with reading(file):
        preprocessing: Preprocessing = read_as(Preprocessing, parse_json(props[PREPROCESSING]), PREPROCESSING)
        labels: tuple[str, ...] = read_as(tuple[str, ...], parse_json(props[LABELS]), LABELS)
        if (activation := props.get(ACTIVATION, SOFTMAX)) not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, not {activation!r}")
    _heads(props, file)
    return preprocessing, labels


def score_names(outputs: Iterable[str]) -> tuple[str, ...]:
    """Return those of a graph's outputs that are scores of its head."""
    return tuple(name for name in outputs if name not in (FEATURES, LOGITS, PROBABILITIES))


def preprocessing_json(preprocessing: Preprocessing) -> str:
    """Return preprocessing as the JSON that a graph stores."""
    return json.dumps(asdict(preprocessing))


def labels_json(labels: Iterable[str]) -> str:
    """Return labels as the JSON that a graph stores."""
    return json.dumps(list(labels))


def novelty_threshold(props: Mapping[str, str], file: Path | None = None) -> float | None:
    """Return the novelty from which on an image is unknown; None if the graph has no such score."""
    if NOVELTY not in props:
        return None
    with reading(file):
        threshold: float = read_as(float, parse_json(props[NOVELTY]), NOVELTY)
    return threshold


def build_source(
    file: Path, module: Callable[[], nn.Module] | None = None, example: Callable[[int], NDArray[Any]] | None = None
) -> BuildSource:
    """Return an ONNX file as a source to build from; `module` and `example` are refused unless they are given."""

    def none(*_: object) -> Any:
        raise UsageError("it exists as a graph alone, not as PyTorch modules", file=file)

    graph = onnx.load_model(file, load_external_data=False)
    names = [value.name for value in (*graph.graph.input[:1], *graph.graph.output)]
    props = {prop.key: prop.value for prop in graph.metadata_props}
    return BuildSource(file, names[0], tuple(names[1:]), props, module or none, example or none)


def head_names(props: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of the heads of a graph with several; empty for a graph with one."""
    return tuple(_heads(props))


def select_head(props: Mapping[str, str], head: str) -> dict[str, str]:
    """Return the metadata of one head of a graph with several. Raises UsageError for an unknown head."""
    heads = _heads(props)
    if head not in heads:
        raise UsageError(f"there is no head {head!r}", do=f"choose one of {', '.join(heads)}")
    return {**{key: value for key, value in props.items() if key != HEADS}, **heads[head].to_props()}


def _heads(props: Mapping[str, str], file: Path | None = None) -> dict[str, HeadMetadata]:
    """Return the heads of a graph with several; raises ArtifactError where they are invalid."""
    with reading(file):
        heads: dict[str, HeadMetadata] = read_as(dict[str, HeadMetadata], parse_json(props.get(HEADS, "{}")), HEADS)
    return heads
