"""Register of broken components, each with the check that has to find it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tlkit.conformance import Reference
from tlkit.plugin.contract import Component

Broken = TypeVar("Broken", bound=Component)


class Registry(dict[str, tuple[Component, str, Reference | None]]):
    """By check: the component that fails it, a pattern for the message, and the reference that it fails with."""

    def breaks(
        self, check: str, saying: str, reference: Reference | None = None
    ) -> Callable[[type[Broken]], type[Broken]]:
        """Enter a component, made with its defaults, by decorating its class."""

        def register(kind: type[Broken]) -> type[Broken]:
            self[check] = (kind(), saying, reference)
            return kind

        return register
