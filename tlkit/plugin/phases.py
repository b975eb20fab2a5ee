"""A phase of training: its fields, the stages and parameters that it names, and the rules that training holds it to.

Part of the contract, which exports every name; a phase that breaks a rule is refused, and the checks of a strategy name
it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass

from tlkit.plugin.component import mistyped

OPTIMIZERS = ("adamw", "sgd")
BALANCES = ("none", "weights", "sampling")
BATCHNORMS = ("freeze", "update")
MAX_MAGNITUDE = 30  # of RandAugment, from 0


@dataclass(frozen=True, slots=True)
class Optimizer:
    """Steps of a phase; learning rates follow a cosine schedule with linear warmup."""

    name: str = "adamw"  # one of OPTIMIZERS
    warmup: float = 0.0  # fraction of the steps
    gradient_clipping: float = 0.0  # maximum gradient norm; 0: off


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Random changes of the training images, drawn again per epoch.

    `crop` and `randaugment` apply while at least one stage is trainable; behind frozen stages, `mixup` and `cutmix` mix
    feature maps.
    """

    crop: bool = False  # random resized crop and horizontal flip
    randaugment: int = 0  # RandAugment magnitude, at most 30, with two operations per image; 0: off
    mixup: float = 0.0  # alpha of Beta(alpha, alpha); 0: off
    cutmix: float = 0.0  # alpha of Beta(alpha, alpha); 0: off


@dataclass(frozen=True, slots=True)
class Loss:
    """Cross-entropy, with its targets and its balance of the classes."""

    label_smoothing: float = 0.0
    balance: str = "none"  # one of BALANCES: class weights in the loss, or a weighted sampler


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase of training: the stages and parameters that are trainable, and the hyperparameters.

    A pattern of `parameters` is a shell glob for the name of a parameter within its stage, `blocks.0.norm1.weight`, or
    for the class of its module and its name there, `LayerNorm.weight`; the pool's parameters belong to the deepest
    stage. Everything else is frozen to the bit.
    """

    epochs: int
    head_lr: float  # learning rate of the head
    trunk_lr: float = 0.0  # learning rate of the deepest trainable stage
    trainable: int | tuple[str, ...] = 0  # number of deepest stages whose weights are updated, or names of stages
    parameters: tuple[str, ...] = ("*",)  # globs: the parameters of trainable stages that are updated
    lr_decay: float = 1.0  # factor on the learning rate per stage, going shallower
    reinit: int = 0  # number of deepest stages that start from random weights
    anchor: float = 0.0  # strength of the L2 pull towards the weights before training, instead of weight decay (L2-SP)
    batch_size: int = 64
    patience: int = 0  # early stopping: epochs without a lower validation loss; 0: off
    batchnorm: str = "freeze"  # running statistics of batch norms in trainable stages, one of BATCHNORMS
    ema: float = 0.0  # decay per step of the weight average; 0: off
    optimizer: Optimizer = Optimizer()
    augmentation: Augmentation = Augmentation()
    loss: Loss = Loss()


def trainable_stages(phase: Phase, stages: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the trainable stages, shallow to deep; `stages` names those of the trunk."""
    if isinstance(phase.trainable, int):
        return tuple(stages[len(stages) - phase.trainable :])
    return tuple(name for name in stages if name in phase.trainable)


def phase_problems(phase: Phase, stages: Sequence[str]) -> dict[str, str]:
    """Return what is wrong with a phase for a trunk with these stages, by field, each as the end of a sentence."""
    if foreign := dict(_foreign(phase)):
        return foreign  # values of other types can't be judged
    rules = {name: rule for part in (_about_stages, _about_numbers) for name, rule in part(phase, stages).items()}
    return {name: problem for name, (holds, problem) in rules.items() if not holds}


Rules = dict[str, tuple[bool, str]]


