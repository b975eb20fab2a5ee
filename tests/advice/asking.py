"""A request for advice on the tiny backbone."""

from __future__ import annotations

from dataclasses import replace

from tlkit_standard.heads import HEADS
from tlkit_standard.strategies import STRATEGIES

from tests.kit.tiny import Tiny
from tlkit.advice.dataset_statistics import SizePolicy
from tlkit.advice.recommendation import FineTuningPolicy
from tlkit.advice.run import AdvicePolicy, AdviceRequest


def ask(**changes):
    """Return a request with every standard head and strategy, and the tiny backbone."""
    request = AdviceRequest([Tiny()], HEADS, STRATEGIES, lambda component: (component.name, "1.0"))
    return replace(request, **changes)


def eager(epochs):
    """Return a policy by which 20 images are a large dataset that is always worth fine-tuning."""
    size = SizePolicy(large=20, large_per_class=5)
    return AdvicePolicy(size=size, fine_tuning=FineTuningPolicy(min_error=-1.0, epochs=epochs))
