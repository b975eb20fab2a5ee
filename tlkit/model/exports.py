"""Exports of a bundle: files of one target and precision with their manifest, refused once they are stale.

    onnx/fp32/{trunk,head,model}.onnx  manifest.json      onnx/int8/...      tensorrt/fp16/...

The manifest lists every file with its SHA-256 and names the bundle that it was exported from. `Exports` opens the
manifests of a bundle once; whoever needs an export is handed that object.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tlkit.defaults import DEFAULT_TARGET
from tlkit.errors import ArtifactError, DataError, TlkitError, UsageError
from tlkit.model.bundle import RECORD, Bundle, Tensors, read_record, read_tensors
from tlkit.util import files
from tlkit.util.resources import processor_kind
from tlkit.util.schema import parse_json
from tlkit.util.temporaries import sweep
from tlkit.util.text import listed, quoted

MANIFEST = "manifest.json"
EXPECTED = "expected.safetensors"  # output for the golden images at the time of export
REFITTED = "refitted.safetensors"  # the head, where it was refitted at export
HEAD_FROM = "head_from"  # in the manifest and in a graph's metadata; one of these two:
FROM_BUNDLE, FROM_EXPORT = "bundle", "export"
TARGET, PRECISION = DEFAULT_TARGET, "fp32"  # what is opened unless told otherwise
SUFFIX = ".onnx"  # of its files
PRECISIONS = ("int8", "fp16", "fp32")  # the coarsest first
SYMMETRIC = "int8-symmetric"  # int8 graphs as TensorRT wants them; whoever asks for its int8 gets them
GRAPHS = ("trunk", "head", "model")

_JUNK = {".DS_Store", "Thumbs.db", "desktop.ini"}  # that systems leave where a folder was looked at


def plain(precision: str) -> str:
    """Return the precision that users ask for: int8, whatever its flavor."""
    return "int8" if precision == SYMMETRIC else precision


@dataclass(eq=False)
class Export:
    """One target and precision: the files of a folder, each checked against its hash when it is first asked for."""

    folder: Path
    target: str
    precision: str
    manifest: dict[str, Any]
    rebuild: str  # advice: the command that exports it again
    _checked: set[str] = field(default_factory=set, repr=False)

    @property
    def name(self) -> str:
        """The target and precision, as in "onnx/int8"."""
        return f"{self.target}/{self.precision}"

    @property
    def head_from(self) -> str:
        """Origin of the head: `FROM_BUNDLE` or `FROM_EXPORT`."""
        return str(self.manifest.get(HEAD_FROM, FROM_BUNDLE))

    def file(self, graph: str = "model") -> Path:
        """Return the file or folder of a graph; raises ArtifactError where it is missing or was changed."""
        name = next((name for name in map(_top, self.manifest["files"]) if name.rpartition(".")[0] == graph), graph)
        hashes = self.hashes(graph)
        for file in hashes or [name]:
            self._check(file, graph)
        place = self.folder / name
        if place.is_dir() and len(hashes) != sum(not path.is_dir() for path in place.rglob("*")):
            raise ArtifactError(f"{graph} holds files that were added after export", file=place, do=self.rebuild)
        return place

    def hashes(self, graph: str) -> dict[str, str]:
        """Return the recorded SHA-256 of every file of a graph, by the name relative to the folder."""
        return {
            name: str(sha256)
            for name, sha256 in self.manifest["files"].items()
            if _top(name).rpartition(".")[0] == graph
        }

    def expected(self) -> Tensors | None:
        """Return `features` and `logits` of the golden images at export, where they were kept."""
        return read_tensors(self._check(EXPECTED, "output kept")) if EXPECTED in self.manifest["files"] else None

    def refitted(self) -> Tensors | None:
        """Return the tensors of the head where it was refitted at export."""
        return read_tensors(self._check(REFITTED, "its head")) if REFITTED in self.manifest["files"] else None

    def amend(self, facts: Mapping[str, Any]) -> None:
        """Write more facts into the manifest."""
        self.manifest |= facts
        with files.atomic_file(self.folder / MANIFEST) as temporary:
            temporary.write_text(json.dumps(self.manifest, indent=2) + "\n")

    def _check(self, name: str, what: str) -> Path:
        file = self.folder / name
        if name not in self._checked:
            inside = file.resolve().is_relative_to(self.folder.resolve())
            if not (inside and file.is_file()) or files.sha256(file) != self.manifest["files"].get(name):
                what = f"{what} is missing or was changed after export"
                raise ArtifactError(what, file=self.folder, do=self.rebuild)
            self._checked.add(name)
        return file


class Exports:
    """All exports of a bundle, each opened at most once.

    Only a folder of a known precision whose manifest names that target and precision counts: no copy, no rest of an
    interrupted export.
    """

    def __init__(self, root: Path, digest: str) -> None:
        self.root, self.digest = root, digest
        self._opened: dict[tuple[str, str], Export] = {}

    @classmethod
    def of(cls, bundle: Bundle) -> Exports:
        """Return the exports of an opened bundle."""
        return cls(bundle.root, bundle.digest)

    def names(self) -> list[tuple[str, str]]:
        """Return the (target, precision) of every export."""
        for folder in self.root.glob("[!.]*/"):
            sweep(folder)  # a killed export may have set one aside
        listed = sorted(
            (folder.parent.name, folder.name)
            for precision in (*PRECISIONS, SYMMETRIC)
            for folder in self.root.glob(f"[!.]*/{precision}")
            if (folder / MANIFEST).is_file()
        )
        return [place for place in listed if self._is_own(*place)]

    def get(self, target: str = TARGET, precision: str = PRECISION) -> Export:
        """Return an export; an ArtifactError where it is not there or is another bundle's names the command."""
        if (target, precision) not in self._opened:
            folder, rebuild = self.root / target / precision, self.command(target, precision)
            if not folder.exists():
                sweep(folder.parent)  # a killed export may have set it aside
            manifest = read_manifest(folder, rebuild)
            if manifest["bundle"] != self.digest:
                raise ArtifactError("it was exported from another bundle than this one", file=folder, do=rebuild)
            self._opened[target, precision] = Export(folder, target, precision, manifest, rebuild)
        return self._opened[target, precision]

    def has(self, target: str = TARGET, precision: str = PRECISION) -> bool:
        """Return whether all graphs of an export are there and are this bundle's."""
        try:
            for graph in GRAPHS:
                self.get(target, precision).file(graph)
        except ArtifactError:
            return False
        return True

    def select(self, targets: Collection[str] = (), precisions: Collection[str] = ()) -> list[tuple[str, str]]:
        """Return the names of the exports of these targets and precisions, of all where none are given.

        Raises ArtifactError where there is nothing, or nothing for one that is named.
        """
        found = [
            (target, precision)
            for target, precision in self.names()
            if (not targets or target in targets) and (not precisions or precision in precisions)
        ]
        asked = [(name, 0, {"target": name}) for name in targets]
        asked += [(name, 1, {"precision": name} if name in PRECISIONS else {}) for name in precisions]
        for name, position, options in asked:
            if name not in {place[position] for place in found}:
                what = f"nothing was exported from it for {name} yet"
                raise ArtifactError(what, file=self.root, do=self.command(**options))
        if not found:
            raise ArtifactError("nothing was exported from it yet", file=self.root, do=self.command())
        return found

    def write(
        self, target: str, precision: str, facts: Mapping[str, Any], fill: Callable[[Path], Mapping[str, Any]]
    ) -> Export:
        """Write an export atomically, see `write_export`, and return it."""
        facts = {"bundle": self.digest, **facts}
        write_export(self.root / target / precision, target, precision, facts, fill)
        self._opened.pop((target, precision), None)
        return self.get(target, precision)

    def command(self, target: str = TARGET, precision: str = PRECISION) -> str:
        """Return the advice to export something again."""
        more = "" if precision == PRECISION else f" --precision {plain(precision)}"
        return f"run: tlkit export {quoted(self.root)} --{target}{more}"

    def _is_own(self, target: str, precision: str) -> bool:
        """Return whether a manifest names its place; an unreadable one counts, and is an error when it is opened."""
        try:
            manifest = parse_json((self.root / target / precision / MANIFEST).read_text("utf-8"))
            return (manifest["target"], manifest["precision"]) == (target, precision)
        except (OSError, ValueError, KeyError, TypeError):
            return True


