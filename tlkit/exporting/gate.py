"""The gate of everything exported: each graph gives the expected output on real images, or nothing is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from tlkit.errors import GateError
from tlkit.model import exports
from tlkit.model.bundle import Bundle
from tlkit.model.reference_images import ParityImages, golden_pixels
from tlkit.plugin.contract import FEATURES, LOGITS, Session
from tlkit.verification.parity import TOLERANCES, HeadOf, Verdict, compare, cosines, head_of
from tlkit.version import __version__

if TYPE_CHECKING:
    from tlkit.verification.trained import TrainedModules


@dataclass(frozen=True, slots=True)
class ExportResult:
    """The folder that was written, the images that its graphs were checked on, and the verdict on each graph.

    `unproven` is the reason why there is no verdict, where what was built can't be run on this machine.
    """

    folder: Path
    images: int
    drawn_from: str
    verdicts: Mapping[str, Verdict]
    unproven: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "images": self.images,
            "drawn_from": self.drawn_from,
            "parity": {name: verdict.to_json() for name, verdict in self.verdicts.items()},
            "unproven": self.unproven,
        }


HALF_IMAGES = 4  # that are run in real half precision, at which PyTorch is slow


def check_half_precision(modules: TrainedModules, images: NDArray[np.uint8], features: NDArray[np.float32]) -> None:
    """Raise a GateError if the trunk in float16 does not give the trained features of images.

    ONNX Runtime's CPU kernels compute fp16 graphs in float, where nothing overflows; PyTorch's do not.
    """
    rows = np.unique(np.linspace(0, len(images) - 1, HALF_IMAGES).astype(int))
    got, expected = modules.half_features(images[rows]), features[rows]
    finite = int(np.isfinite(got).all(1).sum())
    if finite < len(rows):
        what = f"its activations exceed float16 (65,504): {len(rows) - finite} of {len(rows)} images have no features"
        raise GateError(what, file=modules.bundle.root, do="choose fp32, or int8 with --max-drop")
    cosine = float(cosines(expected, got).min())
    if cosine < TOLERANCES["fp16"].cosine:
        what = f"in float16 its features differ from what was trained: lowest cosine {cosine:.4f}"
        raise GateError(what, file=modules.bundle.root, do="choose fp32, or int8 with --max-drop")


@dataclass(frozen=True, slots=True)
class CombinedExport:
    """Files written from several bundles, and the verdict on each by its name."""

    folder: Path
    verdicts: Mapping[str, Verdict]

    @property
    def folders(self) -> tuple[Path, ...]:
        return (self.folder,)

    def told(self, what: str) -> str:
        """Return a line that says what the folder holds, and one for each verdict."""
        lines = [f"  {name}: {verdict.summary()}" for name, verdict in self.verdicts.items()]
        return "\n".join([f"{self.folder}: {what}", *lines])

    def facts(self) -> dict[str, Any]:
        """Return the verdicts for JSON."""
        return {name: verdict.to_json() for name, verdict in self.verdicts.items()}


class Gate:
    """Compares the graphs of one export with `expected`, the `features`, `logits` and scores of the parity images.

    Below fp32, logits of a model are compared with what its own head gives for its own features: that head has to pass
    first. `head_precision` is the number format of the head, which is float in ONNX graphs of every precision.
    """

    def __init__(
        self,
        bundle: Bundle,
        parity: ParityImages,
        expected: Mapping[str, NDArray[np.float32]],
        *,
        precision: str = exports.PRECISION,
        head_precision: str = exports.PRECISION,
    ) -> None:
        self.bundle, self.parity, self.expected, self.precision = bundle, parity, expected, precision
        self.verdicts: dict[str, Verdict] = {}
        self._head_precision = head_precision
        self._head: HeadOf | None = None

    def admit(self, name: str, session: Session, *, what: str | None = None) -> None:
        """Keep the verdict on a graph; raises GateError where it fails. `what` names the graph in the error."""
        is_head = session.input == FEATURES
        inputs = self.expected[FEATURES] if is_head else self.parity.images
        tolerance = TOLERANCES[self._head_precision if is_head else self.precision]
        head, activation = None if is_head else self._head, self.bundle.record.activation
        verdict = compare(self.expected, session, inputs, tolerance=tolerance, head=head, activation=activation)
        if not verdict.passed:
            what = f"{what or name} does not compute what was trained: {verdict.summary()}"
            raise GateError(what, file=self.bundle.root)
        if is_head and self.precision != exports.PRECISION:
            self._head = head_of(session)
        self.verdicts[name] = verdict

    def keep_expected(self, model: Session, folder: Path) -> None:
        """Below fp32, write the output for the golden images: a replay elsewhere is compared with it more strictly."""
        if self.precision != exports.PRECISION and self.bundle.record.golden:
            got = model.run(golden_pixels(self.bundle), [FEATURES, LOGITS, *self.bundle.record.scores])
            content = {name: np.ascontiguousarray(array) for name, array in got.items()}
            (folder / exports.EXPECTED).write_bytes(save(content))

    def facts(self) -> dict[str, Any]:
        """Return what the manifest of every export says beside its files."""
        return {
            "tlkit": __version__,
            "versions": {package: version(package) for package in ("torch", "onnx", "onnxruntime")},
            "parity_images": {"count": len(self.parity.images), "from": self.parity.drawn_from},
        }

    def parity_facts(self) -> dict[str, Any]:
        return {"parity": {name: verdict.to_json() for name, verdict in self.verdicts.items()}}

    def result(self, folder: Path, unproven: str | None = None) -> ExportResult:
        """Return the result of an export whose graphs were admitted."""
        return ExportResult(folder, len(self.parity.images), self.parity.drawn_from, dict(self.verdicts), unproven)
