"""Seconds from the start of a process to the first features of a graph, phase by phase, and images per second then.

python graph_phases.py model.onnx --device cuda --batch-size 64 --seconds 1

Prints them as JSON, with the largest difference of the features from those of the CPU, relative to the largest feature.
`--many` opens the graph as it is for a long job. The images per second on the GPU are those of one call after the
other, by its own clock; the others those of as many calls at once as the session takes.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor

began = time.perf_counter()
from pathlib import Path  # noqa: E402 - it is timed

import numpy as np  # noqa: E402 - it is timed

from tlkit.graph.metadata import read_metadata  # noqa: E402 - it is timed
from tlkit.runtime import resizing  # noqa: E402 - it is timed
from tlkit.runtime.session import OnnxSession  # noqa: E402 - it is timed

imported = time.perf_counter()

parser = argparse.ArgumentParser()
parser.add_argument("graph", type=Path)
parser.add_argument("--device", default="cpu")
parser.add_argument("--batch-size", type=int, default=64)
parser.add_argument("--seconds", type=float, default=1.0)
parser.add_argument("--many", action="store_true")
parser.add_argument("--resized", action="store_true", help="crop and resize the images there, too")
args = parser.parse_args()

session = OnnxSession(args.graph, device=args.device, images=10**9 if args.many else 0)
opened = time.perf_counter()
size = session.batch_size if args.many else args.batch_size
side = json.loads(session.metadata["tlkit.preprocessing"])["size"]
images = np.random.default_rng(0).integers(0, 256, (size, side, side, 3), dtype=np.uint8)
features = session.run(images, ["features"])["features"]
called = time.perf_counter()
expected = OnnxSession(args.graph).run(images, ["features"])["features"]
if args.resized:
    preprocessing = read_metadata(session.metadata, args.graph)[0]
    session.prepare_resizing(preprocessing)  # or the rows would be refused
    images = resizing.examples(preprocessing, size)[0]


def repeat(_worker: int = 0) -> tuple[int, float]:
    """Return the calls until the time is over, and their GPU time."""
    calls, gpu, end = 0, 0.0, time.perf_counter() + args.seconds
    while not calls or time.perf_counter() < end:
        session.run(images, ["features"])
        gpu += session.gpu_seconds or 0.0
        calls += 1
    return calls, gpu


alone, gpu_seconds = repeat() if args.device != "cpu" else (0, 0.0)
began_again = time.perf_counter()
with ThreadPoolExecutor(session.workers) as threads:
    at_once = sum(calls for calls, _ in threads.map(repeat, range(session.workers)))
steady = time.perf_counter() - began_again
found = {"imports": imported - began, "opening": opened - imported, "first call": called - opened}
found |= {"images/s": at_once * size / steady}
found |= {"images/s on the GPU": alone * size / gpu_seconds if gpu_seconds else 0.0}
found |= {"error": float(np.abs(features - expected).max() / np.abs(expected).max())}
print(json.dumps(found))
