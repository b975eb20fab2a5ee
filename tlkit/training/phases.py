"""What a list of phases asks for: whether it can be done, and what it makes of each stage."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence

from tlkit.data.augmentation import MAX_MAGNITUDE
from tlkit.errors import UsageError
from tlkit.plugin.contract import BALANCES, BATCHNORMS, OPTIMIZERS, Phase

ORIGINAL, MOVED, NEW = "original", "fine-tuned", "reinitialized"


def check_phases(phases: Sequence[Phase], stages: Sequence[str]) -> None:
    """Refuse phases that can't be run, all problems at once."""
    problems = [
        f"phase {number} {problem}"
        for number, phase in enumerate(phases, start=1)
        for problem in _problems(phase, len(stages))
    ]
    if not phases:
        problems.append("there are no phases")
    if problems:
        raise UsageError(f"the strategy can't be run: {'; '.join(problems)}")


def _problems(phase: Phase, stages: int) -> Iterator[str]:
    """What is wrong with a phase, each as the end of a sentence about it."""
    rates = [phase.head_lr, phase.trunk_lr] if phase.trainable else [phase.head_lr]
    magnitude = 0 <= phase.randaugment <= MAX_MAGNITUDE
    wrong = {
        f"has {phase.epochs} epochs": phase.epochs < 1,
        f"moves {phase.trainable} stages of {stages}": not 0 <= phase.trainable <= stages,
        f"restarts {phase.reinit} stages and moves {phase.trainable}": not 0 <= phase.reinit <= phase.trainable,
        f"has a learning rate of {min(rates):g}": not all(math.isfinite(rate) and rate > 0.0 for rate in rates),
        f"has a decay of {phase.lr_decay:g}, not in (0, 1]": not 0.0 < phase.lr_decay <= 1.0,
        f"has {phase.batch_size} images a step": phase.batch_size < 1,
        f"has the optimizer {phase.optimizer!r}, not {' or '.join(OPTIMIZERS)}": phase.optimizer not in OPTIMIZERS,
        f"has a warmup of {phase.warmup:g}, not in [0, 1)": not 0.0 <= phase.warmup < 1.0,
        f"has a smoothing of {phase.label_smoothing:g}, not in [0, 1)": not 0.0 <= phase.label_smoothing < 1.0,
        f"clips gradients to {phase.gradient_clipping:g}": phase.gradient_clipping < 0.0,
        f"has a patience of {phase.patience} epochs": phase.patience < 0,
        f"has a randaugment of {phase.randaugment}, not from 0 to {MAX_MAGNITUDE}": not magnitude,
        f"has a mixup of {phase.mixup:g}": not 0.0 <= phase.mixup < math.inf,
        f"has a cutmix of {phase.cutmix:g}": not 0.0 <= phase.cutmix < math.inf,
        f"has the balance {phase.balance!r}, not {' or '.join(BALANCES)}": phase.balance not in BALANCES,
        f"has the batchnorm {phase.batchnorm!r}, not {' or '.join(BATCHNORMS)}": phase.batchnorm not in BATCHNORMS,
        f"has an ema of {phase.ema:g}, not in [0, 1)": not 0.0 <= phase.ema < 1.0,
    }
    return (problem for problem, holds in wrong.items() if holds)


def most_moving(phases: Sequence[Phase]) -> int:
    """How many of the deepest stages move in any phase; those above them stay as they are."""
    return max(phase.trainable for phase in phases)


def provenance(stages: Sequence[str], phases: Sequence[Phase], changed: Collection[str]) -> dict[str, str]:
    """What the weights of each stage are afterwards: the original's, moved from there, or new from random ones.

    `changed` names those that are not the original's: the best weights may be those before a stage moved.
    """
    new = stages[len(stages) - max(phase.reinit for phase in phases) :]
    return {stage: ORIGINAL if stage not in changed else NEW if stage in new else MOVED for stage in stages}
