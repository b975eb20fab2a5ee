"""The verbs of the Python API that show what a bundle, a graph or a model is and does."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tlkit import defaults, resolve
from tlkit.progress import shown
from tlkit.resolve import CPU, StrPath
from tlkit.util.files import local_path
from tlkit.util.locks import claim

if TYPE_CHECKING:
    from tlkit.inspection import Inspection
    from tlkit.plugin.contract import Progress
    from tlkit.reporting.run import Report
    from tlkit.runtime.model import Model


def report(
    model: Model | StrPath,
    source: StrPath,
    out: StrPath | None = None,
    *,
    against: Model | StrPath | None = None,
    split: str | None = None,
    pictures: bool = True,
    progress: Progress | None = None,
) -> Report:
    """Return what a model gets right and wrong on a labelled dataset, and why; in a notebook it shows its page.

    `model`, and `against`, another one of the same classes, are what `load` returned, a bundle or a graph. The split
    is chosen as by `evaluate`. `out` names an HTML file to write the page to, with `predictions.parquet` beside it.
    Without `pictures` the page holds none.
    """
    from tlkit.pages.html import check
    from tlkit.reporting import predictions
    from tlkit.reporting.run import report

    place = resolve.optional_path(out)
    if place is not None:
        check(place)
        predictions.check(predictions.beside(place))
    with claim(place), shown(progress) as bars:
        other = None if against is None else _model(against)
        found = report(_model(model), local_path(source), against=other, split=split, pictures=pictures, progress=bars)
        if place is not None and found.save(place) is None:
            resolve.warn('predictions.parquet needs pyarrow, and is not written; run: pip install "tlkit[parquet]"')
    return found


def inspect(path: StrPath) -> Inspection:
    """Return what a bundle, checked as a whole, or an exported graph of any target says of itself."""
    from tlkit.inspection import inspect

    return inspect(local_path(path), resolve.opener(CPU, allow_cpu=False, trust=False))


def _model(model: Model | StrPath) -> Model:
    """Return a model, opened if it is a bundle or a graph."""
    if not isinstance(model, str | os.PathLike):
        return model
    opener = resolve.opener(CPU, allow_cpu=False, trust=False)
    return resolve.open_model(
        local_path(model), "model", defaults.DEFAULT_TARGET, "fp32", head=None, workers=None, opener=opener
    )
