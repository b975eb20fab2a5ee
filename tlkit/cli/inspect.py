"""`tlkit inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from tlkit.cli.common import FilePath, json_option, show, wrote
from tlkit.util.text import quoted


@click.command(short_help="Show what a bundle or an exported graph is.")
@click.argument("path", type=FilePath)
@json_option
def command(path: Path, as_json: bool) -> None:
    """Show what PATH is: a bundle, checked as a whole, or an exported graph.

    \b
    Examples:
      tlkit inspect run/
      tlkit inspect run/onnx/fp32/model.onnx --json
    """
    facts = _bundle(path) if path.is_dir() or not path.exists() else _graph(path)
    then = f"tlkit export {quoted(path)} --onnx" if path.is_dir() else f"tlkit predict {quoted(path)} IMAGE..."
    if facts.get("exported"):
        then = f"tlkit verify {quoted(path)}" if facts["golden"] else f"tlkit predict {quoted(path)} IMAGE..."
    width = max(map(len, facts)) + 2
    show(facts, [f"{key:<{width}}{_brief(value)}" for key, value in facts.items()], as_json)
    wrote(None, then=then)


def _bundle(root: Path) -> dict[str, Any]:
    from dataclasses import asdict

    from tlkit.model.bundle import open_bundle
    from tlkit.model.exports import found

    bundle = open_bundle(root)
    record = bundle.record
    return {
        "bundle": str(root),
        "digest": bundle.digest,
        "labels": list(record.labels),
        "backbone": asdict(record.backbone),
        "weights": dict(record.weights),
        "stages": list(record.stages),
        "provenance": dict(record.provenance),
        "cut": record.cut,
        "width": record.width,
        "pixels": asdict(record.preprocessing),
        "head": asdict(record.head),
        "strategy": {name: value for name, value in asdict(record.strategy).items() if name != "report"},
        **({"advice": dict(record.strategy.report["recommendation"])} if record.strategy.report else {}),
        "phases": [dict(phase) for phase in record.phases],
        "seed": record.seed,
        "data": dict(record.data),
        "val": dict(record.metrics["val"]),
        "parameters": {
            "trunk": sum(int(tensor.size) for tensor in bundle.trunk.values()),
            "head": sum(int(tensor.size) for tensor in bundle.head.values()),
        },
        "golden": [golden.name for golden in record.golden],
        "exported": ["/".join(place) for place in found(root)],
    }


def _graph(file: Path) -> dict[str, Any]:
    import json
    from dataclasses import asdict

    from tlkit.graph.metadata import PREFIX
    from tlkit.runtime.model import Model

    model = Model.open(file, workers=1)
    known = {key.removeprefix(PREFIX): value for key, value in model.session.metadata.items()}
    return {
        "graph": str(file),
        "input": model.session.input,
        "outputs": list(model.session.outputs),
        **known,
        "labels": json.loads(known["labels"]),
        "pixels": asdict(model.preprocessing),
    }


def _brief(value: object) -> str:
    """A value on one line, short enough to read."""
    match value:
        case Mapping():
            return ", ".join(f"{key} {_brief(inner)}" for key, inner in value.items() if inner not in ({}, None))
        case list() | tuple() if len(value) > 12:
            return f"{len(value)}: " + ", ".join(map(_brief, value[:8])) + ", ..."
        case list() | tuple():
            return ", ".join(map(_brief, value)) or "-"
        case float():
            return f"{value:.4g}"
        case _:
            return str(value)
