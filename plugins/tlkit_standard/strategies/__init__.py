"""Ways to train."""

from __future__ import annotations

from tlkit.plugin.contract import Strategy
from tlkit_standard.strategies.frozen import Frozen

STRATEGIES: tuple[Strategy, ...] = (Frozen(),)
