"""Identical files in two splits, and with two labels."""

from __future__ import annotations

from pathlib import Path

import pytest

from tlkit.data.dataset import read
from tlkit.data.duplicates import Duplicates, find_duplicates
from tlkit.errors import DataError


def write(root: Path, **contents: bytes) -> Path:
    for name, content in contents.items():
        file = root / (name.replace("_", "/") + ".jpg")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return root


def test_the_same_file_in_two_splits_or_classes_is_found(tmp_path: Path) -> None:
    same = {"train_a_1": b"one", "val_a_1": b"one", "train_b_2": b"two", "train_a_2": b"two"}
    found = find_duplicates(read(write(tmp_path, **same, train_b_3=b"6", val_b_4=b"7", train_b_5=b"6")))
    assert found.leakage == (("train/a/1.jpg", "val/a/1.jpg"),)
    assert found.label_conflicts == (("train/a/2.jpg", "train/b/2.jpg"),)
    assert list(found.lines()) == [
        "leakage: 1 file again in another split, such as train/a/1.jpg = val/a/1.jpg; accuracies will be too high",
        "label conflict: 1 file again with another label, such as train/a/2.jpg = train/b/2.jpg",
    ]
    with pytest.raises(DataError, match="leakage: 1 file again"):
        found.check()


def test_other_files_of_the_same_size_and_empty_ones_are_none(tmp_path: Path) -> None:
    root = write(tmp_path, train_a_1=b"abc", val_a_1=b"abd", train_b_1=b"", val_b_1=b"", train_b_2=b"x")
    assert find_duplicates(read(root)) == Duplicates()
    Duplicates().check()