def _foreign(phase: Phase) -> Iterator[tuple[str, str]]:
    """Yield the fields of a subclass and the parts of another class, which training would drop, and mistyped values."""
    parts = {"phase": (phase, Phase), "optimizer": (phase.optimizer, Optimizer), "loss": (phase.loss, Loss)}
    for name, (part, kind) in (parts | {"augmentation": (phase.augmentation, Augmentation)}).items():
        if type(part) is not kind:
            names = {each.name for each in fields(part)} if is_dataclass(part) else set()
            unknown = ", ".join(sorted(names - {each.name for each in fields(kind)})) or repr(part)
            yield name, f"asks for {unknown}, which is not in the contract's {kind.__name__}"
            continue
        for field, wanted in mistyped(part).items():
            yield field, f"has the {field} {getattr(part, field)!r}, not of type {wanted}"


def _about_stages(phase: Phase, stages: Sequence[str]) -> Rules:
    """Return the rules for what is trainable, reinitialized and anchored."""
    given = phase.trainable
    if type(given) is int:
        fits, problem = 0 <= given <= len(stages), f"trains {given!r} stages of {len(stages)}"
    elif isinstance(given, tuple):
        unknown = ", ".join(repr(name) for name in given if name not in stages)
        fits = bool(given) and not unknown
        problem = (
            f"trains the stages {unknown}, and there are {', '.join(stages)}" if given else "trains no stage by name"
        )
    else:
        fits, problem = False, f"trains {given!r}, not a number of stages or a tuple of their names"
    learning = trainable_stages(phase, stages) if fits else ()
    globs = phase.parameters
    named = isinstance(globs, tuple) and bool(globs) and all(isinstance(glob, str) and glob for glob in globs)
    count = phase.reinit
    reinitialized = stages[len(stages) - count :] if 0 < count <= len(stages) else ()
    known = 0 <= count <= len(stages) and set(reinitialized) <= set(learning)
    part = "trains a part of their parameters" if known else "does not train them"
    return {
        "trainable": (fits, problem),
        "parameters": (named, f"has the parameters {globs!r}, not a tuple of globs"),
        "reinit": (
            known and (globs == ("*",) or not count),
            f"reinitializes {count} stages and {part}",
        ),
        "anchor": (
            0.0 <= phase.anchor < math.inf and (bool(learning) or not phase.anchor),
            f"has an anchor of {phase.anchor:g} and trains {len(learning)} stages",
        ),
    }


def _about_numbers(phase: Phase, _stages: Sequence[str]) -> Rules:
    optimizer, augmentation, loss = phase.optimizer, phase.augmentation, phase.loss
    rates = [phase.head_lr, phase.trunk_lr] if phase.trainable else [phase.head_lr]
    rules: Rules = {
        "epochs": (phase.epochs >= 1, f"has {phase.epochs} epochs"),
        "head_lr": (all(0.0 < rate < math.inf for rate in rates), f"has a learning rate of {min(rates):g}"),
        "lr_decay": (0.0 < phase.lr_decay <= 1.0, f"has an lr_decay of {phase.lr_decay:g}, not in (0, 1]"),
        "batch_size": (phase.batch_size >= 1, f"has a batch size of {phase.batch_size}"),
        "gradient_clipping": (
            0.0 <= optimizer.gradient_clipping < math.inf,
            f"clips gradients to {optimizer.gradient_clipping:g}",
        ),
        "patience": (phase.patience >= 0, f"has a patience of {phase.patience} epochs"),
        "randaugment": (
            0 <= augmentation.randaugment <= MAX_MAGNITUDE,
            f"has a randaugment of {augmentation.randaugment}, not from 0 to {MAX_MAGNITUDE}",
        ),
    }
    fractions = {"a warmup": optimizer.warmup, "a label smoothing": loss.label_smoothing, "an ema": phase.ema}
    for noun, value in fractions.items():
        rules[noun.partition(" ")[2]] = (0.0 <= value < 1.0, f"has {noun} of {value:g}, not in [0, 1)")
    for name, value in {"mixup": augmentation.mixup, "cutmix": augmentation.cutmix}.items():
        rules[name] = (0.0 <= value < math.inf, f"has a {name} of {value:g}")
    choices = {
        "optimizer": (optimizer.name, OPTIMIZERS),
        "balance": (loss.balance, BALANCES),
        "batchnorm": (phase.batchnorm, BATCHNORMS),
    }
    for name, (choice, known) in choices.items():
        rules[name] = (choice in known, f"has the {name} {choice!r}, not {' or '.join(known)}")
    return rules
