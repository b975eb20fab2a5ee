"""One builder for TensorRT and TensorRT-RTX: their Python interfaces are the same, only the module's name differs.

Networks are strongly typed: precision is a property of the graph, so the same code serves TensorRT 10 and 11.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from tlkit.plugin.contract import BuildSource, OptimizationProfile, Progress, Session, Target, option
from tlkit.plugin.support import ArtifactError, ResourceError, UsageError, one_line, translate_os_errors
from tlkit_standard.targets._watch import stoppable, watch

MIB = 1 << 20
DRIVER = "driver"


@dataclass(frozen=True)
class NvidiaTarget(Target):
    """Base class of TensorRT and TensorRT-RTX."""

    suffix = ".engine"
    executable = True
    precisions = ("fp32", "fp16", "int8-symmetric")
    package: ClassVar[str]  # the Python module
    distribution: ClassVar[str]  # the package to install
    workspace: int = option(0, "maximum workspace memory in MiB; 0: all")

    def missing(self) -> str | None:
        if importlib.util.find_spec(self.package) is None:
            return f'{self.package} is not installed; run: pip install "{self.distribution}"'
        try:
            importlib.import_module(self.package)
        except Exception as error:  # noqa: BLE001 - a stub or a library that does not load raises many types
            again = f'run: pip install --force-reinstall "{self.distribution}"'
            return f"{self.package} is installed and can't be loaded ({one_line(str(error))}); {again}"
        return None

    def build(self, made: BuildSource, out: Path, profile: OptimizationProfile, progress: Progress) -> None:
        """Parse the graph, and build for every batch size of the profile. Needs no GPU with RTX."""
        trt, graph = self._library(), made.graph
        log = _log(trt)
        builder = trt.Builder(log)
        network = builder.create_network(_strongly_typed(trt))
        parser = trt.OnnxParser(network, log)
        if not parser.parse(graph.read_bytes()):
            raise ArtifactError(f"{self.name} refuses it: {'; '.join(_refusals(parser))}", file=graph)
        config = builder.create_builder_config()
        if self.workspace:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, self.workspace * MIB)
        config.add_optimization_profile(_profile(builder, network, profile))
        self.configure(trt, config)
        config.progress_monitor = monitor = watch(trt, f"{self.name} {graph.stem}", progress)
        with self.timed(trt, config):
            engine = stoppable(partial(builder.build_serialized_network, network, config), monitor)
        if engine is None:
            raise ArtifactError(f"{self.name} can't build it: {log.worst or 'no reason given'}", file=graph)
        with translate_os_errors(out):
            out.write_bytes(memoryview(engine))

    def timed(self, _trt: Any, _config: Any) -> AbstractContextManager[None]:
        """Return the context that the engine is built in; TensorRT keeps its timings with it."""
        return nullcontext()

    def configure(self, trt: Any, config: Any) -> None:
        """Set the flags of one of the two builders."""

    def open(self, place: Path) -> Session:
        """Open an engine on the first GPU. Raises ResourceError without one."""
        trt = self._library()
        from tlkit_standard.targets._engine import EngineSession

        return EngineSession(trt, _log(trt), place)

    def machine(self) -> Mapping[str, str]:
        """Return the version of the library, which reads no other's engines, and of the driver, for information."""
        from tlkit.plugin.support import gpus

        seen = gpus()
        return {self.name: str(self._library().__version__), **({DRIVER: seen[0].driver} if seen else {})}

    def incompatible(self, recorded: Mapping[str, str]) -> str | None:
        """Compare as for any target, but accept every driver that the library supports."""
        return super().incompatible({name: value for name, value in recorded.items() if name != DRIVER})

    def _library(self) -> Any:
        if (why := self.missing()) is not None:
            raise ResourceError(why)
        return importlib.import_module(self.package)


def _log(trt: Any) -> Any:
    """Return a logger that keeps the last error for the message and prints nothing."""

    class Log(trt.ILogger):  # type: ignore[misc]  # the base is known at run time only
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.worst = ""

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.worst = message

    return Log()


def _strongly_typed(trt: Any) -> int:
    """Return the network's creation flags; from TensorRT 11 on, networks are strongly typed without a flag."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _refusals(parser: Any) -> Iterator[str]:
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        where = f"{error.node_operator()} {error.node_name()!r}: " if error.node_name() else ""
        yield where + error.desc().split("\n")[0]


def _profile(builder: Any, network: Any, sizes: OptimizationProfile) -> Any:
    """Return the profile of the dynamic first axis of every input."""
    if not 1 <= sizes.min <= sizes.opt <= sizes.max:
        raise UsageError(f"batch sizes must rise from at least 1: {sizes}")
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        rest = tuple(tensor.shape)[1:]
        profile.set_shape(tensor.name, (sizes.min, *rest), (sizes.opt, *rest), (sizes.max, *rest))
    return profile
