"""Embed a folder with Ray Data: `map_batches` with timm's network and transform in two actors, to Parquet.

python ray_data.py images/ weights.pth features/
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

import ray


class Embedder:
    """timm's network on one thread; Ray runs two of them."""

    def __init__(self, weights: str) -> None:
        import timm
        import torch
        from timm.data import create_transform, resolve_model_data_config

        torch.set_num_threads(1)
        overlay = {"file": weights}
        model = timm.create_model(
            "tf_efficientnet_lite0", pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay
        )
        self.model = model.eval().to(memory_format=torch.channels_last)
        self.transform = create_transform(**resolve_model_data_config(model))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import torch
        from PIL import Image

        pictures = (Image.open(io.BytesIO(content)).convert("RGB") for content in batch["bytes"])
        images = torch.stack([self.transform(picture) for picture in pictures])
        with torch.inference_mode():
            features = self.model(images.to(memory_format=torch.channels_last)).numpy()
        return {"path": batch["path"], "features": features}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()

    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    # 2 for the actors, and 2 for tasks that read and write: with none left, Ray waits forever
    images = ray.data.read_binary_files(str(args.images.absolute()), include_paths=True)
    given = {"fn_constructor_args": (str(args.weights.absolute()),), "batch_size": 32, "concurrency": 2, "num_cpus": 1}
    images.map_batches(Embedder, **given).write_parquet(str(args.out.absolute()))


if __name__ == "__main__":
    main()
