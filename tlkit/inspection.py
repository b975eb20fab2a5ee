"""The facts about a bundle or an exported graph: as JSON, and as text in sections."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tlkit.evaluation.conformal import Achieved
from tlkit.evaluation.metrics import Metrics, metric_lines
from tlkit.graph.metadata import PREFIX
from tlkit.model.bundle import ORIGINAL, RECORD, open_bundle, reading_fields
from tlkit.model.exports import MANIFEST, Exports
from tlkit.runtime.engine import Opener
from tlkit.runtime.model import Model
from tlkit.util.schema import parse_json
from tlkit.util.text import listed, table

DECLARED = ("name", "distribution", "version", "options")  # of a component
SHOWN = 12  # classes, stages or names of a list that text shows


@dataclass(frozen=True, slots=True)
class Inspection:
    """The facts about a bundle, checked as a whole, or about a graph."""

    path: Path
    is_bundle: bool
    facts: Mapping[str, Any]

    @property
    def exports(self) -> tuple[str, ...]:
        """The exports of the bundle, such as "onnx/fp32"."""
        return tuple(self.facts.get("exports", ()))

    def __repr__(self) -> str:
        sections = _bundle_sections(self.facts) if self.is_bundle else [("Graph", self.facts)]
        return "\n\n".join(_section(title, rows) for title, rows in sections)

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON knows it."""
        return dict(self.facts)


def inspect(path: Path, opener: Opener) -> Inspection:
    """Open a bundle, checked as a whole, or a graph of any target, and return the facts about it."""
    exported = any((place / MANIFEST).exists() for place in (path, path.parent))
    if path.is_file() or (path.is_dir() and exported and not (path / RECORD).exists()):
        return Inspection(path, False, _graph(path, opener))
    with reading_fields(path):
        found = Inspection(path, True, _bundle(path))
        repr(found)
    return found


def _bundle(root: Path) -> dict[str, Any]:
    bundle = open_bundle(root)
    record = bundle.record
    strategy = asdict(record.strategy)
    report = strategy.pop("report")
    return {
        "path": str(root),
        "digest": bundle.digest,
        "golden": [golden.name for golden in record.golden],
        "labels": list(record.labels),
        "data": dict(record.data),
        "backbone": asdict(record.backbone),
        "weights": dict(record.weights),
        "stages": list(record.stages),
        "provenance": dict(record.provenance),
        "cut": record.cut,
        "width": record.width,
        "preprocessing": asdict(record.preprocessing),
        "head": asdict(record.head),
        "activation": record.activation,
        "scores": list(record.scores),
        "novelty": dict(record.novelty),
        "coverage": record.coverage.get("achieved", []),
        "strategy": strategy,
        **({"advice": report["recommendation"]} if report else {}),
        "phases": [dict(phase) for phase in record.phases],
        "seed": record.seed,
        "metrics": dict(record.metrics["val"]),
        "parameters": {
            "trunk": sum(int(tensor.size) for tensor in bundle.trunk.values()),
            "head": sum(int(tensor.size) for tensor in bundle.head.values()),
        },
        "exports": ["/".join(place) for place in Exports.of(bundle).names()],
    }


def _graph(path: Path, opener: Opener) -> dict[str, Any]:
    if (opened := opener.open_path(path)) is not None:
        model = Model.from_session(*opened[:2])
    else:
        model = Model.open(path, workers=1)
    known = {key.removeprefix(PREFIX): value for key, value in model.session.metadata.items()}
    return {
        "path": str(path),
        **({} if opened is None else {"target": opened[2]}),
        "input": model.session.input,
        "outputs": list(model.session.outputs),
        **known,
        "labels": parse_json(known["labels"]),
        "preprocessing": asdict(model.preprocessing),
    }


def _bundle_sections(facts: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any] | Iterable[str]]]:
    data, labels, detector = facts["data"], facts["labels"], facts["novelty"]
    yield "Bundle", {name: facts[name] for name in ("path", "digest")} | {"golden images": len(facts["golden"])}
    yield "Data", {f"classes ({len(labels)})": labels, **data}
    states = facts["provenance"] or dict.fromkeys(facts["stages"], ORIGINAL)
    yield (
        "Network",
        {
            "backbone": _component(facts["backbone"]),
            "weights": facts["weights"],
            "stages": [name if state == ORIGINAL else f"{name} ({state})" for name, state in states.items()],
            "cut": f"{facts['cut']}, {facts['width']} features",
            "preprocessing": facts["preprocessing"],
            "parameters": f"{facts['parameters']['trunk']:,}",
        },
    )
    yield (
        "Head",
        {
            "head": _component(facts["head"]),
            "fit": facts["head"]["report"],
            "activation": None if facts["activation"] == "softmax" else facts["activation"],
            "scores": facts["scores"],
            "detector": _component(detector) if detector else None,
            "novelty": {name: value for name, value in detector.items() if name not in DECLARED},
            "parameters": f"{facts['parameters']['head']:,}",
        },
    )
    phases = {f"phase {number}": phase for number, phase in enumerate(facts["phases"], 1)}
    advice = facts.get("advice", {}).get("reasons", ())
    yield "Training", {"strategy": _component(facts["strategy"]), **phases, "seed": facts["seed"], "advice": advice}
    measured = [
        *metric_lines(Metrics.from_json(facts["metrics"]), labels),
        *(str(Achieved(**each)) for each in facts["coverage"]),
    ]
    yield f"Validation ({facts['metrics']['images']} images)", measured
    yield "Exports", facts["exports"] or ["none"]


def _component(facts: Mapping[str, Any]) -> str:
    options = "".join(f", {name} {_brief(value)}" for name, value in facts["options"].items())
    return f"{facts['name']} ({facts['distribution']} {facts['version']}){options}"


def _section(title: str, content: Mapping[str, Any] | Iterable[str]) -> str:
    if isinstance(content, Mapping):
        kept = [(name, _brief(value)) for name, value in content.items() if value not in ({}, [], (), None)]
        content = table(kept, left=2)
    return "\n".join([title, *(f"  {line}" for line in content)])


def _brief(value: object) -> str:
    """Return a value on one line, short enough to read; of a mapping without what is empty or zero."""
    match value:
        case Mapping():
            kept = {key: inner for key, inner in value.items() if inner not in ({}, None, 0, False, "none")}
            shown = {key: _brief(inner) for key, inner in kept.items()}
            return ", ".join(f"{key} {text}" for key, text in shown.items() if text)
        case list() | tuple():
            return listed(map(_brief, value), SHOWN)
        case float():
            return f"{value:.4g}"
        case None:
            return "none"
        case _:
            return str(value)
