"""What a graph says of itself: the names that stand in its metadata, written and read here and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from tlkit import __version__
from tlkit.errors import ArtefactError
from tlkit.model import exports
from tlkit.plugin.contract import Pixels

PREFIX = "tlkit."
PIXELS = PREFIX + "pixels"  # the recipe, as JSON
LABELS = PREFIX + "labels"  # in the order of the logits, as JSON; of a trunk alone there are none
BUNDLE = PREFIX + "bundle"  # the hash of the bundle that it was exported from
VERSION = PREFIX + "version"  # of the tlkit that exported it
BACKBONE = PREFIX + "backbone"
CUT = PREFIX + "cut"
HEAD = PREFIX + "head"
HEAD_FROM = PREFIX + exports.HEAD_FROM  # whether that is the bundle's own
PRECISION = PREFIX + "precision"
HEADS = PREFIX + "heads"  # of a graph with several: what each of them says of itself, as JSON


def facts(pixels: Pixels, labels: Sequence[str], more: Mapping[str, str]) -> dict[str, str]:
    """What every graph says, and `more`, whose names are those above."""
    return {PIXELS: recipe(pixels), LABELS: json.dumps(list(labels)), VERSION: __version__, **more}


def recipe(pixels: Pixels) -> str:
    """A pixel recipe as it stands in a graph."""
    return json.dumps(asdict(pixels))


def described(metadata: Mapping[str, str], file: Path) -> tuple[Pixels, tuple[str, ...]]:
    """The pixel recipe and the labels that a graph carries in its metadata."""
    try:
        known = json.loads(metadata[PIXELS])
        pixels = Pixels(**{**known, "mean": tuple(known["mean"]), "std": tuple(known["std"])})
        return pixels, tuple(json.loads(metadata[LABELS]))
    except (KeyError, TypeError, ValueError) as error:
        what = f"what the graph says of itself can't be read: {type(error).__name__}: {error}"
        raise ArtefactError(what, file=file, do="export it again") from error
