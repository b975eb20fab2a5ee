"""Bundles exported, and their exports replayed, with components that need not be installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tlkit.model.bundle import open_bundle
from tlkit.model.exports import Export, Exports
from tlkit.plugin.contract import Backbone, Head, Session, Target

if TYPE_CHECKING:
    from tlkit.exporting.gate import ExportResult
    from tlkit.exporting.precision_search import PrecisionSearchResult
    from tlkit.exporting.run import ExportReport
    from tlkit.verification.replay import Replay
    from tlkit.verification.trained import TrainedModules


def modules(run: Path, backbone: Backbone, head: Head) -> TrainedModules:
    """Return the trained modules of a bundle."""
    from tlkit.verification.trained import TrainedModules

    return TrainedModules(open_bundle(run), lambda _bundle: (backbone, head))


def exported(run: Path, backbone: Backbone, head: Head, precision: str = "fp32", **options: Any) -> ExportReport:
    """Export a bundle's ONNX graphs."""
    from tlkit_standard.targets.onnx import Onnx

    from tlkit.exporting.run import export

    return export(modules(run, backbone, head), [Onnx()], precision=precision, **options)


def searched(
    run: Path, backbone: Backbone, head: Head, precision: str = "int8", **options: Any
) -> tuple[ExportResult, PrecisionSearchResult]:
    """Export a bundle's ONNX graphs in a precision below fp32; what was written, and the search for it."""
    report = exported(run, backbone, head, precision, **options)
    return report.exports[-1], report.searches[precision]


def built(
    run: Path, target: Target, precision: str = "fp32", modules: TrainedModules | None = None, **options: Any
) -> ExportResult:
    """Build a target from a bundle's graphs; one that needs PyTorch modules is given the `modules`."""
    from tlkit.exporting.targets import build_target
    from tlkit.model.reference_images import parity_images
    from tlkit.verification.trained import TrainedModules

    if modules is None:
        modules = TrainedModules(open_bundle(run), lambda _bundle: pytest.fail("no module was needed"))
    bundle = modules.bundle
    return build_target(modules, Exports.of(bundle), target, parity_images(bundle), precision=precision, **options)


def export_of(run: Path, precision: str = "fp32", target: str = "onnx") -> Export:
    """Open an export again."""
    return Exports.of(open_bundle(run)).get(target, precision)


def replayed_alone(run: Path, file: Path) -> Replay:
    """Replay a bundle's golden images on one ONNX file."""
    from tlkit.runtime.session import OnnxSession
    from tlkit.verification.replay import replay_file

    return replay_file(open_bundle(run), OnnxSession(file), file)


def replayed(
    run: Path, precision: str = "fp32", target: str = "onnx", session: Callable[[Path], Session] | None = None
) -> Replay:
    """Replay a bundle's golden images on an export; `session` opens its files."""
    from tlkit.verification.replay import replay

    opener = None if session is None else lambda export, graph: session(export.file(graph))
    return replay(open_bundle(run), export_of(run, precision, target), opener)
