"""Progress of the API: bars where people see them, nothing elsewhere, and a callable in their place."""

from __future__ import annotations

import io
import sys

import pytest

import tlkit
from tlkit.progress import bars, shown


class Stream(io.StringIO):
    """A stream that says whether it is a terminal."""

    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


class OutStream(Stream):
    """Stderr of a notebook's kernel, which is no terminal."""


OutStream.__module__ = "ipykernel.iostream"
NOTEBOOK, TERMINAL, FILE = lambda: OutStream(False), lambda: Stream(True), lambda: Stream(False)


@pytest.fixture
def stderr(monkeypatch):
    def become(stream):
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return become


@pytest.mark.parametrize("make", [TERMINAL, NOTEBOOK], ids=["terminal", "notebook"])
def test_a_verb_shows_bars_where_people_see_them(stderr, make, tiny_run, pictures):
    stream = stderr(make())
    tlkit.evaluate(tiny_run, pictures)
    assert "evaluating  [" in stream.getvalue()
    assert "]  36/36" in stream.getvalue()
    assert stream.getvalue().endswith("\n")
    said = stream.getvalue()
    tlkit.evaluate(tiny_run, pictures, progress=tlkit.silent)
    with tlkit.load(tiny_run) as model:
        model.evaluate(pictures, progress=tlkit.silent)
        assert stream.getvalue() == said
        model.evaluate(pictures)
    assert stream.getvalue().count("36/36") == 2 * said.count("36/36")


def test_a_file_and_nothing_at_all_get_no_bars(stderr, tiny_run, pictures):
    stream = stderr(FILE())
    tlkit.evaluate(tiny_run, pictures)
    assert stream.getvalue() == ""
    stderr(None)
    tlkit.evaluate(tiny_run, pictures)


def test_a_callable_takes_the_place_of_the_bars(stderr):
    stream, seen = stderr(TERMINAL()), []
    with shown(lambda what, total: seen.append((what, total))) as progress:
        progress("images", 3)
    assert (seen, stream.getvalue()) == ([("images", 3)], "")


def test_where_nobody_watches_a_bar_is_a_line_a_minute(stderr, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    stream = stderr(FILE())
    with bars(lines=True) as progress:
        for what in ("phase 1 of 2", "phase 2 of 2"):
            tick = progress(what, 1000)
            for _ in range(100):
                clock[0] += 0.9
                tick(10, "loss 0.1")
    said = ["phase 1 of 2: 670 of 1,000, loss 0.1", "phase 2 of 2: 340 of 1,000, loss 0.1"]
    assert stream.getvalue().splitlines() == said


def test_what_has_no_length_is_a_line(stderr):
    stream = stderr(TERMINAL())
    with bars() as progress:
        progress("waiting", 0)(0)
    assert stream.getvalue() == "waiting\n"
    stream = stderr(FILE())
    with bars() as progress:
        progress("waiting", 0)
    assert stream.getvalue() == ""
    with bars(lines=True) as progress:
        progress("waiting", 0)
    assert stream.getvalue() == "waiting\n"
