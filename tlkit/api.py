"""The Python API: one function for each verb. Keyword arguments in, dataclasses out.

The command line and notebooks call these. Each resolves names, options and paths, and calls its namesake in a room.
Progress goes to a callable, by default to bars; warnings are `TlkitWarning`s, problems of users `TlkitError`s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from tlkit import defaults, places, resolve
from tlkit.errors import UsageError
from tlkit.progress import shown
from tlkit.resolve import CPU, StrPath
from tlkit.util.files import local_path
from tlkit.util.locks import claim

if TYPE_CHECKING:
    from tlkit.advice.run import Advice
    from tlkit.benchmarking.run import BenchmarkResult
    from tlkit.doctor import Diagnosis
    from tlkit.evaluation.evaluate import EvaluationResult
    from tlkit.exporting.run import ExportReport
    from tlkit.exporting.shared_trunk import SharedTrunk
    from tlkit.exporting.triton import TritonRepository
    from tlkit.plugin.contract import OptimizationProfile, Progress
    from tlkit.plugin.loading import RegisteredComponent
    from tlkit.runtime.model import Model
    from tlkit.training.result import TrainingResult
    from tlkit.verification.run import Verification


@resolve.naming_plugins()
def advise(
    source: StrPath,
    *,
    backbones: Sequence[str] | str | None = None,
    options: Mapping[str, object] | None = None,
    size: int | None = None,
    budget: float | None = None,
    audit: bool = False,
    strict: bool = False,
    val: float = 0.2,
    group: str | None = None,
    max_bad: float = 0.01,
    seed: int = 0,
    progress: Progress | None = None,
) -> Advice:
    """Return the strategy, cut and head that fit a labelled dataset, with the evidence.

    `backbones` names pretrained networks, the first one preferred; `options` sets theirs: `{"backbone.size": 128}`. A
    `budget` in seconds is for trial trainings; `audit` adds duplicates, leakage, label errors and shortcuts. `size`,
    `val`, `group` and `strict` are as for `train`; images to validate or test on are not looked at.
    """
    images, options = places.labeled_images(source, options or {})
    named = resolve.several(backbones or defaults.DEFAULT_BACKBONE)
    chosen = [resolve.configured({"backbone": name}, options)["backbone"] for name in named]
    from tlkit.advice.run import advise

    request = resolve.advice_request(chosen, val=val, group=group, max_bad=max_bad, seed=seed, size=size)
    with shown(progress) as bars:
        return advise(images, request, bars, budget=budget, audit=audit, strict=strict)


@resolve.naming_plugins()
def train(
    source: StrPath,
    out: StrPath,
    *,
    backbone: str | None = None,
    strategy: str | None = None,
    head: str | None = None,
    detector: str | None = None,
    options: Mapping[str, object] | None = None,
    cut: str | None = None,
    size: int | None = None,
    val: float = 0.2,
    group: str | None = None,
    max_bad: float = 0.01,
    golden: int = 8,
    golden_strip: bool = False,
    seed: int = 0,
    refit: bool = True,
    strict: bool = False,
    views: int = 4,
    cache: bool = True,
    blend: float | Literal["auto"] = 1.0,
    resume: bool = False,
    tensorboard: StrPath | None = None,
    device: str = "auto",
    precision: str = "auto",
    compile: bool = False,  # as torch.compile
    tf32: bool = False,
    budget: float | Literal["auto"] | None = "auto",
    license: Sequence[str] | str = (),
    progress: Progress | None = None,
) -> TrainingResult:
    """Train on a labelled dataset and write the bundle `out`, which must not exist yet.

    Without a `strategy`, or with "auto", the dataset is advised on first, a `head` or `cut` that is named stays, and
    better bundles replace the first one for `budget` seconds, by default 10 minutes on a CPU. `options` sets options of
    the components by `kind.option`: `{"head.pca": 128}`. `size` is the side of the input in pixels, `golden` the number
    of images that are copied, `blend` the share of the fine-tuning in a fine-tuned trunk. Images in whose names the
    regular expression `group` finds the same stay together. Weights of another `license` are refused.
    """
    automatic = resolve.is_automatic(strategy, budget)
    images, options = places.labeled_images(source, options or {})
    found, options = resolve.detectors(detector, options)
    components = resolve.components_to_train(backbone, None if automatic else strategy, head, options)
    resolve.check_license(components["backbone"], resolve.several(license))
    from tlkit.advice.auto import train_auto
    from tlkit.training.config import RunOptions, TrainingConfig
    from tlkit.training.device import DeviceOptions
    from tlkit.training.run import train as run

    config: dict[str, Any] = {**found, "val": val, "group": group, "max_bad": max_bad, "golden": golden, "seed": seed}
    config |= {"size": size, "cut": cut, "golden_strip": golden_strip, "refit": refit, "views": views, "cache": cache}
    config |= {"blend": blend}
    on = DeviceOptions(device, precision, compile, tf32)
    how = RunOptions(on, resume, resolve.optional_path(tensorboard), warn=resolve.warn, strict=strict)
    with resolve.claimed_to_train(out := local_path(out)), shown(progress) as bars:
        if automatic:
            request = resolve.advice_request([components["backbone"]], head=components.get("head"), **config)
            return train_auto(images, out, request, how, budget, bars)[0]
        return run(images, out, TrainingConfig(**components, origins=resolve.origins(components), **config), bars, how)


@resolve.naming_plugins()
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

    chosen = [resolve.configured({"target": name}, options)["target"] for name in targets or (defaults.DEFAULT_TARGET,)]
    modules = resolve.trained_modules(bundle)
    with claim(modules.bundle.root, inside=True), shown(progress) as bars:
        return export(
            modules,
            chosen,
            precision=precision,
            max_drop=max_drop,
            fallback=fallback,
            refit_head=refit_head,
            profile=profile,
            data=resolve.optional_path(data),
            progress=bars,
        )


def export_shared_trunk(
    bundles: Iterable[StrPath], out: StrPath, *, data: StrPath | None = None, progress: Progress | None = None
) -> SharedTrunk:
    """Write one graph with the heads of several bundles that have the same trunk into the folder `out`.

    Each bundle is exported in fp32 first where it is not yet.
    """
    from tlkit.exporting.shared_trunk import export_shared_trunk

    with claim(place := local_path(out)):
        opened = resolve.exported(bundles, "fp32", partial(export, data=data, progress=progress))
        return export_shared_trunk(opened, place, data=resolve.optional_path(data))


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

    with claim(place := local_path(repository)):
        missing = partial(export, precision=precision, data=data, progress=progress)
        opened, folder = resolve.exported(bundles, precision, missing), resolve.optional_path(data)
        return export_triton(opened, place, precision=precision, data=folder)


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

    opened_by = resolve.opener(device, allow_cpu, trust_engine)
    if data is None and split is not None:
        raise UsageError("a split is of data")
    if data is not None and against is not None:
        raise UsageError("data is for a bundle; evaluate() measures one graph on a folder")
    if against is not None:
        return verify_file(local_path(bundle), resolve.open_bundle(against), opened_by)
    trained = None if data is None else resolve.trained_modules(bundle)
    with shown(progress) as bars:
        return verify(
            resolve.open_bundle(bundle) if trained is None else trained.bundle,
            opened_by,
            targets=resolve.several(targets),
            precisions=resolve.several(precisions),
            trained=trained,
            data=resolve.optional_path(data),
            split=split,
            progress=bars,
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

    `graph` is "model" or "trunk"; `head` names one of several heads on a shared trunk. `workers=1` is fastest for one
    call; None uses every core, or what `benchmark(tune=True)` found. A `device` that can't be used is a ResourceError,
    or with `allow_cpu` a warning, and the CPU is used; "auto" takes the one that is done first with what it is given.
    """
    on = resolve.opener(device, allow_cpu, trust=False)
    return resolve.open_model(local_path(path), graph, target, precision, head=head, workers=workers, opener=on)


