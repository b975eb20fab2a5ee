"""Embed a folder with Hugging Face's datasets: `Dataset.map` over batches, timm's network and transform, to Parquet.

python datasets_map.py images/ weights.pth features.parquet
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import timm
import torch
from datasets import Dataset, Image
from timm.data import create_transform, resolve_model_data_config


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()

    model = timm.create_model(
        "tf_efficientnet_lite0", pretrained=True, num_classes=0, pretrained_cfg_overlay={"file": str(args.weights)}
    )
    model = model.eval().to(memory_format=torch.channels_last)
    transform = create_transform(**resolve_model_data_config(model))

    def embed(batch: dict[str, list[Any]]) -> dict[str, Any]:
        images = torch.stack([transform(image.convert("RGB")) for image in batch["image"]])
        with torch.inference_mode():
            return {"features": model(images.to(memory_format=torch.channels_last)).numpy()}

    files = [str(file) for file in sorted(args.images.iterdir())]
    images = Dataset.from_dict({"image": files, "path": files}).cast_column("image", Image())
    images.map(embed, batched=True, batch_size=32, remove_columns="image").to_parquet(args.out)


if __name__ == "__main__":
    main()
