"""Progress is for people who watch: on a terminal, on stderr, and nowhere else."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def watch(story):
    """Runs tlkit with its stderr on a terminal; returns its exit code, its stdout and what the terminal showed."""

    def run(*args):
        ours, theirs = pty.openpty()
        script = Path(sys.executable).with_name("tlkit")
        process = subprocess.Popen(
            [script, *map(str, args)],
            cwd=story.root,
            env={**os.environ, **story.env, "TERM": "xterm", "COLUMNS": "140"},
            stdout=subprocess.PIPE,
            stderr=theirs,
        )
        os.close(theirs)
        shown = b""
        while chunk := _read(ours):
            shown += chunk
        out, _ = process.communicate()
        os.close(ours)
        return process.returncode, out.decode(), shown.decode()

    return run


def _read(terminal):
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux's way to say that nobody holds the other end any more
        return b""


@pytest.mark.parametrize(
    ("line", "label", "images"),
    [("embed run photos -o {tmp}/f.npy", "embedding", 60), ("eval run test --json", "evaluating", 20)],
    ids=["embed", "eval"],
)
def test_a_bar_is_shown_on_a_terminal_only(watch, tlkit, story, tmp_path, line, label, images):
    arguments = line.format(tmp=tmp_path).split()
    code, out, shown = watch(*arguments)
    assert code == 0
    assert f"{label}  [" in shown
    assert f"]  {images}/{images}" in shown
    assert label not in out
    piped = tlkit(*arguments, cwd=story.root, env=story.env)
    assert piped.out == out
    assert label not in piped.err
    assert piped.err.count("\n") == 2


def test_each_bar_has_its_own_line(watch, tmp_path):
    choice = ("--strategy", "frozen", "--head", "mlp", "--set", "strategy.epochs=5")
    code, _, shown = watch("train", "photos", "-o", tmp_path / "run", *choice)
    assert code == 0
    features, training = (next(line for line in shown.split("\n") if word in line) for word in ("features", "training"))
    assert "training" not in features
    assert "60/60" in features
    assert "250/250" in training  # 50 images, five times
    assert re.search(r"loss \d\.\d+, accuracy [\d.]+%, \d+ images/s, lr \d\.\de-\d\d", training)
