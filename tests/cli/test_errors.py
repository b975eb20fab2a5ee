"""Errors become one line and an exit code in one place; a traceback is only for who asks."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tlkit import cli
from tlkit.cli import completion
from tlkit.errors import (
    ArtifactError,
    DataError,
    GateError,
    PluginError,
    ResourceError,
    TlkitError,
    UsageError,
    one_line,
)


@pytest.fixture
def fail(monkeypatch, capsys):
    """Runs a command that raises the error given; returns its exit code and what it said on stderr."""

    def run(error, *, debug=False):
        def raising(_shell):
            raise error

        monkeypatch.setattr(completion, "get_completion_class", raising)
        code = cli.run(["completion", "bash"], debug=debug)
        captured = capsys.readouterr()
        assert captured.out == ""
        return code, captured.err

    return run


@pytest.mark.parametrize(
    ("kind", "code"),
    [(UsageError, 2), (DataError, 3), (ArtifactError, 4), (ResourceError, 5), (GateError, 6), (PluginError, 7)],
)
def test_each_kind_of_error_has_its_exit_code(fail, kind, code):
    assert fail(kind("it is odd", file="a.jpg", do="fix it")) == (code, "tlkit: a.jpg: it is odd; fix it\n")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (
            ZeroDivisionError("a\n\n  b"),
            1,
            "a bug in tlkit: ZeroDivisionError: a b; run again with --debug and report .*",
        ),
        (MemoryError(), 5, "not enough memory or threads; free some memory, raise the limits .*"),
        (PermissionError(13, "Permission denied", "secret/run"), 5, "secret/run: permission denied"),
        (PermissionError(13, "Permission denied", b"run"), 5, "run: permission denied"),
        (OSError("odd"), 1, "a bug in tlkit: OSError: odd; .*"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=repr,
)
def test_every_other_error_is_one_line_too(fail, error, code, line):
    got, said = fail(error)
    assert got == code
    assert re.fullmatch(f"tlkit: {line}\n", said), said


@pytest.mark.parametrize("error", [DataError("it is odd", file="a.jpg"), ZeroDivisionError("by 0")], ids=repr)
def test_debug_adds_the_traceback_and_keeps_the_rest(fail, error):
    code, plain = fail(error)
    again, debugging = fail(error, debug=True)
    assert code == again
    assert debugging.startswith("Traceback (most recent call last):\n")
    assert debugging.endswith(plain)
    assert "Traceback" not in plain


@pytest.mark.parametrize("line", ["--debug verify nowhere", "verify nowhere --debug", "verify --debug nowhere"])
def test_debug_may_stand_anywhere(tlkit, tmp_path, line):
    finished = tlkit(*line.split(), cwd=tmp_path)
    assert finished.code == 3
    assert "Traceback" in finished.err
    assert finished.err.splitlines()[-1].startswith("tlkit: nowhere: no such bundle")


def test_behind_two_dashes_debug_is_a_name(tlkit, tmp_path):
    finished = tlkit("verify", "--", "--debug", cwd=tmp_path)
    assert finished.err == "tlkit: --debug: no such bundle; make one with: tlkit train photos/ -o run/\n"


def test_debug_says_nothing_more_of_a_mistyped_command(tlkit):
    assert tlkit("trian", "--debug") == tlkit("trian")


def test_what_libraries_warn_of_is_shown_only_for_debugging():
    source = """
import warnings
from tlkit import cli
from tlkit.cli import completion
real = completion.get_completion_class
completion.get_completion_class = lambda name: warnings.warn("look at me") or real(name)
cli.main()
"""
    for extra, shown in (([], False), (["--debug"], True)):
        command = [sys.executable, "-c", source, "completion", "fish", *extra]
        finished = subprocess.run(command, capture_output=True, text=True, check=True)
        assert ("look at me" in finished.stderr) is shown
        assert finished.stdout


def test_a_message_is_one_line_whatever_is_in_it():
    error = TlkitError("said\n   this ", file="a  b\nc\x1b[2J\u2028.jpg", do="run: x\ty")
    assert str(error) == r"a  b\nc\x1b[2J\u2028.jpg: said this; run: x\ty"
    assert one_line("café  日本 \udcff") == "café  日本 \udcff"
