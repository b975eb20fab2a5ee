"""Labeled images of any source are what training reads, in class folders by their labels or keys."""

from __future__ import annotations

import zipfile

import pyarrow as pa
import pytest
from pyarrow import parquet

from tlkit import places
from tlkit.data.dataset import read
from tlkit.errors import DataError, ResourceError, TlkitWarning


def test_class_folders_in_an_archive(pictures, tmp_path):
    place = tmp_path / "photos.zip"
    with zipfile.ZipFile(place, "w") as archive:
        for file in sorted(pictures.rglob("*.png")):
            archive.write(file, file.relative_to(pictures).as_posix())
    folder, rest = places.labeled_images(place, {"head.pca": 3})
    assert rest == {"head.pca": 3}
    unpacked, direct = read(folder), read(pictures)
    assert [(each.name, each.label, each.split) for each in unpacked.samples] == [
        (each.name, each.label, each.split) for each in direct.samples
    ]
    assert places.labeled_images(place, {})[0] == folder  # once, as long as the listing is the same
    with zipfile.ZipFile(place, "a") as archive:
        archive.write(file, "dark/another.png")
    assert places.labeled_images(place, {})[0] != folder


def test_columns_with_labels(pictures, tmp_path, monkeypatch):
    files = sorted(pictures.rglob("*.png"))
    contents = [*(file.read_bytes() for file in files), None]
    labels = [*(file.parent.name for file in files), "a/b"]
    parquet.write_table(pa.table({"image": contents, "label": labels}), tmp_path / "1.parquet")
    monkeypatch.chdir(tmp_path)
    with pytest.warns(TlkitWarning, match=r"1 image can't be read: 000000036 \(its row has no image\)"):
        folder, _ = places.labeled_images("*.parquet", {"source.label_column": "label"})
    assert read(folder, labels=["a-b", "dark", "light", "middle"]).counts("train")["a-b"] <= 1
    assert len([file for file in folder.rglob("*") if file.is_file()]) == 37


def test_what_is_a_folder_or_no_source_at_all_is_left_as_it_is(pictures, tmp_path):
    assert places.labeled_images(pictures, {}) == (pictures, {})
    assert places.labeled_images(tmp_path / "nothing", {}) == (tmp_path / "nothing", {})
    (tmp_path / "notes.txt").touch()
    assert places.labeled_images(tmp_path / "notes.txt", {}) == (tmp_path / "notes.txt", {})


def test_a_name_that_leads_out_of_the_folder(tmp_path):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("a/../../x.png", b"")
    with pytest.raises(DataError, match=r"its name leads out of the folder"):
        places.labeled_images(tmp_path / "evil.zip", {})


def test_an_address_that_nothing_reaches():
    with pytest.raises(ResourceError, match=r"made-up://bucket/photos can't be reached|needs fsspec"):
        places.labeled_images("made-up://bucket/photos", {})
