"""The demo: `make demo` runs it, and every verb in it is there."""

from __future__ import annotations

import re
import subprocess

import pytest

from tlkit.cli import VERBS


def test_make_demo_runs_the_script(checkout):
    shown = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "--assume-old=.venv/.ready-to-use", "demo"],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.splitlines()[-1].endswith("bash demo/run.sh")


def test_the_demo_installs_less_than_the_tests(checkout):
    def installed(target):
        command = ["make", "--no-print-directory", "--dry-run", "VENV=nowhere", target]
        shown = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True)
        return re.findall(r"pip install .*--editable '([^']*)'", shown.stdout)

    assert installed("demo") == [".[train,parquet]"]
    assert installed("test") == [".[dev]"]


def test_the_script_is_well_formed_and_shows_every_verb(checkout):
    script = checkout / "demo/run.sh"
    subprocess.run(["bash", "-n", script], check=True)
    shown = set(re.findall(r"^step tlkit (\w+)", script.read_text(), re.MULTILINE))
    assert shown <= set(VERBS)
    assert shown >= set(VERBS) - {
        "card",
        "completion",
        "index",
        "serve",
    }  # these need an extra, or run until they are stopped


@pytest.mark.slow
def test_the_demo_runs(shell, checkout, tmp_path):
    finished = shell(f"bash {checkout}/demo/run.sh demo", cwd=tmp_path, env={"TLKIT_CACHE": str(tmp_path / "cache")})
    assert finished.code == 0, finished.err
    accuracy = re.search(r"^validation accuracy ([\d.]+)%", finished.out, re.MULTILINE)
    assert float(accuracy[1]) > 90
