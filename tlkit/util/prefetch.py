"""Parallel work in threads, in order and with bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(work: Callable[[Item], Result], items: Iterable[Item], *, workers: int, ahead: int) -> Iterator[Result]:
    """Yield `work(item)` of each item, in order, computed by `workers` threads.

    At most `ahead` results wait to be taken, which bounds the memory. An exception of a call is raised in place of its
    result. No work starts before the first result is requested, and none after the caller stops.
    """
    source = iter(items)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="tlkit")
    pending: deque[Future[Result]] = deque()
    try:
        for item in source:
            pending.append(pool.submit(work, item))
            if len(pending) >= ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:  # also if the caller stops early or presses Ctrl-C
        pool.shutdown(cancel_futures=True)


def chunks(items: Iterable[Item], size: int) -> Iterator[tuple[Item, ...]]:
    """Yield tuples of `size` consecutive items, the last of which may be shorter.

    Items are taken only when their tuple is requested.
    """
    source = iter(items)
    while chunk := tuple(islice(source, size)):
        yield chunk
