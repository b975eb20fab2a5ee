"""The split follows the name alone, and every class can be learned and judged."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tlkit.data.labels import Entry
from tlkit.data.split import assign_splits, grouped, hash_fraction
from tlkit.errors import UsageError

VALS = st.floats(0.05, 0.95)
SETS = st.dictionaries(st.text("abcé/.", min_size=1, max_size=6), st.sampled_from("xyz"), min_size=1, max_size=40)


def rows(labelled: dict[str, str], split: str | None = None) -> list[Entry]:
    return [Entry(Path(name), name, label, split) for name, label in labelled.items()]


def splits(labelled: dict[str, str], val: float) -> dict[str, str]:
    return dict(zip(labelled, assign_splits(rows(labelled), val), strict=True))


@pytest.mark.parametrize(
    ("name", "position"),
    [("bees/1.jpg", 0.17381568514203602), ("ants/1.jpg", 0.09844801911149222), ("café/é.png", 0.5655076224106201)],
)
def test_positions_never_move(name: str, position: float) -> None:
    """Bundles out there rely on these: if one differs, it is not the test that is wrong."""
    assert hash_fraction(name) == position


def test_position_is_the_sha256_as_a_fraction_of_2_to_the_64() -> None:
    assert hash_fraction("a/b.jpg") == int(hashlib.sha256(b"a/b.jpg").hexdigest()[:16], 16) / 2**64


def test_positions_of_names_that_are_not_utf8_follow_their_bytes() -> None:
    assert hash_fraction("caf\udce9") == int(hashlib.sha256(b"caf\xe9").hexdigest()[:16], 16) / 2**64


@given(SETS, VALS, st.randoms())
def test_order_changes_nothing(labelled: dict[str, str], val: float, random: Random) -> None:
    shuffled = dict(sorted(labelled.items(), key=lambda _: random.random()))
    assert splits(shuffled, val) == splits(labelled, val)


@given(SETS, VALS)
def test_every_class_of_two_or_more_is_on_both_sides(labelled: dict[str, str], val: float) -> None:
    found = splits(labelled, val)
    for label, count in Counter(labelled.values()).items():
        if count > 1:
            assert {found[name] for name in labelled if labelled[name] == label} == {"train", "val"}


@given(st.text(min_size=1, alphabet="abc"), VALS)
def test_the_only_image_of_a_class_is_trained_on(name: str, val: float) -> None:
    assert splits({name: "x"}, val) == {name: "train"}


GROUPS = st.dictionaries(
    st.text("abc", min_size=1, max_size=4), st.tuples(st.sampled_from("xy"), st.sampled_from("pqrs"))
)


@given(GROUPS, VALS)
def test_groups_stay_together_and_every_class_is_trained(labelled: dict[str, tuple[str, str]], val: float) -> None:
    entries = [Entry(Path(name), name, label, None, group) for name, (label, group) in labelled.items()]
    found = list(zip(labelled.values(), assign_splits(entries, val), strict=True))
    for group in "pqrs":
        assert len({split for (_, own), split in found if own == group}) <= 1
    for label in {label for label, _ in labelled.values()}:
        assert "train" in {split for (own, _), split in found if own == label}


def test_a_group_is_placed_by_its_own_name() -> None:
    entries = [Entry(Path(name), name, "x", None, group) for name, group in (("1", "g"), ("2", "g"), ("3", "h"))]
    g, h = hash_fraction("g"), hash_fraction("h")
    low, high = sorted((g, h))
    below = {"g": "val", "h": "train"} if g < h else {"g": "train", "h": "val"}
    assert assign_splits(entries, (low + high) / 2) == [below["g"], below["g"], below["h"]]


def test_groups_come_from_names() -> None:
    entries = rows({"a/p1_1.jpg": "a", "a/p1_2.jpg": "a", "b/p22_1.jpg": "b", "b/x.jpg": "b"})
    found = [entry.group for entry in grouped(entries, r"(p\d+)_", Path())]
    assert found == ["p1", "p1", "p22", None]
    assert [entry.group for entry in grouped(entries, r"^./p\d", Path())] == ["a/p1", "a/p1", "b/p2", None]


@pytest.mark.parametrize(("pattern", "what"), [("(", "not a regular expression"), ("zzz", "finds nothing")])
def test_a_pattern_that_groups_nothing_is_refused(pattern: str, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        grouped(rows({"a/1.jpg": "a"}), pattern, Path("photos"))


@given(SETS, VALS)
def test_an_image_is_where_the_threshold_puts_it_or_nearest_to_it(labelled: dict[str, str], val: float) -> None:
    found = splits(labelled, val)
    for label in set(labelled.values()):
        members = [name for name in labelled if labelled[name] == label]
        moved = [name for name in members if (found[name] == "val") != (hash_fraction(name) < val)]
        if not moved:
            continue
        assert len(moved) == 1
        assert len({hash_fraction(name) < val for name in members}) == 1  # all on one side: the exception acts
        assert abs(hash_fraction(moved[0]) - val) == min(abs(hash_fraction(name) - val) for name in members)


@given(SETS, SETS, VALS)
def test_adding_images_moves_none(before: dict[str, str], added: dict[str, str], val: float) -> None:
    after = {**added, **before}
    sides = {label: {hash_fraction(n) < val for n in before if before[n] == label} for label in set(before.values())}
    large = {label for label, both in sides.items() if len(both) == 2}  # where no exception acts
    assume(large)
    old, new = splits(before, val), splits(after, val)
    assert [name for name in before if before[name] in large and old[name] != new[name]] == []


@pytest.mark.parametrize("val", [0.1, 0.2, 0.5])
def test_the_share_of_large_sets_is_near_val(val: float) -> None:
    found = splits({f"class/{index}.jpg": "x" for index in range(20_000)}, val)
    assert list(found.values()).count("val") / 20_000 == pytest.approx(
        val, abs=0.012
    )  # 3.4 standard deviations or more


def test_a_stated_split_is_kept() -> None:
    stated = [*rows({"a": "x", "b": "x"}, "train"), *rows({"c": "x"}, "val"), *rows({"d": "x"}, "test")]
    assert assign_splits(stated, 0.5) == ["train", "train", "val", "test"]


def test_val_comes_out_of_train_only() -> None:
    labelled = {f"{index}": "x" for index in range(50)}
    found = assign_splits([*rows(labelled, "train"), *rows({"t": "x"}, "test")], 0.3)
    assert found == [*splits(labelled, 0.3).values(), "test"]
