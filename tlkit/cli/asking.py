"""What `tlkit advise` and `tlkit train --strategy auto` ask, of the offers that there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tlkit.cli.common import host

if TYPE_CHECKING:
    from tlkit.learn.advise.advice import Question
    from tlkit.plugin.contract import Backbone, Head


def question(
    backbones: Sequence[Backbone],
    *,
    val: float,
    max_bad: float,
    seed: int,
    head: Head | None = None,
    cut: str | None = None,
    **options: Any,
) -> Question:
    """The question with every strategy that plugins offer, and every head, or the one that the user has chosen."""
    from tlkit.learn.advise.advice import Question

    plugins = host()
    heads = [plugins.get("head", name) for name in plugins.names("head")] if head is None else [head]
    strategies = [plugins.get("strategy", name) for name in plugins.names("strategy")]
    return Question(backbones, heads, strategies, plugins.origin, val, max_bad, seed, cut, options)
