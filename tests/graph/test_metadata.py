"""Metadata of graphs: what is written is read."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from onnx import helper

from tlkit.errors import ArtifactError, UsageError
from tlkit.graph.metadata import BUNDLE, GraphMetadata, HeadMetadata, head_names, read_metadata, select_head
from tlkit.plugin.contract import Preprocessing

PREPROCESSING = Preprocessing(32, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), crop_pct=0.9, interpolation="bicubic")
FILE = Path("model.onnx")


def props(graph):
    return {prop.key: prop.value for prop in graph.metadata_props}


def test_preprocessing_and_labels_come_back_exactly():
    written = GraphMetadata(
        preprocessing=PREPROCESSING, head=HeadMetadata(("a", "b"), "0" * 64), cut="third"
    ).to_props()
    assert read_metadata(written, FILE) == (PREPROCESSING, ("a", "b"))
    assert written[BUNDLE] == "0" * 64
    assert "tlkit.head" not in written


def test_writing_replaces_earlier_metadata():
    graph = helper.make_model(helper.make_graph([], "g", [], []))
    helper.set_model_props(graph, {"tlkit.precision": "int8", "other": "x"})
    GraphMetadata(preprocessing=PREPROCESSING).write(graph)
    assert set(props(graph)) == {"tlkit.preprocessing", "tlkit.labels", "tlkit.version"}
    assert graph.producer_name == "tlkit"
    assert props(onnx.ModelProto.FromString(graph.SerializeToString())) == props(graph)


@pytest.mark.parametrize("key", ["tlkit.preprocessing", "tlkit.labels"])
@pytest.mark.parametrize("value", [None, "", "{", "3"])
def test_invalid_metadata_is_an_error_that_names_the_file(key, value):
    written = GraphMetadata(preprocessing=PREPROCESSING, head=HeadMetadata(("a",))).to_props()
    damaged = {name: text for name, text in written.items() if name != key} | ({} if value is None else {key: value})
    with pytest.raises(ArtifactError, match=r"model\.onnx: the metadata of the graph is invalid"):
        read_metadata(damaged, FILE)


def test_a_crop_mode_of_a_later_version_is_refused():
    written = GraphMetadata(preprocessing=PREPROCESSING).to_props()
    written["tlkit.preprocessing"] = written["tlkit.preprocessing"].replace('"center"', '"naflex"')
    with pytest.raises(ArtifactError, match="crop_mode must be one of center, squash, border, not 'naflex'") as refusal:
        read_metadata(written, FILE)
    assert refusal.value.exit_code == 4


def test_one_head_of_several_has_its_own_labels_and_bundle():
    heads = {
        "color": HeadMetadata(("red", "blue"), "1" * 64, "logistic"),
        "size": HeadMetadata(("big",), "2" * 64, "knn"),
    }
    written = GraphMetadata(preprocessing=PREPROCESSING, backbone="tiny", heads=heads).to_props()
    assert head_names(written) == ("color", "size")
    assert head_names(GraphMetadata(preprocessing=PREPROCESSING).to_props()) == ()
    own = select_head(written, "size")
    assert (json.loads(own["tlkit.labels"]), own[BUNDLE], own["tlkit.head"]) == (["big"], "2" * 64, "knn")
    assert own["tlkit.backbone"] == "tiny"
    assert "tlkit.heads" not in own
    with pytest.raises(UsageError, match="there is no head 'shape'; choose one of color, size"):
        select_head(written, "shape")
