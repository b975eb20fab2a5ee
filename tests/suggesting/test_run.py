"""Images to label next: uncertain ones, different from each other and from labelled ones; a table to fill in."""

from __future__ import annotations

import csv
import re
import shutil

import numpy as np
import pytest
from PIL import Image

import tlkit
from tlkit.data import table
from tlkit.errors import DataError, UsageError
from tlkit.suggesting.run import COLUMNS, check
from tlkit.suggesting.selection import choose, margins, uncertainty
from tlkit.util.statistics import unit

NASTY = "<img src=x onerror=alert(1)>,\x1b[31m.png"


@pytest.fixture(scope="module")
def suggested(novel_run, tmp_path_factory):
    """Twelve dark and twelve light images, six between them twice each, and one that can't be read."""
    root = tmp_path_factory.mktemp("suggest")
    (root / "unlabelled").mkdir()
    random = np.random.default_rng(1)
    levels = {"dark": 40, "light": 210, NASTY[:-4]: 85}
    for name, level in levels.items():
        for number in range(6 if level == 85 else 12):
            noise = np.clip(random.normal(level, 25, (48, 48, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(noise).save(root / f"unlabelled/{number:02}{name}.png")
            if level == 85:
                shutil.copy(root / f"unlabelled/{number:02}{name}.png", root / f"unlabelled/{number:02}{name}copy.png")
    (root / "unlabelled/broken.png").write_bytes(b"no image")
    (root / "unlabelled/notes.txt").write_text("of mine")
    found = tlkit.suggest(novel_run, root / "unlabelled", root / "next.csv", count=6, html=root / "next.html")
    return found, root


def test_the_uncertain_ones_are_suggested_and_no_copy_of_them(suggested):
    found = suggested[0]
    names = [each.path.name for each in found.suggestions]
    assert len(set(names)) == 6
    between = [name for name in names if "onerror" in name]
    assert len(between) >= 4  # of 36 images twelve are, six without copies
    assert len({name[:2] for name in between}) == len(between)
    assert (found.images, found.compared > 0, len(found.rejected), len(found.skipped)) == (36, True, 1, 1)
    assert sum(each.similar for each in found.suggestions) == 36
    distances = [each.distance for each in found.suggestions]
    assert min(distances) > 0
    assert all(each.why for each in found.suggestions)


def test_the_table_is_one_to_fill_in_and_to_train_on(suggested):
    found, root = suggested
    with (root / "next.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert tuple(rows[0]) == COLUMNS
    assert [row["label"] for row in rows] == [""] * 6
    assert [(root / row["path"]).resolve() for row in rows] == [each.path.resolve() for each in found.suggestions]
    filled = root / "filled.csv"
    with filled.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, COLUMNS)
        writer.writeheader()
        writer.writerows({**row, "label": "dark"} for row in rows)
    assert len(table.read(filled)) == 6
    with pytest.raises(UsageError, match="did not write this file"):
        tlkit.suggest("run", root / "unlabelled", filled)  # its labels would be lost
    check(root / "next.csv")  # without labels it is replaced


def test_the_page_shows_them_and_no_name_is_markup(suggested):
    found, root = suggested
    text = (root / "next.html").read_text()
    assert text == found.page
    assert "<script" not in text
    assert "<img src=x" not in text
    assert "\x1b" not in text
    assert len(re.findall(r'src="data:image/jpeg;base64,', text)) == 6
    assert str(root) not in text


def test_those_are_chosen_that_stand_for_the_most_uncertain():
    features = unit(np.array([[1, 0], [1, 0.1], [0.99, 0.2], [0, 1], [0.1, 1], [0.7, -0.7]], np.float32))
    even = np.ones(6, np.float32)
    chosen = choose(features, even, None, 3)
    assert chosen.rows.tolist() == [2, 3, 5]  # one of three, of two, and the one that is alone
    assert chosen.similar.tolist() == [3, 2, 1]
    assert chosen.distances[1] == pytest.approx(1 - features[2] @ features[3], abs=1e-5)
    doubtful = np.array([0.1, 0.1, 0.1, 0.1, 0.1, 9], np.float32)
    assert choose(features, doubtful, None, 1).rows.tolist() == [5]
    labeled = 1 - features @ features[0]  # the first one is labelled
    assert choose(features, even, labeled, 1).rows.tolist() == [3]
    assert sorted(choose(features, even, None, 99).rows.tolist()) == [0, 1, 2, 3, 4, 5]


def test_the_greedy_choice_is_the_best_of_all_images_at_each_step():
    random = np.random.default_rng(0)
    features = unit(random.normal(size=(60, 5)).astype(np.float32))
    weight, nearest = random.random(60, np.float32), random.random(60, np.float32)
    found = choose(features, weight, nearest, 8).rows
    distances, covered = np.maximum(1 - features @ features.T, 0), nearest
    for row in found:
        gains = weight @ np.maximum(covered[:, None] - distances, 0)
        assert gains[row] == pytest.approx(gains.max(), rel=1e-5)
        covered = np.minimum(covered, distances[row])


def test_margins_and_uncertainty():
    probabilities = np.array([[0.5, 0.4, 0.1], [0.9, 0.05, 0.05]], np.float32)
    assert margins(probabilities) == pytest.approx([0.1, 0.85])
    assert margins(probabilities, "sigmoid") == pytest.approx([0.0, 0.8])
    assert margins(np.ones((2, 1), np.float32)).tolist() == [1, 1]
    assert uncertainty(np.float32([0.1, 0.9]), np.array([False, True])) == pytest.approx([0.9, 1.0])


def test_what_cannot_be_used_is_refused(novel_run, suggested, tmp_path):
    root = suggested[1]
    with pytest.raises(UsageError, match=r"\.csv"):
        tlkit.suggest(novel_run, root / "unlabelled", tmp_path / "next.txt")
    with pytest.raises(UsageError, match="count must be at least 1"):
        tlkit.suggest(novel_run, root / "unlabelled", count=0)
    with pytest.raises(DataError, match="no image can be read"):
        tlkit.suggest(novel_run, root / "unlabelled/broken.png")
    assert not list(tmp_path.iterdir())
