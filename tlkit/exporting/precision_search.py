"""The ladder: int8, int8 with the most sensitive layers in float, fp16, fp32; the first rung in the budget is taken.

A rung is measured on the validation split: how many images it gets right, against fp32, and how many it calls as fp32
does. Its head may be fitted again on the features of its own trunk, and is kept if it does better there. fp32 itself
loses nothing, so only a ladder that ends below it can fail.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from tlkit.data.dataset import Sample
from tlkit.errors import DataError, GateError
from tlkit.evaluation.evaluate import ModelOutputs, answers
from tlkit.evaluation.metrics import score
from tlkit.exporting.calibration import Calibration, draw, ranges
from tlkit.exporting.sensitivity import Layer, sensitivity
from tlkit.graph.quantize import FLAVOURS, OPERATORS, layers, quantize
from tlkit.model import exports, reference_images
from tlkit.model.bundle import Bundle
from tlkit.plugin.contract import FEATURES, PROBABILITIES, Progress
from tlkit.runtime.model import Model
from tlkit.runtime.session import on_disk
from tlkit.util.statistics import softmax, wilson

if TYPE_CHECKING:
    from tlkit.exporting.head_refit import Fit, Refitted

MOST = 5000  # validation images: half a point of accuracy is 25 of them
SHARES = (0.05, 0.1, 0.2, 0.4)  # of the layers, left in float one after the other
ROUNDING = 1e-9

Join = Callable[[str, onnx.ModelProto], onnx.ModelProto]  # (precision, trunk) -> model, with the bundle's head


@dataclass(frozen=True, slots=True)
class Candidate:
    """A trunk to try; `kept` names the layers that int8 leaves in float. `head` stands for the bundle's, if any."""

    precision: str
    trunk: onnx.ModelProto
    kept: tuple[str, ...] = ()
    head: Refitted | None = None

    @property
    def name(self) -> str:
        """What it is called in tables."""
        count = len(self.kept)
        return self.precision + (f", {count} layer{'s' if count > 1 else ''} in float" if count else "")


@dataclass(frozen=True, slots=True)
class Again:
    """A head that was fitted again on a candidate's features, beside the bundle's own, both measured on these.

    It is kept if more images are called rightly, or as many with a lower log loss.
    """

    kept: bool
    accuracy: float
    log_loss: float
    own_accuracy: float
    own_log_loss: float


@dataclass(frozen=True, slots=True)
class Rung:
    """What a candidate was measured to be. `drop` is in points of accuracy against fp32; shares lie in 0..1."""

    name: str
    kept: tuple[str, ...]
    images: int
    accuracy: float
    drop: float
    agreement: float
    interval: tuple[float, float]  # of the agreement, 95 %
    head: Again | None = None  # where it was fitted again; the figures above are those of the one that was kept
    proven: bool = True  # whether its features are still those that were trained, as far as its precision allows


