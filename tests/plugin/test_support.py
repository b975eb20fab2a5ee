"""All that plugins may import is there, and loads no framework until it is used."""

from __future__ import annotations

import pytest

from tlkit.plugin import support


def test_every_name_is_there() -> None:
    assert len(support.__all__) >= 25
    assert [name for name in support.__all__ if getattr(support, name, None) is None] == []
    assert set(support._LATER) < set(support.__all__)


def test_another_name_is_not() -> None:
    with pytest.raises(AttributeError, match=r"module 'tlkit.plugin.support' has no attribute 'sha1'"):
        _ = support.sha1
