"""Fine-tune the way of fastai's quick start: `vision_learner` and `fine_tune`, with tlkit's weights.

python fastai_train.py photos/ weights.pth --epochs 4

Prints, as JSON, the accuracy on photos/val after each epoch; the first is of the epoch with a frozen body.
"""

from __future__ import annotations

import argparse
import json

from fastai.vision.all import Callback, ImageDataLoaders, Resize, accuracy, set_seed, vision_learner


class Accuracies(Callback):
    """Keeps the accuracy of every epoch; fastai's recorder forgets that of the frozen one."""

    order = 100  # behind the recorder

    def __init__(self) -> None:
        self.found: list[float] = []

    def after_epoch(self) -> None:
        self.found.append(float(self.learn.recorder.values[-1][-1]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("images")
    parser.add_argument("weights")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=224)
    args = parser.parse_args()

    set_seed(args.seed)
    loaders = ImageDataLoaders.from_folder(args.images, train="train", valid="val", item_tfms=Resize(args.size))
    kept = Accuracies()
    learner = vision_learner(
        loaders,
        "tf_efficientnet_lite0",
        metrics=accuracy,
        pretrained_cfg_overlay={"file": args.weights},  # handed on to timm
        cbs=[kept],
    )
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(args.epochs)
    print(json.dumps(kept.found))


if __name__ == "__main__":
    main()
