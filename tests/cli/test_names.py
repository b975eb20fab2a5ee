"""File names may hold anything but a slash; what is printed stays a line each, and what is to be copied works."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from pyarrow import parquet

from tlkit.util.text import quoted

ODD = [
    "a b.png",
    "a  b.png",
    "a\nb.png",
    "tab\there.png",
    "日本 ü.png",
    "-x.png",
    "--json",
    "quo'te\"$(true).png",
    "back\\slash.png",
]
NOT_UTF8 = os.fsdecode(b"caf\xe9.png")


@pytest.fixture
def place(tmp_path, story):
    """An empty folder with a picture of each odd name, and the run."""
    root = tmp_path / "place with space"
    root.mkdir()
    pictures = sorted((story.root / "test").rglob("*.png"))
    for name, picture in zip([*ODD, NOT_UTF8], pictures, strict=False):
        shutil.copy(picture, root / name)
    (tmp_path / "my run").symlink_to(story.run)
    return root


def test_every_name_gets_its_line(tlkit, place):
    finished = tlkit("predict", "../my run", "--", *ODD, NOT_UTF8, cwd=place)
    assert finished.code == 0, finished.err
    rows = [line.split("\t") for line in finished.out.splitlines()]
    shown = [name.replace("\n", r"\n").replace("\t", r"\t") for name in [*ODD, NOT_UTF8]]
    assert [row[0] for row in rows] == shown
    assert {len(row) for row in rows} == {3}


def test_json_is_exact(tlkit, place):
    finished = tlkit("predict", "../my run", "--json", "--", *ODD, NOT_UTF8, cwd=place)
    assert [json.loads(line)["path"] for line in finished.out.splitlines()] == [*ODD, NOT_UTF8]


def test_a_folder_of_them(tlkit, place):
    finished = tlkit("predict", "../my run", ".", "--json", cwd=place)
    assert finished.code == 0, finished.err
    names = {json.loads(line)["path"] for line in finished.out.splitlines()}
    assert names == {*ODD, NOT_UTF8}  # one is known by its content


@pytest.mark.parametrize("suffix", ["parquet", "npy"])
def test_features_of_them(tlkit, place, suffix):
    finished = tlkit("embed", "../my run", "-o", f"-f \n.{suffix}", "--", *ODD, NOT_UTF8, cwd=place)
    assert finished.code == 0, finished.err
    assert finished.err.splitlines()[0] == rf"wrote -f \n.{suffix}"
    out = place / f"-f \n.{suffix}"
    if suffix == "npy":
        assert len(np.load(out)) == len(ODD) + 1
    else:
        paths = parquet.read_table(out)["path"].to_pylist()
        assert paths[:-1] == ODD
        assert paths[-1] == r"caf\xe9.png"  # a Parquet string is UTF-8


def test_a_rejected_one_is_named_on_one_line(tlkit, place):
    (place / "a\nb.png").write_bytes(b"no image")
    finished = tlkit("predict", "../my run", "a\nb.png", cwd=place)
    assert finished.code == 3
    assert [line.split(":")[0] for line in finished.problems.splitlines()] == [r"rejected a\nb.png", "tlkit"]
    assert r"a\nb.png: 1 of 1" in finished.err


def test_the_commands_it_names_can_be_copied(tlkit, shell, place):
    finished = tlkit("predict", "../my run", "--", "-x.png", "a\nb.png", "quo'te\"$(true).png", cwd=place)
    assert finished.next.startswith("tlkit embed '../my run' ./-x.png $'a\\nb.png' ")
    done = shell(finished.next, cwd=place)
    assert done.code == 0, done.err
    assert parquet.read_table(place / "features.parquet").num_rows == 3


@pytest.mark.parametrize("name", [*ODD, "\x85", "\u2028", "\x07", "plain"])
def test_a_quoted_path_is_one_word_on_one_line(shell, tmp_path, name):
    word = quoted(name)
    assert "\n" not in word
    finished = shell(f"printf %s {word}", cwd=tmp_path)
    assert finished.out.removeprefix("./") == name
    assert not finished.out.startswith("-")


def test_names_are_utf8_in_a_locale_that_is_not(shell, tmp_path):
    finished = shell(
        "tlkit inspect Käfer", cwd=tmp_path, env={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    )
    assert finished.err.startswith("tlkit: Käfer: no such bundle")
