"""The bundle: the folder that `train` writes and everything else reads.

    bundle.json  trunk.safetensors  head.safetensors  history.jsonl  trained-on.bin  golden/

It is immutable: `bundle.json` holds the SHA-256 of every other file, and its own digest is the identity of the
bundle. It holds only JSON, safetensors and images: nothing in it can execute.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from tlkit.errors import ArtifactError, DataError
from tlkit.plugin.contract import ACTIVATIONS, Preprocessing
from tlkit.util import files
from tlkit.util.schema import parse_json, read_as
from tlkit.version import __version__

FORMAT = 1
RECORD, TRUNK, HEAD, HISTORY, GOLDEN = (
    "bundle.json",
    "trunk.safetensors",
    "head.safetensors",
    "history.jsonl",
    "golden",
)
EXPECTED = f"{GOLDEN}/expected.safetensors"
TRAINED_ON = "trained-on.bin"  # the first bytes of each training image's SHA-256, sorted
ORIGINAL, FINE_TUNED, REINITIALIZED = "original", "fine-tuned", "reinitialized"  # the provenance of a stage
HASH_BYTES = 5  # 10,000 new images against 60,000: one evaluation in 1,800 counts one image too many

Tensors = Mapping[str, "NDArray[Any]"]


@dataclass(frozen=True, slots=True)
class ComponentRecord:
    """A component as a bundle records it: its name and options, and the plugin that provides it."""

    name: str
    distribution: str
    version: str
    options: Mapping[str, Any] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)  # results of its fit


@dataclass(frozen=True, slots=True)
class Golden:
    """One image kept as bytes, and the hash of the array `(S, S, 3)` that it must be preprocessed to."""

    file: str
    name: str
    label: int
    array_sha256: str


@dataclass(frozen=True, slots=True)
class BundleRecord:
    """Content of `bundle.json`, except hashes."""

    labels: tuple[str, ...]
    preprocessing: Preprocessing
    backbone: ComponentRecord
    weights: Mapping[str, Any]
    stages: tuple[str, ...]  # up to the deepest of the cut
    cut: str
    width: int
    head: ComponentRecord
    strategy: ComponentRecord
    phases: tuple[Mapping[str, Any], ...]
    seed: int
    data: Mapping[str, Any]
    metrics: Mapping[str, Any]
    golden: tuple[Golden, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)  # by stage, such as ORIGINAL
    scores: tuple[str, ...] = ()  # of the head, beside logits
    activation: str = "softmax"  # of the head, from logits to probabilities
    novelty: Mapping[str, Any] = field(default_factory=dict)  # its detector, threshold and how it was chosen
    coverage: Mapping[str, Any] = field(default_factory=dict)  # thresholds of sets of labels, as JSON, and achieved
    training: Mapping[str, Any] = field(default_factory=dict)  # device, dtype and augmentation of the trainable stages


@contextmanager
def reading_fields(root: Path) -> Iterator[None]:
    """Raise ArtifactError where fields of a bundle's record have another shape: opening does not check metrics."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        what = f"a field is missing or invalid: {type(error).__name__}: {error}"
        raise ArtifactError(what, file=root / RECORD, do="copy the bundle again, or train again") from error


@dataclass(frozen=True, slots=True)
class Bundle:
    """An open bundle that was checked."""

    root: Path
    record: BundleRecord
    digest: str  # SHA-256, hex: the bundle's identity
    trunk: Tensors
    head: Tensors

    def golden_bytes(self) -> list[bytes]:
        """Return the files of the golden images, in order."""
        return [(self.root / golden.file).read_bytes() for golden in self.record.golden]

    def expected(self) -> Tensors:
        """Return `features`, `logits` and scores of the golden images, row by row."""
        return read_tensors(self.root / EXPECTED)


def write(
    root: Path,
    record: BundleRecord,
    *,
    trunk: Tensors,
    head: Tensors,
    history: Sequence[Mapping[str, Any]],
    golden: Sequence[bytes] = (),
    expected: Tensors | None = None,
    trained_on: Collection[str] = (),
) -> str:
    """Write a bundle atomically; return its digest (SHA-256, hex).

    `trained_on` are the hashes (hex) of the training images, of which the bundle keeps the first bytes: enough to
    recognize an image that is given, and nothing of its name or content.
    """
    with files.atomic_dir(root) as temporary, files.translate_os_errors(root):
        (temporary / TRUNK).write_bytes(save(_contiguous(trunk)))
        (temporary / HEAD).write_bytes(save(_contiguous(head)))
        (temporary / HISTORY).write_text("".join(json.dumps(line) + "\n" for line in history), "utf-8")
        if trained_on:
            (temporary / TRAINED_ON).write_bytes(b"".join(sorted({_first_bytes(each) for each in trained_on})))
        if golden and expected is not None:
            (temporary / GOLDEN).mkdir()
            (temporary / EXPECTED).write_bytes(save(_contiguous(expected)))
            for image, content in zip(record.golden, golden, strict=True):
                (temporary / image.file).write_bytes(content)
        facts: dict[str, Any] = {
            "format": FORMAT,
            "tlkit": __version__,
            **dataclasses.asdict(record),
            "tensors": {TRUNK: _layout(trunk), HEAD: _layout(head)},
            "files": _hashes(temporary),
        }
        facts["digest"] = _digest(facts)
        (temporary / RECORD).write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
    return str(facts["digest"])


