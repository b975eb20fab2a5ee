"""How many images a second one exported graph takes on all cores, nothing else: no files, no decoding.

python session_speed.py trunk.onnx BATCH
"""

from __future__ import annotations

import statistics
import sys
import time

import numpy as np
import onnxruntime

SECONDS = 3.0

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
batch = int(sys.argv[2])
entry = session.get_inputs()[0]
images = np.random.default_rng(0).integers(0, 256, (batch, *entry.shape[1:]), dtype=np.uint8)
times: list[float] = []
for _ in range(3):
    session.run(None, {entry.name: images})
started = time.perf_counter()
while time.perf_counter() - started < SECONDS:
    before = time.perf_counter()
    session.run(None, {entry.name: images})
    times.append(time.perf_counter() - before)
print(batch / statistics.median(times))
