"""Table of the kinds of components: host, command line, conformance, scaffold and documents follow from it.

A new kind is a base class in `contract` and a row here. It may have checks of its own and a template.
"""

from __future__ import annotations

from dataclasses import dataclass

from tlkit.plugin.contract import Backbone, Component, Head, Source, Strategy, Target
from tlkit.plugin.detection import Detector


@dataclass(frozen=True, slots=True)
class Kind:
    """Kind of component. `commands` and `task` go into the README of a new plugin; `{name}` is its component's."""

    base: type[Component]
    about: str  # what its hook returns
    checks: tuple[str, ...] = ()  # modules whose public functions are checks, in order; the first has `SUBJECT`
    commands: tuple[str, ...] = ()
    task: str = "Put your code into its methods."

    @property
    def name(self) -> str:
        """Name, as in `--kind`."""
        return self.base.kind

    @property
    def plural(self) -> str:
        """Name of several."""
        return f"{self.name.removesuffix('y')}ies" if self.name.endswith("y") else f"{self.name}s"

    @property
    def hook(self) -> str:
        """Name of the hook that returns components of this kind."""
        return f"tlkit_{self.plural}"


_BACKBONE_CHECKS = ("subject", "declared", "stages", "weights", "running", "learning", "graph")
_TRAIN, _EXPORT = "tlkit train photos/ -o run/", "tlkit export run/ --onnx"

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            Backbone,
            "pretrained networks",
            tuple(f"tlkit.conformance.backbone.{module}" for module in _BACKBONE_CHECKS),
            (f"{_TRAIN} --backbone {{name}}", _EXPORT, "tlkit verify run/"),
            "Put your network into `stages`, with its own preprocessing and the origin of its weights.",
        ),
        Kind(
            Head,
            "classifiers from features to logits",
            ("tlkit.conformance.head",),
            (f"{_TRAIN} --head {{name}}", "tlkit inspect run/"),
            "Put your classifier into `module` and `solve`; a head that is trained by gradient leaves out `solve`. "
            "`advise` recommends heads whose `report` has a cross-validation.",
        ),
        Kind(
            Detector,
            "scores of images of no known class",
            ("tlkit.conformance.detector.checks",),
            (f"{_TRAIN} --detector {{name}}", _EXPORT, "tlkit predict run/ a.jpg --unknown"),
            "Put your score into the module that `fit` and `restore` return.",
        ),
        Kind(
            Strategy,
            "training plans",
            ("tlkit.conformance.strategy",),
            (f"{_TRAIN} --strategy {{name}}", "tlkit inspect run/"),
            "Put your training plan into `phases`, and choose where to `cut`.",
        ),
        Kind(
            Target,
            "runtime formats to deploy to",
            ("tlkit.conformance.target",),
            (_TRAIN, "tlkit export run/ --target {name}", "tlkit verify run/ --target {name}"),
            "Put your runtime into `build` and the session, and its requirements into `missing`.",
        ),
        Kind(
            Source,
            "places to read images from",
            ("tlkit.conformance.source",),
            ("tlkit plugins", "tlkit plugins show {name}"),
            "Put what lists a place into `records` and what reads the bytes of one image into the reader.",
        ),
    )
}


def by_hook() -> dict[str, Kind]:
    """Return the kinds by the names of their hooks."""
    return {kind.hook: kind for kind in KINDS.values()}
