"""The data sets that advice is measured on: which images to learn from, and which to hold out; and whom to ask."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
from _bench import SETS, SIZES
from PIL import Image

from tlkit.data.split import hash_fraction
from tlkit.graph import trace
from tlkit.model import trunk as trunks
from tlkit.plugin.contract import Backbone
from tlkit.plugin.registry import load as load_plugins
from tlkit.runtime.features import Features, extract

NAMES = [*SETS]
SMALL = 160  # pixels of the shorter side, in the median image of a set that is shown at `SHOWN`
SHOWN = 96
MAX_TESTED = 1000
PER_CLASS = 200  # images to learn from of the large sets, by the hash of their names


@dataclass(frozen=True, eq=False)
class Set:
    """Image files with their labels `(N,)`; `pool` and `test` are indices, the former to learn from."""

    name: str
    files: Sequence[Path]
    labels: np.ndarray
    classes: Sequence[str]
    pool: np.ndarray
    test: np.ndarray

    @cached_property
    def size(self) -> int | None:
        """Pixels of the input's side, where the images are smaller than what a backbone was pretrained on."""
        if self.name in SETS:
            return SIZES.get(self.name)
        return SHOWN if np.median([_shorter_side(path) for path in self.files]) < SMALL else None

    def draw(self, count: int, seed: int) -> np.ndarray:
        """`count` of the pool's indices, as many of each class as there are, at random."""
        random = np.random.default_rng([seed, count])
        order = random.permutation(self.pool)
        by_class = [order[self.labels[order] == label] for label in range(len(self.classes))]
        turns = [rows[turn] for turn in range(max(map(len, by_class))) for rows in by_class if turn < len(rows)]
        return np.array(turns[:count])


@cache
def load(root: Path, name: str) -> Set:
    """A folder of classes, a quarter of the images held out by the hash of their names, or one of `train` and `val`."""
    folder = root / name
    if (folder / "train").is_dir():
        found = [(path, "train" in path.parts[-3:-1]) for path in _images(folder / "train")]
        found += [(path, False) for path in _images(folder / "val")]
        found = _limited(folder, found)
    else:
        found = [(path, hash_fraction(path.relative_to(folder).as_posix()) >= 0.25) for path in _images(folder)]
    classes = sorted({path.parent.name for path, _ in found})
    labels = np.array([classes.index(path.parent.name) for path, _ in found])
    pool = np.array([learn for _, learn in found])
    return Set(name, [path for path, _ in found], labels, classes, np.flatnonzero(pool), np.flatnonzero(~pool))


def _shorter_side(path: Path) -> int:
    with Image.open(path) as image:
        return min(image.size)


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))


def _limited(folder: Path, found: list[tuple[Path, bool]]) -> list[tuple[Path, bool]]:
    """At most `PER_CLASS` images of each class to learn from."""
    kept: dict[str, int] = {}
    result = []
    for path, learn in sorted(found, key=lambda each: hash_fraction(each[0].relative_to(folder).as_posix())):
        place = path.parent.name
        if learn:
            kept[place] = kept.get(place, 0) + 1
            if kept[place] > PER_CLASS:
                continue
        result.append((path, learn))
    return result


BACKBONES = ["efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2"]


def quiet(_more: int, _said: str = "") -> None:
    """The progress of a benchmark."""


def backbone(name: str) -> Backbone:
    component: Backbone = load_plugins().get("backbone", name)
    return component


def seen(component: Backbone, data: Set) -> tuple[trunks.Trunk, Features]:
    """A backbone's features of all stages of all images of a set."""
    trunk = trunks.build(component)
    return trunk, extract(data.files, trace.stage_graph(trunk), trunk.preprocessing, trunk.names, None, quiet)


@cache
def seen_in_part(name: str, data: Set) -> tuple[trunks.Trunk, Features, np.ndarray, np.ndarray]:
    """A backbone's features of all stages of the pool and of at most `MAX_TESTED` images to test on.

    With them, the row of each image of the set, and the indices of those to test on.
    """
    component = backbone(name)
    trunk = trunks.build(component, preprocessing=None if data.size is None else trunks.resized(component, data.size))
    test = data.test[np.random.default_rng(0).permutation(len(data.test))[:MAX_TESTED]]
    kept = np.union1d(data.pool, test)
    paths = [data.files[index] for index in kept]
    features = extract(paths, trace.stage_graph(trunk), trunk.preprocessing, trunk.names, None, quiet)
    place = np.full(len(data.files), -1)
    place[kept] = np.arange(len(kept))
    return trunk, features, place, test


def table(file: Path, data: Set, **splits: Sequence[int]) -> Path:
    """A table of some images of a set by split, as a user would give them; with `all` they have no split."""
    with file.open("w", newline="") as text:
        writer = csv.writer(text)
        writer.writerow(["path", "label", *([] if "all" in splits else ["split"])])
        for split, rows in splits.items():
            named = [] if split == "all" else [split]
            writer.writerows([str(data.files[row]), data.classes[data.labels[row]], *named] for row in rows)
    return file
