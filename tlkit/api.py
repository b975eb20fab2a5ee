"""The Python API: one function for each verb. Keyword arguments in, dataclasses out.

The command line and notebooks call these functions and nothing else. Each resolves the names of components, opens the
paths that it is given, and calls the function of the same name in the room that does the work. Nothing here prints:
progress goes to a callable, warnings to Python's `warnings` as `TlkitWarning`, and every problem that a user can act
on is raised as a `TlkitError`.
"""

from __future__ import annotations

import fnmatch
import functools
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tlkit import defaults
from tlkit.errors import ResourceError, TlkitWarning, UsageError
from tlkit.plugin.contract import silent
from tlkit.util.files import local_path

if TYPE_CHECKING:
    from tlkit.advice.run import Advice, AdviceRequest
    from tlkit.benchmarking.run import BenchmarkResult
    from tlkit.doctor import Diagnosis
    from tlkit.evaluation.evaluate import EvaluationResult
    from tlkit.exporting.run import ExportReport
    from tlkit.exporting.shared_trunk import SharedTrunk
    from tlkit.exporting.triton import TritonRepository
    from tlkit.inspection import Inspection
    from tlkit.model.bundle import Bundle
    from tlkit.plugin.contract import Backbone, Head, OptimizationProfile, Progress
    from tlkit.plugin.loading import RegisteredComponent
    from tlkit.plugin.registry import Host
    from tlkit.runtime.embedding import EmbeddingResult
    from tlkit.runtime.engine import Opener
    from tlkit.runtime.model import Model
    from tlkit.training.result import TrainingResult
    from tlkit.verification.run import Verification
    from tlkit.verification.trained import TrainedModules

StrPath = str | os.PathLike[str]

AUTO = "auto"  # the strategy that follows the advice
CPU = "cpu"

T = TypeVar("T")


def advise(
    source: StrPath,
    *,
    backbones: Sequence[str] | str | None = None,
    budget: float | None = None,
    audit: bool = False,
    val: float = 0.2,
    max_bad: float = 0.01,
    seed: int = 0,
    progress: Progress | None = None,
) -> Advice:
    """Return the strategy, cut and head that fit a labelled dataset, with the evidence.

    `backbones` names one or several pretrained networks, the first one preferred. With a `budget` in seconds, short
    trial trainings settle close calls; `audit` adds duplicates, leakage, label errors and shortcuts. Images of the
    validation and test splits are not looked at. Raises DataError where the dataset can't be used.
    """
    named = [backbones] if isinstance(backbones, str) else backbones or [defaults.DEFAULT_BACKBONE]
    chosen = [load_plugins().get("backbone", name) for name in dict.fromkeys(named)]

    from tlkit.advice.run import advise

    request = _request(chosen, val=val, max_bad=max_bad, seed=seed)
    return advise(local_path(source), request, progress or silent, budget=budget, audit=audit)


def train(
    source: StrPath,
    out: StrPath,
    *,
    backbone: str | None = None,
    strategy: str | None = None,
    head: str | None = None,
    options: Mapping[str, object] | None = None,
    cut: str | None = None,
    size: int | None = None,
    val: float = 0.2,
    max_bad: float = 0.01,
    golden: int = 8,
    seed: int = 0,
    refit: bool = True,
    views: int = 4,
    cache: bool = True,
    resume: bool = False,
    tensorboard: StrPath | None = None,
    device: str = "auto",
    precision: str = "auto",
    compile: bool = False,  # as torch.compile
    tf32: bool = False,
    budget: float | None = None,
    progress: Progress | None = None,
) -> TrainingResult:
    """Train on a labelled dataset and write the bundle `out`, which must not exist yet.

    Without a `strategy`, or with "auto", the dataset is advised on first, and a `head` or `cut` that is named stays.
    `options` sets options of the components by `kind.option`, as in `{"head.pca": 128}`. `size` is the side of the
    network's input in pixels. `budget` in seconds goes to trial trainings, with "auto" alone. The result stands
    wherever a bundle does.
    """
    automatic = strategy in (None, AUTO)
    if budget is not None and not automatic:
        raise UsageError("a budget is for trial runs", do=f"use strategy {AUTO}, or leave the budget out")
    components = _to_train(backbone, None if automatic else strategy, head, options or {})

    from tlkit.advice.auto import train_auto
    from tlkit.training.run import DeviceOptions, RunOptions, TrainingConfig
    from tlkit.training.run import train as run

    config: dict[str, Any] = {"val": val, "max_bad": max_bad, "golden": golden, "seed": seed, "size": size, "cut": cut}
    config |= {"refit": refit, "views": views, "cache": cache}
    board = None if tensorboard is None else local_path(tensorboard)
    how = RunOptions(DeviceOptions(device, precision, compile, tf32), resume, board, warn=_warn)
    source, out, progress = local_path(source), local_path(out), progress or silent
    with _resumable(out):
        if automatic:
            request = _request([components["backbone"]], head=components.get("head"), **config)
            trained, advice = train_auto(source, out, request, how, budget, progress)
            return replace(trained, advice=advice)
        origins = {kind: load_plugins().origin(component) for kind, component in components.items()}
        return run(source, out, TrainingConfig(**components, origins=origins, **config), progress, how)


