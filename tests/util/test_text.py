"""Text for people."""

from __future__ import annotations

import pytest

from tlkit.util.text import counted, did_you_mean, format_bytes, format_seconds, listed, nearest, table


@pytest.mark.parametrize(("count", "text"), [(0, ""), (1, "0"), (3, "0, 1, 2"), (5, "0, 1, 2 and 2 more")])
def test_a_long_list_ends_with_the_number_left_out(count: int, text: str) -> None:
    assert listed(range(count), 3) == text


def test_the_separator_can_be_chosen() -> None:
    assert listed("abc", 2, separator="; ") == "a; b and 1 more"


@pytest.mark.parametrize(("count", "text"), [(0, "0 layers"), (1, "1 layer"), (2000, "2,000 layers")])
def test_a_noun_agrees_with_its_count(count: int, text: str) -> None:
    assert counted(count, "layer") == text


def test_an_irregular_plural_is_given() -> None:
    assert counted(2, "class", "classes") == "2 classes"


def test_the_nearest_name_is_suggested() -> None:
    assert nearest("resnet5", ["resnet50", "vit"]) == "resnet50"
    assert did_you_mean("resnet5", ["resnet50", "vit"]) == " (did you mean 'resnet50'?)"


def test_nothing_is_suggested_without_a_similar_name() -> None:
    assert nearest("x", ["resnet50"]) is None
    assert did_you_mean("x", ["resnet50"]) == ""


@pytest.mark.parametrize(("size", "text"), [(999, "999 bytes"), (1_500_000, "1.5 MB"), (12_345_678_901, "12.3 GB")])
def test_sizes_have_decimal_units(size: int, text: str) -> None:
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.4 s"), (12.3, "12 s"), (59.7, "1 min 0 s"), (185, "3 min 5 s"), (7800, "2 h 10 min")],
)
def test_durations_have_two_units_at_most(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_columns_are_aligned_to_the_left_and_to_the_right():
    assert table([["a", 1], ["long", 100]], ["name", "images"]) == ["name  images", "a          1", "long     100"]
    assert table([["a", "b", 1], ["aa", "bbb", 10]], left=2) == ["a   b     1", "aa  bbb  10"]


def test_wide_characters_and_accents_keep_the_columns():
    one, other = table([["日本", 1], ["e\u0301", 2]])
    assert (one, other) == ("日本  1", "e\u0301     2")


def test_a_cell_stays_on_its_line():
    assert table([["a\nb", 1]]) == [r"a\nb  1"]


def test_no_rows_are_no_lines():
    assert table([]) == []
