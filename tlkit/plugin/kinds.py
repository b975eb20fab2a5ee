"""Table of the kinds of components: host, command line, conformance, scaffold and documents follow from it.

A new kind is a base class in `contract`, a hook in `hooks`, a module of checks, a template and a row here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from tlkit.plugin import hooks
from tlkit.plugin.contract import Backbone, Component, Head, Strategy, Target


class Template(NamedTuple):
    """Template of a new plugin: its code, and the commands and tasks for its README; `{name}` is the component's."""

    code: str  # file below tlkit/conformance/templates
    commands: tuple[str, ...]
    task: str


@dataclass(frozen=True, slots=True)
class Kind:
    """Kind of component."""

    name: str
    base: type[Component]
    hook: str
    checks: tuple[str, ...]  # modules whose public functions are the checks, in order; the first has `SUBJECT`
    template: Template


def _kind(base: type[Component], hook: object, checks: Iterable[str], template: Template) -> Kind:
    return Kind(base.kind, base, hook.__name__, tuple(f"tlkit.conformance.{each}" for each in checks), template)  # type: ignore[attr-defined]


_BACKBONE_CHECKS = ("subject", "declared", "stages", "state", "weights", "running", "learning", "graph")
_TRAIN, _EXPORT = "tlkit train photos/ -o run/", "tlkit export run/ --onnx"

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        _kind(
            Backbone,
            hooks.tlkit_backbones,
            (f"backbone.{module}" for module in _BACKBONE_CHECKS),
            Template(
                "backbone.py.tmpl",
                (f"{_TRAIN} --backbone {{name}}", _EXPORT, "tlkit verify run/"),
                "Put your network into `stages`, with its own preprocessing and the origin of its weights.",
            ),
        ),
        _kind(
            Head,
            hooks.tlkit_heads,
            ("head",),
            Template(
                "head.py.tmpl",
                (f"{_TRAIN} --head {{name}}", "tlkit inspect run/"),
                "Put your classifier into `module` and `solve`; a head that is trained by gradient leaves out `solve`.",
            ),
        ),
        _kind(
            Strategy,
            hooks.tlkit_strategies,
            ("strategy",),
            Template(
                "strategy.py.tmpl",
                (f"{_TRAIN} --strategy {{name}}", "tlkit inspect run/"),
                "Put your training plan into `phases`, and choose where to `cut`.",
            ),
        ),
        _kind(
            Target,
            hooks.tlkit_targets,
            ("target",),
            Template(
                "target.py.tmpl",
                (_TRAIN, "tlkit export run/ --target {name}", "tlkit verify run/ --target {name}"),
                "Put your runtime into `build` and the session, and its requirements into `missing`.",
            ),
        ),
    )
}
BY_HOOK: dict[str, Kind] = {kind.hook: kind for kind in KINDS.values()}