def graph_file(path: Path, graph: str, target: str = TARGET, precision: str = PRECISION) -> Path:
    """Return the checked ONNX file of a graph: `path` itself, or of the export that it means (see `find_graph`)."""
    found = find_graph(path, graph, target, precision)
    if found is None:
        return path
    export, graph = found
    if export.target != TARGET:
        raise UsageError(f"target {export.target} built it, not {TARGET}", file=path, do="open it with tlkit.load")
    return export.file(graph)


def find_graph(path: Path, graph: str, target: str = TARGET, precision: str = PRECISION) -> tuple[Export, str] | None:
    """Return the export that a path means and the name of the graph; None if the path is a file by itself.

    The path is a bundle, the folder of an export, or a graph in it that the manifest knows. An ONNX file that ONNX
    Runtime opens is always one by itself: it may lie anywhere.
    """
    if not path.exists():
        raise DataError("no such file or bundle", file=path)
    if not (path.is_file() or path.is_dir()):  # opening a pipe or a device could block forever
        raise DataError("not a regular file", file=path)
    if (path / RECORD).exists() or (path / MANIFEST).exists():
        return open_export(path, target, precision), graph
    if (path.parent / MANIFEST).exists():
        export = open_export(path.parent)
        if export.target != TARGET and path.name in map(_top, export.manifest["files"]):
            return export, path.stem
    if path.is_dir():
        raise ArtifactError(f"neither a graph nor a bundle: it holds no {RECORD}", file=path)
    return None


