"""Datasets: each folder that the scripts of `../shared/cases/data` write, and a command on it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from _bench import SETTINGS

from reported.workbench import TRIALS, Outcome, Trial, Verdict, Workbench

BAD_DATA = 3  # exit code


@dataclass(frozen=True, slots=True)
class Input:
    """A script, the folder in what it writes, a command on it, and what is right."""

    script: str
    folder: str
    right: str
    before: str
    is_right: Callable[[Outcome], bool]
    command: str = "train {images} -o {out} --strategy frozen --max-bad 0.5 --json"

    def __call__(self, bench: Workbench) -> Verdict:
        """Run the command in the folder."""
        if "c10" in self.script and find_spec("tifffile") is None:
            return Verdict(None, "not measured: tifffile is not installed")
        more = [bench.any] if "bundle" in self.script else []
        images = bench.written(self.script, *more) / self.folder
        backbone = "" if SETTINGS.backbone == "efficientnet-lite0" else f" --backbone {SETTINGS.backbone}"
        done = bench.tlkit(self.command.replace("{images}", str(images)) + backbone)
        try:
            right = self.is_right(done)
        except (KeyError, TypeError):  # nothing of what is right is in the JSON
            right = False
        return Verdict(right, f"exit {done.code}" + (f": {done.last}" if done.code else ""))


def refused(*words: str) -> Callable[[Outcome], bool]:
    """Return whether a command ended with exit code 3 and these words."""
    return lambda done: done.code == BAD_DATA and all(word in done.said for word in words)


def _classes(done: Outcome) -> set[str]:
    return set(done.facts.get("counts", {}).get("train", {}))


def _ants_and_bees(done: Outcome) -> bool:
    return done.code == 0 and _classes(done) == {"ants", "bees"}


def _used_or_refused(done: Outcome) -> bool:
    return _ants_and_bees(done) or refused()(done)


def _rare_is_shown(done: Outcome) -> bool:
    metrics = done.facts.get("metrics", {})
    return (
        done.code == 0
        and {"recall", "majority", "balanced_accuracy"} <= set(metrics)
        and bool(done.facts["few_validation"])
    )


def _record(done: Outcome) -> str:
    """Return the record of the bundle that a training wrote, in which the advice is."""
    return Path(done.facts["bundle"], "bundle.json").read_text("utf-8")


def _used(count: int) -> Callable[[Outcome], bool]:
    """Return whether a `predict` labelled so many files."""
    return lambda done: done.code in (0, BAD_DATA) and sum('"label"' in line for line in done.out.splitlines()) == count


def _apart(done: Outcome) -> bool:
    """Return whether pictures were told apart, or refused by name."""
    return refused()(done) or (_ants_and_bees(done) and done.facts["metrics"]["balanced_accuracy"] > 0.7)


TABLE = "train {images} -o {out} --strategy frozen --json"
INPUTS: dict[str, Input] = {
    "Training/ and Testing/": Input(
        "c01_splits_as_classes", "training", "splits, or exit 3", "classes", _used_or_refused
    ),
    "train/ and dev/": Input("c01_splits_as_classes", "dev", "splits, or exit 3", "classes", _used_or_refused),
    "seg_train/seg_train/": Input("c01_splits_as_classes", "kaggle", "splits, or exit 3", "classes", _used_or_refused),
    "fold0/ and fold1/": Input("c01_splits_as_classes", "folds", "exit 3", "classes", refused("folds")),
    "train/ beside docs/": Input("c01_splits_as_classes", "docs", "exit 3", "classes", refused("docs")),
    "a bundle beside the classes": Input("c02_bundle_inside_data", "top", "no data", "a class `run`", _ants_and_bees),
    "a bundle in a class": Input(
        "c02_bundle_inside_data",
        "inside",
        "no data",
        "its golden images are ants",
        lambda done: done.facts.get("counts", {}).get("train", {}).get("ants", 99) <= 24,
    ),
    "AVIF among JPEGs": Input(
        "c03_pictures_of_other_formats",
        "most",
        "counted by suffix",
        "not counted, and not said",
        lambda done: ".avif" in done.said,
    ),
    "a class of HEIC": Input(
        "c03_pictures_of_other_formats", "all", "named", "no such class", lambda done: "HEIC" in done.said.upper()
    ),
    "pictures without a suffix": Input(
        "c03_pictures_of_other_formats",
        "bare",
        "read",
        "not counted, and not said",
        lambda done: done.code == 0 and sum(done.facts["images"].values()) == 40,
    ),
    "95 ants, 5 bees": Input(
        "c04_imbalance", "set", "recall by class, beside the larger class", "accuracy 100 %", _rare_is_shown
    ),
    "95 ants, 5 bees: class weights": Input(
        "c04_imbalance",
        "set",
        "`auto` tries class weights",
        "not tried",
        lambda done: done.code == 0 and '"class_weight": "balanced"' in _record(done),
        "train {images} -o {out} --json",
    ),
    "95 ants, 5 bees: advice": Input(
        "c04_imbalance",
        "set",
        "judged against the larger class",
        "little is left to gain, expected 87 to 98 %",
        lambda done: "always the largest class" in json.dumps(done.facts) and "little is left" not in str(done.facts),
        "advise {images} --json",
    ),
    "the same picture in both splits": Input(
        "c05_leak_and_contradiction",
        "leak",
        "said",
        "known and not said",
        lambda done: bool(done.facts["duplicates"]["leakage"]),
    ),
    "the same picture in two classes": Input(
        "c05_leak_and_contradiction",
        "both",
        "exit 3 with --strict",
        "known and not said",
        refused("label conflict"),
        TABLE + " --strict",
    ),
    **{
        f"folders of a system: {folder}": Input(
            "c06_system_folders", folder, "no data", "classes or images", _ants_and_bees
        )
        for folder in ("nas", "bin", "win", "ext4")
    },
    **{
        f"table: {name}": Input("c07_tables", f"{name}.csv", "exit 3", before, refused(), TABLE)
        for name, before in (
            ("two_labels", "the second column"),
            ("nan", "a class nan"),
            ("one_and_1.0", "two classes"),
            ("open_quote", "without the row"),
        )
    },
    "table: names in another Unicode form": Input(
        "c07_tables", "nfc.csv", "found", "names no file", _ants_and_bees, TABLE
    ),
    **{
        f"JPEGs: {folder}": Input("c08_half_jpegs", folder, right, before, is_right, "predict {any} {images} --json")
        for folder, right, before, is_right in (
            ("whole", "all used", "all used", _used(40)),
            ("no_end_mark", "all used: every row is there", "all refused", _used(40)),
            ("half_closed", "all refused: half is gray", "all used", _used(0)),
            ("half_zeros", "all refused: half is gray", "some of the large used", _used(0)),
        )
    },
    "PNGs with long text, profile, checksum": Input(
        "c09_large_metadata",
        "set",
        "all read",
        "3 rejected",
        lambda done: done.code == 0 and not done.facts["rejected"],
    ),
    "a JPEG of 200 megapixels": Input(
        "c09_large_metadata",
        "phone.jpg",
        "used: the limit is in bytes of memory",
        "refused, without a switch",
        _used(1),
        "predict {any} {images} --json",
    ),
    **{
        f"modes: {name}": Input("c10_modes", folder, right, before, _apart)
        for name, folder, right, before in (
            ("BMPs with an unused fourth byte", "bmp", "as they look", "white, identical features not said"),
            ("16-bit PNGs with values below 256", "low16", "as they look, or said", "black, not said"),
            ("16-bit signed TIFFs", "int16", "as they look, or refused", "not known"),
            ("TIFFs that begin with a thumbnail", "thumb", "the picture", "the thumbnail"),
        )
    },
    "the only picture to validate on is damaged": Input(
        "c12_damaged_val_image",
        ".",
        "another is validated on",
        "exit 3: add some",
        lambda done: done.code == 0 and done.facts["counts"]["val"]["bees"] == 1 and len(done.facts["rejected"]) == 1,
    ),
    "learning rates that diverge": Input(
        "c14_batch_of_one",
        ".",
        "exit 3, not 100 %",
        "exit 0, 100 %",
        refused("smaller learning rates"),
        "train {images} -o {out} --strategy full --set strategy.epochs=3 --set strategy.trunk_lr=50"
        " --set strategy.head_lr=1e6 --set strategy.gradient_clipping=0 --no-refit --json",
    ),
    "--size 100000": Input(
        "c14_batch_of_one",
        ".",
        "refused at once",
        "no memory after minutes",
        lambda done: done.code in (2, 5),
        TABLE + " --size 100000",
    ),
}
TRIALS += [Trial(name, each.right, each.before, each) for name, each in INPUTS.items()]
