"""A request for advice on the tiny backbone."""

from __future__ import annotations

from dataclasses import replace

from tlkit_standard.heads import HEADS
from tlkit_standard.strategies import STRATEGIES

from tests.kit.tiny import Tiny
from tlkit.advice.dataset_statistics import SizePolicy
from tlkit.advice.recommendation import FineTuningPolicy
from tlkit.advice.run import AdvicePolicy, AdviceRequest
from tlkit.evaluation.disturbed import Comparison


def ask(**changes):
    """Return a request with every standard head and strategy, and the tiny backbone; auto runs no quick trial."""
    request = AdviceRequest([Tiny()], HEADS, STRATEGIES, lambda component: (component.name, "1.0"))
    request = replace(request, policy=AdvicePolicy(fine_tuning=FineTuningPolicy(trial=False)))
    return replace(request, **changes)


def eager(epochs):
    """Return a policy by which 20 images are a large dataset that is worth fine-tuning without a quick trial."""
    size = SizePolicy(large=20, large_per_class=5)
    return AdvicePolicy(size=size, fine_tuning=FineTuningPolicy(trial=False, min_error=-1.0, epochs=epochs))


def comparison(better, **changes):
    """Return a comparison of frozen features with a fine-tuned trunk that is better, or worse."""
    pairs = (0.5, 0.9) if better else (0.9, 0.5)
    return replace(Comparison(16, pairs, pairs, (0.5, 0.5), (0.1, 0.1), (0.8, 0.95)), **changes)
