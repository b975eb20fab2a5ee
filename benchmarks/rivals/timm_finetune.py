"""Fine-tune all of a network of timm with a plain PyTorch loop, as one would write it, with tlkit's weights.

python timm_finetune.py photos/ weights.pth --epochs 4

Prints, as JSON, a line for each epoch: the accuracy on photos/val after it, and its seconds, validation included. There
is one more than is asked for, as with `fine_tune`.
"""

from __future__ import annotations

import argparse
import json
import time

import timm
import torch
from timm.data import create_transform, resolve_model_data_config
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("images")
    parser.add_argument("weights")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--channels-last", action="store_true")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    found = ImageFolder(f"{args.images}/train")
    model = timm.create_model(
        "tf_efficientnet_lite0",
        pretrained=True,
        pretrained_cfg_overlay={"file": args.weights},
        num_classes=len(found.classes),
    )
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    model = model.to(memory_format=layout)
    config = resolve_model_data_config(model) | {"input_size": (3, args.size, args.size)}
    found.transform = create_transform(**config, is_training=True, auto_augment=None, scale=(0.35, 1.0), re_prob=0.0)
    seen = ImageFolder(f"{args.images}/val", create_transform(**config))
    train = DataLoader(found, batch_size=32, shuffle=True, num_workers=2, drop_last=True)
    val = DataLoader(seen, batch_size=64, num_workers=2)

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    epochs = args.epochs + 1
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(train))
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    lines = []
    for _ in range(epochs):
        started = time.perf_counter()
        model.train()
        for images, labels in train:
            optimizer.zero_grad()
            loss_of(model(images.to(memory_format=layout)), labels).backward()
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.inference_mode():
            found = ((model(images.to(memory_format=layout)).argmax(1), labels) for images, labels in val)
            right = sum(int((predicted == labels).sum()) for predicted, labels in found)
        lines.append({"accuracy": right / len(seen), "seconds": time.perf_counter() - started})
    print(json.dumps(lines))


if __name__ == "__main__":
    main()
