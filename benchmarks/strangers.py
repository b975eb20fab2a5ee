"""Reports of other tools, tried on tlkit: each case of `../shared/cases/data` before and after.

A case is a script that writes a folder of pictures. Commands are run on it, and what they say is compared with what is
right. "Before" is what happened when the cases were collected. What decides on a cache, an option, a file of a plugin,
a byte of a weight or a setting of the runtime, is changed one by one in `tests/hostile/test_decides.py`.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _bench import PYTHON, ROOT, SETTINGS, TLKIT, Bar, Report, _code_of, parsed, parser, run, workspace

CASES = ROOT.parent / "shared" / "cases" / "data"
BAD_DATA = 3  # exit code
SMALLEST = ("the same picture in both splits",)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The exit code of a command, its JSON, and what it said beside it."""

    code: int
    facts: Mapping[str, Any]
    said: str

    @property
    def last(self) -> str:
        """The last line of what it said, without the place of the images."""
        lines = [line for line in self.said.splitlines() if line.startswith("tlkit: ")] or self.said.splitlines()[-1:]
        return re.sub(r"/\S*/tlkit-bench-[^/\s]*/", "", lines[-1])[:160] if lines else ""


@dataclass(frozen=True, slots=True)
class Input:
    """A script, the folder in what it writes, a command on it, and what is right."""

    script: str
    folder: str
    right: str
    before: str
    is_right: Callable[[Outcome], bool]
    command: str = "train {images} -o {out} --strategy frozen --max-bad 0.5 --json"


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


TABLE = "train {images} -o {out} --strategy frozen --json"
CHOSEN: dict[str, Input] = {
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
    "PNGs with long text, profile, checksum": Input(
        "c09_large_metadata",
        "set",
        "all read",
        "3 rejected",
        lambda done: done.code == 0 and not done.facts["rejected"],
    ),
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


def main() -> int:
    options = parser(__doc__, repeat=1)
    options.add_argument("cases", nargs="*", metavar="CASE", help="words in the names of the cases; default: all")
    args = parsed(options)
    report = Report("strangers", "Inputs that other people's tools had trouble with.", {})
    chosen = {name: case for name, case in CHOSEN.items() if not args.cases or any(w in name for w in args.cases)}
    if args.smallest:
        chosen = {name: CHOSEN[name] for name in SMALLEST}
    if not CASES.is_dir():
        report.notes.append("not measured: the cases, ../shared/cases, are not there")
        return report.save()
    wrong = []
    with workspace() as work:
        for name, case in chosen.items():
            done = tried(case, work)
            good = _judged(case, done)
            wrong += [] if good else [name]
            after = f"exit {done.code}" + (f": {done.last}" if done.code else "")
            report.rows.append(
                {"case": name, "right": case.right, "before": case.before, "after": after, "": "" if good else "WRONG"}
            )
            print(f"{name}: {'right' if good else 'WRONG'} ({after})", file=sys.stderr)
    report.figures |= {"cases": len(chosen), "wrong": wrong}
    report.bars.append(Bar(f"wrong of {len(chosen)}", [len(wrong)], "=", 0, digits=0))
    report.notes.append("Before: at the commit where the cases were collected, as their README says.")
    return report.save()


def _judged(case: Input, done: Outcome) -> bool:
    try:
        return case.is_right(done)
    except (KeyError, TypeError):  # nothing of what is right is in the JSON
        return False


def tried(case: Input, work: Path) -> Outcome:
    """Write the folder of a case, once, and run its command on it."""
    place, out = work / case.script, work / "out"
    if not place.exists():
        more = [str(bundle(work))] if "bundle" in case.script else []
        subprocess.run([PYTHON, str(CASES / f"{case.script}.py"), str(place), *more], check=True, env=None)
    if out.exists():
        out.rename(work / f"out-{len(list(work.iterdir()))}")
    command = [word.format(images=place / case.folder, out=out) for word in case.command.split()]
    backbone = [] if SETTINGS.backbone == "efficientnet-lite0" else ["--backbone", SETTINGS.backbone]
    output, errors, code = _captured([TLKIT, *command, *backbone])
    try:
        facts = json.loads(output)
    except ValueError:
        facts = {}
    return Outcome(code, facts, errors)


def _captured(command: list[str]) -> tuple[str, str, int]:
    """Return stdout, stderr and the exit code of a command of tlkit."""
    if not SETTINGS.in_process:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout, done.stderr, done.returncode
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        code = _code_of(*command)
    return output.getvalue(), errors.getvalue(), int(str(code or 0))


def bundle(work: Path) -> Path:
    """Return a bundle, trained once."""
    made, photos = work / "any" / "run", work / "any" / "photos"
    if not made.exists():
        subprocess.run([PYTHON, str(CASES / "c12_damaged_val_image.py"), str(photos)], check=True)
        run([TLKIT, "train", str(photos), "-o", str(made), *SETTINGS.frozen, "--max-bad", "0.5"])
    return made


if __name__ == "__main__":
    sys.exit(main())
