"""Images per second and CPU milliseconds per image of decoding JPEGs by threads or by processes, as `tlkit embed` does.

python decode_speed.py photos/ --by threads --workers 4 --count 500

With `--packed` they are not resized, but packed for a GPU that does that.
Prints them as JSON, and for threads the milliseconds per image in which they wait for each other.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import cycle, islice
from pathlib import Path

from tlkit.data.decoders import Decoders, Waits
from tlkit.data.resampling import pack
from tlkit.plugin.contract import Preprocessing

BATCH = 8
PREPROCESSING = Preprocessing(224, (0.5,) * 3, (0.5,) * 3)

Batches = Sequence[Sequence[Path]]


def timed(work: Callable[[Sequence[Path]], object], batches: Batches, workers: int, spent: Callable[[], float]) -> dict:
    """Return the speed of some calls after as many to warm up as there are workers."""
    with ThreadPoolExecutor(workers) as threads:
        list(threads.map(work, batches[:workers]))
        cpu, began = spent(), time.perf_counter()
        list(threads.map(work, batches))
        seconds, cpu = time.perf_counter() - began, spent() - cpu
    images = sum(map(len, batches))
    return {"images/s": images / seconds, "CPU ms": 1000 * cpu / images}


def by_threads(batches: Batches, workers: int, packed: bool) -> dict:
    waits = Waits(workers)
    load = pack if packed else waits.load

    def work(batch: Sequence[Path]) -> None:
        for path in batch:
            load(path.read_bytes(), PREPROCESSING)

    found = timed(work, batches, workers, time.process_time)
    return found if packed else {**found, "wait ms": 1000 * waits.measured}


def by_processes(batches: Batches, workers: int, packed: bool) -> dict:
    def work(batch: Sequence[Path]) -> None:
        with decoders.decoded([(str(path), None) for path in batch], hashed=False, packed=packed):
            pass

    def spent() -> float:
        """CPU seconds of this process and of those that decode, which still run."""
        ran = [Path(f"/proc/{process.pid}/schedstat").read_text().split()[0] for process in decoders.all]
        return time.process_time() + sum(map(int, ran)) / 1e9

    with closing(Decoders(PREPROCESSING, BATCH, 2 * workers, workers, packed=packed)) as decoders:
        return timed(work, batches, workers, spent)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=Path)
    parser.add_argument("--by", choices=("threads", "processes"), required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--count", type=int, default=1000, help="images; those given are repeated")
    parser.add_argument("--packed", action="store_true")
    args = parser.parse_args()
    files = list(islice(cycle(sorted(args.images.rglob("*.jpg"))), args.count))
    batches = [files[start : start + BATCH] for start in range(0, len(files), BATCH)]
    run = by_threads if args.by == "threads" else by_processes
    print(json.dumps(run(batches, args.workers, args.packed)))


if __name__ == "__main__":
    main()