def evaluate(
    model: Model | StrPath,
    source: StrPath,
    *,
    split: str | None = None,
    options: Mapping[str, object] | None = None,
    progress: Progress | None = None,
) -> EvaluationResult:
    """Return the metrics of a model on a labelled dataset, with unreadable images and the split that was used.

    `model` is what `load` returned, a bundle or a graph. Of a dataset with splits of its own the test split is used,
    or else val, unless `split` names another; of other datasets everything.
    """
    from tlkit.evaluation.evaluate import evaluate

    images, _ = places.labeled_images(source, options or {})
    with shown(progress) as bars:
        return evaluate(resolve.opened(model, device=resolve.AUTO), images, split=split, progress=bars)


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

    trained = resolve.trained_modules(bundle)
    with claim(trained.bundle.root if tune else None, inside=True), shown(progress) as bars:
        return benchmark(
            trained.bundle,
            resolve.opener(device, allow_cpu, trust_engine),
            targets=resolve.several(targets),
            precisions=resolve.several(precisions),
            batch_sizes=batch_sizes,
            threads=threads,
            tuning=tune,
            trained=trained,
            progress=bars,
        )


def list_components(kind: str | None = None, pattern: str = "*") -> list[RegisteredComponent]:
    """Return the components that plugins provide: those of one kind, or all, whose name matches a shell pattern."""
    return resolve.components(kind, pattern)


def diagnose() -> Diagnosis:
    """Return what this machine can run, and what is wrong with the installation."""
    from tlkit.doctor import diagnose

    plugins = resolve.load_plugins()
    targets = {name: plugins.get("target", name).missing() for name in plugins.names("target")}
    return replace(diagnose(), targets=targets, plugins=plugins.warnings)
