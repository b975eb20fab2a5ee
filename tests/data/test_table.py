"""Tables of paths and labels: what they may hold, and that every unusable row is named."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from tlkit.data.dataset import read
from tlkit.errors import DataError, ResourceError

FILES = ["1.jpg", "2.jpg", "3.jpg", "4.jpg", "deep/5.jpg", "a, b.jpg"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in FILES:
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "set"


def csv(folder: Path, *lines: str, encoding: str = "utf-8", end: str = "\n") -> Path:
    path = folder / "table.csv"
    path.write_bytes(end.join([*lines, ""]).encode(encoding))
    return path


def pq(folder: Path, **columns: Any) -> Path:
    parquet.write_table(pa.table(columns), folder / "table.parquet")
    return folder / "table.parquet"


def refusal(source: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        read(source)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{source}: ")
    return caught.value


FOUR = ["path,label", "1.jpg,cat", "2.jpg,cat", "3.jpg,dog", "4.jpg,dog"]


def test_csv(folder: Path) -> None:
    data = read(csv(folder, *FOUR))
    assert (data.root, data.labels, data.given_split) == (folder, ("cat", "dog"), False)
    assert [(sample.name, sample.label) for sample in data.samples] == [
        ("1.jpg", 0), ("2.jpg", 0), ("3.jpg", 1), ("4.jpg", 1),
    ]  # fmt: skip
    assert [sample.path for sample in data.samples] == [folder / sample.name for sample in data.samples]
    assert all(data.counts(split) == {"cat": 1, "dog": 1} for split in ("train", "val"))


@pytest.mark.parametrize("variant", ["utf-8-sig", "crlf", "blank lines", "quotes", "spaces", "more columns", "upper"])
def test_csv_as_programs_write_it(variant: str, folder: Path) -> None:
    lines, options = list(FOUR), {}
    if variant == "utf-8-sig":
        options = {"encoding": "utf-8-sig"}
    elif variant == "crlf":
        options = {"end": "\r\n"}
    elif variant == "blank lines":
        lines = ["path,label", "", *FOUR[1:], "", ""]
    elif variant == "quotes":
        lines = [",".join(f'"{cell}"' for cell in line.split(",")) for line in lines]
    elif variant == "spaces":
        lines = [line.replace(",", " , ") for line in lines]
    elif variant == "more columns":
        lines = [f"7,{line},x" for line in lines]
    table = csv(folder, *lines, **options)
    if variant == "upper":
        table = table.rename(folder / "TABLE.CSV")
    assert [sample.label for sample in read(table).samples] == [0, 0, 1, 1]


@pytest.mark.parametrize("labels", [["7", "7", "007", "007"], [7, 7, 8, 8], [True, True, False, False]])
def test_parquet_labels_are_text(labels: list[Any], folder: Path) -> None:
    data = read(pq(folder, path=FILES[:4], label=labels))
    assert data.labels == tuple(sorted({str(label) for label in labels}))
    assert [data.labels[sample.label] for sample in data.samples] == [str(label) for label in labels]


def test_parquet_with_categories_and_other_columns(folder: Path) -> None:
    labels = pa.array(["cat", "cat", "dog", "dog"]).dictionary_encode()
    data = read(pq(folder, path=FILES[:4], label=labels, split=["train", "val"] * 2, other=[[1], [2], [3], [4]]))
    assert data.given_split
    assert [sample.split for sample in data.samples] == ["train", "val"] * 2


def test_names_are_relative_to_the_table_and_resolved(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder.parent / "far.jpg").touch()
    lines = [
        "path,label",
        f"{folder}/1.jpg,a",
        "./2.jpg,a",
        "deep/../3.jpg,b",
        "deep/5.jpg,b",
        f"{folder.parent}/far.jpg,b",
    ]
    table = csv(folder, *lines, "../set/4.jpg,a", '"a, b.jpg",a')
    expected = ["1.jpg", "2.jpg", "3.jpg", "4.jpg", "a, b.jpg", "deep/5.jpg"]
    assert [sample.name for sample in read(table).samples] == sorted([*expected, f"{folder.parent}/far.jpg"])
    monkeypatch.chdir(folder)
    here = read(Path("table.csv"))
    assert [sample.name for sample in here.samples] == sorted([*expected, f"{folder.parent}/far.jpg"])
    assert all(sample.path.exists() for sample in here.samples)


def test_a_file_that_is_named_is_kept_whatever_its_suffix(folder: Path) -> None:
    (folder / "odd.bin").touch()
    data = read(csv(folder, *FOUR, "odd.bin,dog"))
    assert "odd.bin" in [sample.name for sample in data.samples]


@pytest.mark.parametrize("val", ["val", "valid", "validation", " VAL "])
def test_split_column(val: str, folder: Path) -> None:
    data = read(csv(folder, "path,label,split", "1.jpg,a,train", "2.jpg,b,train", f"3.jpg,a,{val}", "4.jpg,b,test"))
    assert data.given_split
    assert [sample.split for sample in data.samples] == ["train", "train", "val", "test"]


def test_val_is_hashed_out_of_train_where_the_table_states_none(folder: Path) -> None:
    lines = ["1.jpg,a,train", "2.jpg,a,train", "3.jpg,b,train", "4.jpg,b,train", "deep/5.jpg,b,test"]
    data = read(csv(folder, "path,label,split", *lines))
    assert data.given_split
    assert data.counts("val") == data.counts("train") == {"a": 1, "b": 1}


def test_a_table_of_test_images_is_enough_for_known_labels(folder: Path) -> None:
    table = csv(folder, "path,label,split", "1.jpg,a,test")
    assert [sample.split for sample in read(table, labels=["a", "b"]).samples] == ["test"]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], ["no column path and no column label", "its columns are none"]),
        (["file,label", "1.jpg,a"], ["has no column path", "its columns are file, label"]),
        (["path,class", "1.jpg,a"], ["has no column label", "name its columns path and label"]),
        (["path;label", "1.jpg;a"], ["its columns are path;label", "separate columns with commas"]),
        (["path,label"], ["a table without rows"]),
        ([*FOUR, "gone.jpg,cat"], ["row 6 names no file: gone.jpg"]),
        ([*FOUR, "deep,cat"], ["row 6 names no file: deep"]),
        ([*FOUR, ",cat"], ["row 6 has no path"]),
        ([*FOUR, "deep/5.jpg,  "], ["row 6 has no label"]),
        ([*FOUR, "deep/5.jpg"], ["row 6 has no label"]),
        ([*FOUR, "a, b.jpg,cat"], ["row 6 has more fields than the header"]),
        ([*FOUR, "1.jpg,cat"], ["row 6 repeats the file of row 2 with the same label"]),
        ([*FOUR, "./1.jpg,dog"], ["row 6 repeats the file of row 2 with another label ('dog', not 'cat')"]),
        (["path,label,split", "1.jpg,a,left"], ["row 2 has split 'left', not one of train, training"]),
        (["path,label,split", "1.jpg,a,train", "2.jpg,a,"], ["row 3 has split ''"]),
        (["path,label,split", "1.jpg,a,train", "2.jpg,a"], ["row 3 has split ''"]),
        (["path,label", '"1.jpg,cat'], ["not a CSV file in UTF-8 (row 2: "]),
        (["path,label,label", "1.jpg,a,b"], ["has the column label 2 times"]),
        (["path,label", "1.jpg,nan", "2.jpg,#REF!"], ["row 2 has the label 'nan'", "row 3 has the label '#REF!'"]),
        (["path,label", "1.jpg,1", "2.jpg,1.0", "deep/5.jpg,2"], ["are one number: '1' and '1.0'"]),
        ([*FOUR, "deep/5.jpg,Cat"], ["differ in case", "'Cat' and 'cat'"]),
        (["path,label,split", "1.jpg,a,val", "2.jpg,b,val"], ["no image is in train: all are in val"]),
    ],
)
def test_csv_refused_by_row(lines: list[str], words: list[str], folder: Path) -> None:
    message = str(refusal(csv(folder, *lines)))
    assert [word for word in words if word not in message] == []


def test_all_rows_that_are_unusable_come_at_once_up_to_a_few(folder: Path) -> None:
    message = str(refusal(csv(folder, *FOUR, "gone.jpg,", *(f"lost{index}.jpg,cat" for index in range(12)))))
    assert "row 6 names no file: gone.jpg and has no label, row 7 names no file: lost0.jpg" in message
    assert "row 15" in message
    assert "row 16" not in message
    assert message.endswith("and 3 more; fix or remove them")


def test_csv_in_another_encoding_is_refused(folder: Path) -> None:
    assert "not a CSV file in UTF-8" in refusal(csv(folder, "path,label", "1.jpg,café", encoding="latin-1")).what


def test_a_table_from_windows_names_the_same_files(folder: Path) -> None:
    rows = [f"{name},{label}" for name, label in zip(FILES, "abab", strict=False)]
    assert any("/" in name for name in FILES)
    here = read(csv(folder, "path,label", *rows))
    there = read(csv(folder, "path,label", *(row.replace("/", "\\") for row in rows)))
    assert there.samples == here.samples


@pytest.mark.parametrize("column", ["path", "label", "split"])
def test_parquet_nulls_are_refused_by_row(column: str, folder: Path) -> None:
    columns = {"path": FILES[:2], "label": ["a", "b"], "split": ["train", "val"]}
    columns[column] = [columns[column][0], None]  # type: ignore[list-item]
    assert "row 2 has" in refusal(pq(folder, **columns)).what


def test_parquet_labels_that_are_no_text_are_refused(folder: Path) -> None:
    what = refusal(pq(folder, path=FILES[:2], label=[1.0, 2.5])).what
    assert "row 1 has a label that is neither text nor an integer: 1.0, row 2" in what


@pytest.mark.parametrize("data", [b"", b"PAR1", b"no parquet at all" * 99])
def test_broken_parquet_is_refused(data: bytes, folder: Path) -> None:
    (folder / "x.parquet").write_bytes(data)
    assert refusal(folder / "x.parquet").what.startswith("not a Parquet file")


def test_parquet_without_its_columns_is_refused(folder: Path) -> None:
    assert (
        "has no column label; its columns are path, class"
        in refusal(pq(folder, path=["1.jpg"], **{"class": ["a"]})).what
    )


def test_parquet_without_pyarrow_says_how_to_get_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pq(folder, path=FILES[:2], label=["a", "b"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ResourceError, match=r'pip install "tlkit\[parquet\]"'):
        read(table)


def test_a_table_that_is_closed_to_us_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = csv(folder, *FOUR)

    def closed(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", closed)
    assert refusal(table).what == "can't be read (Permission denied)"
