"""Quality and cost of `tlkit advise`: `python benchmarks/advise.py PART...`.

- `shift`: the domain (similar, different) of each data set by each backbone, and from how many images on.
- `cost`: the time of advice in passes over the images, a pass being the features of all stages through the runtime.
- `scores`: rank correlation of each score with the accuracy of a logistic head on held-out images, over stages,
  backbones and data sets.
- `rules`: what rules for cut and head lose against the best of all, each rule chosen on the other sets.
- `joined`: what frozen features of two stages joined gain over those of the best one.
- `audit`: planted duplicates, re-encoded near duplicates, wrong labels and a planted shortcut.
- `ways`: what other ways to fine-tune, and blended weights, gain over the one that `auto` uses.
- `soup`: what the average of several fine-tuned trunks gains over one of them.
- `regret`: accuracy on held-out images of the best of all strategies, cuts and heads, less that of what `auto` made.

Each part writes results of its own. Features are kept between runs in the cache, but for `cost`.
"""

from __future__ import annotations

import argparse
import atexit
import shutil
import sys
import tempfile
from pathlib import Path

from _bench import DATA, SETS, SETTINGS, existing, parsed, parser
from advising.cost import SIZES, cost
from advising.faults import audits
from advising.joined import DRAWS as JOINED
from advising.joined import joined
from advising.regret import COUNTS, FINE_TUNING, HEADS, regret
from advising.rules import DRAWS, rules
from advising.scores import scores
from advising.sets import BACKBONES, NAMES
from advising.shift import shift
from advising.soup import soup
from advising.ways import WAYS, ways

PARTS = ("shift", "cost", "scores", "rules", "joined", "audit", "ways", "soup", "regret")


def smallest(args: argparse.Namespace) -> None:
    """One tiny backbone, two data sets and few trainings."""
    args.work = Path(tempfile.mkdtemp(prefix="tlkit-advise-"))
    atexit.register(shutil.rmtree, args.work, ignore_errors=True)
    BACKBONES[:], NAMES[:], SIZES[:] = [SETTINGS.backbone], NAMES[:2], [("ants_bees", 500)]
    DRAWS[:] = JOINED[:] = [(40, 1)]
    for name in [*WAYS][2:]:
        del WAYS[name]
    HEADS[:], FINE_TUNING[:] = ["logistic"], [("full", {"epochs": 1}, SETTINGS.cut, 2000)]


def main() -> int:
    options = parser(__doc__, repeat=3)
    options.add_argument(
        "parts", nargs="*", default=PARTS, metavar="PART", help=f"of {', '.join(PARTS)} (default: all)"
    )
    options.add_argument("--data", type=Path, default=DATA, help="a folder whose subfolders are data sets")
    options.add_argument("--work", type=Path, default=Path("build/advise"), help="where what takes long is kept")
    options.add_argument("--sets", nargs="+", metavar="SET", help="those to use (default: all subfolders of --data)")
    options.add_argument("--counts", nargs="+", type=int, default=COUNTS, help="to learn from, not for all parts")
    options.add_argument(
        "--tunings", nargs="*", type=int, help="for regret: which of FINE_TUNING, by number (default: all)"
    )
    options.add_argument("--draws", nargs="+", type=int, default=[1], help="of so many images from each set, by count")
    args = parsed(options, counts=[24])
    if args.tunings is not None:
        FINE_TUNING[:] = [FINE_TUNING[number] for number in args.tunings]
    root, codes = existing(args.data, "--data"), []
    NAMES[:] = args.sets or sorted(each.name for each in root.iterdir() if each.is_dir())
    for name in NAMES:
        existing(root / name, "--sets")
    if args.smallest:
        smallest(args)
    names = NAMES[:1] if args.smallest else NAMES
    draws = (args.draws + args.draws[-1:] * len(args.counts))[: len(args.counts)]
    for part in args.parts:
        if part not in PARTS:
            sys.exit(f"there is no part {part!r}; choose of {', '.join(PARTS)}")
        if part in ("shift", "cost") and not set(NAMES) <= set(SETS):
            sys.exit(f"{part} is measured on {', '.join(SETS)} alone; choose other parts")
        codes.append(
            {
                "shift": lambda: shift(root, args.repeat),
                "cost": lambda: cost(root, args.repeat),
                "scores": lambda: scores(root),
                "rules": lambda: rules(root, args.work),
                "joined": lambda: joined(root, args.work),
                "audit": lambda: audits(root, args.repeat),
                "ways": lambda: ways(root, args.work, names, args.counts, draws),
                "soup": lambda: soup(root, args.work, names, args.counts, draws),
                "regret": lambda: regret(root, args.work, names, args.counts, draws),
            }[part]()
        )
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
