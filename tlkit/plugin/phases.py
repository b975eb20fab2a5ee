"""Rules for the fields of a phase; training refuses a phase that breaks one, and the checks of a strategy name it."""

from __future__ import annotations

import math

from tlkit.plugin.contract import BALANCES, BATCHNORMS, OPTIMIZERS, Phase

MAX_MAGNITUDE = 30  # of RandAugment, from 0
_FRACTIONS = {"warmup": "a warmup", "label_smoothing": "a label smoothing", "ema": "an ema"}
_CHOICES = {"optimizer": OPTIMIZERS, "balance": BALANCES, "batchnorm": BATCHNORMS}


def phase_problems(phase: Phase, stages: int) -> dict[str, str]:
    """Return what is wrong with a phase for a trunk of so many stages, by field, each as the end of a sentence."""
    rates = [phase.head_lr, phase.trunk_lr] if phase.trainable else [phase.head_lr]
    counts = {name: type(getattr(phase, name)) is int for name in ("epochs", "trainable", "reinit", "batch_size")}
    rules: dict[str, tuple[bool, str]] = {
        "epochs": (counts["epochs"] and phase.epochs >= 1, f"has {phase.epochs!r} epochs"),
        "trainable": (
            counts["trainable"] and 0 <= phase.trainable <= stages,
            f"trains {phase.trainable!r} stages of {stages}",
        ),
        "reinit": (
            counts["reinit"] and 0 <= phase.reinit <= phase.trainable,
            f"reinitializes {phase.reinit!r} stages and trains {phase.trainable}",
        ),
        "head_lr": (
            all(math.isfinite(rate) and rate > 0.0 for rate in rates),
            f"has a learning rate of {min(rates):g}",
        ),
        "lr_decay": (0.0 < phase.lr_decay <= 1.0, f"has an lr_decay of {phase.lr_decay:g}, not in (0, 1]"),
        "batch_size": (counts["batch_size"] and phase.batch_size >= 1, f"has a batch size of {phase.batch_size!r}"),
        "gradient_clipping": (phase.gradient_clipping >= 0.0, f"clips gradients to {phase.gradient_clipping:g}"),
        "patience": (phase.patience >= 0, f"has a patience of {phase.patience} epochs"),
        "randaugment": (
            0 <= phase.randaugment <= MAX_MAGNITUDE,
            f"has a randaugment of {phase.randaugment}, not from 0 to {MAX_MAGNITUDE}",
        ),
    }
    for name, noun in _FRACTIONS.items():
        value = getattr(phase, name)
        rules[name] = (0.0 <= value < 1.0, f"has {noun} of {value:g}, not in [0, 1)")
    for name in ("mixup", "cutmix"):
        value = getattr(phase, name)
        rules[name] = (0.0 <= value < math.inf, f"has a {name} of {value:g}")
    for name, choices in _CHOICES.items():
        value = getattr(phase, name)
        rules[name] = (value in choices, f"has the {name} {value!r}, not {' or '.join(choices)}")
    return {name: problem for name, (holds, problem) in rules.items() if not holds}
