"""The predictions for every image as a Parquet table, for FiftyOne, cleanlab and notebooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from tlkit.data.dataset import Sample
from tlkit.graph import metadata
from tlkit.reporting.images import Images
from tlkit.util.files import atomic_file
from tlkit.util.parquet import check_parquet, numbers, strings
from tlkit.util.text import utf8

FILE = "predictions.parquet"
ROWS = 4096  # of a row group


def beside(page: Path) -> Path:
    """Return the place of the table that belongs to a page."""
    return page.with_name(FILE)


def can_write() -> bool:
    """Return whether the package that writes Parquet is installed."""
    return find_spec("pyarrow") is not None


def write(file: Path, images: Images, labels: Sequence[str], facts: Mapping[str, str]) -> None:
    """Write path, label, predicted label, probabilities (in the order of the labels) and scores of each image.

    `facts` are stored as metadata of the table, with the labels.
    """
    import pyarrow as pa
    from pyarrow import parquet

    columns = {
        "path": strings(utf8(_name(sample)) for sample in images.samples),
        "label": strings(labels[label] for label in images.truth),
        "predicted": strings(labels[label] for label in images.predicted),
        "probabilities": pa.FixedSizeListArray.from_arrays(numbers(images.probabilities), len(labels)),
        **{name: numbers(values) for name, values in images.scores.items()},
    }
    table = pa.table(columns).replace_schema_metadata(dict(facts))
    with atomic_file(file, check=check) as temporary:
        parquet.write_table(table, temporary, row_group_size=ROWS)


def _name(sample: Sample) -> str:
    """Return the path of an image as it was given; one that says whose machine it is, from the source on."""
    return sample.name if sample.path.is_absolute() else str(sample.path)


def check(file: Path) -> None:
    """Refuse to replace a table that is not one of predictions."""
    check_parquet(file, metadata.LABELS)
