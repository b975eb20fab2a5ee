"""Search for the lowest precision that stays within a maximum accuracy drop.

A candidate is measured on the validation split: its accuracy, and the images that it and fp32 classify differently
(see `evidence`).
Its head may be refitted on the features of its own trunk, and is kept if it is better. fp32 itself loses nothing, so
only a search that ends below it can fail.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tlkit.data.dataset import Sample, groups_of
from tlkit.errors import DataError, GateError
from tlkit.evaluation.evaluate import ModelOutputs, run_samples
from tlkit.exporting.calibration import Calibration, Layer
from tlkit.exporting.candidates import Candidate, Candidates, SearchPolicy
from tlkit.exporting.evidence import CrossValidation, Pairs, comparable, lost_class
from tlkit.exporting.gate import check_half_precision
from tlkit.exporting.head_refit import HeadRefit, better, refit
from tlkit.exporting.targets import graphs_of
from tlkit.graph.quantize import FLAVORS
from tlkit.model import reference_images
from tlkit.model.exports import Exports
from tlkit.model.reference_images import ParityImages
from tlkit.plugin.contract import FEATURES, PROBABILITIES, Progress, silent
from tlkit.runtime.model import Model
from tlkit.runtime.session import OnnxSession, load_graph, on_disk
from tlkit.util.resources import cores
from tlkit.util.statistics import wilson
from tlkit.util.text import span
from tlkit.verification.parity import TOLERANCES, compare
from tlkit.verification.trained import TrainedModules


@dataclass(frozen=True, slots=True)
class CandidateResult:
    """A measured candidate. `drop` is that of the accuracy against fp32, in percentage points; shares lie in 0..1."""

    name: str
    kept: tuple[str, ...]  # layers in float
    images: int
    accuracy: float  # on the validation split
    drop: float
    agreement: float  # share of images with the same label as in fp32
    interval: tuple[float, float]  # of the agreement, 95 %
    pairs: Pairs  # behind drop and agreement
    lost_class: str | None = None  # a label whose recall falls by a quarter or more
    head: HeadRefit | None = None  # where it was refitted; the figures above are those of the head that was kept
    in_tolerance: bool = True  # whether the features are within the tolerance of the precision

    def __str__(self) -> str:
        text = f"accuracy {self.accuracy:.1%}, drop {self.drop:.2f} percentage points ({self.pairs.lost} images lost, "
        text += f"{self.pairs.gained} gained), label agreement {self.agreement:.1%} (95 %: {span(self.interval)})"
        if self.lost_class is not None:
            text += f", class {self.lost_class} lost"
        return text + ("" if self.in_tolerance else ", features out of tolerance")


@dataclass(frozen=True, slots=True)
class PrecisionSearchResult:
    """The candidates that were tried, the last of which was chosen, and the evidence behind them."""

    candidates: tuple[CandidateResult, ...]  # none where there were no images to measure on
    sensitivity: tuple[Layer, ...]  # where it was needed, the most sensitive first
    calibration: Calibration | None
    max_drop: float | None
    undecided: str | None = None  # what so few images can't tell about the one that was chosen

    def to_json(self) -> dict[str, Any]:
        return {
            "max_drop": self.max_drop,
            "undecided": self.undecided,
            "candidates": [asdict(each) for each in self.candidates],
            "sensitivity": [asdict(layer) for layer in self.sensitivity],
            "calibration": None if self.calibration is None else self.calibration.to_json(),
        }


class PrecisionSearch:
    """Tries candidates of a bundle, whose fp32 graphs have to be there.

    With `refit_head`, the head is refitted on the features of every int8 trunk that is tried.
    """

    def __init__(
        self,
        modules: TrainedModules,
        found: Exports,
        parity: ParityImages,
        *,
        refit_head: bool = False,
        data: Path | None = None,
        progress: Progress = silent,
    ) -> None:
        self.modules, self.parity, self.refit_head, self.data = modules, parity, refit_head, data
        self.policy, self.progress = SearchPolicy(), progress
        fp32 = found.get()
        self.model, self.head = fp32.file("model"), load_graph(fp32.file("head"))
        self.expected = OnnxSession(self.model).run(parity.images)
        graphs = load_graph(fp32.file("trunk")), self.head
        self.candidates = Candidates(modules, graphs, self.policy, data, progress)
        self.train: Sequence[Sample] = ()
        self.val: Sequence[Sample] = ()
        self.training: CrossValidation | None = None

    def run(
        self, precision: str, *, max_drop: float | None = None, fallback: bool = True
    ) -> tuple[Candidate, PrecisionSearchResult]:
        """Return the first candidate from `precision` upwards that loses at most `max_drop` percentage points.

        Without `max_drop` that is the first one, whatever it loses. Raises DataError where there are no images and
        something depends on them, GateError where no candidate is good enough.
        """
        candidates = self.candidates.starting_at(precision, fallback=fallback and max_drop is not None)
        try:
            self._find_images()
        except DataError:
            if max_drop is not None or self.data is not None or self.refit_head:
                raise
            chosen, results = next(candidates), list[CandidateResult]()  # int8 asks for images itself
        else:
            chosen, results = self.first(candidates, max_drop)
        evidence, undecided = self.candidates, None
        if results and max_drop is not None and chosen.precision != "fp32":
            undecided = results[-1].pairs.undecided(max_drop)
        return chosen, PrecisionSearchResult(
            tuple(results), evidence.sensitivity, evidence.calibration, max_drop, undecided
        )

    def first(self, candidates: Iterable[Candidate], max_drop: float | None) -> tuple[Candidate, list[CandidateResult]]:
        """Return the first candidate within the accuracy budget, and the results of all that were measured.

        Within a budget the features have to be in tolerance as well: on few images, a trunk with broken features may
        classify as many correctly.
        """
        if not self.val:
            self._find_images()
        reference = self._outputs(self.model, "fp32")
        if max_drop is not None:
            self.training = self._cross_validation()
        results: list[CandidateResult] = []
        for candidate in candidates:
            try:
                best, result = self.measure(candidate, reference)
            except GateError:  # it gives no numbers for some images
                if max_drop is None:
                    raise
                best, result = candidate, _broken(candidate, reference)
            within = max_drop is None or not (result.pairs.exceeds(max_drop) or result.lost_class is not None)
            if max_drop is not None and within and result.in_tolerance:
                result = replace(result, in_tolerance=self._in_tolerance(candidate))
            results.append(result)
            if within and result.in_tolerance:
                return best, results
        tried = "; ".join(f"{each.name}: {each.drop:.2f}{'' if each.in_tolerance else ', broken'}" for each in results)
        raise GateError(
            f"no candidate stays within an accuracy drop of {max_drop:g} percentage points on {len(reference.truth)} "
            f"images (drops: {tried})",
            do="raise --max-drop, or leave out --no-fallback for a higher precision",
        )

    def measure(self, candidate: Candidate, reference: ModelOutputs) -> tuple[Candidate, CandidateResult]:
        """Return a candidate with the better head, and its accuracy and label agreement with the fp32 outputs.

        A refitted head is compared on the validation split alone: it was fitted to the training split. Raises
        GateError if an output is NaN or infinite where that of fp32 is not.
        """
        head, comparison, training = None, None, None
        graphs = graphs_of(self.modules.bundle, candidate.trunk, self.head, candidate.precision)
        with on_disk(graphs["model"]) as file:
            if self.refit_head and candidate.precision in FLAVORS:
                own = self._outputs(file, candidate.name, (FEATURES, PROBABILITIES), reference)
                train = self._features(file, self.train, candidate.name)
                groups = groups_of([each for each in self.train if str(each.path) not in train.rejected])
                refitted = refit(self.modules, train.arrays[FEATURES], train.truth, groups)
                head, comparison, got = better(own, refitted)
            else:
                got = self._outputs(file, candidate.name, reference=reference)
            if head is None and self.training is not None:
                training = self._training_pairs(self.training, file, candidate.name)
        pairs = Pairs.of(reference.predicted, got.predicted, reference.truth)
        if training is not None:
            pairs = pairs.joined(training)
        same = pairs.images - pairs.different
        lost = lost_class(reference.predicted, got.predicted, reference.truth)
        result = CandidateResult(
            name=candidate.name,
            kept=candidate.kept,
            images=pairs.images,
            accuracy=got.accuracy,
            drop=pairs.drop,
            agreement=same / pairs.images,
            interval=wilson(same, pairs.images),
            pairs=pairs,
            lost_class=None if lost is None else self.modules.bundle.record.labels[lost],
            head=comparison,
        )
        return replace(candidate, head=head), result

    def _find_images(self) -> None:
        place, dataset = reference_images.dataset(self.modules.bundle, self.data)
        self.val = reference_images.spread(dataset.of("val"), self.policy.max_images)
        self.train = dataset.of("train")
        if not self.val:
            raise DataError("it has no validation images to measure accuracy on", file=place, do="name others: --data")

    def _cross_validation(self) -> CrossValidation | None:
        """Return predictions for the training split, if the validation split is small and they can be had."""
        samples = reference_images.spread(self.train, self.policy.paired_images)
        if len(self.val) >= self.policy.paired_images or not comparable(self.modules, samples):
            return None
        got = self._features(self.model, samples, "fp32")
        if got.rejected:
            return None
        try:
            return CrossValidation(self.modules, samples, got.arrays[FEATURES], got.truth)
        except DataError:
            return None

    def _training_pairs(self, training: CrossValidation, file: Path, name: str) -> Pairs:
        calibration = self.candidates.calibration
        names = () if calibration is None else calibration.names
        rows = training.rows(self.policy.paired_images - len(self.val), names)
        got = self._features(file, [training.samples[row] for row in rows], name) if len(rows) else None
        return Pairs(0, 0, 0, 0) if got is None or got.rejected else training.pairs(rows, got.arrays[FEATURES])

    def _features(self, file: Path, samples: Sequence[Sample], name: str) -> ModelOutputs:
        return run_samples(self._open(file), samples, self.progress(f"features of {name}", len(samples)), [FEATURES])

    def _outputs(
        self, file: Path, name: str, outputs: Sequence[str] = (PROBABILITIES,), reference: ModelOutputs | None = None
    ) -> ModelOutputs:
        tick, got = self.progress(f"accuracy of {name}", len(self.val)), None
        try:
            got = run_samples(self._open(file), self.val, tick, outputs)
        except DataError:  # no image has an output
            if reference is None:
                raise
        if got is None or (reference is not None and got.rejected.keys() != reference.rejected.keys()):
            what = f"{name} gives NaN or infinity for images that fp32 has outputs for"
            raise GateError(what, file=self.modules.bundle.root, do="choose a higher precision, or give --max-drop")
        return got

    @staticmethod
    def _open(file: Path) -> Model:
        """Open a graph untuned, as no candidate was tuned: all are compared in the same runtime config."""
        return Model.from_session(OnnxSession(file, workers=cores()), file)

    def _in_tolerance(self, candidate: Candidate) -> bool:
        """Return whether a candidate's trunk gives the trained features, within the tolerance of its precision."""
        with on_disk(candidate.trunk) as file:
            tolerance = TOLERANCES[candidate.precision]
            if not compare(self.expected, OnnxSession(file), self.parity.images, tolerance=tolerance).passed:
                return False
        if candidate.precision == "fp16":
            try:
                check_half_precision(self.modules, self.parity.images, self.expected[FEATURES])
            except GateError:
                return False
        return True


def _broken(candidate: Candidate, reference: ModelOutputs) -> CandidateResult:
    """Return the result of a candidate without outputs for some images, as if it classified none correctly."""
    count = len(reference.truth)
    pairs = Pairs.of(reference.predicted, np.full(count, -1), reference.truth)
    shares = (0.0, pairs.drop, 0.0, wilson(0, count), pairs)
    return CandidateResult(candidate.name, candidate.kept, count, *shares, in_tolerance=False)