def export(
    bundle: StrPath,
    *targets: str,
    precision: str = "fp32",
    max_drop: float | None = None,
    fallback: bool = True,
    refit_head: bool = False,
    profile: OptimizationProfile | None = None,
    options: Mapping[str, object] | None = None,
    data: StrPath | None = None,
    progress: Progress | None = None,
) -> ExportReport:
    """Write the graphs of a bundle for `targets` (unless named, ONNX), each checked on real images.

    `max_drop` is the maximum accuracy drop in percentage points: a precision that exceeds it falls back to the next
    higher one, or without `fallback` is an error. `options` sets options of the targets: `{"target.gpu": "sm86"}`.
    Raises GateError, and leaves what was there before, where a graph does not compute what was trained.
    """
    from tlkit.exporting.run import export

    chosen = [_configured({"target": name}, options)["target"] for name in targets or (defaults.DEFAULT_TARGET,)]
    return export(
        _trained(bundle),
        chosen,
        precision=precision,
        max_drop=max_drop,
        fallback=fallback,
        refit_head=refit_head,
        profile=profile,
        data=None if data is None else local_path(data),
        progress=progress or silent,
    )


def export_shared_trunk(
    bundles: Iterable[StrPath], out: StrPath, *, data: StrPath | None = None, progress: Progress | None = None
) -> SharedTrunk:
    """Write one graph with the heads of several bundles that have the same trunk into the folder `out`.

    Each bundle is exported in fp32 first where it is not yet.
    """
    from tlkit.exporting.shared_trunk import export_shared_trunk

    for bundle in (made := list(bundles)):
        _export_missing(bundle, "fp32", data, progress)
    folder = None if data is None else local_path(data)
    return export_shared_trunk([_bundle(bundle) for bundle in made], local_path(out), data=folder)


def export_triton(
    bundles: Iterable[StrPath],
    repository: StrPath,
    *,
    precision: str = "fp32",
    data: StrPath | None = None,
    progress: Progress | None = None,
) -> TritonRepository:
    """Write a Triton model repository with the ONNX graphs of several bundles.

    Each bundle is exported in this precision first where it is not yet.
    """
    from tlkit.exporting.triton import export_triton

    for bundle in (made := list(bundles)):
        _export_missing(bundle, precision, data, progress)
    opened, folder = [_bundle(bundle) for bundle in made], None if data is None else local_path(data)
    return export_triton(opened, local_path(repository), precision=precision, data=folder)


def verify(
    bundle: StrPath,
    *,
    targets: Sequence[str] | str = (),
    precisions: Sequence[str] | str = (),
    data: StrPath | None = None,
    split: str | None = None,
    against: StrPath | None = None,
    device: str = CPU,
    allow_cpu: bool = False,
    trust_engine: bool = False,
    progress: Progress | None = None,
) -> Verification:
    """Replay a bundle's golden images on what was exported from it; `.passed` is the verdict.

    With `against`, `bundle` is one exported graph, verified wherever it lies now against that bundle. With `data`, all
    images of a labelled folder go through the trained modules and through every export as well. Exports that can't run
    on this machine are skipped, and an error where they were asked for by `targets`.
    """
    from tlkit.verification.run import verify, verify_file

    opener = _opener(device, allow_cpu, trust_engine)
    if against is not None:
        if data is not None:
            raise UsageError("data is for a bundle; evaluate() measures one graph on a folder")
        return verify_file(local_path(bundle), _bundle(against), opener)
    if split is not None and data is None:
        raise UsageError("a split is of data")
    trained = None if data is None else _trained(bundle)
    return verify(
        _bundle(bundle) if trained is None else trained.bundle,
        opener,
        targets=_names(targets),
        precisions=_names(precisions),
        trained=trained,
        data=None if data is None else local_path(data),
        split=split,
        progress=progress or silent,
    )


