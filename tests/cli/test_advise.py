"""`tlkit advise` as a user starts it, and `tlkit train --strategy auto`."""

from __future__ import annotations

import os
import re
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.kit.components import environment
from tests.kit.distribution import install
from tests.kit.tiny import write_images

TINY = ("--backbone", "tiny")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with photos/."""
    root = tmp_path_factory.mktemp("place")
    write_images(root / "photos")
    return root


@pytest.fixture(scope="module")
def env(place):
    """The environment of a process that finds the tiny backbone; its cache is shared by the tests of this module."""
    return environment(place / "site")


def test_the_page_and_the_command_it_ends_with(place, env, tlkit):
    said = tlkit("advise", "photos/", "--audit", *TINY, cwd=place, env=env)
    assert said.code == 0, said.err
    for part in (
        "images",
        "tiny\n  domain shift",
        "second",
        "RECOMMENDED",
        "expected balanced accuracy",
        "audit of 36 images",
    ):
        assert part in said.out
    chosen = "--backbone tiny --strategy probe-then-tune --cut "
    assert said.next.startswith(f"tlkit train photos -o run/ {chosen}")


def test_json_over_two_backbones(place, env, tlkit):
    said = tlkit("advise", "photos/", *TINY * 2, "--json", cwd=place, env=env)
    assert said.code == 0, said.err
    assert [each["backbone"] for each in said.json["backbones"]] == ["tiny"]
    stages = said.json["backbones"][0]["stages"]
    assert [stage["stage"] for stage in stages] == ["first", "second", "third"]
    assert all(0 <= stage["interval"][0] <= stage["probe"] <= stage["interval"][1] <= 1 for stage in stages)
    assert said.json["backbones"][0]["domain_shift"]["domain"] in ("different", "unclear")
    assert said.json["backbones"][0]["classifier"] is None  # the tiny one has none


def test_auto_trains_it_and_inspect_shows_why(place, env, tlkit, tmp_path):
    assert tlkit("advise", "photos/", *TINY, cwd=place, env=env).code == 0
    said = tlkit("train", "photos/", "-o", tmp_path / "run", *TINY, "--json", cwd=place, env=env)
    assert said.code == 0, said.err
    assert said.json["decoded"] == 0
    assert said.json["advice"]["verdict"] == "recommended"
    assert said.json["cut"] == said.json["advice"]["cut"]
    assert said.json["metrics"]["accuracy"] > 0.6
    shown = tlkit("inspect", tmp_path / "run", "--json")
    assert shown.json["advice"]["reasons"]


def test_what_is_named_stays(place, env, tlkit, tmp_path):
    choice = [*TINY, "--cut", "second", "--head", "svm", "--set", "head.pca=4"]
    said = tlkit("train", "photos/", "-o", tmp_path / "run", *choice, "--json", cwd=place, env=env)
    assert said.code == 0, said.err
    assert (said.json["strategy"], said.json["cut"], said.json["head"]) == ("frozen", "second", "svm")
    assert said.json["advice"]["reasons"] == ["cut at second as requested; the trunk stays frozen then"]
    shown = tlkit("inspect", tmp_path / "run", "--json")
    assert shown.json["head"]["options"]["pca"] == 4


SIZED = """
from dataclasses import dataclass, replace
from functools import cached_property
from tests.kit.tiny import Tiny
from tlkit import hookimpl, option

@dataclass(frozen=True)
class Sized(Tiny):
    name = "sized"
    size: int = option(32, "input size in pixels", minimum=8)

    @cached_property
    def preprocessing(self):
        return replace(Tiny.preprocessing, size=self.size)

@hookimpl
def tlkit_backbones():
    return [Sized()]
