"""`tlkit eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tlkit.cli.options import (
    FilePath,
    any_device_options,
    column_options,
    columns,
    head_option,
    json_option,
    max_bad_option,
    split_option,
    threads_option,
)
from tlkit.cli.output import note_files, progress_bars, show, wrote
from tlkit.util.text import quoted


@click.command()
@click.argument("model", type=FilePath)
@click.argument("source")
@column_options
@split_option
@click.option("--plot", "picture", type=FilePath, help="Draw confusion and calibration to a .png, .svg or .pdf file.")
@head_option
@any_device_options
@threads_option
@max_bad_option
@json_option
def command(
    model: Path,
    source: str,
    split: str | None,
    picture: Path | None,
    max_bad: float,
    as_json: bool,
    **options: Any,
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
    from tlkit.util.locks import claim

    if picture is not None:
        check_plot(picture)
    click.get_current_context().with_resource(claim(picture))
    columns_given = columns(options)
    opened = load(model, **options)
    with progress_bars() as progress:
        result = evaluate(opened, source, split=split, options=columns_given, progress=progress)
    note_files(result)
    then = f"tlkit predict {quoted(model)} {quoted(Path(source)) if Path(source).is_dir() else 'IMAGE...'}"
    show({**result.to_json(), "next": then}, result, as_json)
    if picture is not None:
        plot(result.metrics, result.labels, picture)
    wrote(picture, then=then)
    check_max_bad(result.rejected, result.images, max_bad)
