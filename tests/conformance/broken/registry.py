"""How a broken component says which check has to find it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tlkit.plugin.contract import Component

Broken = TypeVar("Broken", bound=Component)


class Registry(dict[str, tuple[Component, str]]):
    """By check: the component that fails it, and a pattern for what is said of it."""

    def breaks(self, check: str, saying: str) -> Callable[[type[Broken]], type[Broken]]:
        """Enter a component, made with its defaults, by decorating its class."""

        def register(kind: type[Broken]) -> type[Broken]:
            self[check] = (kind(), saying)
            return kind

        return register
