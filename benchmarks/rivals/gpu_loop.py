"""Train all of EfficientNet-Lite0 on a GPU with bf16, by tlkit or by a plain loop, and measure the throughput.

python gpu_loop.py photos/ --side "plain loop" --epochs 3 --workers 8

Prints, as JSON, the images per second from the second epoch on, and the share of the time the GPU was busy, in percent.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

BATCH = 64


class Busy:
    """The share of the time in which the GPU computed, by its driver, asked for ten times per second."""

    def __init__(self) -> None:
        asked = ["nvidia-smi", "--id=0", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        self.asking = subprocess.Popen([*asked, "--loop-ms=100"], stdout=subprocess.PIPE, text=True)

    def mean(self) -> float:
        self.asking.terminate()
        found = [int(share) for share in self.asking.communicate()[0].split() if share.isdigit()]
        return statistics.mean(found) if found else math.nan


def ours(images: Path, epochs: int) -> list[float]:
    from tlkit.plugin.options import configure
    from tlkit.plugin.registry import load
    from tlkit.training.config import RunOptions, TrainingConfig
    from tlkit.training.device import DeviceOptions
    from tlkit.training.run import train

    host = load()
    components: dict[str, Any] = {
        "backbone": host.get("backbone", "efficientnet-lite0"),
        "strategy": configure(host.get("strategy", "full"), {"epochs": epochs, "batch_size": BATCH}),
        "head": host.get("head", "logistic"),
    }
    origins = {kind: host.origin(host.get(kind, component.name)) for kind, component in components.items()}
    with tempfile.TemporaryDirectory() as folder:
        options = RunOptions(DeviceOptions("cuda", "bf16"))
        done = train(
            images, Path(folder) / "run", TrainingConfig(**components, origins=origins, refit=False), options=options
        )
    return [line["images_per_second"] for line in done.epochs[1:]]


def plain(images: Path, epochs: int, workers: int) -> list[float]:
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    from tlkit.model.trunk import build
    from tlkit.plugin.registry import load

    see = [v2.RandomResizedCrop(224, scale=(0.35, 1.0)), v2.RandomHorizontalFlip(), v2.PILToTensor()]
    found = ImageFolder(str(images / "train"), v2.Compose(see))
    loader = DataLoader(found, BATCH, shuffle=True, num_workers=workers, pin_memory=True, persistent_workers=True)
    trunk = build(load().get("backbone", "efficientnet-lite0"))
    model = nn.Sequential(*trunk.stages.values(), trunk.pool, nn.Linear(1280, len(found.classes)))
    model.train().cuda().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.1)
    speeds = []
    for _ in range(epochs):
        started = time.perf_counter()
        for batch, labels in loader:
            x = (batch.cuda(non_blocking=True).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cuda", torch.bfloat16):
                logits = model(x)
            loss = loss_of(logits.float(), labels.cuda(non_blocking=True))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        torch.cuda.synchronize()
        speeds.append(len(found) / (time.perf_counter() - started))
    return speeds[1:]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=Path)
    parser.add_argument("--side", choices=("tlkit", "plain loop"), required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=8, help="of the plain loop")
    args = parser.parse_args()
    busy = Busy()
    epochs = max(2, args.epochs)
    speeds = ours(args.images, epochs) if args.side == "tlkit" else plain(args.images, epochs, args.workers)
    print(json.dumps({"images_per_second": statistics.median(speeds), "busy": busy.mean()}))


if __name__ == "__main__":
    main()
