"""Images per second of EfficientNet-Lite0 up to its features in eager PyTorch, channels last, on all cores.

python eager_speed.py BATCH
"""

from __future__ import annotations

import statistics
import sys
import time

import torch
from tlkit_standard.backbones import BACKBONES

from tlkit.model.trunk import build

SECONDS = 3.0

trunk = build(BACKBONES[0]).to(memory_format=torch.channels_last)
images = torch.randint(0, 256, (int(sys.argv[1]), 224, 224, 3), dtype=torch.uint8)  # NHWC is channels last already
times: list[float] = []
with torch.inference_mode():
    for _ in range(3):
        trunk(images)
    started = time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        before = time.perf_counter()
        trunk(images)
        times.append(time.perf_counter() - before)
print(len(images) / statistics.median(times))
