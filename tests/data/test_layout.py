"""Layouts of folders: splits, classes, and what is neither; and what is not data."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.data.test_dataset import numbered, plant, refusal
from tlkit.data.dataset import read
from tlkit.data.scan import FileCounts

TWO = [*numbered("ants", 4), *numbered("bees", 4)]


def under(*tops: str) -> list[str]:
    return [f"{top}/{path}" for top in tops for path in TWO]


@pytest.mark.parametrize(
    ("tops", "splits"),
    [
        (("Training", "Testing"), {"train", "test", "val"}),
        (("train", "dev"), {"train", "val"}),
        (("images-train", "images-test"), {"train", "test", "val"}),
        (("train2017", "val2017"), {"train", "val"}),
        (("seg_train/seg_train", "seg_test/seg_test"), {"train", "test", "val"}),
        (("train",), {"train", "val"}),
    ],
)
def test_folders_under_the_usual_names_are_splits(tops: tuple[str, ...], splits: set[str], tmp_path: Path) -> None:
    data = read(plant(tmp_path, under(*tops)))
    assert (data.labels, data.given_split) == (("ants", "bees"), True)
    assert {sample.split for sample in data.samples} == splits
    assert len(data.samples) == len(under(*tops))


def test_splits_inside_the_classes(tmp_path: Path) -> None:
    root = plant(tmp_path, [f"{label}/{split}/{n}.jpg" for label in "ab" for split in ("train", "Val") for n in "123"])
    data = read(root)
    assert (data.labels, data.given_split) == (("a", "b"), True)
    assert (data.counts("train"), data.counts("val")) == ({"a": 3, "b": 3}, {"a": 3, "b": 3})


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (
            under("fold0", "fold1"),
            ["fold0, fold1 hold the same folders (ants, bees)", "if they are, call them train, val"],
        ),
        (under("2021", "2022", "2023"), ["2021, 2022, 2023 hold the same folders"]),
        ([*under("train"), *numbered("docs")], ["train/ looks like a split with the classes ants, bees", "docs"]),
        ([*under("seg_train", "old_train")], ["several folders for the same split: old_train, seg_train"]),
        ([*under("camera1"), *numbered("camera2/ants")], ["camera1, camera2 hold the same folders (ants)"]),
        ([*under("train"), *numbered("test/test")], ["no class folders in test/test/", "or move it elsewhere"]),
        (under("val"), ["no image is in train: all are in val", "or state no splits"]),
        (under("photos"), ["only one class, 'photos' (its folders ants, bees may be the classes)"]),
    ],
)
def test_folders_that_may_be_splits_are_refused(paths: list[str], words: list[str], tmp_path: Path) -> None:
    error = refusal(plant(tmp_path, paths))
    assert [word for word in words if word not in f"{error.what}; {error.do}"] == []


def test_classes_with_folders_or_names_of_their_own(tmp_path: Path) -> None:
    root = plant(tmp_path, [*numbered("train_station"), *numbered("test_tube/glass"), *numbered("bus/city")])
    assert read(root).labels == ("bus", "test_tube", "train_station")


# --- what is not data ---


def test_a_bundle_is_not_data(tmp_path: Path) -> None:
    bundle = ["bundle.json", "trunk.safetensors", "head.safetensors", "golden/0.jpg"]
    written = [f"{place}/{name}" for place in ("run", "ants/run", "runs/first") for name in bundle]
    written += ["features/_job/job.json", "both/manifest.json", "both/model.onnx", "served/run/config.pbtxt"]
    data = read(plant(tmp_path, [*TWO, *written]))
    assert (data.labels, len(data.samples)) == (("ants", "bees"), len(TWO))
    assert data.skipped == {
        **dict.fromkeys(("ants/run", "run", "runs/first"), "a bundle that tlkit wrote"),
        "both": "an export that tlkit wrote",
        "features": "features that tlkit wrote",
        "served/run": "a model of a Triton repository",
    }
    assert refusal(tmp_path / "run").what == "a bundle that tlkit wrote, not images"


def test_folders_of_network_storage_are_not_data(tmp_path: Path) -> None:
    others = ["ants/@eaDir/0.jpg/SYNOPHOTO_THUMB_M.jpg", "#recycle/0.jpg", "$RECYCLE.BIN/S-1/0.jpg", "lost+found/"]
    others += ["@Recently-Snapshot/0.jpg", "FOUND.000/0.jpg", "Network Trash Folder/0.jpg", "bees/Icon\r"]
    data = read(plant(tmp_path, [*TWO, *others]))
    assert (data.labels, len(data.samples), data.skipped) == (("ants", "bees"), len(TWO), {})


def test_images_without_a_suffix_and_of_other_formats_count(tmp_path: Path) -> None:
    root = plant(tmp_path, [*TWO, "bees/phone.HEIC", "bees/new.avif", "bees/notes"])
    Image.new("RGB", (4, 4)).save(root / "bees/bare", "PNG")
    data = read(root)
    assert sum(data.counts(split)["bees"] for split in ("train", "val")) == 7
    assert data.skipped == {"bees/notes": "not an image"}


def test_all_files_are_counted_by_suffix() -> None:
    counts = FileCounts.of(24, ["a.AVIF", "b/c.avif"], ["x.txt", "README"], other_splits=3)
    assert str(counts) == (
        "31 files: 24 read, 3 in other splits, 2 rejected (2 .avif), 2 skipped (1 .txt, 1 without a suffix)"
    )
    assert not counts.complete
    assert str(FileCounts.of(1, [], [])) == "1 file: 1 read"
    assert FileCounts.of(1, [], []).complete
