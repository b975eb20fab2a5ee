"""Load on a server: clients with a connection each, which send their next request when the last is answered.

python serve_load.py PORT PATH BODY [--header NAME:VALUE] --clients 8 --seconds 3 [--rate 50]

With a rate, that many requests per second are sent by all together, each by a client that is free.

BODY is a file, or a folder of files that are sent in turn. Prints requests per status, and milliseconds of those that
were answered.
"""

from __future__ import annotations

import argparse
import itertools
import json
import threading
import time
from collections import Counter
from http.client import HTTPConnection
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("port", type=int)
parser.add_argument("path")
parser.add_argument("body", type=Path)
parser.add_argument("--header", action="append", default=[])
parser.add_argument("--clients", type=int, default=1)
parser.add_argument("--seconds", type=float, default=3.0)
parser.add_argument("--rate", type=float, default=0)
args = parser.parse_args()

files = sorted(args.body.iterdir()) if args.body.is_dir() else [args.body]
bodies = [file.read_bytes() for file in files]
headers = dict(each.split(":", 1) for each in args.header)
statuses: Counter[int] = Counter()
times: list[float] = []
longest = 0.0
begin = threading.Barrier(args.clients + 1)
turns = itertools.count()


def sent(end: float) -> float:
    """Return the time, once it is that of the next request."""
    if args.rate:
        due = end - args.seconds + next(turns) / args.rate
        time.sleep(max(0.0, due - time.perf_counter()))
    return time.perf_counter()


def client(number: int) -> None:
    global longest  # noqa: PLW0603 - one figure of all threads
    connection = HTTPConnection("127.0.0.1", args.port, timeout=60)
    connection.connect()
    begin.wait()
    end = time.perf_counter() + args.seconds
    while (before := sent(end)) < end:
        number += 1
        try:
            connection.request("POST", args.path, bodies[number % len(bodies)], headers)
            answer = connection.getresponse()
            answer.read()
            status = answer.status
        except OSError:
            connection.close()
            status = 0
        taken = time.perf_counter() - before
        statuses[status] += 1
        longest = max(longest, taken)
        if status == 200:
            times.append(1e3 * taken)
        elif not args.rate:
            time.sleep(0.01)


threads = [threading.Thread(target=client, args=(number,)) for number in range(args.clients)]
for thread in threads:
    thread.start()
begin.wait()
started = time.perf_counter()
for thread in threads:
    thread.join()
seconds = time.perf_counter() - started
print(json.dumps({"seconds": seconds, "statuses": statuses, "ms": times, "longest": longest}))
