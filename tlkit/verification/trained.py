"""The trained modules themselves, run by PyTorch as if they were a target: what everything deployed is held against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tlkit.graph import metadata
from tlkit.model.bundle import Bundle
from tlkit.model.modules import load_modules, run_modules
from tlkit.plugin.contract import FEATURES, IMAGES, LOGITS, PROBABILITIES, Backbone, Head, Session
from tlkit.util.statistics import softmax

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class TrainedSession(Session):
    """Images to features, logits and probabilities by a bundle's modules, in eager mode on the CPU."""

    input = IMAGES
    outputs = (FEATURES, LOGITS, PROBABILITIES)
    batch_size = 16

    def __init__(self, bundle: Bundle, backbone: Backbone, head: Head) -> None:
        self._trunk, self._head = load_modules(bundle, backbone, head)
        record = bundle.record
        self.metadata = metadata.facts(record.preprocessing, record.labels, {metadata.BUNDLE: bundle.digest})

    def run(self, array: NDArray[Any], outputs: Sequence[str] | None = None) -> dict[str, NDArray[np.float32]]:
        got = run_modules(self._trunk, self._head, array)
        got[PROBABILITIES] = softmax(got[LOGITS])
        return {name: got[name] for name in outputs or self.outputs}
