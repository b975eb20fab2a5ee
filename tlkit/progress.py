"""Progress bars on stderr, where somebody watches: on a terminal and in a notebook."""

from __future__ import annotations

import io
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TextIO, cast

from tlkit.errors import one_line
from tlkit.plugin.contract import Progress, Tick, silent

MINUTE = 60.0  # seconds between lines where there is no terminal
BAR, TIMES = 20, 24  # characters of a progress bar, and of the remaining time with the brackets around both


@contextmanager
def shown(given: Progress | None) -> Iterator[Progress]:
    """Give the progress that a verb was given, or else bars."""
    if given is not None:
        yield given
        return
    with bars() as progress:
        yield progress


@contextmanager
def bars(*, lines: bool = False) -> Iterator[Progress]:
    """Give progress as bars, shown to people only: `progress(what, total)` gives `tick(n, said)`.

    A new bar takes over from the one before, which stays on its line as far as it came. One of nothing is a line,
    which with `lines` is written wherever stderr goes; there a bar is a line a minute.
    """
    import click

    said_last = [time.monotonic()]

    def minutely(what: str, total: int) -> Tick:
        done = [0]

        def tick(more: int, said: str = "") -> None:
            done[0] += more
            if time.monotonic() - said_last[0] >= MINUTE:
                said_last[0] = time.monotonic()
                click.echo(one_line(f"{what}: {done[0]:,} of {total:,}{said and ', ' + said}"), err=True)

        return tick

    with ExitStack() as opened:

        def bar(what: str, total: int) -> Tick:
            opened.close()
            screen = _screen()
            if not total and (lines or screen):
                click.echo(one_line(what), err=True)
            if not total or screen is None:
                return minutely(what, total) if total and lines else silent(what, total)
            room = max(0, shutil.get_terminal_size().columns - len(what) - 2 * len(str(total)) - BAR - TIMES)
            made: Any = click.progressbar(
                length=total,
                label=what,
                file=screen,
                show_pos=True,
                width=BAR,
                item_show_func=lambda said: (said or "")[:room],  # one longer than a line would be drawn twice
            )
            drawn = opened.enter_context(made)
            return lambda more, said="": drawn.update(more, said)

        yield bar


def _screen() -> TextIO | None:
    """Return stderr if people see it as it is written; None if it goes to a file, a pipe or nowhere."""
    if sys.stderr is None:
        return None
    if sys.stderr.isatty():
        return sys.stderr
    return cast("TextIO", _Notebook()) if type(sys.stderr).__module__.startswith("ipykernel.") else None


class _Notebook(io.TextIOBase):
    """The output of a notebook's cell, which moves to the start of a line as a terminal does, but denies to be one."""

    def isatty(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()
