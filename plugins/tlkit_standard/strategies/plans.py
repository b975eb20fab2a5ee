"""Training plans: of the head alone, of the deepest stages, of all stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tlkit.plugin.contract import (
    BALANCES,
    BATCHNORMS,
    IMBALANCED,
    OPTIMIZERS,
    Augmentation,
    DatasetStatistics,
    Loss,
    Optimizer,
    Phase,
    Strategy,
    option,
)

# Options for `auto`. The learning rate is higher than the default, as only a trunk with much to gain is fine-tuned; the
# weights are an average of the last ten steps, which on few images differ in accuracy by several percent.
AUTO: dict[str, Any] = {"trunk_lr": 1e-3, "ema": 0.9}


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

    def phase(self, trainable: int | tuple[str, ...], **others: Any) -> Phase:
        """Return a phase with `trainable` stages, from the options and `others`."""
        return Phase(
            **{
                "epochs": self.epochs,
                "head_lr": self.head_lr,
                "trunk_lr": self.trunk_lr,
                "trainable": trainable,
                "lr_decay": self.lr_decay,
                "batch_size": self.batch_size,
                "patience": self.patience,
                "batchnorm": self.batchnorm,
                "ema": self.ema,
                "optimizer": Optimizer(self.optimizer, self.warmup, self.gradient_clipping),
                "augmentation": Augmentation(self.augment, self.randaugment, self.mixup, self.cutmix),
                "loss": Loss(self.label_smoothing, self.balance),
                **others,
            }
        )


def _candidates(strategy: Tuning, info: DatasetStatistics) -> Sequence[Strategy]:
    """Return the strategy with the options for `auto`; of an imbalanced dataset first with class weights."""
    plain = replace(strategy, **AUTO)
    weighted = (replace(plain, balance="weights"),) if info.largest_class >= IMBALANCED * info.smallest_class else ()
    return (*weighted, plain)


@dataclass(frozen=True)
class Probing(Tuning):
    """Strategy that first trains the head alone, on features that are computed once."""

    probe_epochs: int = option(100, "epochs of the head alone, on cached features")

    def probe(self) -> Phase:
        """Return the phase with a frozen trunk."""
        return Phase(epochs=self.probe_epochs, head_lr=self.head_lr, loss=Loss(self.label_smoothing))


@dataclass(frozen=True)
class Frozen(Strategy):
    """The trunk is frozen; only the head is trained.

    First choice for little data, or data similar to the pretraining data.

    A head that can be solved is solved; epochs and learning rate are for one that is trained by gradient.
    """

    name = "frozen"
    epochs: int = option(100, "epochs of a head that is trained by gradient")
    lr: float = option(1e-3, "learning rate of a head that is trained by gradient")

    def phases(self, stages: Sequence[str], info: DatasetStatistics) -> Sequence[Phase]:
        return (Phase(epochs=self.epochs, head_lr=self.lr),)


@dataclass(frozen=True)
class Partial(Tuning):
    """The deepest stages are trainable, the others frozen.

    - When: too few images for `full`, or images similar to the pretraining data.
    - Why: deep layers are specific to the original task; fewer trainable weights overfit less (Yosinski et al., "How
    transferable are features in deep neural networks?", NeurIPS 2014).
    - Cost: less than `full`, as frozen stages need no gradient and their output is cached.
    """

    name = "partial"
    trainable: int | None = option(None, "number of deepest stages that are trainable; none: two, or the only one")

    def phases(self, stages: Sequence[str], info: DatasetStatistics) -> Sequence[Phase]:
        return (self.phase(min(2, len(stages)) if self.trainable is None else self.trainable),)

    def candidates(self, info: DatasetStatistics) -> Sequence[Strategy]:
        return _candidates(self, info)


@dataclass(frozen=True)
class Full(Tuning):
    """All stages are trainable, the shallow ones with a lower learning rate than the deep ones.

    - When: some hundred images per class, or images different from the pretraining data.
    - Why: every layer can adapt; the shallow ones, which are general (Yosinski et al., "How transferable are features
    in deep neural networks?", NeurIPS 2014), change least.
    - Cost: the highest, forward and backward through the whole network in every epoch.
    """

    name = "full"

    def phases(self, stages: Sequence[str], info: DatasetStatistics) -> Sequence[Phase]:
        return (self.phase(len(stages)),)


@dataclass(frozen=True)
class ProbeThenTune(Probing):
    """The head is trained first, on the frozen trunk; then both are trained.

    - When: as `full`, above all if images in production differ from the training images.
    - Why: the large errors of an untrained head distort good features; a trained one hardly changes them (LP-FT: Kumar
    et al., "Fine-Tuning can Distort Pretrained Features", ICLR 2022).
    - Cost: that of `full`, and a few seconds for the head.
    """

    name = "probe-then-tune"
    trainable: int | None = option(None, "number of deepest stages that are trainable at the end; none: all")

    def phases(self, stages: Sequence[str], info: DatasetStatistics) -> Sequence[Phase]:
        return self.probe(), self.phase(len(stages) if self.trainable is None else self.trainable)

    def candidates(self, info: DatasetStatistics) -> Sequence[Strategy]:
        return _candidates(self, info)


@dataclass(frozen=True)
class Gradual(Probing):
    """The head is trained first, then stages are unfrozen one by one, from the deepest up.

    - When: few images and a task far from the pretraining, where `full` would forget the pretrained features.
    - Why: the deepest layers, the least general, adapt first, and the learning rate falls by 2.6 from layer to layer
    (ULMFiT: Howard and Ruder, "Universal Language Model Fine-tuning for Text Classification", ACL 2018, 3.1, 3.3).
    - Cost: `epochs` for each stage that is unfrozen; the first of them are cheap.
    """

    name = "gradual"
    epochs: int = option(1, "epochs per stage that is unfrozen")
    lr_decay: float = option(0.385, "factor on the learning rate per stage, going shallower; 1 / 2.6")
    trainable: int | None = option(None, "number of deepest stages that are trainable at the end; none: all")

    def phases(self, stages: Sequence[str], info: DatasetStatistics) -> Sequence[Phase]:
        last = len(stages) if self.trainable is None else self.trainable
        return self.probe(), *(self.phase(trainable) for trainable in range(1, last + 1))


@dataclass(frozen=True)
class Replace(Tuning):
    """The deepest stages are reinitialized; the others are frozen, or trainable as well.

    - When: a task so different from the original that its deepest layers are of no use, and enough images to train
    others.
    - Why: deep layers are specific to the original task, shallow ones general: only these are transferred (the networks
    AnB of Yosinski et al., "How transferable are features in deep neural networks?", NeurIPS 2014, section 2).
    - Cost: that of `partial` with as many stages, and more epochs: random weights need a higher learning rate and more
    steps.
    """

    name = "replace"
    epochs: int = option(20, "epochs with trainable stages")
    trunk_lr: float = option(1e-3, "peak learning rate of the deepest stage")
    reinit: int = option(1, "number of deepest stages that are reinitialized")
    trainable: int | None = option(None, "number of deepest stages that are trainable; none: the reinitialized ones")

    def phases(self, stages: Sequence[str], info: DatasetStatistics) -> Sequence[Phase]:
        trainable = self.reinit if self.trainable is None else self.trainable
        return (self.phase(trainable, reinit=self.reinit),)


@dataclass(frozen=True)
class Scratch(Tuning):
    """All stages are reinitialized: no transfer.

    - When: for comparison, or with very many images that differ from the pretraining data.
    - Why: to measure the value of the pretraining. With enough images and epochs it is worth little (He et al.,
    "Rethinking ImageNet Pre-training", ICCV 2019); with few it is worth nearly everything.
    - Cost: an epoch costs as much as one of `full`, and many more are needed.
    """

    name = "scratch"
    epochs: int = option(100, "epochs")
    trunk_lr: float = option(1e-3, "peak learning rate of the deepest stage")
    lr_decay: float = option(1.0, "factor on the learning rate per stage, going shallower")

    def phases(self, stages: Sequence[str], info: DatasetStatistics) -> Sequence[Phase]:
        return (self.phase(len(stages), reinit=len(stages)),)
