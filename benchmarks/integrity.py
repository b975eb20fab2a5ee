"""The cost of losing nothing and learning nothing from damage: warm `train` and `embed` with and without the checks.

Without them, rows and graphs of the caches are not compared with their checksums, outputs are not locked, what killed
runs left is not looked for, and pictures are not counted. Both sides are the same script, whole processes interleaved,
each with a cache of its own; they are compared by CPU time, which depends less on what else the machine does. As even
that differs by more than the checks take, a third run measures the time inside them.
"""

from __future__ import annotations

import functools
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from _bench import (
    DATA,
    PYTHON,
    SETTINGS,
    Bar,
    Report,
    Run,
    cpu,
    existing,
    exported,
    interleave,
    parsed,
    parser,
    ratios,
    repeated,
    run,
    seconds,
    shown,
    spread,
    workspace,
)

SCRIPT = """
import contextlib, json, os, pkgutil, sys, time
from unittest import mock
import tlkit.data.preprocessing, tlkit.graph.cache, tlkit.runtime.feature_cache, tlkit.util.locks
from tlkit import cli

CHECKS = {
    "tlkit.data.preprocessing.reserved": lambda *_: contextlib.nullcontext(),
    "tlkit.graph.cache._is_intact": lambda _: True,
    "tlkit.runtime.feature_cache._checksum": lambda *_: 0,
    "tlkit.util.files.sweep": lambda _: None,
    "tlkit.util.locks.sweep": lambda _: None,
    "tlkit.util.locks.check_writable": lambda _: None,
    "tlkit.util.locks._acquire": lambda *_: os.open(os.devnull, os.O_RDWR),
}
spent = [0.0]

@contextlib.contextmanager
def timing():
    started = time.thread_time()
    yield
    spent[0] += time.thread_time() - started

@contextlib.contextmanager
def timed_context(usual, *given):
    with contextlib.ExitStack() as entered:
        with timing():
            entered.enter_context(usual(*given))
        yield
        with timing():
            entered.close()

def timed(usual, *given):
    with timing():
        return usual(*given)

def instead_of(place, instead):
    usual = pkgutil.resolve_name(place)
    wrapper = timed_context if place.endswith(".reserved") else timed
    return instead if side == "without" else lambda *given: wrapper(usual, *given)

side, cache, *line = sys.argv[1:]
with contextlib.ExitStack() as patched:
    patched.enter_context(mock.patch.dict(os.environ, TLKIT_CACHE=cache))
    for place, instead in CHECKS.items() if side != "with" else ():
        patched.enter_context(mock.patch(place, instead_of(place, instead)))
    code = cli.run(line)
print(json.dumps({"in checks": spent[0], "in all": time.process_time()}))
sys.exit(code)
"""
SIDES = ("with", "without")
TIMED = "timed"
SHARE = 2.0  # percent
LIMIT = 1.02


def main() -> int:
    options = parser(__doc__, repeat=15)
    options.add_argument("--data", type=Path, default=DATA / "ants_bees", help="a folder with train/ and val/")
    options.add_argument("--count", type=int, default=400, help="images to embed; those given are repeated")
    args = parsed(options, count=12)
    data = existing(args.data, "--data")
    report = Report(
        "integrity",
        (__doc__ or "").split("\n\n")[1].replace("\n", " "),
        {"data": shown(data), "count": args.count, "turns": args.repeat},
    )
    with workspace() as work:
        bundle, images = exported(work), repeated(data, work / "images", args.count)
        verbs = {
            "train": ["train", str(data), "-o", str(work / "out"), *SETTINGS.frozen],
            "embed": ["embed", str(bundle), str(images), "-o", str(work / "f.npy")],
        }

        def side(name: str, verb: str) -> Run:
            shutil.rmtree(work / "out", ignore_errors=True)
            cache = work / f"cache {name.replace(TIMED, 'with')}"
            return run([PYTHON, "-c", SCRIPT, name, str(cache), *verbs[verb]])

        for verb in verbs:
            sides = {name: functools.partial(side, name, verb) for name in SIDES}
            for fill_cache in sides.values():
                fill_cache()
            inside = [json.loads(side(TIMED, verb).output.splitlines()[-1]) for _ in range(args.repeat)]
            runs: dict[str, list[Run]] = {name: [] for name in SIDES}
            for turn in range(args.repeat):  # each is the first in every other turn
                for name, done in interleave({name: sides[name] for name in SIDES[:: 1 - turn % 2 * 2]}, 1).items():
                    runs[name] += done
            _add(report, verb, runs, inside)
    return report.save()


def _add(report: Report, verb: str, runs: dict[str, list[Run]], inside: Sequence[dict[str, float]]) -> None:
    report.figures[f"{verb}, timed inside"] = inside
    for name in SIDES:
        report.figures[f"{verb} {name}"] = {"CPU seconds": cpu(runs[name]), "seconds": seconds(runs[name])}
    spent = {"with": cpu(runs["with"]), "without": cpu(runs["without"])}
    report.rows.append(
        {
            "verb": f"`{verb}`",
            "CPU seconds with the checks": spread(spent["with"]),
            "without": spread(spent["without"]),
            "seconds with them": spread(seconds(runs["with"])),
            "seconds without": spread(seconds(runs["without"])),
            "CPU seconds inside them": spread([each["in checks"] for each in inside], 4),
        }
    )
    shares = [100 * each["in checks"] / (each["in all"] - each["in checks"]) for each in inside]
    report.bars.append(Bar(f"`{verb}`: CPU time inside the checks / outside", shares, "≤", SHARE, " %"))
    report.bars.append(Bar(f"`{verb}`: CPU time with / without", ratios(*spent.values()), "≤", LIMIT, "x", 3))


if __name__ == "__main__":
    sys.exit(main())
