"""Embed a folder the usual way: timm's network and transform, a DataLoader, PyTorch.

python timm_embed.py images/ weights.pth features.npy --channels-last
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose


class Folder(Dataset[torch.Tensor]):
    """The images of a folder in the order of their names."""

    def __init__(self, root: Path, transform: Compose) -> None:
        self.files = sorted(root.iterdir())
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self.files[index]) as picture:
            image: torch.Tensor = self.transform(picture.convert("RGB"))
            return image


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--half", action="store_true", help="convert the network to fp16")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args()

    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    model = timm.create_model(
        "tf_efficientnet_lite0", pretrained=True, num_classes=0, pretrained_cfg_overlay={"file": str(args.weights)}
    )
    dtype = torch.float16 if args.half else torch.float32
    model = model.eval().to(args.device, dtype, memory_format=layout)
    transform = create_transform(**resolve_model_data_config(model))
    pinned = args.device != "cpu"
    loader = DataLoader(Folder(args.images, transform), args.batch_size, num_workers=args.workers, pin_memory=pinned)
    with torch.inference_mode():
        batches = (images.to(args.device, dtype, non_blocking=True, memory_format=layout) for images in loader)
        features = [model(images).float().cpu().numpy() for images in batches]
    np.save(args.out, np.concatenate(features))


if __name__ == "__main__":
    main()
