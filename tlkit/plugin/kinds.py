"""Table of the kinds of components: host, command line, conformance, scaffold and documents follow from it.

A new kind is a base class in `contract`, a hook in `hooks`, a module of checks, a template and a row here.
"""

from __future__ import annotations

from dataclasses import dataclass

from tlkit.plugin.contract import Backbone, Component, Head, Strategy, Target


@dataclass(frozen=True, slots=True)
class Kind:
    """Kind of component. `commands` and `task` go into the README of a new plugin; `{name}` is its component's."""

    base: type[Component]
    hook: str
    checks: tuple[str, ...]  # modules whose public functions are the checks, in order; the first has `SUBJECT`
    commands: tuple[str, ...]
    task: str

    @property
    def name(self) -> str:
        """Name, as in `--kind`."""
        return self.base.kind


_BACKBONE_CHECKS = ("subject", "declared", "stages", "weights", "running", "learning", "graph")
_TRAIN, _EXPORT = "tlkit train photos/ -o run/", "tlkit export run/ --onnx"

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            Backbone,
            "tlkit_backbones",
            tuple(f"tlkit.conformance.backbone.{module}" for module in _BACKBONE_CHECKS),
            (f"{_TRAIN} --backbone {{name}}", _EXPORT, "tlkit verify run/"),
            "Put your network into `stages`, with its own preprocessing and the origin of its weights.",
        ),
        Kind(
            Head,
            "tlkit_heads",
            ("tlkit.conformance.head",),
            (f"{_TRAIN} --head {{name}}", "tlkit inspect run/"),
            "Put your classifier into `module` and `solve`; a head that is trained by gradient leaves out `solve`.",
        ),
        Kind(
            Strategy,
            "tlkit_strategies",
            ("tlkit.conformance.strategy",),
            (f"{_TRAIN} --strategy {{name}}", "tlkit inspect run/"),
            "Put your training plan into `phases`, and choose where to `cut`.",
        ),
        Kind(
            Target,
            "tlkit_targets",
            ("tlkit.conformance.target",),
            (_TRAIN, "tlkit export run/ --target {name}", "tlkit verify run/ --target {name}"),
            "Put your runtime into `build` and the session, and its requirements into `missing`.",
        ),
    )
}
BY_HOOK: dict[str, Kind] = {kind.hook: kind for kind in KINDS.values()}
