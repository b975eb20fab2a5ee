"""Work done by threads a little ahead of whoever takes its results."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(work: Callable[[Item], Result], items: Iterable[Item], *, workers: int, most: int) -> Iterator[Result]:
    """`work(item)` of each item, in order, by `workers` threads, of which at most `most` wait to be taken.

    What a call raises is raised where its result would have come. Nothing is begun before the first is asked for.
    """
    source = iter(items)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="tlkit")
    pending: deque[Future[Result]] = deque()
    try:
        for item in source:
            pending.append(pool.submit(work, item))
            if len(pending) >= most:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:  # also when the caller stops early or presses Ctrl-C
        pool.shutdown(cancel_futures=True)