def open_export(path: Path, target: str = TARGET, precision: str = PRECISION) -> Export:
    """Open the export of a bundle, or the folder of an export, which belongs to the bundle above it if there is one."""
    if (path / RECORD).exists():
        return Exports(path, read_record(path)["digest"]).get(target, precision)
    if not (path / MANIFEST).exists():
        raise ArtifactError(f"neither a graph nor a bundle: it holds no {RECORD}", file=path)
    whole = path.absolute()
    bundle = path.parent.parent if len(path.parts) > 2 else whole.parents[1]
    if (bundle / RECORD).exists():
        return Exports(bundle, read_record(bundle)["digest"]).get(whole.parent.name, whole.name)
    manifest = read_manifest(path, again := "export it again")
    return Export(path, str(manifest.get("target", TARGET)), str(manifest.get("precision", PRECISION)), manifest, again)


def write_export(
    folder: Path, target: str, precision: str, facts: Mapping[str, Any], fill: Callable[[Path], Mapping[str, Any]]
) -> None:
    """Write a folder and its manifest atomically; `fill` writes the files and returns more facts.

    A folder that is there is replaced if it is an export that holds nothing else, see `check_replaceable`.
    """
    with files.atomic_dir(folder, replace=check_replaceable) as temporary, files.translate_os_errors(folder):
        with _placed(temporary, folder):
            filled = fill(temporary)
        content = {"target": target, "precision": precision, "processor": processor_kind(), **facts, **filled}
        written = sorted(file for file in temporary.rglob("*") if not file.is_dir())
        content["files"] = {file.relative_to(temporary).as_posix(): files.sha256(file) for file in written}
        (temporary / MANIFEST).write_text(json.dumps(content, indent=2) + "\n")


def check_replaceable(folder: Path) -> None:
    """Raise a UsageError if a folder is not an export, or holds what is not in its manifest.

    Inside a bundle, an export whose manifest is damaged is known by the names of its files.
    """
    if not folder.exists():
        return
    try:
        known = {MANIFEST, *map(str, read_manifest(folder, "")["files"])}
    except ArtifactError:
        in_bundle = (folder.parent.parent / RECORD).is_file()
        graphs = {path.name for path in folder.glob("*") if path.stem in GRAPHS} if in_bundle else set()
        known = {MANIFEST, EXPECTED, REFITTED, *graphs} if in_bundle else set()
    check_strangers(folder, known)


def check_strangers(folder: Path, known: Collection[str]) -> None:
    """Raise a UsageError if anything but the files `known`, by their relative names, is in a folder."""
    if not folder.is_dir():
        raise UsageError("tlkit did not write this file, and does not replace it", file=folder, do="move it away")
    found = {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()
    }
    if strangers := sorted(found - set(known) - _JUNK):
        what = f"it holds files that tlkit did not write, and does not replace: {listed(strangers)}"
        raise UsageError(what, file=folder, do="move them away, or choose another place")


def _top(name: str) -> str:
    """Return the file or folder of an export that a file of its manifest belongs to."""
    return name.partition("/")[0]


def read_manifest(folder: Path, rebuild: str) -> dict[str, Any]:
    """Return the content of an export's manifest."""
    try:
        content = parse_json(files.read_inside(folder, MANIFEST))
    except FileNotFoundError as error:
        raise ArtifactError("it was not exported yet", file=folder, do=rebuild) from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"can't be read: {error}", file=folder / MANIFEST, do=rebuild) from error
    if not isinstance(content, dict) or "bundle" not in content or not isinstance(content.get("files"), dict):
        raise ArtifactError("not the manifest of an export", file=folder / MANIFEST, do=rebuild)
    return content


@contextmanager
def _placed(temporary: Path, folder: Path) -> Iterator[None]:
    """Let errors about a file that is being written name it by its final path."""
    try:
        yield
    except TlkitError as error:
        if error.file is None or not Path(error.file).is_relative_to(temporary):
            raise
        raise type(error)(error.what, file=folder / Path(error.file).relative_to(temporary), do=error.do) from error
