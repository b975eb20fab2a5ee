"""The example keeps the contract: every check of tlkit's kit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tlkit_example import Edges

from tlkit.conformance import checks


@pytest.mark.parametrize(("name", "check"), checks(Edges(), pretrained=True))
def test_it_keeps_the_contract(name: str, check: Callable[[], None]) -> None:
    check()
