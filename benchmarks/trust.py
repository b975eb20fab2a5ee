"""Every case of a hostile trial of the command line, before and after: nothing lost, nothing told, no bug.

"Before" is what happened in the trial. "After" is what the tests say that hold the case today, at this commit.
"""

from __future__ import annotations

import re
import subprocess
import sys
from typing import NamedTuple

from _bench import PYTHON, ROOT, SETTINGS, Bar, Report, parsed, parser


class Trial(NamedTuple):
    """A trial: what was tried, what is right, what happened, and the tests that hold it."""

    tried: str
    right: str
    before: str
    tests: tuple[str, ...]


HOSTILE, STANDARD = "tests/hostile/", "plugins/tlkit_standard/tests/targets/test_rtx.py::"
SYSTEM = HOSTILE + "test_system.py::"
TRIALS = (
    Trial(
        "an export is killed",
        "the one before or the new one, and the next command works",
        "`verify` ends with 1 for good; the good export only under `.old`",
        (HOSTILE + "test_kills.py", HOSTILE + "test_oracles.py::test_an_export_that_is_left_aside"),
    ),
    Trial(
        "a damaged cache",
        "computed again, with one warning",
        "learned from, exit 0: 85 to 75 %",
        (HOSTILE + "test_caches.py", HOSTILE + "test_oracles.py::test_a_row_that_is_not_checked"),
    ),
    Trial(
        "two runs on one output",
        "the second is told of the first before any work",
        "both say that they wrote it; one bundle is lost",
        (
            HOSTILE + "test_together.py::test_the_second_of_two_is_told_of_the_first",
            HOSTILE + "test_oracles.py::test_two_runs_on_one_output",
            "tests/util/test_locks.py",
        ),
    ),
    Trial(
        "files of somebody else in an output",
        "refused, and nothing is lost",
        "a photo was deleted",
        (
            HOSTILE + "test_together.py::TestFilesOfOthers",
            HOSTILE + "test_oracles.py::test_a_photo_that_is_deleted",
            "tests/exporting/test_triton.py::test_files_of_somebody_else_beside_ours_are_not_lost",
        ),
    ),
    Trial(
        "a fresh home after every verb; names that are looked up",
        "the cache of tlkit alone; none",
        "a device id and an event database of runtimes, uploaded",
        (SYSTEM + "TestTelemetry",),
    ),
    Trial(
        "paths, users and EXIF in artifacts",
        "none",
        "absolute paths in bundles and features, which changed the digest",
        (
            "tests/runtime/test_embedding.py::test_no_absolute_path_is_written",
            "tests/training/test_result.py::test_golden_images_have_no_exif_and_tell_no_place",
            "tests/training/test_result.py::TestIdentity",
        ),
    ),
    Trial(
        "terminal escapes in labels and names",
        "neutral text",
        "they reach the terminal",
        (SYSTEM + "TestOutput::test_names_and_labels_do_not_reach_the_terminal_as_commands",),
    ),
    Trial("pipes and links in a bundle", "exit 4", "a hang, or a crash", (SYSTEM + "TestSpecialFiles",)),
    Trial(
        "corrupt artifacts",
        "exit 4, and the name of the field",
        "78 times a bug in tlkit",
        (HOSTILE + "test_mutations.py", "tests/util/test_schema.py"),
    ),
    Trial(
        "a full disk, a full or closed stdout",
        "exit 5",
        "exit 1",
        (
            SYSTEM + "TestOutput",
            "tests/training/test_checkpoint.py::test_a_full_disk_leaves_the_checkpoint_before_as_it_was",
            STANDARD + "TestRTX::test_a_full_disk_is_told_of_by_the_files_own_name_and_nothing_stays",
        ),
    ),
    Trial(
        "what killed runs leave; SIGHUP",
        "named, and swept by the next run; like SIGTERM",
        "it stays; ends without cleaning up",
        ("tests/util/test_temporaries.py", "tests/cli/test_interrupted.py"),
    ),
    Trial("a picture of 34 bytes", "refused by its header", "2.7 GiB of memory", ("tests/data/test_memory.py",)),
    Trial(
        "a name too long",
        "refused before the work",
        "refused after it",
        ("tests/util/test_locks.py::test_a_name_too_long_is_refused_before_the_work",),
    ),
    Trial(
        "plugins that print, change the process, never end",
        "contained, or named",
        "broken JSON, hangs, other numbers",
        ("tests/plugin/test_blame.py", "tests/plugin/test_broken_plugins.py", "tests/cli/test_plugins.py"),
    ),
    Trial("memory or threads that the system refuses", "exit 5", "exit 4: export it again", (SYSTEM + "TestRefused",)),
    Trial(
        "another number of threads on --resume",
        "said that bits will differ",
        "not said",
        ("tests/training/test_run_directory.py::test_another_machine_is_told_and_resumed",),
    ),
    Trial(
        "16-bit gray in the script without tlkit",
        "as `predict` sees it, or refused",
        "white",
        ("tests/project/test_documents.py::test_the_script_without_tlkit_sees_what_predict_sees_or_refuses",),
    ),
    Trial("~ in a variable", "the home", "a folder ~", (SYSTEM + "TestPlaces",)),
    Trial(
        "an empty picture for `bench`",
        "it is named",
        "not named",
        ("tests/benchmarking/test_run.py::test_an_image_that_is_empty_is_left_out_and_named_where_no_other_is_there",),
    ),
)


def main() -> int:
    parsed(parser(__doc__, repeat=1))
    report = Report("trust", (__doc__ or "").split("\n\n")[1].replace("\n", " "), {})
    failed = []
    for trial in [each for each in TRIALS if each.tried.startswith("~")] if SETTINGS.smallest else TRIALS:
        line = [PYTHON, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
        done = subprocess.run([*line, *trial.tests], cwd=ROOT, capture_output=True, text=True, check=False)
        counts = re.findall(r"\d+ (?:passed|failed|errors?|skipped)", done.stdout)
        passed = done.returncode == 0 and any("passed" in each for each in counts)
        failed += [] if passed else [trial.tried]
        after = f"{', '.join(counts) or 'no test ran'}: {', '.join(trial.tests)}"
        cells = {"case": trial.tried, "right": trial.right, "before": trial.before, "after": after}
        report.rows.append({**cells, "": "right" if passed else "WRONG"})
        print(f"{report.rows[-1]['']:5} {trial.tried}: {after}", file=sys.stderr)
    report.figures |= {"cases": len(report.rows), "wrong": failed}
    report.bars.append(Bar(f"wrong of {len(report.rows)}", [len(failed)], "=", 0, digits=0))
    report.notes.append("Kills, mutations, caches and pairs at volume are in [hostile](hostile.md).")
    return report.save()


if __name__ == "__main__":
    sys.exit(main())
