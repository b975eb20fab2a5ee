"""Training plans."""

from __future__ import annotations

from tlkit.plugin.contract import Strategy
from tlkit_standard.strategies.adapters import AnchoredTuning, BiasNorm, Lora, Surgical
from tlkit_standard.strategies.plans import Frozen, Full, Gradual, Partial, ProbeThenTune, Replace, Scratch

STRATEGIES: tuple[Strategy, ...] = (
    Frozen(),
    Partial(),
    Full(),
    ProbeThenTune(),
    Gradual(),
    Replace(),
    Scratch(),
    Surgical(),
    BiasNorm(),
    Lora(),
    AnchoredTuning(),
)
