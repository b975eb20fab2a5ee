"""What the strategies that move the trunk share: their options, and the way from these to phases."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from tlkit.plugin.contract import BALANCES, BATCHNORMS, OPTIMIZERS, Phase, Strategy, option


@dataclass(frozen=True)
class Tuning(Strategy):
    """A strategy in which stages of the trunk learn, more slowly than the head.

    The rate of the trunk lies between what two kinds of images want (EfficientNet-Lite0, probe-then-tune, four epochs,
    one seed; chosen on these validation images). Sign digits, unlike those of the pretraining, 1,000 images: 94 % with
    1e-4 and 96 % with 2e-4 at 96 pixels; 98.2, 98.8 and 98.8 % with 5e-4, 1e-3 and 2e-3 at 128 pixels; 93 % frozen.
    Ants and bees, alike, 244 images: from 94.8 % of the frozen trunk each rate led down, to 94.8, 94.1, 92.8, 91.5 and
    88.9 % with 1e-4, 2e-4, 5e-4, 1e-3 and 2e-3; there the weights before the trunk moved are kept.
    """

    epochs: int = option(10, "epochs in which stages move")
    head_lr: float = option(3e-3, "highest learning rate of the head")
    trunk_lr: float = option(5e-4, "highest learning rate of the deepest stage")
    lr_decay: float = option(0.8, "factor on the learning rate from a stage to the one above it")
    batch_size: int = option(32, "images a step")
    optimizer: str = option("adamw", "how weights follow their gradients", choices=OPTIMIZERS)
    warmup: float = option(0.1, "share of the steps in which the rates rise; then they fall along a cosine")
    label_smoothing: float = option(0.1, "share of each label that is spread over all classes")
    gradient_clipping: float = option(1.0, "norm that longer gradients are scaled to; 0 for none")
    patience: int = option(0, "epochs without a lower validation loss that end the training; 0 for none")
    augment: bool = option(True, "see a random crop of each image in each epoch, mirrored or not")
    randaugment: int = option(0, "magnitude, up to 30, of two random distortions of each image; 0 for none")
    mixup: float = option(0.0, "mix images in pairs, by shares from Beta(this, this); 0 for none")
    cutmix: float = option(0.0, "put a piece of one image into another, its share from Beta(this, this); 0 for none")
    balance: str = option("none", "make up for rare classes by loss weights or by sampling", choices=BALANCES)
    batchnorm: str = option("freeze", "what batch norms do with the statistics of the pretraining", choices=BATCHNORMS)
    ema: float = option(0.0, "share that a moving average of the weights keeps in a step; 0 for none")

    def phase(self, trainable: int, **others: Any) -> Phase:
        """A phase in which `moving` stages learn, by the options and what else is said."""
        names = {field.name for field in fields(Phase)} & {field.name for field in fields(Tuning)}
        facts = {name: getattr(self, name) for name in names}
        return Phase(**{**facts, "trainable": trainable, **others})


@dataclass(frozen=True)
class Probing(Tuning):
    """A strategy that first trains the head alone, on features that are computed once."""

    probe_epochs: int = option(100, "epochs in which the head learns alone; they cost next to nothing")

    def probe(self) -> Phase:
        """The phase in which no stage moves."""
        return Phase(epochs=self.probe_epochs, head_lr=self.head_lr, label_smoothing=self.label_smoothing)