def count_trained_on(root: Path, hashes: Collection[str]) -> int | None:
    """Return how many of some images, by their SHA-256 (hex), a bundle was trained on; None if it does not say."""
    try:
        content = (root / TRAINED_ON).read_bytes()
    except OSError:
        return None
    known = {content[start : start + HASH_BYTES] for start in range(0, len(content), HASH_BYTES)}
    return sum(_first_bytes(each) in known for each in hashes)


def _first_bytes(sha256: str) -> bytes:
    return bytes.fromhex(sha256)[:HASH_BYTES]


def open_bundle(root: Path) -> Bundle:
    """Open a bundle and check all of it: hashes, completeness, finite weights. Raises ArtifactError."""
    content = read_record(root)
    for name, expected in content["files"].items():
        _check_file(root, name, expected)
    trunk, head = (_checked_tensors(root / name, content["tensors"].get(name, {})) for name in (TRUNK, HEAD))
    try:
        record = _record(content)
    except ValueError as error:
        raise ArtifactError(f"a field is missing or invalid: {error}", file=root / RECORD) from error
    return Bundle(root, record, content["digest"], trunk, head)


def read_record(root: Path) -> dict[str, Any]:
    """Return the checked content of `bundle.json`; no other file is read."""
    file = root / RECORD
    if not root.exists():
        raise DataError("no such bundle", file=root, do="make one with: tlkit train photos/ -o run/")
    try:
        content = parse_json(files.read_inside(root, RECORD))
    except FileNotFoundError as error:
        raise ArtifactError(f"not a bundle: it holds no {RECORD}", file=root) from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"can't be read: {error}", file=file, do="train again or copy it again") from error
    if not isinstance(content, dict) or not {"format", "digest", "files", "tensors"} <= content.keys():
        raise ArtifactError("not the record of a bundle", file=file)
    if content["format"] != FORMAT:
        raise ArtifactError(
            f"bundle format {content['format']}, but this tlkit {__version__} reads format {FORMAT}",
            file=file,
            do=f"use tlkit {content.get('tlkit', '?')}",
        )
    if content["digest"] != _digest({key: value for key, value in content.items() if key != "digest"}):
        raise ArtifactError("it was changed after training (digest differs)", file=file, do="copy it again")
    try:
        read_as(dict[str, str], content["files"], "files")
        read_as(dict[str, dict[str, Any]], content["tensors"], "tensors")
    except ValueError as error:
        raise ArtifactError(f"a field is missing or invalid: {error}", file=file) from error
    return content


def with_report(content: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of `bundle.json` with another report of the strategy, and the digest that follows."""
    facts = {name: value for name, value in content.items() if name != "digest"}
    facts["strategy"] = {**facts["strategy"], "report": json.loads(json.dumps(report))}
    return {**facts, "digest": _digest(facts)}


def _record(content: Mapping[str, Any]) -> BundleRecord:
    """Return the record of a bundle. Raises ValueError that names a field that is missing or invalid."""
    names = {field.name for field in dataclasses.fields(BundleRecord)}
    record: BundleRecord = read_as(BundleRecord, {name: content[name] for name in names if name in content})
    read_as(float, record.data.get("val", 0.0), "data.val")
    if not record.stages or not record.labels:
        raise ValueError("stages or labels are empty")
    if record.activation not in ACTIVATIONS:
        raise ValueError(f"activation {record.activation!r}")
    return record


def _check_file(root: Path, name: str, expected: str) -> None:
    file = root / name
    if "\0" in name or not file.resolve().is_relative_to(root.resolve()):
        raise ArtifactError("it names a file outside itself", file=root / RECORD)
    try:
        found = files.sha256(file)
    except FileNotFoundError as error:
        raise ArtifactError("a file of the bundle is missing", file=file, do="copy the bundle again") from error
    except OSError as error:
        raise ArtifactError(
            f"can't be read: {(error.strerror or str(error)).lower()}", file=file, do="copy the bundle again"
        ) from error
    if found != expected:
        raise ArtifactError(
            "it was changed after training (SHA-256 differs)", file=file, do="copy the bundle again, or train again"
        )


def _checked_tensors(file: Path, layout: Mapping[str, Any]) -> Tensors:
    """Return the tensors of a file: exactly those that the record lists, all finite."""
    tensors = read_tensors(file)
    if _layout(tensors) != layout:
        different = sorted(set(layout) ^ set(tensors)) or [n for n in layout if _layout(tensors)[n] != layout[n]]
        raise ArtifactError(f"tensors are missing or not as recorded: {', '.join(different[:3])}", file=file)
    for name, tensor in tensors.items():
        if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
            raise ArtifactError(f"tensor {name} holds values that are not finite", file=file, do="train again")
    return tensors


def read_tensors(file: Path) -> Tensors:
    """Return the tensors of a safetensors file by name."""
    try:
        with safe_open(file, framework="numpy") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise ArtifactError(f"not a complete safetensors file: {error}", file=file, do="copy it again") from error


def _layout(tensors: Tensors) -> dict[str, Any]:
    return {name: [str(tensor.dtype), list(tensor.shape)] for name, tensor in sorted(tensors.items())}


def _contiguous(tensors: Tensors) -> dict[str, NDArray[Any]]:
    return {name: np.ascontiguousarray(tensor) if tensor.ndim else tensor for name, tensor in tensors.items()}


def _hashes(root: Path) -> dict[str, str]:
    found = sorted(file for file in root.rglob("*") if file.is_file())
    return {file.relative_to(root).as_posix(): files.sha256(file) for file in found}


def _digest(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
