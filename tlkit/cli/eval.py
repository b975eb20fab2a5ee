"""`tlkit eval`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from tlkit.cli.options import FilePath, columns, shared
from tlkit.cli.output import claim_beside, done, progress_bars
from tlkit.util.text import quoted


@click.command()
@click.argument("model", type=FilePath)
@click.argument("source")
@shared("column", "split")
@click.option("--plot", "picture", type=FilePath, help="Draw confusion and calibration to a .png, .svg or .pdf file.")
@shared("head", "any_device", "threads", "max_bad", "json")
def command(
    model: Path, source: str, split: str | None, picture: Path | None, max_bad: float, as_json: bool, **options: Any
) -> None:
    """Evaluate MODEL, a bundle or a model.onnx, on SOURCE, a dataset labelled as for training.

    Prints accuracy with its 95 % interval, balanced accuracy, macro-F1, expected calibration error, log loss and the
    confusion matrix. Of a dataset with splits of its own the test split is used, or else val; of others everything.

    \b
    Examples:
      tlkit eval run/ test/
      tlkit eval run/onnx/fp32/model.onnx photos/ --split val --json
      tlkit eval run/ test/ --plot metrics.png
    """
    from tlkit.api import evaluate, load
    from tlkit.data.decoding import check_max_bad
    from tlkit.evaluation.plot import check_plot, plot

    claim_beside(picture, check_plot)
    columns_given = columns(options)
    opened = load(model, **options)
    with progress_bars() as progress:
        result = evaluate(opened, source, split=split, options=columns_given, progress=progress)
    then = f"tlkit predict {quoted(model)} {quoted(Path(source)) if Path(source).is_dir() else 'IMAGE...'}"
    done(result, as_json, then=then, out=picture, save=partial(plot, result.metrics, result.labels))
    check_max_bad(result.rejected, result.images, max_bad)
