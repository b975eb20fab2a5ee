"""`tlkit predict`."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tlkit.cli import result
from tlkit.cli.options import FilePath, shared
from tlkit.cli.output import note, note_counts, wrote
from tlkit.errors import one_line
from tlkit.util.text import quoted

if TYPE_CHECKING:
    from tlkit.runtime.model import Prediction

MOST_IMAGES = 3  # that are repeated in the next command; more of them would bury it


@click.command()
@click.argument("model", type=FilePath)
@click.argument("images", type=FilePath, nargs=-1, required=True)
@shared("labels", "head", "any_device", "threads")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per image and line.")
def command(
    model: Path, images: tuple[Path, ...], topk: int, coverage: float | None, unknown: bool, as_json: bool, **on: Any
) -> None:
    """Label IMAGES (files and folders) with MODEL, a model.onnx or a bundle it was exported from.

    Prints one line per image: path, label and probability, separated by tabs; a line break in a name is spelled \\n,
    and exact with --json. Needs neither torch nor plugins. Unreadable images are named on stderr, the others are
    labelled, and the exit code is 3.

    \b
    Examples:
      tlkit predict run/onnx/fp32/model.onnx a.jpg b/
      tlkit predict run/ photos/ --topk 3 --json
      tlkit predict run/ photos/ --unknown --coverage 0.9
    """
    from tlkit.api import load
    from tlkit.data.dataset import find_images
    from tlkit.data.decoding import check_max_bad
    from tlkit.data.scan import FileCounts
    from tlkit.util.resources import cores

    files, skipped = find_images(images)
    opened = load(model, workers=1 if len(files) < 2 * cores() else None, **on)
    if unknown:
        opened.check_detector()
    reasons = {}
    for prediction in opened.predictions(files, topk=topk, coverage=coverage):
        if prediction.reason is not None:
            reasons[prediction.name] = prediction.reason
            note("rejected", {prediction.name: prediction.reason})
        else:
            result(json.dumps(prediction.to_json()) if as_json else _line(prediction, unknown))
    note_counts(FileCounts.of(len(files) - len(reasons), reasons, skipped))
    check_max_bad(reasons, len(files), None)
    sources = " ".join(map(quoted, images)) if len(images) <= MOST_IMAGES else "IMAGE..."
    suffix = "parquet" if find_spec("pyarrow") else "npy"
    wrote(None, then=f"tlkit embed {quoted(model)} {sources} -o features.{suffix}")


def _line(prediction: Prediction, unknown: bool) -> str:
    best = zip(prediction.labels, prediction.probabilities, strict=True)
    cells = [cell for label, probability in best for cell in (label, f"{probability:.4f}")]
    if unknown:
        cells = [*(["unknown"] if prediction.unknown else cells), f"novelty {prediction.novelty:.3f}"]
    return "\t".join(map(one_line, [prediction.name, *cells]))