def load(
    path: StrPath,
    *,
    graph: str = "model",
    target: str = defaults.DEFAULT_TARGET,
    precision: str = "fp32",
    head: str | None = None,
    device: str = CPU,
    allow_cpu: bool = False,
    workers: int | None = None,
) -> Model:
    """Open a bundle's export, or an exported graph, to predict, embed and evaluate with.

    `graph` is "model" or "trunk"; `head` names one of several heads on a shared trunk. `workers=1` is fastest for a
    single call; None uses every core, or what `benchmark(tune=True)` found. Where `device` can't be used and
    `allow_cpu` is set, the CPU is used with a warning; otherwise it is a ResourceError.
    """
    from tlkit.model.exports import graph_file
    from tlkit.runtime.model import Model

    file = graph_file(local_path(path), graph, target, precision)
    return _on_device(
        lambda chosen: Model.open(file, graph=graph, workers=workers, head=head, device=chosen), device, allow_cpu
    )


def embed(
    model: Model | StrPath,
    images: Sequence[StrPath] | StrPath,
    out: StrPath,
    *,
    progress: Progress | None = None,
) -> EmbeddingResult:
    """Write the features of image files, and of all images in folders, to the Parquet or npy file `out`.

    `model` is what `load` returned, a bundle or a graph. Unreadable images are in the result and in a rejects file.
    """
    from tlkit.data.dataset import find_images
    from tlkit.runtime.embedding import embed

    files = find_images([local_path(each) for each in ([images] if isinstance(images, str | os.PathLike) else images)])
    opened = _model(model, "trunk")
    return embed(opened, files, local_path(out), (progress or silent)("embedding", len(files)))


def evaluate(
    model: Model | StrPath, source: StrPath, *, split: str | None = None, progress: Progress | None = None
) -> EvaluationResult:
    """Return the metrics of a model on a labelled dataset, with unreadable images and the split that was used.

    `model` is what `load` returned, a bundle or a graph. Of a dataset with splits of its own the test split is used,
    or else val, unless `split` names another; of other datasets everything.
    """
    from tlkit.evaluation.evaluate import evaluate

    return evaluate(_model(model, "model"), local_path(source), split=split, progress=progress or silent)


def benchmark(
    bundle: StrPath,
    *,
    targets: Sequence[str] | str = (),
    precisions: Sequence[str] | str = (),
    batch_sizes: Sequence[int] = (1, 8, 32),
    threads: Sequence[int] = (),
    tune: bool = False,
    device: str = CPU,
    allow_cpu: bool = False,
    trust_engine: bool = False,
    progress: Progress | None = None,
) -> BenchmarkResult:
    """Measure latency, throughput and memory of what was exported from a bundle.

    Unless `targets` names some, everything that runs here is measured; "torch" stands for the trained modules.
    `threads` measures each with several numbers of threads. `tune` finds the fastest runtime config for the ONNX
    graphs and keeps it for machines like this one.
    """
    from tlkit.benchmarking.run import benchmark

    trained = _trained(bundle)
    return benchmark(
        trained.bundle,
        _opener(device, allow_cpu, trust_engine),
        targets=_names(targets),
        precisions=_names(precisions),
        batch_sizes=batch_sizes,
        threads=threads,
        tuning=tune,
        trained=trained,
        progress=progress or silent,
    )


def list_components(kind: str | None = None, pattern: str = "*") -> list[RegisteredComponent]:
    """Return the components that plugins provide: those of one kind, or all, whose name matches a shell pattern."""
    return [
        component
        for plugin in load_plugins().plugins
        for component in plugin.components
        if component.reason is None and kind in (None, component.kind) and fnmatch.fnmatchcase(component.name, pattern)
    ]


def inspect(path: StrPath) -> Inspection:
    """Return what a bundle, checked as a whole, or an exported graph says of itself."""
    from tlkit.inspection import inspect

    return inspect(local_path(path))


def diagnose() -> Diagnosis:
    """Return what this machine can run, and what is wrong with the installation."""
    from tlkit.doctor import diagnose

    plugins = load_plugins()
    targets = {name: plugins.get("target", name).missing() for name in plugins.names("target")}
    return replace(diagnose(), targets=targets, plugins=plugins.warnings)


@functools.cache
def load_plugins() -> Host:
    """Return the registry of plugins, loaded once; what is wrong with some of them is a warning."""
    from tlkit.plugin.registry import load

    host = load()
    for warning in host.warnings:
        _warn(warning)
    return host


