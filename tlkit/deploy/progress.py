"""How long work says how far it is, to whoever watches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Tick(Protocol):
    """Says that `more` units are done, and in a few words how it goes."""

    def __call__(self, more: int, said: str = "", /) -> object: ...


Progress = Callable[[str, int], Tick]  # (what, how many) -> tick


def silent(_what: str, _total: int) -> Tick:
    """The progress that nobody watches."""
    return lambda _more, _said="": None
