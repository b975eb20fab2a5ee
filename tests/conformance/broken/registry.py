"""Register of broken components, each with the check that has to find it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tlkit.plugin.contract import Component

Broken = TypeVar("Broken", bound=Component)


class Registry(dict[str, tuple[Component, str]]):
    """By check: the component that fails it, and a pattern for the message."""

    def breaks(self, check: str, saying: str) -> Callable[[type[Broken]], type[Broken]]:
        """Enter a component, made with its defaults, by decorating its class."""

        def register(kind: type[Broken]) -> type[Broken]:
            self[check] = (kind(), saying)
            return kind

        return register
