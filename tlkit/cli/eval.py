"""`tlkit eval`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tlkit.cli.common import (
    FilePath,
    check_max_bad,
    device_options,
    head_option,
    json_option,
    max_bad_option,
    open_model,
    progress_bars,
    rejected,
    show,
    wrote,
)
from tlkit.util.text import quoted

if TYPE_CHECKING:
    from tlkit.evaluation.metrics import Metrics

WIDEST_TABLE = 12  # classes; the confusion of more is shown as its most frequent pairs
PAIRS = 10


@click.command(short_help="Measure an exported model on labelled images.")
@click.argument("model", type=FilePath)
@click.argument("source", type=FilePath)
@click.option("--split", type=click.Choice(["train", "val", "test"]), help="Of data with a split of its own.")
@click.option("--plot", "picture", type=FilePath, help="Draw confusion and calibration to a .png, .svg or .pdf.")
@head_option
@device_options
@max_bad_option
@json_option
def command(
    model: Path,
    source: Path,
    split: str | None,
    picture: Path | None,
    head: str | None,
    device: str,
    allow_cpu: bool,
    max_bad: float,
    as_json: bool,
) -> None:
    """Measure MODEL, a bundle or a model.onnx, on SOURCE, labelled as for training.

    Accuracy with its 95 % interval, balanced accuracy, macro-F1, expected calibration error and the confusion matrix.
    Of data with a split of its own the test split is used, or else val; of other data everything.

    \b
    Examples:
      tlkit eval run/ test/
      tlkit eval run/onnx/fp32/model.onnx photos/ --split val --json
      tlkit eval run/ test/ --plot scores.png
    """
    from tlkit.evaluation.evaluate import evaluate, labelled

    if picture is not None:
        from tlkit.evaluation.plot import check_plot

        check_plot(picture)
    opened = open_model(model, device=device, allow_cpu=allow_cpu, head=head)
    name, samples = labelled(source, opened.labels, split)
    with progress_bars() as bars:
        evaluated = evaluate(opened, samples, bars("evaluating", len(samples)))

    for file, reason in evaluated.rejected.items():
        rejected(file, reason)
    scores = evaluated.metrics
    then = f"tlkit predict {quoted(model)} {quoted(source) if source.is_dir() else 'IMAGE...'}"
    show(
        {
            "split": name,
            "labels": list(opened.labels),
            **scores.to_json(),
            "rejected": evaluated.rejected,
            "next": then,
        },
        [
            f"{scores.images} images ({name})",
            f"accuracy           {scores.accuracy:.1%}  (95 %: {scores.interval[0]:.1%} to {scores.interval[1]:.1%})",
            f"balanced accuracy  {scores.balanced_accuracy:.1%}",
            f"macro-F1           {scores.macro_f1:.3f}",
            f"ECE                {scores.ece:.3f}",
            *_confusion(scores, opened.labels),
        ],
        as_json,
    )
    if picture is not None:
        from tlkit.evaluation.plot import plot

        plot(scores, opened.labels, picture)
    wrote(picture, then=then)
    check_max_bad(evaluated.rejected, len(samples), max_bad)


def _confusion(scores: Metrics, labels: Sequence[str]) -> list[str]:
    """The confusion matrix as lines: rows are the true classes, columns what they were called."""
    counts = scores.confusion
    if len(labels) > WIDEST_TABLE:
        pairs = sorted(
            (
                (int(counts[i, j]), i, j)
                for i in range(len(labels))
                for j in range(len(labels))
                if i != j and counts[i, j]
            ),
            key=lambda pair: (-pair[0], pair[1:]),
        )
        return ["most confused:", *(f"  {n} x {labels[i]} called {labels[j]}" for n, i, j in pairs[:PAIRS])]
    left = max(map(len, labels))
    width = max(len(str(counts.max())), 4) + 1
    header = " " * left + "".join(f"{'#' + str(j):>{width}}" for j in range(len(labels)))
    rows = (
        f"{label:<{left}}" + "".join(f"{count:>{width}}" for count in counts[i]) + f"   #{i}"
        for i, label in enumerate(labels)
    )
    return ["confusion (rows are the true classes, columns what they were called):", header, *rows]
