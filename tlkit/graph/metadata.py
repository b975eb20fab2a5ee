"""What a graph says of itself: the names that stand in its metadata, written and read here and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import onnx
from onnx import helper

from tlkit.errors import ArtifactError
from tlkit.model import exports
from tlkit.plugin.contract import Preprocessing
from tlkit.version import __version__

PREFIX = "tlkit."
PREPROCESSING = PREFIX + "preprocessing"  # the recipe, as JSON
LABELS = PREFIX + "labels"  # in the order of the logits, as JSON; of a trunk alone there are none
BUNDLE = PREFIX + "bundle"  # the hash of the bundle that it was exported from
VERSION = PREFIX + "version"  # of the tlkit that exported it
BACKBONE = PREFIX + "backbone"
CUT = PREFIX + "cut"
HEAD = PREFIX + "head"
HEAD_FROM = PREFIX + exports.HEAD_FROM  # whether that is the bundle's own
PRECISION = PREFIX + "precision"
HEADS = PREFIX + "heads"  # of a graph with several: what each of them says of itself, as JSON


def facts(preprocessing: Preprocessing, labels: Sequence[str], more: Mapping[str, str]) -> dict[str, str]:
    """What every graph says, and `more`, whose names are those above."""
    return {PREPROCESSING: recipe(preprocessing), LABELS: json.dumps(list(labels)), VERSION: __version__, **more}


def recipe(preprocessing: Preprocessing) -> str:
    """A pixel recipe as it stands in a graph."""
    return json.dumps(asdict(preprocessing))


def described(metadata: Mapping[str, str], file: Path) -> tuple[Preprocessing, tuple[str, ...]]:
    """The pixel recipe and the labels that a graph carries in its metadata."""
    try:
        known = json.loads(metadata[PREPROCESSING])
        preprocessing = Preprocessing(**{**known, "mean": tuple(known["mean"]), "std": tuple(known["std"])})
        return preprocessing, tuple(json.loads(metadata[LABELS]))
    except (KeyError, TypeError, ValueError) as error:
        what = f"what the graph says of itself can't be read: {type(error).__name__}: {error}"
        raise ArtifactError(what, file=file, do="export it again") from error


def describe_graph(graph: onnx.ModelProto, facts: Mapping[str, str]) -> None:
    """Write metadata into a graph; earlier metadata is replaced."""
    helper.set_model_props(graph, dict(facts))
    graph.producer_name, graph.producer_version = "tlkit", __version__
