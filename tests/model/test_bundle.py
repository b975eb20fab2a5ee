"""A bundle is written atomically, and all of it is checked when it is opened."""

from __future__ import annotations

import json
import os
import pickle  # noqa: TID251 - to plant one where weights belong
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tlkit.errors import ArtifactError, DataError, ResourceError, UsageError
from tlkit.model import bundle as bundles
from tlkit.plugin.contract import Preprocessing
from tlkit.util import files

MADE = bundles.ComponentRecord("some", "somewhere", "1.0", {"c": None}, {"accuracy": 0.5})
RECORD = bundles.BundleRecord(
    labels=("ants", "bees"),
    preprocessing=Preprocessing(32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), crop_pct=0.9, interpolation="bilinear"),
    backbone=MADE,
    weights={"origin": "x", "license": "y", "sha256": None},
    stages=("first", "second"),
    cut="second",
    width=4,
    head=MADE,
    strategy=MADE,
    phases=({"epochs": 1},),
    seed=0,
    data={"source": "photos"},
    metrics={"val": {"accuracy": 1.0}},
    golden=(bundles.Golden("golden/0.png", "a/0.png", 1, "00"),),
)
TRUNK = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(3, np.int64)}
HEAD = {"weight": np.ones((2, 4), np.float32)}
EXPECTED = {"features": np.ones((1, 4), np.float32), "logits": np.ones((1, 2), np.float32)}


def write(root: Path) -> str:
    return bundles.write(
        root, RECORD, trunk=TRUNK, head=HEAD, history=[{"phase": 1}], golden=[b"image"], expected=EXPECTED
    )


@pytest.fixture
def root(tmp_path):
    write(tmp_path / "run")
    return tmp_path / "run"


def sign_again(root: Path, **changes: object) -> None:
    """Make hashes and digest right again, as someone would who means to deceive."""
    content = json.loads((root / "bundle.json").read_text()) | changes
    content["files"] = {name: files.sha256(root / name) for name in content["files"]}
    content["digest"] = bundles._digest({key: value for key, value in content.items() if key != "digest"})
    (root / "bundle.json").write_text(json.dumps(content))


def test_what_is_opened_is_what_was_written(root):
    bundle = bundles.open_bundle(root)
    assert bundle.record == RECORD
    assert bundle.golden_bytes() == [b"image"]
    for found, written in ((bundle.trunk, TRUNK), (bundle.head, HEAD), (bundle.expected(), EXPECTED)):
        assert found.keys() == written.keys()
        assert all(np.array_equal(found[name], written[name]) for name in written)
        assert all(found[name].dtype == written[name].dtype for name in written)


def test_the_same_content_has_the_same_digest(root, tmp_path):
    assert write(tmp_path / "again") == bundles.open_bundle(root).digest


def test_only_json_safetensors_and_images_are_in_it(root):
    kinds = {file.suffix for file in root.rglob("*") if file.is_file()}
    assert kinds == {".json", ".jsonl", ".safetensors", ".png"}


def test_a_failure_leaves_nothing_behind(tmp_path):
    with pytest.raises(TypeError):
        bundles.write(tmp_path / "run", RECORD, trunk=TRUNK, head=HEAD, history=[{"x": object()}])
    assert list(tmp_path.iterdir()) == []


def test_an_existing_place_is_refused_and_left_alone(root):
    before = (root / "bundle.json").read_bytes()
    with pytest.raises(UsageError, match="exists already"):
        write(root)
    assert (root / "bundle.json").read_bytes() == before


