"""Replay the golden images of a bundle, from bytes to logits, on what was exported from it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tlkit.data.images import Rejected, load
from tlkit.deploy import built
from tlkit.deploy.parity import REPLAYS, TOLERANCES, Tolerance, Verdict, compare
from tlkit.deploy.session import OnnxSession
from tlkit.errors import UsageError
from tlkit.model.bundle import Bundle, Tensors
from tlkit.plugin.contract import FEATURES, IMAGES, Session

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Replay:
    """`pixels` names the golden images whose pixels differ here; `verdicts` has one for each graph."""

    images: int
    pixels: tuple[str, ...]
    verdicts: dict[str, Verdict]

    @property
    def passed(self) -> bool:
        """The gate: the same pixels, and the same values within the tolerance."""
        return not self.pixels and all(verdict.passed for verdict in self.verdicts.values())

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON knows it."""
        return {
            "passed": self.passed,
            "images": self.images,
            "pixels_differ": list(self.pixels),
            "graphs": {name: verdict.to_json() for name, verdict in self.verdicts.items()},
        }


def replay(
    bundle: Bundle,
    target: str = built.TARGET,
    precision: str = built.PRECISION,
    open_session: Callable[[Path], Session] = OnnxSession,
) -> Replay:
    """Hold every graph that was exported for one target and precision against the golden images.

    `open_session` opens a file of that target.
    """
    golden = bundle.record.golden
    if not golden:
        raise UsageError(
            "it keeps no golden images to replay", file=bundle.root, do="train without --golden 0, or use: tlkit eval"
        )
    images, differing = _pixels(bundle)
    expected, tolerance = _expected(bundle, target, precision)
    verdicts = {}
    for name in built.GRAPHS:
        session = open_session(built.graph_file(bundle.root, name, target, precision))
        inputs = images if session.input == IMAGES else expected[FEATURES]
        verdicts[name] = compare(expected, session, inputs, tolerance=tolerance)
    return Replay(len(golden), tuple(differing), verdicts)


def _expected(bundle: Bundle, target: str, precision: str) -> tuple[Tensors, Tolerance]:
    """What the golden images must give: what was trained or, below fp32, what was held against that at export."""
    built.graph_file(bundle.root, "model", target, precision)  # it is there, and this bundle's
    kept = built.expected(bundle.root / target / precision)
    return (bundle.expected(), TOLERANCES[precision]) if kept is None else (kept, REPLAYS[precision])


def _pixels(bundle: Bundle) -> tuple[NDArray[np.uint8], list[str]]:
    """The golden images as `load` gives them here, and the names of those that it gave otherwise in training."""
    size = bundle.record.pixels.size
    images, differing = [], []
    for golden, content in zip(bundle.record.golden, bundle.golden_bytes(), strict=True):
        try:
            image = load(content, bundle.record.pixels)
        except Rejected:
            image = np.zeros((size, size, 3), np.uint8)
        if hashlib.sha256(image.tobytes()).hexdigest() != golden.pixels:
            differing.append(golden.name)
        images.append(image)
    return np.stack(images), differing
