"""Training plans that change little of a network: some stages, some parameters, or low-rank updates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tlkit.plugin.contract import DatasetStatistics, Phase, option
from tlkit_standard.strategies.plans import Probing

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Surgical(Probing):
    """The head is trained first; then it and the shallowest stages, or others by name. The deep ones are frozen.

    - When: images that look different from those of the pretraining (noise, another camera, another color), of classes
    that its deep features can tell apart.
    - Why: what changes at the input is best corrected there; deeper layers keep what they know (Lee et al., "Surgical
    Fine-Tuning Improves Adaptation to Distribution Shifts", ICLR 2023).
    - Cost: gradients pass through the whole network, so an epoch takes nearly as long as one of `full`.
    """

    name = "surgical"
    lr_decay: float = option(1.0, "factor on the learning rate per stage, going shallower")
    stages: tuple[str, ...] = option((), "names of the trainable stages; none: the shallowest")

    def phases(self, stages: Sequence[str], info: DatasetStatistics) -> Sequence[Phase]:
        return self.probe(), self.phase(self.stages or (stages[0],))


@dataclass(frozen=True)
class AnchoredTuning(Probing):
    """All stages are trainable, and each weight is pulled towards its pretrained value (L2-SP).

    - When: as `probe-then-tune`, with few images: the weights stay near those that are known to be good.
    - Why: weight decay pulls to zero, which forgets the pretraining; the pretrained weights are the better prior (Li et
    al., "Explicit Inductive Bias for Transfer Learning with Convolutional Networks", ICML 2018).
    - Cost: that of `full`, and memory for a copy of the weights.
    """

    name = "l2-sp"
    anchor: float = option(10.0, "strength of the pull; a step shortens the distance by learning rate x anchor")

    def phases(self, stages: Sequence[str], info: DatasetStatistics) -> Sequence[Phase]:
        return self.probe(), self.phase(len(stages), anchor=self.anchor)


@dataclass(frozen=True)
class BiasNorm(Probing):
    """Only biases and the weights of norms are trainable, in all stages.

    - When: few images, above all on a transformer; or many tasks, as the bulk of the weights stays that of the
    pretraining.
    - Why: shifting and scaling features suffices for many tasks, and a thousandth of the weights hardly overfits
    (BitFit: Ben Zaken et al., ACL 2022).
    - Cost: less memory than `full`, for gradients and optimizer; an epoch takes about two thirds of the time.
    """

    name = "bias-norm"
    trunk_lr: float = option(2e-3, "peak learning rate of the deepest stage")
    norms: bool = option(True, "the weights of norms as well as biases")

    def phases(self, stages: Sequence[str], info: DatasetStatistics) -> Sequence[Phase]:
        parameters = ("*bias", "*Norm*.weight") if self.norms else ("*bias",)
        return self.probe(), self.phase(len(stages), parameters=parameters)


@dataclass(frozen=True)
class Lora(Probing):
    """Linear and convolutional weights get a trainable update of low rank, merged into them at the end (LoRA).

    - When: few images on a large network, above all a transformer, that overfits or whose optimizer takes too much
    memory.
    - Why: the change that a task needs has a low rank (Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models",
    ICLR 2022). The exported network is the original one with other weights: it costs nothing to deploy.
    - Cost: less memory than `full`, for the optimizer; an epoch takes about as long.
    """

    name = "lora"
    trunk_lr: float = option(2e-3, "peak learning rate of the deepest stage")
    rank: int = option(8, "rank of the updates", minimum=1)
    alpha: float = option(16.0, "scale of the updates, as alpha / rank")
    trainable: int | None = option(None, "number of deepest stages that get updates; none: all")

    def phases(self, stages: Sequence[str], info: DatasetStatistics) -> Sequence[Phase]:
        count = len(stages) if self.trainable is None else self.trainable
        return self.probe(), self.phase(count, parameters=("*.lora_*",))

    def prepare(self, stages: Mapping[str, nn.Module]) -> Callable[[], None]:
        from tlkit_standard.strategies._low_rank import add_updates  # imports torch

        chosen = list(stages.values())
        return add_updates(chosen if self.trainable is None else chosen[-self.trainable :], self.rank, self.alpha)
