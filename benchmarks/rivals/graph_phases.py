"""Seconds from the start of a process to the first features of a graph, phase by phase, and images per second then.

python graph_phases.py model.onnx --device cuda --batch-size 64 --seconds 2

Prints them as JSON. `--many` opens the graph as it is for a long job.
"""

from __future__ import annotations

import argparse
import json
import time

began = time.perf_counter()
from pathlib import Path  # noqa: E402 - it is timed

import numpy as np  # noqa: E402 - it is timed

from tlkit.runtime.session import OnnxSession  # noqa: E402 - it is timed

imported = time.perf_counter()

parser = argparse.ArgumentParser()
parser.add_argument("graph", type=Path)
parser.add_argument("--device", default="cpu")
parser.add_argument("--batch-size", type=int, default=64)
parser.add_argument("--seconds", type=float, default=2.0)
parser.add_argument("--many", action="store_true")
args = parser.parse_args()

session = OnnxSession(args.graph, device=args.device, images=10**9 if args.many else 0)
opened = time.perf_counter()
size = session.batch_size if args.many else args.batch_size
side = json.loads(session.metadata["tlkit.preprocessing"])["size"]
images = np.random.default_rng(0).integers(0, 256, (size, side, side, 3), dtype=np.uint8)
session.run(images, ["features"])
called = time.perf_counter()
calls, gpu_seconds = 0, 0.0
while time.perf_counter() - called < args.seconds:
    session.run(images, ["features"])
    gpu_seconds += session.gpu_seconds or 0.0
    calls += 1
steady = time.perf_counter() - called
found = {"imports": imported - began, "opening": opened - imported, "first call": called - opened}
found |= {"images/s": calls * size / steady, "images/s on the GPU": calls * size / gpu_seconds if gpu_seconds else 0.0}
print(json.dumps(found))
