"""Models whose golden images were replayed, by name, and the exchange of one for another."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tlkit.errors import ArtifactError, GateError, UsageError
from tlkit.graph import metadata
from tlkit.model.bundle import RECORD, Bundle, open_bundle
from tlkit.plugin.contract import FEATURES, IMAGES, LOGITS, PROBABILITIES
from tlkit.runtime.evidence import LEFT_OUT, Evidence
from tlkit.runtime.model import Model
from tlkit.runtime.session import load_graph
from tlkit.serving.protocol import BYTES, FP32, UINT8, ProtocolError
from tlkit.serving.scheduler import Scheduler
from tlkit.verification.replay import Replay, replay_file

NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,99}", re.ASCII)  # it is part of addresses
VERSION = re.compile(r"[1-9][0-9]{0,17}")
STEPS = ("queue", "compute_input", "compute_infer", "compute_output")  # of an answer, in the statistics
LABEL = "label"  # the output with the most probable label
PLATFORM, BACKEND = "tlkit", "tlkit"
RETIRE = 0.02  # seconds between looks whether a retired model is still in use

OpenModel = Callable[[Path], Model]  # the export of a bundle that is to be served
Shapes = dict[str, tuple[str, tuple[int, ...]]]  # by name: the datatype, and the axes behind the batch


@dataclass(frozen=True, slots=True)
class Source:
    """A bundle to serve: its name, its version and where it lies."""

    name: str
    version: str
    root: Path


@dataclass(slots=True)
class Counts:
    """Statistics of a model since it was loaded: requests, images and nanoseconds."""

    success: int = 0
    failed: int = 0
    images: int = 0
    last: int = 0  # milliseconds since the epoch
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("success", "fail", *STEPS), 0.0))

    def add(self, images: int, seconds: float, **steps: float) -> None:
        """Count a request that was answered."""
        self.success += 1
        self.images += images
        self.last = time.time_ns() // 1_000_000
        for name, value in {"success": seconds, **steps}.items():
            self.seconds[name] += value


@dataclass(eq=False)
class ServedModel:
    """A model that was proven, and the scheduler that runs it. `prefix` is that of its outputs on a shared trunk."""

    source: Source
    model: Model
    bundle: Bundle
    replay: Replay
    scheduler: Scheduler
    prefix: str = ""
    active: int = 0  # requests under way; counted by the event loop alone
    counts: Counts = field(default_factory=Counts)
    _evidence: Evidence | None = None
    _opening: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        record, side = self.bundle.record, self.model.preprocessing.size
        self.labels = self.model.labels
        self.scores = metadata.score_names(self.model.session.outputs)
        self.precision = self.model.session.metadata.get(metadata.PRECISION, "fp32")
        self.inputs: Shapes = {IMAGES: (UINT8, (side, side, 3))}
        classes = (len(record.labels),)
        known: Shapes = {FEATURES: (FP32, (record.width,)), LOGITS: (FP32, classes), PROBABILITIES: (FP32, classes)}
        self.outputs: Shapes = {**known, **dict.fromkeys(self.scores, (FP32, (1,))), LABEL: (BYTES, (1,))}

    @contextmanager
    def used(self) -> Iterator[None]:
        """Keep it open while a request uses it; entered and left on the event loop only."""
        self.active += 1
        try:
            yield
        finally:
            self.active -= 1

    def evidence(self) -> Evidence:
        """Return its evidence maps, which are opened when they are first asked for. Raises ProtocolError."""
        with self._opening:
            if self._evidence is None:
                file, session = self.model.file, self.model.session
                graph = load_graph(file) if file.suffix == ".onnx" else None
                if graph is not None and {each.key: each.value for each in graph.metadata_props} != session.metadata:
                    raise ProtocolError(503, "the model is being replaced", reason="busy", retry_after=1)
                self._evidence = Evidence(session, graph)
        if self._evidence.method != LEFT_OUT:  # the other method takes a run for each part of the image
            raise ProtocolError(501, "the model does not end in a mean over positions", reason="unsupported")
        return self._evidence

    def close(self) -> None:
        """Close what is its own; its scheduler may be shared."""
        if self._evidence is not None:
            self._evidence.close()

    def prefix_of(self, output: str) -> str:
        """Return what precedes the name of an output in the scheduler; features are those of the trunk."""
        return "" if output == FEATURES else self.prefix

    def facts(self) -> dict[str, str]:
        """Return what proves it: the hash of the bundle, the precision, and the verdict of the replay."""
        return {
            metadata.BUNDLE: self.bundle.digest,
            metadata.PRECISION: self.precision,
            metadata.PREPROCESSING: metadata.preprocessing_json(self.model.preprocessing),
            f"{metadata.PREFIX}golden_images": str(self.replay.images),
            f"{metadata.PREFIX}verified": "passed" if self.replay.passed else "failed",
        }

    def metadata(self) -> dict[str, Any]:
        """Return the metadata of the protocol."""

        def tensors(shapes: Shapes) -> list[dict[str, Any]]:
            return [{"name": name, "datatype": kind, "shape": [-1, *axes]} for name, (kind, axes) in shapes.items()]

        facts = {"inputs": tensors(self.inputs), "outputs": tensors(self.outputs), "parameters": self.facts()}
        return {"name": self.source.name, "versions": [self.source.version], "platform": PLATFORM, **facts}

    def config(self, max_batch_size: int) -> dict[str, Any]:
        """Return the configuration in the form of Triton's model repositories, which `export --triton` writes."""

        def tensors(shapes: Shapes) -> list[dict[str, Any]]:
            types = {UINT8: "TYPE_UINT8", FP32: "TYPE_FP32", BYTES: "TYPE_STRING"}
            return [{"name": n, "data_type": types[kind], "dims": list(axes)} for n, (kind, axes) in shapes.items()]

        return {
            "name": self.source.name,
            "platform": PLATFORM,
            "backend": BACKEND,
            "max_batch_size": max_batch_size,
            "input": tensors(self.inputs),
            "output": tensors(self.outputs),
            "parameters": {key: {"string_value": value} for key, value in self.facts().items()},
        }

    def statistics(self) -> dict[str, Any]:
        """Return the statistics of the protocol; the session's batches are in the metrics."""
        counts = self.counts
        numbers = {"success": counts.success, "fail": counts.failed, **dict.fromkeys(STEPS, counts.success)}
        durations = {name: {"count": n, "ns": int(counts.seconds[name] * 1e9)} for name, n in numbers.items()}
        return {
            "name": self.source.name,
            "version": self.source.version,
            "last_inference": counts.last,
            "inference_count": counts.images,
            "execution_count": counts.success,
            "inference_stats": durations,
            "batch_stats": [],
        }


