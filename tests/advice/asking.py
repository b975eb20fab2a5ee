"""A question about the tiny backbone."""

from __future__ import annotations

from dataclasses import replace

from tlkit_standard.heads import HEADS
from tlkit_standard.strategies import STRATEGIES

from tests.kit.tiny import Tiny
from tlkit.advice.run import Question


def ask(**changes):
    """Every standard head and strategy, and the tiny backbone."""
    question = Question([Tiny()], HEADS, STRATEGIES, lambda component: (component.name, "1.0"))
    return replace(question, **changes)
