"""`tlkit advise` as a user starts it, and `tlkit train --strategy auto`."""

from __future__ import annotations

import shutil

import pytest


def test_the_page_and_the_command_it_ends_with(story, tlkit):
    said = tlkit("advise", "photos/", "--audit", cwd=story.root, env=story.env)
    assert said.code == 0, said.err
    for part in ("images", "efficientnet-lite0:", "stage7", "RECOMMENDED", "expected accuracy", "audit of 60 images"):
        assert part in said.out
    assert said.next.startswith("tlkit train photos -o run/ --backbone efficientnet-lite0 --strategy frozen --cut ")


def test_json_over_two_backbones(story, tlkit):
    said = tlkit(
        "advise",
        "photos/",
        "--backbone",
        "efficientnet-lite0,efficientnet-lite0",
        "--json",
        cwd=story.root,
        env=story.env,
    )
    assert said.code == 0, said.err
    assert [each["backbone"] for each in said.json["backbones"]] == ["efficientnet-lite0"]
    stages = said.json["backbones"][0]["stages"]
    assert [stage["stage"] for stage in stages][::8] == ["stem", "last"]
    assert all(0 <= stage["interval"][0] <= stage["probe"] <= stage["interval"][1] <= 1 for stage in stages)
    assert said.json["backbones"][0]["shift"]["likeness"] in ("unlike", "unclear")
    assert 0 < said.json["backbones"][0]["classifier"]["greatest"] < 1


def test_auto_trains_it_and_inspect_shows_why(story, tlkit, tmp_path):
    said = tlkit(
        "train", "photos/", "-o", tmp_path / "run", "--strategy", "auto", "--json", cwd=story.root, env=story.env
    )
    assert said.code == 0, said.err
    assert said.json["decoded"] == 0
    assert said.json["advice"]["verdict"] == "recommended"
    assert said.json["cut"] == said.json["advice"]["cut"]
    assert said.json["val"]["accuracy"] > 0.6
    shown = tlkit("inspect", tmp_path / "run", "--json")
    assert shown.json["advice"]["reasons"]


def test_ten_images_are_not_enough_and_that_is_no_error(story, tlkit, tmp_path):
    for label in ("0", "1"):
        (tmp_path / "few" / label).mkdir(parents=True)
        for file in sorted((story.root / "photos" / label).iterdir())[:5]:
            shutil.copy(file, tmp_path / "few" / label)
    said = tlkit("advise", "few/", cwd=tmp_path, env=story.env)
    assert said.code == 0, said.err
    assert "NOT ENOUGH TO TELL" in said.out
    assert "RECOMMENDED" not in said.out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["advise", "photos/", "--html", "page.pdf"], 2, ".html"),
        (["advise", "photos/", "--budget", "soon"], 2, "not a time"),
        (["advise", "photos/", "--backbone", "efficientnet-lite0,nothing"], 2, "nothing"),
        (["advise", "nowhere/"], 3, "no such file"),
        (["train", "photos/", "-o", "new/", "--budget", "2m"], 2, "--strategy auto"),
        (["train", "photos/", "-o", "new/", "--strategy", "auto", "--resume"], 2, "--resume"),
        (["train", "photos/", "-o", "new/", "--strategy", "auto", "--cut", "nowhere"], 2, "no stage"),
        (["train", "photos/", "-o", "new/", "--strategy", "auto", "--set", "strategy.epochs=3"], 2, "strategy"),
    ],
)
def test_what_cannot_be_asked(story, tlkit, arguments, code, words):
    said = tlkit(*arguments, cwd=story.root, env=story.env)
    assert said.code == code
    assert words in said.err
    assert len(said.err.strip().splitlines()) == 1
