"""By-products of a bundle: what `export` writes below it, recorded in `manifest.json` and refused once it is stale."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tlkit.errors import ArtifactError, DataError, TlkitError
from tlkit.model.bundle import RECORD, Bundle, read_record, read_tensors
from tlkit.util import files
from tlkit.util.text import quoted

BUILT = "manifest.json"
EXPECTED = "expected.safetensors"  # what the golden images gave when it was built
REFITTED = "refitted.safetensors"  # the head, where it was fitted again at export
HEAD_FROM = "head_from"  # in the record and in what a graph says of itself; one of these two:
FROM_BUNDLE, FROM_EXPORT = "bundle", "export"
TARGET, PRECISION = "onnx", "fp32"  # what is opened unless told otherwise
PRECISIONS = ("int8", "fp16", "fp32")  # the coarsest first
SYMMETRIC = "int8-symmetric"  # int8 graphs as TensorRT wants them; whoever asks for its int8 gets them
GRAPHS = ("trunk", "head", "model")
FLAGS = ("onnx", "tensorrt", "tensorrt-rtx")  # the targets that `tlkit export` has an option for


def plain(precision: str) -> str:
    """What users call a precision: int8, whatever its flavour."""
    return "int8" if precision == SYMMETRIC else precision


def write(
    bundle: Path, target: str, precision: str, facts: Mapping[str, Any], fill: Callable[[Path], Mapping[str, Any]]
) -> Path:
    """As `write_at` at the by-product's own place in a bundle."""
    return write_at(bundle / target / precision, target, precision, facts, fill)


def write_at(
    place: Path, target: str, precision: str, facts: Mapping[str, Any], fill: Callable[[Path], Mapping[str, Any]]
) -> Path:
    """Make a by-product whole or not at all; `fill` writes the files and returns more facts."""
    with files.atomic_dir(place, replace=True) as temporary, files.translate_os_errors(place):
        with _placed(temporary, place):
            filled = fill(temporary)
        content = {"target": target, "precision": precision, **facts, **filled}
        content["files"] = {file.name: files.sha256(file) for file in sorted(temporary.iterdir())}
        (temporary / BUILT).write_text(json.dumps(content, indent=2) + "\n")
    return place


@contextmanager
def _placed(temporary: Path, place: Path) -> Iterator[None]:
    """Errors with a file that is being written name it as it would have been called."""
    try:
        yield
    except TlkitError as error:
        if error.file is None or not Path(error.file).is_relative_to(temporary):
            raise
        raise type(error)(error.what, file=place / Path(error.file).relative_to(temporary), do=error.do) from error


def amend(place: Path, facts: Mapping[str, Any]) -> None:
    """Write more facts into the record of a by-product."""
    content = {**read(place, again="export it again"), **facts}
    with files.atomic_file(place / BUILT) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def found(bundle: Path) -> list[tuple[str, str]]:
    """The (target, precision) of every by-product below a bundle."""
    return sorted((file.parent.parent.name, file.parent.name) for file in bundle.glob(f"*/*/{BUILT}"))


def current(bundle: Bundle, precision: str = PRECISION) -> bool:
    """Whether the bundle's ONNX graphs are there and are its own."""
    try:
        for graph in GRAPHS:
            graph_file(bundle.root, graph, precision=precision)
    except ArtifactError:
        return False
    return True


def graph_file(path: Path, graph: str, target: str = TARGET, precision: str = PRECISION) -> Path:
    """The file to open: `path` itself, or that of a by-product, checked to belong to its bundle.

    `path` names a graph, a by-product such as run/onnx/int8, or a bundle, of which `target` and `precision` say which.
    """
    if not path.exists():
        raise DataError("no such file or bundle", file=path)
    if not path.is_dir():
        return path
    place = path
    if (path / RECORD).exists():
        place = path / target / precision
    elif not (path / BUILT).exists():
        raise ArtifactError(f"neither a graph nor a bundle: it holds no {RECORD}", file=path)
    return _checked(place, graph)


def _checked(place: Path, graph: str) -> Path:
    """A graph of the by-product `place`, as it was exported from the bundle above it, if that is still there."""
    whole = place.absolute()
    bundle = place.parent.parent if len(place.parts) > 2 else whole.parents[1]
    known = (bundle / RECORD).exists()
    again = command(bundle, whole.parent.name, whole.name) if known else "export it again"
    content = read(place, again)
    if known and content["bundle"] != read_record(bundle)["digest"]:
        raise ArtifactError("it was exported from another bundle than this one", file=place.parent, do=again)
    file = next(place.glob(f"{graph}.*"), None)
    if file is None or content["files"].get(file.name) != files.sha256(file):
        raise ArtifactError(f"{graph} is missing or was changed after export", file=place, do=again)
    return file


def command(bundle: Path, target: str = TARGET, precision: str = PRECISION) -> str:
    """The advice to make a by-product again."""
    option = f"--{target}" if target in FLAGS else f"--target {target}"
    more = "" if precision == PRECISION else f" --precision {precision}"
    return f"run: tlkit export {quoted(bundle)} {option}{more}"


def expected(place: Path) -> Mapping[str, Any] | None:
    """`features` and `logits` of the golden images as a by-product gave them when it was built, if that was kept."""
    file = place / EXPECTED
    if EXPECTED not in read(place, again="export it again")["files"]:
        return None
    return read_tensors(file)


def head_from(place: Path) -> str:
    """Where the head of a by-product comes from: `FROM_BUNDLE` or `FROM_EXPORT`."""
    return str(read(place, again="export it again").get(HEAD_FROM, FROM_BUNDLE))


def refitted(place: Path) -> Mapping[str, Any] | None:
    """The tensors of the head of a by-product where it was fitted again; refuses those that were changed since."""
    again = "export it again"
    hashes = read(place, again)["files"]
    if REFITTED not in hashes:
        return None
    file = place / REFITTED
    if not file.exists() or files.sha256(file) != hashes[REFITTED]:
        raise ArtifactError("its head is missing or was changed after export", file=file, do=again)
    return read_tensors(file)


def read(place: Path, again: str) -> dict[str, Any]:
    """The record of a by-product."""
    try:
        content = json.loads((place / BUILT).read_text())
    except FileNotFoundError as error:
        raise ArtifactError("it was not exported yet", file=place, do=again) from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"can't be read: {error}", file=place / BUILT, do=again) from error
    if not isinstance(content, dict) or not {"bundle", "files"} <= content.keys():
        raise ArtifactError("not the record of an export", file=place / BUILT, do=again)
    return content