def test_an_empty_directory_is_as_good_as_none(tmp_path):
    (tmp_path / "run").mkdir()
    write(tmp_path / "run")
    bundles.open_bundle(tmp_path / "run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_place_is_a_resource_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ResourceError, match="permission denied"):
        write(tmp_path / "run")


@pytest.mark.parametrize(
    "name", ["bundle.json", "trunk.safetensors", "head.safetensors", "golden/0.png", "history.jsonl"]
)
def test_a_flipped_byte_is_found_in_every_file(root, name):
    content = bytearray((root / name).read_bytes())
    content[len(content) // 2] ^= 1
    (root / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=Path(name).name):
        bundles.open_bundle(root)


@pytest.mark.parametrize("name", ["trunk.safetensors", "golden/0.png"])
def test_a_missing_file_is_named(root, name):
    (root / name).unlink()
    with pytest.raises(ArtifactError, match=rf"{Path(name).name}.*missing"):
        bundles.open_bundle(root)


def test_no_bundle_and_no_record(tmp_path):
    with pytest.raises(DataError, match="no such bundle"):
        bundles.open_bundle(tmp_path / "none")
    with pytest.raises(ArtifactError, match=r"holds no bundle\.json"):
        bundles.open_bundle(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", '{"format": 1', '{"format": 1, "digest": "x"}', "\udcff"])
def test_a_record_that_is_none_is_refused(root, content):
    (root / "bundle.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ArtifactError):
        bundles.open_bundle(root)


def test_a_later_format_names_the_version_that_reads_it(root):
    sign_again(root, format=2, tlkit="9.9")
    with pytest.raises(ArtifactError, match=r"format 2.*use tlkit 9\.9"):
        bundles.open_bundle(root)


class TestSignedAgain:
    """Hashes protect against accidents; whoever can write a bundle can also write its hashes."""

    def test_nothing_changed_opens(self, root):
        sign_again(root)
        bundles.open_bundle(root)

    def test_a_missing_tensor_is_named(self, root):
        tensors = load_file(root / "trunk.safetensors")
        del tensors["w"]
        save_file(tensors, root / "trunk.safetensors")
        sign_again(root)
        with pytest.raises(ArtifactError, match="as recorded: w"):
            bundles.open_bundle(root)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_values_that_are_not_finite_are_named(self, root, value):
        save_file({"weight": np.full((2, 4), value, np.float32)}, root / "head.safetensors")
        sign_again(root)
        with pytest.raises(ArtifactError, match=r"weight.*not finite"):
            bundles.open_bundle(root)

    def test_another_shape_or_type_is_refused(self, root):
        for other in (np.ones((4, 2), np.float32), np.ones((2, 4), np.float64)):
            save_file({"weight": other}, root / "head.safetensors")
            sign_again(root)
            with pytest.raises(ArtifactError, match="weight"):
                bundles.open_bundle(root)

    def test_a_pickle_is_not_executed(self, root, tmp_path):
        class Trap:
            def __reduce__(self):
                return (Path.touch, (tmp_path / "executed",))

        (root / "head.safetensors").write_bytes(pickle.dumps(Trap()))
        sign_again(root)
        with pytest.raises(ArtifactError, match="not a complete safetensors file"):
            bundles.open_bundle(root)
        assert not (tmp_path / "executed").exists()

    def test_a_file_outside_is_not_followed(self, root, tmp_path):
        (tmp_path / "secret").write_text("secret")
        content = json.loads((root / "bundle.json").read_text())
        sign_again(root, files=content["files"] | {"../secret": ""})
        with pytest.raises(ArtifactError, match="outside itself"):
            bundles.open_bundle(root)

    @pytest.mark.parametrize("fact", ["labels", "preprocessing", "head", "stages"])
    def test_a_missing_fact_is_named(self, root, fact):
        content = json.loads((root / "bundle.json").read_text())
        del content[fact]
        (root / "bundle.json").write_text(json.dumps(content))
        sign_again(root)
        with pytest.raises(ArtifactError, match=fact):
            bundles.open_bundle(root)

    def test_preprocessing_that_makes_no_sense_is_refused(self, root):
        content = json.loads((root / "bundle.json").read_text())
        sign_again(root, preprocessing=content["preprocessing"] | {"size": 0})
        with pytest.raises(ArtifactError, match="size must be at least 1"):
            bundles.open_bundle(root)


def test_a_copied_bundle_is_the_same_bundle(root, tmp_path):
    shutil.copytree(root, tmp_path / "copy")
    assert bundles.open_bundle(tmp_path / "copy").digest == bundles.open_bundle(root).digest
