"""Training plans."""

from __future__ import annotations

from tlkit.plugin.contract import Strategy
from tlkit_standard.strategies.frozen import Frozen
from tlkit_standard.strategies.full import Full
from tlkit_standard.strategies.gradual import Gradual
from tlkit_standard.strategies.partial import Partial
from tlkit_standard.strategies.probe_then_tune import ProbeThenTune
from tlkit_standard.strategies.replace import Replace
from tlkit_standard.strategies.scratch import Scratch

STRATEGIES: tuple[Strategy, ...] = (
    Frozen(),
    Partial(),
    Full(),
    ProbeThenTune(),
    Gradual(),
    Replace(),
    Scratch(),
)