def _warn(text: str) -> None:
    warnings.warn(text, TlkitWarning, stacklevel=3)


def _bundle(path: StrPath) -> Bundle:
    from tlkit.model.bundle import open_bundle

    return open_bundle(local_path(path))


def _made_with(bundle: Bundle) -> tuple[Backbone, Head]:
    """Return the backbone and the head that a bundle was trained with."""
    made = {"backbone": bundle.record.backbone, "head": bundle.record.head}
    backbone, head = (
        load_plugins().require(kind, each.name, each.distribution, each.version, each.options)
        for kind, each in made.items()
    )
    return backbone, head


def _request(
    backbones: Sequence[Backbone],
    *,
    val: float,
    max_bad: float,
    seed: int,
    head: Head | None = None,
    cut: str | None = None,
    **options: Any,
) -> AdviceRequest:
    """Return the request for advice: every strategy that plugins provide, and every head or the one that is named."""
    from tlkit.advice.run import AdviceRequest

    plugins = load_plugins()
    heads = [plugins.get("head", name) for name in plugins.names("head")] if head is None else [head]
    strategies = [plugins.get("strategy", name) for name in plugins.names("strategy")]
    return AdviceRequest(backbones, heads, strategies, plugins.origin, val, max_bad, seed, cut, options)


def _configured(named: Mapping[str, str], options: Mapping[str, object] | None) -> dict[str, Any]:
    """Return the components of these names by kind, with their options set.

    Raises one UsageError for all names that no plugin provides.
    """
    from tlkit.plugin.options import configure_all

    components, problems = dict[str, Any](), []
    for kind, name in named.items():
        try:
            components[kind] = load_plugins().get(kind, name)
        except UsageError as problem:
            problems.append(problem.what)
    if problems:
        raise UsageError("; ".join(problems))
    return configure_all(components, options or {})


def _to_train(
    backbone: str | None, strategy: str | None, head: str | None, options: Mapping[str, object]
) -> dict[str, Any]:
    """Return the configured components to train; without a strategy, only those that are not left to the advice."""
    named = {"backbone": backbone or defaults.DEFAULT_BACKBONE, "strategy": strategy, "head": head}
    if strategy is not None and head is None:
        named["head"] = defaults.DEFAULT_HEAD
    for key in options:
        kind = key.partition(".")[0].strip()
        if kind in named and named[kind] is None:
            raise UsageError(f"option {key}: {AUTO} decides on the {kind}", do=f"name the {kind}, or leave it out")
    return _configured({kind: name for kind, name in named.items() if name is not None}, options)


@contextmanager
def _resumable(out: Path) -> Iterator[None]:
    """Warn, if a training is interrupted, that it can be resumed."""
    from tlkit.training.run_directory import is_unfinished

    try:
        yield
    except KeyboardInterrupt:
        if is_unfinished(out):
            _warn(f"{out} is not finished; give the same options and --resume to continue")
        raise


def _on_device(opening: Callable[[str], T], device: str, allow_cpu: bool) -> T:
    """Return what is opened on a device; on the CPU instead only where that is allowed, and with a warning."""
    try:
        return opening(device)
    except ResourceError as error:
        if not allow_cpu or device == CPU:
            raise
        _warn(f"{error.what}; the CPU is used instead")
        return opening(CPU)


def _opener(device: str, allow_cpu: bool, trust: bool) -> Opener:
    """Return what opens exports on a device, through the targets that plugins provide."""
    from tlkit.runtime.engine import Opener

    return Opener(lambda name: load_plugins().get("target", name), device, allow_cpu, trust, _warn)


def _trained(bundle: StrPath) -> TrainedModules:
    """Return the modules of a bundle, which are built when they are needed."""
    from tlkit.verification.trained import TrainedModules

    return TrainedModules(_bundle(bundle), _made_with)


def _names(given: Sequence[str] | str) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(dict.fromkeys(given))


def _model(model: Model | StrPath, graph: str) -> Model:
    return load(model, graph=graph) if isinstance(model, str | os.PathLike) else model


def _export_missing(bundle: StrPath, precision: str, data: StrPath | None, progress: Progress | None) -> None:
    """Export a bundle's ONNX graphs where they are not there or are not its own."""
    from tlkit.model.exports import Exports

    if not Exports.of(_bundle(bundle)).has(precision=precision):
        export(bundle, precision=precision, data=data, progress=progress)
