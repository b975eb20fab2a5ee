"""What a bundle or an exported graph says of itself, section by section."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tlkit.graph.metadata import PREFIX
from tlkit.model.bundle import open_bundle
from tlkit.model.exports import found
from tlkit.runtime.model import Model


@dataclass(frozen=True, slots=True)
class Inspection:
    """The facts about a bundle or a graph, by section."""

    path: Path
    sections: Mapping[str, Mapping[str, Any]]

    @property
    def exports(self) -> tuple[str, ...]:
        """What was exported from the bundle, as in "onnx/fp32"; nothing for a graph."""
        return tuple(self.sections.get("exports", {}))

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON knows it."""
        return {"path": str(self.path), **{name: dict(facts) for name, facts in self.sections.items()}}


def inspect(path: Path) -> Inspection:
    """Open a bundle, checked as a whole, or a graph, and return what it says."""
    return Inspection(path, _bundle(path) if path.is_dir() or not path.exists() else _graph(path))


def _bundle(root: Path) -> dict[str, dict[str, Any]]:
    bundle = open_bundle(root)
    record = bundle.record
    strategy = {name: value for name, value in asdict(record.strategy).items() if name != "report"}
    advice = {"advice": dict(record.strategy.report["recommendation"])} if record.strategy.report else {}
    return {
        "bundle": {"path": str(root), "digest": bundle.digest, "golden": [golden.name for golden in record.golden]},
        "data": {"labels": list(record.labels), **record.data},
        "network": {
            "backbone": asdict(record.backbone),
            "weights": dict(record.weights),
            "stages": dict(record.provenance) or dict.fromkeys(record.stages, "original"),
            "cut": record.cut,
            "width": record.width,
            "preprocessing": asdict(record.preprocessing),
            "parameters": sum(int(tensor.size) for tensor in bundle.trunk.values()),
        },
        "head": {**asdict(record.head), "parameters": sum(int(tensor.size) for tensor in bundle.head.values())},
        "training": {
            "strategy": strategy,
            **advice,
            "phases": [dict(phase) for phase in record.phases],
            "seed": record.seed,
            "metrics": dict(record.metrics["val"]),
        },
        "exports": {"/".join(place): str(root.joinpath(*place)) for place in found(root)},
    }


def _graph(file: Path) -> dict[str, dict[str, Any]]:
    model = Model.open(file, workers=1)
    known = {key.removeprefix(PREFIX): value for key, value in model.session.metadata.items()}
    return {
        "graph": {
            "path": str(file),
            "input": model.session.input,
            "outputs": list(model.session.outputs),
            **known,
            "labels": json.loads(known["labels"]),
            "preprocessing": asdict(model.preprocessing),
        }
    }
