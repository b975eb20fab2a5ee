"""Opening exports: not on a machine that they were not built for, and no stranger's code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from tlkit.errors import ArtifactError, ResourceError, UsageError
from tlkit.model import exports
from tlkit.model.exports import Export, Exports
from tlkit.plugin.contract import Session, Target, option_fields
from tlkit.plugin.options import from_json
from tlkit.runtime.session import OnnxSession
from tlkit.util import files

CPU = "cpu"
MADE_HERE = "engines"  # in the cache: the hashes of executable files that were built on this machine, or are trusted
T = TypeVar("T")


class IncompatibleEngine(ArtifactError):
    """A file that was built for another machine, or by a plugin that is not installed."""


@dataclass(frozen=True)
class Opener:
    """Opens exports: ONNX graphs on a `device`, other targets through the component that `target` returns by name.

    `by_suffix` returns the target whose files have a suffix. Where the device can't be used and `allow_cpu` is set, the
    CPU is used and `warn` is told; otherwise that is a ResourceError. `trust` lets engines run that were not built on
    this machine.
    """

    target: Callable[[str], Target]
    device: str = CPU
    allow_cpu: bool = False
    trust: bool = False
    warn: Callable[[str], object] = lambda _text: None
    by_suffix: Callable[[str], Target | None] = lambda _suffix: None

    def open(self, export: Export, graph: str = "model", *, threads: int = 0) -> Session:
        """Open a graph of an export; `threads` is the number of cores per call, 0 for the target's default."""
        if export.target == exports.TARGET:
            return self.open_file(export.file(graph), threads=threads)
        target: Any = self.component(export)  # a dataclass, whose fields depend on the target
        return open_target(replace(target, threads=threads) if threads else target, export, graph, trust=self.trust)

    def open_path(
        self, path: Path, graph: str = "model", target: str = exports.TARGET, precision: str = exports.PRECISION
    ) -> tuple[Session, Path, str] | None:
        """Return the session, place and target of what a path means (see `exports.find_graph`).

        None if that is an ONNX graph, which `open_file` opens. A file by itself is opened by the target whose suffix it
        has, unless it is executable code.
        """
        if (found := exports.find_graph(path, graph, target, precision)) is not None:
            export, graph = found
            if export.target == exports.TARGET:
                return None
            return self.open(export, graph), export.file(graph), export.target
        component = None if path.suffix == exports.SUFFIX else self.by_suffix(path.suffix)
        if component is None:
            return None
        if component.executable and not self.trust:
            what = f"a file of {component.name} is executable code, and without a manifest its origin is not known"
            raise IncompatibleEngine(what, file=path, do="open it in the folder of its export")
        return component.open(path), path, component.name

    def open_file(self, file: Path, *, threads: int = 0) -> Session:
        """Open an ONNX file."""
        return self.on_device(lambda device: OnnxSession(file, device=device, threads=threads))

    def on_device(self, opening: Callable[[str], T]) -> T:
        """Return what is opened on the device; on the CPU only where that is allowed, and with a warning."""
        try:
            return opening(self.device)
        except ResourceError as error:
            if not self.allow_cpu or self.device == CPU:
                raise
            self.warn(f"{error.what}; the CPU is used instead")
            return opening(CPU)

    def takes_threads(self, export: Export) -> bool:
        """Return whether the number of threads can be chosen for an export."""
        if export.target == exports.TARGET:
            return True
        try:
            return "threads" in {field.name for field in option_fields(self.component(export))}
        except IncompatibleEngine:
            return False

    def check(self, targets: Collection[str], found: Exports) -> None:
        """Raise UsageError for a target that is neither exported nor installed: no command could export it."""
        exported = {target for target, _ in found.names()}
        for name in targets:
            if name not in exported:
                self.target(name)

    def component(self, export: Export) -> Target:
        """Return the target of an export; raises IncompatibleEngine where no installed plugin provides it."""
        try:
            return self.target(export.target)
        except UsageError as error:
            raise IncompatibleEngine(error.what, do="install the plugin that provides it") from error


def open_target(target: Target, export: Export, graph: str = "model", *, trust: bool = False) -> Session:
    """Open a graph of an export, whose manifest says which machine it was built for.

    An engine is executable code: unless it was built on this machine, `trust` says that it may run, now and later.
    """
    file, manifest = export.file(graph), export.manifest
    if trust:
        remember(target, export)
    elif target.executable and not _note(export, graph).exists():
        what = f"a file of {target.name} is executable code, and this one was not built on this machine"
        do = f"{export.rebuild}; or, if you trust it, verify it once with --trust-engine"
        raise IncompatibleEngine(what, file=file, do=do)
    built_on: Mapping[str, str] = manifest.get("machine", {})
    try:
        why = from_json(target, manifest.get("options", {})).incompatible(built_on) if built_on else None
    except ArtifactError as problem:  # another version of the plugin wrote it
        why = problem.what
    if why is not None:
        raise IncompatibleEngine(why, file=file, do=export.rebuild)
    session = target.open(file)
    if not session.metadata:  # a format that keeps none: the metadata of the graph that it was built from
        session.metadata = manifest.get("metadata", {}).get(graph, {})
    return session


def remember(target: Target, export: Export) -> None:
    """Note that the executable files of an export were built on this machine, or are trusted there."""
    if target.executable:
        for graph in exports.GRAPHS:
            _note(export, graph).touch()


def _note(export: Export, graph: str) -> Path:
    """Return the file that says that a graph of an export may run here; its name follows from the content."""
    digest = hashlib.sha256(json.dumps(sorted(export.hashes(graph).items())).encode())
    return files.cache_dir(MADE_HERE) / digest.hexdigest()
