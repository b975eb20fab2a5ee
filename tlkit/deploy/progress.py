"""How long work says how far it is, to whoever watches."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int], Callable[[int], None]]  # (what, how many) -> tick(n more)


def silent(_what: str, _total: int) -> Callable[[int], None]:
    """The progress that nobody watches."""
    return lambda _more: None
