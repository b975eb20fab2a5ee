"""Images per second of one exported graph on all cores: no files, no decoding.

python session_speed.py trunk.onnx BATCH --seconds 3
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import onnxruntime

parser = argparse.ArgumentParser()
parser.add_argument("--seconds", type=float, default=3.0)
parser.add_argument("graph")
parser.add_argument("batch", type=int)
args = parser.parse_args()

session = onnxruntime.InferenceSession(args.graph, providers=["CPUExecutionProvider"])
entry = session.get_inputs()[0]
images = np.random.default_rng(0).integers(0, 256, (args.batch, *entry.shape[1:]), dtype=np.uint8)
times: list[float] = []
for _ in range(3):
    session.run(None, {entry.name: images})
started = time.perf_counter()
while time.perf_counter() - started < args.seconds:
    before = time.perf_counter()
    session.run(None, {entry.name: images})
    times.append(time.perf_counter() - before)
print(args.batch / statistics.median(times))
