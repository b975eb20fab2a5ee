"""Values of JSON become what a record declares, or one line that names the field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest

from tlkit.util.schema import DEEPEST, parse_json, read_as


class Pair(NamedTuple):
    name: str
    values: tuple[int, ...]


@dataclass(frozen=True)
class Record:
    size: int
    rgb: tuple[float, float]
    pairs: tuple[Pair, ...] = ()
    facts: Mapping[str, Any] | None = None
    flag: bool = False

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError("size must be at least 1")


GOOD = {"size": 3, "rgb": [1, 0.5], "pairs": [{"name": "a\udcff", "values": [1]}], "facts": {"x": [None]}, "flag": True}


def test_what_fits_is_read():
    assert read_as(Record, GOOD) == Record(3, (1.0, 0.5), (Pair("a\udcff", (1,)),), {"x": [None]}, True)
    assert read_as(Record, {"size": 1, "rgb": [0, 0], "facts": None}) == Record(1, (0.0, 0.0))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"size": True}, "size is not of type int"),
        ({"size": 0}, "size must be at least 1"),
        ({"rgb": [1]}, "rgb is not a list"),
        ({"rgb": [1, float("nan")]}, "rgb.1 is not a finite number"),
        ({"rgb": "ab"}, "rgb is not a list"),
        ({"pairs": [{"name": None, "values": []}]}, "pairs.0.name is not a text"),
        ({"pairs": [{"values": []}]}, "pairs.0: a field is missing"),
        ({"pairs": [1]}, "pairs.0 is not an object"),
        ({"facts": {"x": ["\ud800"]}}, "facts.x is no valid text"),
        ({"facts": []}, "facts is not an object"),
        ({"other": 1}, "other is unknown"),
        ({"flag": 1}, "flag is not of type bool"),
    ],
)
def test_what_does_not_is_named(change, says):
    with pytest.raises(ValueError, match=says.replace(".", r"\.")):
        read_as(Record, GOOD | change)


@pytest.mark.parametrize("levels", [DEEPEST + 2, 5000, 200_000])
def test_json_that_is_nested_too_deeply_is_a_value_error(levels):
    assert parse_json("[" * DEEPEST + "]" * DEEPEST)
    with pytest.raises(ValueError, match="nested more than 50 times"):
        parse_json("[" * levels + "]" * levels)