class Repository:
    """The models by name, one version of each. `failures` has the reason why a newer one is not served."""

    def __init__(self) -> None:
        self._models: dict[str, ServedModel] = {}
        self.failures: dict[str, str] = {}
        self.ready = False

    def get(self, name: str = "", version: str = "") -> ServedModel:
        """Return a model that is ready; without a name the only one. Raises ProtocolError."""
        if not name and len(self._models) != 1:
            raise ProtocolError(400, f"name one of the models: {', '.join(self._models)}", reason="model")
        name = name or next(iter(self._models))
        if not self.has(name, version):
            what = f"model {name[:100]!r}" + (f" version {version[:20]!r}" if version else "")
            raise ProtocolError(404, f"{what} is not served", reason="model")
        return self._models[name]

    def has(self, name: str, version: str = "") -> bool:
        """Return whether a model is served."""
        served = self._models.get(name)
        return served is not None and version in ("", served.source.version)

    def all(self) -> list[ServedModel]:
        """Return every model that is served."""
        return list(self._models.values())

    def index(self) -> list[dict[str, str]]:
        """Return the repository index of the protocol."""
        listed = []
        for served in self.all():
            source, reason = served.source, self.failures.get(served.source.name, "")
            listed.append({"name": source.name, "version": source.version, "state": "READY", "reason": reason})
        missing = {name: reason for name, reason in self.failures.items() if name not in self._models}
        listed += [{"name": n, "version": "", "state": "UNAVAILABLE", "reason": why} for n, why in missing.items()]
        return listed

    def replace(self, models: Sequence[ServedModel]) -> list[ServedModel]:
        """Serve these models from now on; return those that are not served any more."""
        before, self._models = self._models, {each.source.name: each for each in models}
        return [each for each in before.values() if self._models.get(each.source.name) is not each]


def retire(models: Iterable[ServedModel], kept: Iterable[ServedModel] = ()) -> None:
    """Wait for the requests under way on replaced models, then close them, and schedulers that none of `kept` uses."""
    models = list(models)
    while any(each.active for each in models):
        time.sleep(RETIRE)
    for each in models:
        each.close()
    in_use = {id(each.scheduler) for each in kept}
    for scheduler in {id(each.scheduler): each.scheduler for each in models}.values():
        if id(scheduler) not in in_use:
            scheduler.close()


def discover(paths: Sequence[Path]) -> list[Source]:
    """Return the bundles to serve: those at the paths, and those in folders of bundles, of each the latest version.

    A folder of bundles holds `name/bundle.json`, or `name/1/bundle.json`, `name/2/bundle.json`, ...
    """
    found: dict[str, Source] = {}
    for path in paths:
        if not path.is_dir():
            raise UsageError("no such bundle or folder of bundles", file=path)
        for source in [_bundle(path)] if (path / RECORD).exists() else _inside(path):
            if not NAME.fullmatch(source.name):
                raise UsageError(f"{source.name!r} can't be the name of a model", file=path, do="rename the folder")
            if source.name in found:
                what = f"two bundles have the name {source.name!r}"
                raise UsageError(what, file=source.root, do="rename one of the folders")
            found[source.name] = source
    return list(found.values())


def _bundle(root: Path) -> Source:
    return Source(root.resolve().name, "1", root)


def _inside(folder: Path) -> Iterator[Source]:
    for place in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        if (place / RECORD).exists():
            yield _bundle(place)
            continue
        versions = [each for each in place.iterdir() if VERSION.fullmatch(each.name) and (each / RECORD).exists()]
        if versions:
            latest = max(versions, key=lambda each: int(each.name))
            yield Source(place.name, latest.name, latest)


def prove(source: Source, open_model: OpenModel) -> tuple[Model, Bundle, Replay]:
    """Open the export of a bundle and replay the golden images on the session that will serve. Raises GateError."""
    bundle = open_bundle(source.root)
    model = open_model(source.root)
    try:
        replay = replay_file(bundle, model.session, model.file, model.file.parent.parent.name)
        if len(model.labels) != len(bundle.record.labels):
            raise ArtifactError("its labels are not those of its bundle", file=model.file, do="export it again")
        if not replay.passed:
            what = "it does not give what was trained, and is not served"
            raise GateError(what, file=source.root, do=f"export it again; {' '.join(replay.lines(source.name))}")
    except BaseException:
        model.close()
        raise
    return model, bundle, replay