@dataclass(frozen=True, slots=True)
class Climbed:
    """The rungs that were tried, the last of which was taken, and what they rest on."""

    rungs: tuple[Rung, ...]  # none where there was nothing to measure on
    sensitivity: tuple[Layer, ...]  # where it was needed, the most sensitive first
    calibration: Calibration | None
    max_drop: float | None

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON knows it."""
        return {
            "max_drop": self.max_drop,
            "rungs": [asdict(rung) for rung in self.rungs],
            "sensitivity": [asdict(layer) for layer in self.sensitivity],
            "calibration": None if self.calibration is None else self.calibration.to_json(),
        }


class Ladder:
    """The candidates of a bundle in rising precision, each made when it is its turn."""

    def __init__(
        self, bundle: Bundle, half: Callable[[], onnx.ModelProto], *, data: Path | None, progress: Progress
    ) -> None:
        self.bundle, self.half, self.data, self.progress = bundle, half, data, progress
        self.fp32: onnx.ModelProto = onnx.load_model(exports.graph_file(bundle.root, "trunk"))
        self.calibration: Calibration | None = None
        self.sensitivity: tuple[Layer, ...] = ()

    def candidates(self, precision: str, *, fallback: bool) -> Iterator[Candidate]:
        """Those of a precision, be it int8 in either flavour, and with `fallback` of every higher one."""
        if precision in FLAVOURS:
            yield from self._int8(precision)
        rest = ("fp16", "fp32") if precision in FLAVOURS else exports.PRECISIONS[exports.PRECISIONS.index(precision) :]
        for name in rest if fallback else {precision} - set(FLAVOURS):
            yield Candidate(name, self.half() if name == "fp16" else self.fp32)

    def _int8(self, flavour: str) -> Iterator[Candidate]:
        self.calibration = draw(self.bundle, self.data)
        images = self.calibration.images
        found = ranges(self.fp32, images, self.bundle.record.preprocessing, OPERATORS)
        yield Candidate(flavour, quantize(self.fp32, found, flavour=flavour))
        names = layers(self.fp32)
        tick = self.progress("sensitivity of layers", len(names))
        self.sensitivity = sensitivity(self.fp32, found, images, tick, flavour=flavour)
        for count in sorted({math.ceil(share * len(names)) for share in SHARES}):
            kept = tuple(layer.name for layer in self.sensitivity[:count])
            yield Candidate(flavour, quantize(self.fp32, found, flavour=flavour, keep=kept), kept)


class Trial:
    """The validation split, and what fp32 says of it; with `fit` also the training split, to fit heads again on."""

    def __init__(
        self, bundle: Bundle, join: Join, *, data: Path | None, progress: Progress, fit: Fit | None = None
    ) -> None:
        place, dataset = reference_images.dataset(bundle, data)
        self.samples: list[Sample] = reference_images.spread(dataset.of("val"), MOST)
        if not self.samples:
            raise DataError("it has no validation images to measure accuracy on", file=place, do="name others: --data")
        self.join, self.progress, self.fit = join, progress, fit
        self.train: Sequence[Sample] = dataset.of("train")
        self.reference = self._answers(exports.graph_file(bundle.root, "model"), "fp32")

    def first(
        self,
        candidates: Iterable[Candidate],
        max_drop: float | None,
        prove: Callable[[Candidate], bool] = lambda _candidate: True,
    ) -> tuple[Candidate, tuple[Rung, ...]]:
        """The first candidate that loses at most `max_drop` points (None: the first), and all that were measured.

        `prove` is asked of each within the budget: on few images one may call as many rightly that has fallen apart.
        """
        rungs: list[Rung] = []
        for candidate in candidates:
            best, rung = self.measure(candidate)
            within = max_drop is None or rung.drop <= max_drop + ROUNDING
            if max_drop is not None and within:
                rung = replace(rung, proven=prove(candidate))
            rungs.append(rung)
            if within and rung.proven:
                return best, tuple(rungs)
        tried = "; ".join(f"{rung.name}: {rung.drop:.2f}{'' if rung.proven else ', fallen apart'}" for rung in rungs)
        raise GateError(
            f"no graph stays within {max_drop:g} points of the accuracy of fp32 on {self.reference.truth.size} images "
            f"(points lost: {tried})",
            do="allow more with --max-drop, or a higher precision by leaving out --no-fallback",
        )

    def measure(self, candidate: Candidate) -> tuple[Candidate, Rung]:
        """The accuracy of a candidate, with the better head, and how far it agrees with fp32."""
        head, again = None, None
        with on_disk(self.join(candidate.precision, candidate.trunk)) as file:
            if self.fit is None or candidate.precision not in FLAVOURS:
                got = self._answers(file, candidate.name)
            else:
                own = self._answers(file, candidate.name, (FEATURES, PROBABILITIES))
                train = answers(
                    Model.open(file),
                    self.train,
                    self.progress(f"features of {candidate.name}", len(self.train)),
                    [FEATURES],
                )
                head, again, got = better(own, self.fit(train.arrays[FEATURES], train.truth))
        truth, before = self.reference.truth, self.reference.called
        right, right_before = int((got.called == truth).sum()), int((before == truth).sum())
        same, images = int((got.called == before).sum()), len(truth)
        rung = Rung(
            name=candidate.name,
            kept=candidate.kept,
            images=images,
            accuracy=right / images,
            drop=100 * (right_before - right) / images,
            agreement=same / images,
            interval=wilson(same, images),
            head=again,
        )
        return replace(candidate, head=head), rung

    def _answers(self, file: Path, name: str, outputs: Sequence[str] = (PROBABILITIES,)) -> ModelOutputs:
        tick = self.progress(f"accuracy of {name}", len(self.samples))
        return answers(Model.open(file), self.samples, tick, outputs)


def better(own: ModelOutputs, refitted: Refitted) -> tuple[Refitted | None, Again, ModelOutputs]:
    """The head fitted again if it does better than the bundle's own on the same features, and the better's answers."""
    given = softmax(refitted.logits(own.arrays[FEATURES]))
    before, after = (score(each, own.truth) for each in (own.arrays[PROBABILITIES], given))
    kept = (after.accuracy, -after.log_loss) > (before.accuracy, -before.log_loss)
    again = Again(kept, after.accuracy, after.log_loss, before.accuracy, before.log_loss)
    if not kept:
        return None, again, own
    return refitted, again, replace(own, arrays={**own.arrays, PROBABILITIES: given})
