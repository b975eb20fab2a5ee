"""Folders, tables, archives and columns of images: what is wrong in them is one reject with its reason, and no more."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from tlkit_standard.sources import SOURCES

import tlkit
from tests.kit.tiny import write_images
from tlkit import places
from tlkit.errors import DataError, UsageError

BY_NAME = {source.name: source for source in SOURCES}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Three images by key."""
    root = write_images(tmp_path_factory.mktemp("sources") / "photos", per_class=1)
    return {f"{file.parent.name}.png": file.read_bytes() for file in sorted(root.rglob("*.png"))}


def tar(file, members):
    with tarfile.open(file, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file


def embedded(model, place, out, **options):
    return tlkit.embed(model, place, out, options={f"source.{name}": value for name, value in options.items()})


def keys(out):
    return parquet.read_table(out)["key"].to_pylist()


@pytest.mark.parametrize("name", BY_NAME)
def test_each_gives_the_same_features(name, tiny_trunk, images, tmp_path):
    place = BY_NAME[name].example(tmp_path / "place", images)
    found = embedded(tiny_trunk, place, tmp_path / "features")
    assert (found.rows, found.rejects) == (3, 0)
    features = parquet.read_table(tmp_path / "features")["features"].to_pylist()
    expected = tiny_trunk.embed([images[key] for key in sorted(images)])
    assert features == [pytest.approx(row, abs=1e-6) for row in expected.tolist()]


def zero_denominator():
    """Return a JPEG whose resolution is a fraction by zero, which is no reason not to read it."""
    picture, stored = Image.new("RGB", (64, 64), "gray"), io.BytesIO()
    exif = picture.getexif()
    exif[0x011A] = 72.0  # stored as a fraction
    picture.save(stored, "JPEG", exif=exif)
    fraction = (72).to_bytes(4, "big") + (1).to_bytes(4, "big")
    little = (72).to_bytes(4, "little") + (1).to_bytes(4, "little")
    content = stored.getvalue()
    assert fraction in content or little in content
    return content.replace(fraction, fraction[:4] + bytes(4)).replace(little, little[:4] + bytes(4))


def test_planted_faults_in_a_tar(tiny_trunk, images, tmp_path):
    content = images["dark.png"]
    big = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(big, "PNG")
    place = tar(
        tmp_path / "samples.tar",
        {
            "0001.png": content,
            "0001.cls": b"3",
            "0002.cls": b"4",
            "0003.png": content[:-900],
            "0004.png": b"",
            "0005.png": big.getvalue(),
            "0006.png": content,
            "0007.jpg": zero_denominator(),
            os.fsdecode(b"caf\xe9.png"): content,
        },
    )
    with tarfile.open(place, "a") as archive:
        double = tarfile.TarInfo("0001.png")
        archive.addfile(double, io.BytesIO(b""))
    found = embedded(tiny_trunk, place, tmp_path / "features")
    reasons = {key: reason.partition(":")[0] for key, reason in found.rejected.items()}
    assert keys(tmp_path / "features") == ["0001.png", "0006.png", "0007.jpg"]
    assert reasons.pop("0005.png").startswith("30000 x 30000 pixels take ")
    assert reasons == {
        "0001.png": "another image has the same key",
        "0002": "its sample has no image",
        "0003.png": "damaged, truncated or of a kind that can't be decoded",
        "0004.png": "is an empty file",
        "caf\\xe9.png": "its name is not UTF-8",
    }
    assert [record.label for record in BY_NAME["tar-archive"].records(str(place))][:2] == ["3", None]


def test_a_tar_that_is_cut_loses_its_last_file(tiny_trunk, images, tmp_path):
    place = tar(tmp_path / "cut.tar", images)
    with tarfile.open(place) as archive:
        last = archive.getmembers()[-1]
    os.truncate(place, last.offset_data + last.size // 2)
    found = embedded(tiny_trunk, place, tmp_path / "features")
    assert found.rejected == {last.name: "its archive is cut"}
    assert found.rows == 2
    place.write_bytes(b"no archive" * 100)
    with pytest.raises(DataError, match=r"cut.tar: not a tar archive that can be read"):
        embedded(tiny_trunk, place, tmp_path / "other")
    (tmp_path / "a.tar.gz").touch()
    with pytest.raises(DataError, match=r"decompress it to \.tar"):
        embedded(tiny_trunk, tmp_path / "a.tar.gz", tmp_path / "other")


def test_many_archives_by_a_pattern(tiny_trunk, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        tar(f"{number:04}.tar", images)
    assert embedded(tiny_trunk, "{0000..0002}.tar", tmp_path / "ranges").rows == 9
    assert embedded(tiny_trunk, "*.tar", tmp_path / "wild").rows == 9
    assert (
        keys(tmp_path / "wild")
        == keys(tmp_path / "ranges")
        == [f"{n:04}.tar/{key}" for n in range(3) for key in images]
    )
    with pytest.raises(DataError, match="nothing has a name like this"):
        embedded(tiny_trunk, "*.zip", tmp_path / "none")


def test_a_damaged_file_in_a_zip(tiny_trunk, images, tmp_path):
    place = tmp_path / "images.zip"
    with zipfile.ZipFile(place, "w") as archive:
        for name, content in images.items():
            archive.writestr(name, content)
        archive.writestr("notes.txt", "no image")
    content, first = place.read_bytes(), next(iter(images.values()))
    middle = content.index(first) + len(first) // 2
    place.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    found = embedded(tiny_trunk, place, tmp_path / "features")
    assert found.rejected == {min(images): "damaged: its checksum is wrong"}
    assert (found.rows, found.skipped) == (2, {".txt": 1})


def test_columns_of_images(tiny_trunk, images, tmp_path):
    contents = [*images.values()]
    table = pa.table(
        {"photo": pa.array([*contents, None, b"no image"] * 30, pa.binary()), "class": [0, 1, 2, 0, 1] * 30}
    )
    features = {"info": {"features": {"class": {"names": ["a", "b", "c"]}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    parquet.write_table(table, tmp_path / "images.parquet", row_group_size=100)
    found = embedded(tiny_trunk, tmp_path / "images.parquet", tmp_path / "features", column="photo")
    assert (found.rows, found.rejects) == (90, 60)
    assert set(found.rejected.values()) == {"its row has no image", "is not an image (JPEG, PNG, WEBP, BMP, GIF, TIFF)"}
    labeled = places.find_places(
        tmp_path / "images.parquet", None, {"source.column": "photo", "source.label_column": "class"}
    )
    (opened,) = places.open_places(labeled)
    assert [record.label for record in opened.source.records(opened.place)][:3] == ["a", "b", "c"]
    with pytest.raises(DataError, match="no source reads it; installed: image-column, image-folder, image-table, tar"):
        embedded(tiny_trunk, tmp_path / "images.parquet", tmp_path / "other")
    with pytest.raises(UsageError, match=r"option source\.colum"):
        embedded(tiny_trunk, tmp_path / "images.parquet", tmp_path / "other", colum="photo")


def test_a_table_with_a_missing_file(tiny_trunk, images, tmp_path):
    for name, content in images.items():
        (tmp_path / name).write_bytes(content)
    odd = os.fsdecode(b"caf\xe9.png")
    (tmp_path / odd).write_bytes(images["dark.png"])
    text = "path,label\n" + "".join(f"{name},x\n" for name in [*images, "gone.png", odd])
    (tmp_path / "list.csv").write_text(text, errors="surrogateescape")
    expected = {"gone.png": "no such file", "caf\\xe9.png": "its name is not UTF-8"}
    found = embedded(tiny_trunk, tmp_path / "list.csv", tmp_path / "features")
    assert (found.rows, found.rejected) == (3, expected)
    parquet.write_table(pa.table({"path": [*images, "gone.png", "null\0.png"]}), tmp_path / "list.parquet")
    found = embedded(tiny_trunk, tmp_path / "list.parquet", tmp_path / "more")
    assert (found.rows, sorted(found.rejected)) == (3, ["gone.png", "null\0.png"])


def test_addresses(tiny_trunk, images, tmp_path):
    memory = pytest.importorskip("fsspec").filesystem("memory")
    for name, content in images.items():
        memory.pipe_file(f"/photos/inner/{name}", content)
    memory.pipe_file("/images.tar", tar(tmp_path / "images.tar", images).read_bytes())
    try:
        found = embedded(tiny_trunk, "memory://photos", tmp_path / "features")
        assert keys(tmp_path / "features") == [f"inner/{name}" for name in sorted(images)]
        assert embedded(tiny_trunk, "memory://images.tar", tmp_path / "tar").rows == found.rows == 3
    finally:
        memory.rm("/photos", recursive=True)
        memory.rm("/images.tar")
    with pytest.raises(DataError, match="memory://nowhere"):
        embedded(tiny_trunk, "memory://nowhere", tmp_path / "none")
