"""Parallel work in order."""

from __future__ import annotations

import threading
import time

import pytest

from tlkit.util.prefetch import chunks, prefetch


def test_results_come_in_the_order_of_the_items() -> None:
    def work(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        return item

    assert list(prefetch(work, range(20), workers=4, ahead=8)) == list(range(20))


def test_no_more_items_are_taken_than_may_wait() -> None:
    taken: list[int] = []

    def items():
        for item in range(100):
            taken.append(item)
            yield item

    results = prefetch(lambda item: item, items(), workers=2, ahead=4)
    assert taken == []
    assert next(results) == 0
    assert len(taken) <= 4
    results.close()


def test_an_exception_comes_in_place_of_its_result() -> None:
    def work(item: int) -> int:
        if item == 2:
            raise ValueError("two")
        return item

    results = prefetch(work, range(5), workers=2, ahead=4)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)


def test_threads_end_when_the_caller_stops_early() -> None:
    results = prefetch(lambda item: item, range(100), workers=2, ahead=4)
    next(results)
    results.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tlkit")]


def test_the_last_chunk_may_be_shorter() -> None:
    assert list(chunks(range(5), 2)) == [(0, 1), (2, 3), (4,)]
    assert list(chunks([], 2)) == []
