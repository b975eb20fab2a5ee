"""Train all of EfficientNet-Lite0 on a GPU with bf16 by a plain loop, and measure the throughput.

python gpu_loop.py photos/ --epochs 3 --workers 8

Prints, as JSON, the images per second of each epoch from the second on.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from tlkit.model.trunk import build
from tlkit.plugin.registry import load

BATCH = 64


def train(images: Path, epochs: int, workers: int) -> list[float]:
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
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=8)
    args = parser.parse_args()
    print(json.dumps({"images_per_second": train(args.images, max(2, args.epochs), args.workers)}))


if __name__ == "__main__":
    main()
