"""Base classes of the strategies that train the trunk: options, and phases from them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from tlkit.plugin.contract import BALANCES, BATCHNORMS, OPTIMIZERS, Phase, Strategy, option


@dataclass(frozen=True)
class Tuning(Strategy):
    """Strategy in which stages of the trunk are trainable, with a lower learning rate than the head.

    The default trunk learning rate is a compromise between two datasets (EfficientNet-Lite0, probe-then-tune, four
    epochs, one seed; chosen on these validation images). Sign digits, different from the pretraining data, 1,000
    images: 94 % with 1e-4 and 96 % with 2e-4 at 96 pixels; 98.2, 98.8 and 98.8 % with 5e-4, 1e-3 and 2e-3 at 128
    pixels; 93 % frozen. Ants and bees, similar to it, 244 images: 94.8 % frozen; 94.8, 94.1, 92.8, 91.5 and 88.9 % with
    1e-4, 2e-4, 5e-4, 1e-3 and 2e-3; there the best weights are those of the frozen trunk, and these are kept.
    """

    epochs: int = option(10, "epochs with trainable stages")
    head_lr: float = option(3e-3, "peak learning rate of the head")
    trunk_lr: float = option(5e-4, "peak learning rate of the deepest stage")
    lr_decay: float = option(0.8, "factor on the learning rate per stage, going shallower")
    batch_size: int = option(32, "images per step")
    optimizer: str = option("adamw", "optimizer", choices=OPTIMIZERS)
    warmup: float = option(0.1, "fraction of the steps with linear warmup, before cosine decay")
    label_smoothing: float = option(0.1, "label smoothing")
    gradient_clipping: float = option(1.0, "maximum gradient norm; 0: off")
    patience: int = option(0, "early stopping: epochs without a lower validation loss; 0: off")
    augment: bool = option(True, "random resized crop and horizontal flip")
    randaugment: int = option(0, "RandAugment magnitude, at most 30, with two operations per image; 0: off")
    mixup: float = option(0.0, "mixup alpha; 0: off")
    cutmix: float = option(0.0, "CutMix alpha; 0: off")
    balance: str = option("none", "class balancing by loss weights or by sampling", choices=BALANCES)
    batchnorm: str = option("freeze", "running statistics of batch norms in trainable stages", choices=BATCHNORMS)
    ema: float = option(0.0, "decay per step of the weight average (EMA); 0: off")

    def phase(self, trainable: int, **others: Any) -> Phase:
        """Return a phase with `trainable` stages, from the options and `others`."""
        names = {field.name for field in fields(Phase)} & {field.name for field in fields(Tuning)}
        options = {name: getattr(self, name) for name in names}
        return Phase(**{**options, "trainable": trainable, **others})


@dataclass(frozen=True)
class Probing(Tuning):
    """Strategy that first trains the head alone, on features that are computed once."""

    probe_epochs: int = option(100, "epochs of the head alone, on cached features")

    def probe(self) -> Phase:
        """Return the phase with a frozen trunk."""
        return Phase(epochs=self.probe_epochs, head_lr=self.head_lr, label_smoothing=self.label_smoothing)