"""


def test_options_of_the_backbone_are_advised_on_and_trained_with(place, env, tlkit):
    install(place / "site", "tlkit-sized", SIZED)
    sized = ("advise", "photos/", "--backbone", "sized", "--set")
    said = tlkit(*sized, "backbone.size=48", "--json", cwd=place, env=env)
    assert said.code == 0, said.err
    assert "--backbone sized " in said.json["next"]
    assert " --set backbone.size=48" in said.json["next"]
    trained = tlkit(*shlex.split(said.json["next"])[1:], "--json", cwd=place, env=env)
    assert trained.code == 0, trained.err
    shown = tlkit("inspect", "run/", "--json", cwd=place).json
    assert shown["backbone"]["options"] == {"size": 48}
    assert shown["preprocessing"]["size"] == 48
    for option, reason in (("size=4", "at least 8"), ("sise=48", "did you mean 'size'")):
        refused = tlkit(*sized, f"backbone.{option}", cwd=place, env=env)
        assert refused.code == 2
        assert reason in refused.err


def test_advice_at_another_size_leads_to_a_training_at_that_size(place, env, tlkit):
    said = tlkit("advise", "photos/", *TINY, "--size", "40", "--json", cwd=place, env=env)
    assert said.code == 0, said.err
    assert said.json["next"].endswith(" --size 40")


def noise(place, count, seed=0):
    """So many pictures, each another."""
    place.mkdir(parents=True)
    random = np.random.default_rng([seed, count])
    for number in range(count):
        pixels = random.integers(0, 255, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")


def ten_images(root):
    noise(root / "a", 5)
    noise(root / "b", 5, seed=1)


def one_class_with_one_image(root):
    noise(root / "a", 30)
    noise(root / "b", 1)


def the_same_picture(root):
    noise(root / "a", 1)
    (root / "b").mkdir()
    for label in ("a", "b"):
        for number in range(20):
            if (label, number) != ("a", 0):
                shutil.copy(root / "a/0.png", root / label / f"{number}.png")


def hundreds_of_classes_with_two(root):
    for number in range(300):
        noise(root / f"class {number:03}", 2, seed=number)


def one_class(root):
    noise(root / "a", 30)


NOT_TRAINABLE = "which can't be in train and val both|only one class"


@pytest.mark.parametrize(
    ("plant", "reason", "trains"),
    [
        (ten_images, "at least 20 are needed", 0),
        (one_class_with_one_image, "classes with at most one training image: b", 3),
        (the_same_picture, "1 distinct images of .*, at least 20 are needed", 0),
        (hundreds_of_classes_with_two, "half of the classes have at most 1 distinct images", 0),
        (one_class, "there is only one class", 3),
    ],
)
def test_an_inconclusive_dataset_is_trained_on_cautiously(env, tlkit, tmp_path, plant, reason, trains):
    plant(tmp_path / "few")
    said = tlkit("advise", "few/", "--audit", "--html", "page.html", *TINY, cwd=tmp_path, env=env)
    assert said.code == 0, said.err
    assert re.search(f"INCONCLUSIVE: .*{reason}", said.out)
    assert "RECOMMENDED" not in said.out
    assert "INCONCLUSIVE" in (tmp_path / "page.html").read_text()
    done = tlkit("train", "few/", "-o", "run", *TINY, cwd=tmp_path, env=env)
    assert done.code == trains, done.err
    if trains:
        assert said.next == "tlkit advise few"
        assert re.fullmatch(rf"tlkit: few: .*({NOT_TRAINABLE}).*\n", done.err)
        assert not (tmp_path / "run").exists()
    else:
        assert said.next.startswith("tlkit train few -o run/ ")
        assert done.out.startswith("tiny up to third, strategy frozen, head logistic\n")
        assert re.search(f"INCONCLUSIVE: .*{reason}", done.out)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def garbage(root):
    noise(root / "a", 30)
    noise(root / "b", 30, seed=1)
    for label in ("a", "b"):
        (root / label / "notes.txt").write_text("no picture")
        (root / label / "empty.png").touch()
        (root / label / "half.png").write_bytes((root / label / "1.png").read_bytes()[:200])
        (root / label / "noise.jpg").write_bytes(bytes(range(256)))


def nothing(root):
    root.mkdir()


def locked(root):
    one_class_with_one_image(root)
    (root / "b").chmod(0)


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (garbage, r"\d of (?:53|66) images are unreadable, the first because: .*--max-bad"),
        (nothing, "holds no images"),
        pytest.param(locked, "", marks=pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")),
    ],
)
@pytest.mark.parametrize("line", ["advise set", "train set -o run"])
def test_what_cannot_be_read_is_one_line_and_nothing_stays(env, tlkit, tmp_path, plant, words, line):
    plant(tmp_path / "set")
    said = tlkit(*line.split(), *TINY, cwd=tmp_path, env=env)
    assert (said.code, said.out) == (3, "")
    assert re.fullmatch(f"tlkit: .*{words}.*\n", said.problems)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_of_mixed_garbage_the_rest_is_taken_where_that_is_allowed(env, tlkit, tmp_path):
    garbage(tmp_path / "set")
    said = tlkit("train", "set", "-o", "run", "--max-bad", "0.2", "--json", *TINY, cwd=tmp_path, env=env)
    assert said.code == 0, said.err
    bad = ("empty.png", "half.png", "noise.jpg")
    assert set(said.json["rejected"]) == {f"{label}/{name}" for label in "ab" for name in bad}
    assert "rejected a/empty.png" in said.err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["advise", "photos/", "--html", "page.pdf"], 2, ".html"),
        (["advise", "photos/", "--budget", "soon"], 2, "not a time"),
        (["advise", "photos/", "--backbone", "efficientnet-lite0", "--backbone", "nothing"], 2, "nothing"),
        (["advise", "nowhere/"], 3, "no such file"),
        (["train", "photos/", "-o", "new/", "--strategy", "frozen", "--budget", "2m"], 2, "use strategy auto"),
        (["train", "photos/", "-o", "new/", "--cut", "nowhere"], 2, "no stage"),
        (["train", "photos/", "-o", "new/", "--set", "strategy.epochs=3"], 2, "name the strategy"),
        (["train", "photos/", "-o", "new/", "--set", "head.pca=3"], 2, "name the head"),
        (["train", "photos/", "-o", "new/", "--head", "svm", "--set", "head.pac=3"], 2, "pac"),
    ],
)
def test_what_cannot_be_asked(place, env, tlkit, arguments, code, words):
    said = tlkit(*arguments, cwd=place, env=env)
    assert said.code == code
    assert words in said.err
    assert len(said.err.strip().splitlines()) == 1
