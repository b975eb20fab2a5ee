"""Folders and tables to samples, labels and a split; and everything that is refused."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tlkit.data import scan as scanning
from tlkit.data.dataset import Dataset, Sample, find_images, groups_of, read
from tlkit.data.decoding import SUFFIXES
from tlkit.data.preprocessing import load
from tlkit.errors import DataError, UsageError
from tlkit.plugin.contract import Preprocessing

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def plant(root: Path, paths: Iterable[str]) -> Path:
    """Empty files, and folders where a path ends in a slash; nothing here reads pictures."""
    for path in paths:
        if path.endswith("/"):
            (root / path).mkdir(parents=True)
        else:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).touch()
    return root


def numbered(folder: str, count: int = 3) -> list[str]:
    return [f"{folder}/{index}.jpg" for index in range(count)]


def names(data: Dataset) -> list[str]:
    return [sample.name for sample in data.samples]


def refusal(source: Path, **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        read(source, **options)
    assert "\n" not in str(caught.value)
    assert str(source) in str(caught.value)
    return caught.value


# --- class folders ---


def test_class_folders(tmp_path: Path) -> None:
    data = read(plant(tmp_path, ["wasp/b.jpg", "wasp/a.jpg", "Bee/x/y/1.png", "Bee/2.png", "ant/1.jpg", "ant/2.jpg"]))
    assert data.labels == ("Bee", "ant", "wasp")  # by code point
    assert names(data) == ["Bee/2.png", "Bee/x/y/1.png", "ant/1.jpg", "ant/2.jpg", "wasp/a.jpg", "wasp/b.jpg"]
    assert [sample.label for sample in data.samples] == [0, 0, 1, 1, 2, 2]
    assert [sample.path for sample in data.samples] == [tmp_path / name for name in names(data)]
    assert (data.root, data.skipped, data.given_split) == (tmp_path, {}, False)
    assert {sample.split for sample in data.samples} == {"train", "val"}


def test_samples_can_be_loaded(tmp_path: Path) -> None:
    for label, color in (("ant", "red"), ("bee", "blue")):
        plant(tmp_path, [f"{label}/"])
        for index in range(2):
            Image.new("RGB", (9, 9), color).save(tmp_path / label / f"{index}.png")
    reds = [load(sample.path, Preprocessing(2, (0, 0, 0), (1, 1, 1)))[0, 0, 0] for sample in read(tmp_path).samples]
    assert reds == [255, 255, 0, 0]


def test_of_and_counts(tmp_path: Path) -> None:
    data = read(plant(tmp_path, [*numbered("train/a", 4), *numbered("train/b", 2), "val/a/1.jpg"]))
    assert data.counts("train") == {"a": 4, "b": 2}
    assert data.counts("val") == {"a": 1, "b": 0}
    assert data.of("val") == (Sample(tmp_path / "val/a/1.jpg", "val/a/1.jpg", 0, "val"),)
    assert data.of("test") == ()
    assert len(data.of("train")) == 6


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_every_suffix_counts_in_any_case(suffix: str, tmp_path: Path) -> None:
    root = plant(tmp_path, [f"a/1.{suffix}", f"a/2.{suffix.upper()}", *numbered("b")])
    assert read(root).labels == ("a", "b")


def test_skipped_files_are_listed_unless_hidden(tmp_path: Path) -> None:
    kept = [*numbered("a"), *numbered("b")]
    passed = ["notes.txt", "stray.jpg", "a/readme", "b/deep/clip.mp4", "a/jpg"]
    hidden = [".DS_Store", "a/._1.jpg", ".git/x/1.jpg", "__MACOSX/a/1.jpg", "a/Thumbs.db", "b/desktop.ini"]
    data = read(plant(tmp_path, [*kept, *passed, *hidden]))
    assert names(data) == kept
    others = dict.fromkeys(("a/jpg", "a/readme", "b/deep/clip.mp4", "notes.txt"), "not an image")
    assert data.skipped == {**others, "stray.jpg": "beside the class folders"}


def test_a_hidden_root_is_read(tmp_path: Path) -> None:
    root = plant(tmp_path / ".cache", [*numbered("a"), *numbered("b")])
    assert len(read(root).samples) == 6


def test_order_of_the_listing_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = plant(tmp_path, [*numbered("a", 9), *numbered("b", 9), *numbered("b/c", 3), "x.txt", "y.jpg"])
    forward = read(root)

    class Backward:
        def __init__(self, path: Path) -> None:
            with scandir(path) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self) -> Iterator[os.DirEntry[str]]:
            return iter(self.entries)

        def __exit__(self, *_: object) -> None: ...

    scandir = os.scandir
    monkeypatch.setattr(scanning.os, "scandir", Backward)
    assert read(root) == forward


def test_files_are_not_asked_for_their_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = plant(tmp_path, [*numbered("a", 100), *numbered("b", 100)])
    asked: list[Any] = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **options: (asked.append(path), stat(path, **options))[1])
    assert len(read(root).samples) == 200
    assert 3 <= len(asked) <= 20  # the folders are


# --- a given split ---


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
@pytest.mark.parametrize("train", ["train", "Train"])
def test_given_train_and_val(train: str, val: str, tmp_path: Path) -> None:
    data = read(plant(tmp_path, [*numbered(f"{train}/a"), *numbered(f"{train}/b"), f"{val}/a/deep/9.jpg"]))
    assert data.given_split
    assert data.labels == ("a", "b")
    assert [(sample.name, sample.label) for sample in data.of("val")] == [(f"{val}/a/deep/9.jpg", 0)]
    assert (len(data.of("train")), len(data.of("test"))) == (6, 0)


def test_given_train_val_and_test(tmp_path: Path) -> None:
    paths = [f"{split}/{label}/1.jpg" for split in ("train", "val", "test") for label in "ab"]  # one image suffices
    data = read(plant(tmp_path, paths))
    assert [len(data.of(split)) for split in ("train", "val", "test")] == [2, 2, 2]


def test_val_is_hashed_out_of_train_where_only_test_is_given(tmp_path: Path) -> None:
    data = read(plant(tmp_path, [*numbered("train/a", 40), *numbered("train/b", 40), *numbered("test/a", 5)]))
    assert data.given_split
    assert len(data.of("test")) == 5
    assert 0 < len(data.of("val")) < 40
    assert all(sample.name.startswith("train/") for sample in data.of("val"))
    assert all(data.counts("val").values())


def test_what_lies_beside_the_splits_is_listed(tmp_path: Path) -> None:
    kept = [*numbered("train/a"), *numbered("train/b"), *numbered("val/a")]
    data = read(plant(tmp_path, [*kept, "x.jpg", "train/y.jpg", "notes.md", "extra/a/1.jpg"]))
    assert names(data) == kept
    assert data.skipped == {
        "extra/a/1.jpg": "not in the folder of a split",
        "notes.md": "not an image",
        "train/y.jpg": "beside the class folders",
        "x.jpg": "not in the folder of a split",
    }


def test_train_without_another_split_is_a_class(tmp_path: Path) -> None:
    assert read(plant(tmp_path, [*numbered("train"), *numbered("bus")])).labels == ("bus", "train")


# --- refusals ---


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        ([], ["holds no images"]),
        (["a/", "b/"], ["holds no images"]),
        (["a/x.txt", "b/y.txt"], ["holds no images"]),
        (["1.jpg", "2.jpg"], ["no class folders", "a folder of its own"]),
        (numbered("a"), ["only one class, 'a'", "add the images of another class"]),
        (
            [*numbered("w/a"), *numbered("w/b")],
            ["only one class, 'w' (its folders a, b may be the classes)", "/w if they are"],
        ),
        (
            [*numbered("w/my images/a"), *numbered("w/my images/b")],
            ["only one class, 'w' (the folders in w/my images a, b may be the classes)", "/w/my images if they are"],
        ),
        ([*numbered("images"), "labels.csv"], ["only one class, 'images'", "/labels.csv if it names their labels"]),
        (
            [*numbered("a"), *numbered("b"), "c/", "d/x.txt", "e/f/"],
            ["class folders without an image of their own: c, d (1 file of other kinds), e", "or remove the folders"],
        ),
        ([*numbered("a"), "b/1.jpg", "c/1.jpg"], ["classes with one image", "'b', 'c'"]),
        ([*numbered("Cat"), *numbered("cat"), *numbered("dog")], ["differ in case", "'Cat' and 'cat'"]),
        ([*numbered("a b"), *numbered("a  b")], ["differ in case, spaces", "'a  b' and 'a b'"]),
        ([*numbered("ants"), *numbered("ants\u200b")], ["differ in case", r"'ants' and 'ants\u200b'"]),
        ([*numbered(COMPOSED), *numbered(DECOMPOSED)], ["Unicode form", f"{DECOMPOSED!r} and {COMPOSED!r}"]),
        ([f"a/{COMPOSED}.jpg", f"a/{DECOMPOSED}.jpg", *numbered("b")], ["file names", "Unicode form", COMPOSED]),
        ([*numbered("a"), *numbered(os.fsdecode(b"caf\xe9"))], ["not valid UTF-8", r"'caf\udce9'"]),
        (
            [*numbered("train/a"), *numbered("train/b"), "val/c/1.jpg", "test/d/1.jpg"],
            ["in train: 'c', 'd'", "from the other splits"],
        ),
        (
            [*numbered("train/a"), *numbered("train/b"), "val/a/1.jpg", "val/b/"],
            ["without an image of their own: val/b"],
        ),
        ([*numbered("train/a"), "train/b/1.jpg", "test/a/1.jpg"], ["classes with one image", "'b'"]),
        (
            [*numbered("train/a"), *numbered("train/b"), "val/1.jpg"],
            ["no class folders in val/", "or move it elsewhere"],
        ),
        (["train/1.jpg", "val/2.jpg"], ["images, but no class folders"]),
        ([*numbered("train/a"), "val/a/1.jpg", "valid/a/1.jpg"], ["several folders for the same split", "val, valid"]),
    ],
)
def test_refused_by_name(paths: list[str], words: list[str], tmp_path: Path) -> None:
    error = refusal(plant(tmp_path, paths))
    assert [word for word in words if word not in f"{error.what}; {error.do}"] == []


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    root = plant(tmp_path, [*numbered("Cat"), *numbered("cat"), "one/1.jpg", "none/"])
    message = refusal(root).what
    for part in (
        "without an image of their own: none",
        "'Cat' and 'cat'",
        "one image, which can't be in train and val both: 'one'",
    ):
        assert part in message


def test_long_lists_are_cut(tmp_path: Path) -> None:
    root = plant(tmp_path, [*numbered("a"), *numbered("b"), *(f"empty{index:02}/" for index in range(14))])
    assert refusal(root).what.endswith("empty09 and 4 more")


def test_missing_source_and_files_that_are_no_table(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere").what == "no such file or folder"
    plant(tmp_path, ["list.txt"])
    assert "give a folder of class folders or a .csv or .parquet table" in str(refusal(tmp_path / "list.txt"))


@pytest.mark.parametrize("val", [0.0, 1.0, -0.1, 20, float("nan")])
def test_val_outside_its_range_is_refused(val: float, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="val must lie between 0 and 1"):
        read(plant(tmp_path, [*numbered("a"), *numbered("b")]), val=val)


def test_an_unreadable_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = plant(tmp_path, [*numbered("a"), *numbered("b")])
    scandir = os.scandir

    def closed(path: Path) -> Any:  # chmod would not stop root, who often runs the tests
        if path.name == "b":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(scanning.os, "scandir", closed)
    with pytest.raises(DataError) as caught:
        read(root)
    assert str(caught.value) == f"{root / 'b'}: can't be read (Permission denied)"


# --- links and odd names ---


def test_loops_end_and_no_image_counts_twice(tmp_path: Path) -> None:
    root = plant(tmp_path, [*numbered("a"), *numbered("b/deep")])
    (root / "a/self").symlink_to(root / "a")
    (root / "a/root").symlink_to(root)
    (root / "b/deep/up").symlink_to("..")
    data = read(root)
    assert names(data) == [*numbered("a"), *numbered("b/deep")]
    again = "a link to a folder that is read already"
    assert data.skipped == dict.fromkeys(("a/root", "a/self", "b/deep/up"), again)


def test_the_real_folder_counts_before_a_link_to_it(tmp_path: Path) -> None:
    root = plant(tmp_path, [*numbered("a"), *numbered("b/deep")])
    (root / "a/link").symlink_to(root / "b/deep")  # would put images of b into a
    data = read(root)
    assert data.counts("train")["a"] + data.counts("val")["a"] == 3
    assert data.skipped == {"a/link": "a link to a folder that is read already"}


def test_a_class_that_is_a_link_to_another_is_refused(tmp_path: Path) -> None:
    root = plant(tmp_path, [*numbered("a"), *numbered("b")])
    (root / "c").symlink_to(root / "a")
    assert "without an image of their own: c" in refusal(root).what


def test_links_to_elsewhere_are_followed_once(tmp_path: Path) -> None:
    pool = plant(tmp_path / "pool", [*numbered("x"), "x/y/4.jpg", "single.png"])
    root = plant(tmp_path / "set", [*numbered("b"), "a/"])
    (root / "a/second").symlink_to(pool / "x")
    (root / "a/first").symlink_to(pool / "x")
    (root / "a/one.png").symlink_to(pool / "single.png")
    data = read(root)
    assert names(data) == [
        "a/first/0.jpg",
        "a/first/1.jpg",
        "a/first/2.jpg",
        "a/first/y/4.jpg",
        "a/one.png",
        *numbered("b"),
    ]
    assert data.skipped == {"a/second": "a link to a folder that is read already"}


def test_broken_links_and_pipes_are_listed(tmp_path: Path) -> None:
    root = plant(tmp_path, [*numbered("a"), *numbered("b")])
    (root / "a/gone.jpg").symlink_to("nowhere.jpg")
    (root / "a/itself.jpg").symlink_to("itself.jpg")
    os.mkfifo(root / "b/pipe.jpg")
    data = read(root)
    assert len(data.samples) == 6
    assert data.skipped == {
        "a/gone.jpg": "a broken link",
        "a/itself.jpg": "a broken link",
        "b/pipe.jpg": "not a regular file",
    }


def test_names_are_composed_and_paths_are_as_on_disk(tmp_path: Path) -> None:
    root = plant(tmp_path, [f"{DECOMPOSED}/{DECOMPOSED}.jpg", f"{DECOMPOSED}/2.jpg", *numbered("b")])
    data = read(root)
    assert data.labels == ("b", COMPOSED)
    assert data.samples[-1].name == f"{COMPOSED}/{COMPOSED}.jpg"
    assert data.samples[-1].path.exists()


def test_file_names_that_are_not_utf8(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9.jpg")
    data = read(plant(tmp_path, [f"a/{odd}", "a/2.jpg", *numbered("b")]))
    assert f"a/{odd}" in names(data)
    assert all(sample.path.exists() for sample in data.samples)


# --- the labels of a bundle ---


def test_known_labels_keep_their_order(tmp_path: Path) -> None:
    data = read(plant(tmp_path, [*numbered("ant"), *numbered(DECOMPOSED)]), labels=["wasp", COMPOSED, "ant"])
    assert data.labels == ("wasp", COMPOSED, "ant")
    assert {sample.name.split("/")[0]: sample.label for sample in data.samples} == {"ant": 2, COMPOSED: 1}


def test_unknown_labels_are_refused_with_the_nearest_known(tmp_path: Path) -> None:
    root = plant(tmp_path, [*numbered("Ants"), *numbered("bees"), *numbered("zebra")])
    error = refusal(root, labels=["ants", "bees"])
    assert error.what == "unknown labels: 'Ants' (nearest: 'ants'), 'zebra'"
    assert error.do == "the known labels are 'ants', 'bees'"


@pytest.mark.parametrize("paths", [["a/1.jpg"], ["train/a/1.jpg", "val/b/1.jpg", "test/a/1.jpg"]])
def test_with_known_labels_a_dataset_need_not_be_trainable(paths: list[str], tmp_path: Path) -> None:
    root = plant(tmp_path, paths)
    assert len(read(root, labels=["a", "b"]).samples) == len(paths)
    refusal(root)


def test_with_known_labels_an_empty_class_folder_is_still_refused(tmp_path: Path) -> None:
    assert (
        "without an image of their own: b" in refusal(plant(tmp_path, [*numbered("a"), "b/"]), labels=["a", "b"]).what
    )


# --- images, for verbs that need no labels ---


def test_images_of_files_and_folders_in_the_order_named(tmp_path: Path) -> None:
    root = plant(
        tmp_path, ["b/2.jpg", "b/1.png", "b/c/3.gif", "b/.x.jpg", "b/note.txt", "a/1.jpg", "odd.bin", ".h.jpg"]
    )
    found = find_images([root / "odd.bin", root / "b", root / ".h.jpg", root / "a"])
    expected = ["odd.bin", "b/1.png", "b/2.jpg", "b/c/3.gif", ".h.jpg", "a/1.jpg"]
    assert found.files == [root / path for path in expected]
    assert found.skipped == {str(root / "b/note.txt"): "not an image"}


def test_images_named_twice_are_two(tmp_path: Path) -> None:
    root = plant(tmp_path, ["a/1.jpg", "a/2.jpg"])
    first, second = root / "a/1.jpg", root / "a/2.jpg"
    assert find_images([second, root / "a", second]).files == [second, first, second, second]


def test_images_names_all_sources_that_hold_none(tmp_path: Path) -> None:
    root = plant(tmp_path, ["empty/", "text/x.txt", "good/1.jpg"])
    with pytest.raises(DataError) as caught:
        find_images([root / "empty", root / "gone.jpg", root / "good", root / "text"])
    assert caught.value.what == (
        f"{root}/empty: a folder without images, {root}/gone.jpg: no such file or folder, "
        f"{root}/text: a folder without images"
    )


def test_val_is_drawn_again_without_unreadable_images(tmp_path: Path) -> None:
    """Of a class whose only validation image is unreadable, another one is validated on; nothing else moves."""
    data = read(plant(tmp_path, [*(f"a/{i}.jpg" for i in range(30)), *(f"b/{i}.jpg" for i in range(4))]), val=0.02)
    (only,) = [sample.name for sample in data.of("val") if data.labels[sample.label] == "b"]
    left = data.without({only})
    assert left.counts("val")["b"] == 1
    assert left.counts("train")["b"] == 2
    assert [sample for sample in data.of("val") if sample.label == 0] == [s for s in left.of("val") if s.label == 0]


def test_stated_splits_stay_without_unreadable_images(tmp_path: Path) -> None:
    data = read(plant(tmp_path, [*numbered("train/a"), *numbered("train/b"), "val/a/1.jpg", "val/b/1.jpg"]))
    left = data.without({"val/b/1.jpg"})
    assert left.counts("val") == {"a": 1, "b": 0}
    assert left.counts("train") == data.counts("train")


def test_a_table_keeps_groups_together(tmp_path: Path) -> None:
    names = [f"{label}{i}.jpg" for label in "ab" for i in range(8)]
    plant(tmp_path, names)
    table = tmp_path / "t.csv"
    table.write_text(
        "path,label,group\n" + "".join(f"{name},{name[0]},{name[0]}{int(name[1]) // 2}\n" for name in names)
    )
    data = read(table)
    assert len({(sample.group, sample.split) for sample in data.samples}) == 8
    groups = groups_of(data.samples)
    assert groups is not None
    assert groups.tolist() == [row // 2 for row in range(16)]
    with pytest.raises(UsageError, match="column group"):
        read(table, group="a")


def test_groups_in_two_splits_are_refused(tmp_path: Path) -> None:
    plant(tmp_path, ["1.jpg", "2.jpg", "3.jpg", "4.jpg"])
    rows = "1.jpg,a,train,g\n2.jpg,a,val,g\n3.jpg,b,train,\n4.jpg,b,val,\n"
    (tmp_path / "t.csv").write_text("path,label,split,group\n" + rows)
    error = refusal(tmp_path / "t.csv")
    assert (error.what, error.do) == ("groups in several splits: 'g'", "put all images of a group into one split")


def test_a_class_in_one_group_is_refused(tmp_path: Path) -> None:
    root = plant(tmp_path, ["a/p1_1.jpg", "a/p1_2.jpg", "b/p2_1.jpg", "b/p3_1.jpg"])
    with pytest.raises(DataError, match=r"all images in one group.*'a'"):
        read(root, group=r"p\d")
