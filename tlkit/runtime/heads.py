"""One head of a graph with several (see `shared`), seen as a graph of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tlkit.errors import UsageError
from tlkit.graph.metadata import BUNDLE, HEAD, HEADS, LABELS
from tlkit.plugin.contract import FEATURES, LOGITS, PROBABILITIES, Session

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def of_head(head: str, tensor: str) -> str:
    """The name of a head's own tensor."""
    return f"{head}/{tensor}"


def heads(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The names of the heads of a graph with several; none for a graph with one."""
    return tuple(json.loads(metadata.get(HEADS, "{}")))


class OneHead(Session):
    """Runs a graph for one of its heads: only that one's outputs are computed, under their usual names."""

    def __init__(self, session: Session, head: str) -> None:
        known = json.loads(session.metadata.get(HEADS, "{}"))
        if head not in known:
            raise UsageError(f"there is no head {head!r}", do=f"choose one of {', '.join(known)}")
        self._session = session
        self._names = {FEATURES: FEATURES, **{name: of_head(head, name) for name in (LOGITS, PROBABILITIES)}}
        self.input, self.outputs = session.input, tuple(self._names)
        own = known[head]
        facts = {key: value for key, value in session.metadata.items() if key != HEADS}
        self.metadata = {
            **facts,
            LABELS: json.dumps(own["labels"]),
            BUNDLE: own["bundle"],
            HEAD: own["head"],
        }
        self.workers, self.batch_size = session.workers, session.batch_size

    def run(self, array: NDArray[Any], outputs: Sequence[str] | None = None) -> dict[str, NDArray[np.float32]]:
        names = list(outputs or self.outputs)
        got = self._session.run(array, [self._names[name] for name in names])
        return {name: got[self._names[name]] for name in names}
