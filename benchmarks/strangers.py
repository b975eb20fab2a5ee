"""Reports of other tools, tried on tlkit: every case of `../shared/cases`, before and after.

A case is a script that writes a folder of images, or that describes what somebody did. `reported/` does it with today's
commands and compares what happens with what is right. "Before" is what happened when the cases were collected.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from pathlib import Path

from _bench import Bar, Report, parsed, parser, workspace
from reported import clients, data, exports, plugins, system  # noqa: F401 - each registers its trials
from reported.workbench import CASES, TRIALS, Forks, Trial, Verdict, Workbench

SMALLEST = ("the same picture in both splits",)


def main() -> int:
    options = parser(__doc__, repeat=1)
    options.add_argument("cases", nargs="*", metavar="CASE", help="words in the names of the cases; default: all")
    options.add_argument("--journal", type=Path, help="keep what was right in a file, and skip it the next time")
    options.add_argument("--kept", action="store_true", help="run none, and say what the journal has")
    args = parsed(options)
    report = Report("strangers", "Inputs that other people's tools had trouble with.", {})
    chosen = list(dict.fromkeys(each for word in args.cases or [""] for each in TRIALS if word in each.name))
    if args.smallest:
        chosen = [each for each in TRIALS if each.name in SMALLEST]
    if not CASES.is_dir():
        report.notes.append("not measured: the cases, ../shared/cases, are not there")
        return report.save()
    known = json.loads(args.journal.read_text()) if args.journal and args.journal.exists() else {}
    verdicts = {}
    with workspace() as work, Forks() as forks:
        bench = Workbench(work, forks)
        for each in chosen:
            started = time.monotonic()
            if each.name in known:
                verdict = Verdict(*known[each.name])
            else:
                verdict = Verdict(None, "not run") if args.kept else tried(each, bench)
            verdicts[each.name] = verdict
            if args.journal and verdict.right:
                known[each.name] = [verdict.right, verdict.after]
                args.journal.write_text(json.dumps(known, indent=2))
            report.rows.append(row(each, verdict))
            print(
                f"{report.rows[-1]['']:5} {each.name}: {verdict.after} ({time.monotonic() - started:.0f} s)",
                file=sys.stderr,
            )
    wrong = [name for name, verdict in verdicts.items() if verdict.right is False]
    left_out = [name for name, verdict in verdicts.items() if verdict.right is None]
    report.figures |= {"cases": len(verdicts), "wrong": wrong, "not measured": left_out}
    report.bars.append(Bar(f"wrong of {len(verdicts)}", [len(wrong)], "=", 0, digits=0))
    report.notes.append("Before: at the commit where the cases were collected, as they say.")
    return report.save()


def tried(case: Trial, bench: Workbench) -> Verdict:
    """Return the verdict of a trial; one that can't be told is wrong."""
    try:
        return case.run(bench)
    except Exception as error:  # noqa: BLE001 - the other trials go on
        traceback.print_exc()
        return Verdict(False, f"{type(error).__name__}: {error}"[:300])


def row(case: Trial, verdict: Verdict) -> dict[str, str]:
    """Return a row of the table."""
    state = {True: "right", False: "WRONG", None: "-"}[verdict.right]
    cells = {"case": case.name, "right": case.right, "before": case.before, "after": verdict.after, "": state}
    return {name: cell.replace("|", "\\|").replace("\n", " ") for name, cell in cells.items()}


if __name__ == "__main__":
    sys.exit(main())
