"""Resolution of what the API is given: names to components, paths to bundles, devices that may be missing."""

from __future__ import annotations

import fnmatch
import functools
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlkit import defaults
from tlkit.errors import ArtifactError, TlkitError, TlkitWarning, UsageError
from tlkit.util.files import local_path
from tlkit.util.locks import claim

if TYPE_CHECKING:
    from tlkit.advice.run import AdviceRequest
    from tlkit.data.dataset import FoundImages
    from tlkit.model.bundle import Bundle
    from tlkit.plugin.contract import Backbone, Component, Head, Target
    from tlkit.plugin.detection import Detector
    from tlkit.plugin.loading import RegisteredComponent
    from tlkit.plugin.registry import Host
    from tlkit.runtime.engine import Opener
    from tlkit.runtime.model import Model
    from tlkit.verification.trained import TrainedModules

StrPath = str | os.PathLike[str]

AUTO = "auto"  # the strategy that follows the advice, the time that suits it, the device that is done first
CPU = "cpu"


@functools.cache
def load_plugins() -> Host:
    """Return the registry of plugins, loaded once; what is wrong with some of them is a warning."""
    from tlkit.plugin.registry import load

    host = load()
    for warning in host.warnings:
        warn(warning)
    return host


def components(kind: str | None, pattern: str) -> list[RegisteredComponent]:
    """Return the accepted components of a kind, or of all, whose name matches a shell pattern."""
    return [
        each
        for plugin in load_plugins().plugins
        for each in plugin.components
        if each.reason is None and kind in (None, each.kind) and fnmatch.fnmatchcase(each.name, pattern)
    ]


def local_paths(paths: Sequence[StrPath] | StrPath) -> list[Path]:
    """Return the paths that are named; a bare string is one path."""
    return [local_path(each) for each in ([paths] if isinstance(paths, str | os.PathLike) else paths)]


def image_files(images: Sequence[StrPath] | StrPath) -> FoundImages:
    """Return the image files that are named, those in folders included."""
    from tlkit.data.dataset import find_images

    return find_images(local_paths(images))


def warn(text: str) -> None:
    """Tell the user of something although the work goes on."""
    warnings.warn(text, TlkitWarning, stacklevel=3)


def optional_path(path: StrPath | None) -> Path | None:
    """Return a path where one is given."""
    return None if path is None else local_path(path)


def open_bundle(path: StrPath) -> Bundle:
    """Return a bundle, opened and checked as a whole."""
    from tlkit.model import bundle

    return bundle.open_bundle(local_path(path))


def exported(bundles: Iterable[StrPath], precision: str, export: Callable[[StrPath], object]) -> list[Bundle]:
    """Return bundles, opened, after calling `export` on each whose ONNX graphs are missing or are not its own."""
    from tlkit.model.exports import Exports

    opened = []
    for path in bundles:
        opened.append(bundle := open_bundle(path))
        if not Exports.of(bundle).has(precision=precision):
            export(path)
    return opened


def _made_with(bundle: Bundle) -> tuple[Backbone, Head]:
    """Return the backbone and the head that a bundle was trained with."""
    backbone, head = (
        load_plugins().require(kind, made.name, made.distribution, made.version, made.options)
        for kind, made in (("backbone", bundle.record.backbone), ("head", bundle.record.head))
    )
    if not (made := bundle.record.novelty):
        return backbone, head
    from tlkit.model.novelty import DetectingHead

    plugin = [str(made[key]) for key in ("name", "distribution", "version")]
    detector = load_plugins().require("detector", plugin[0], plugin[1], plugin[2], made["options"])
    return backbone, DetectingHead(head, detector)


def advice_request(
    backbones: Sequence[Backbone],
    *,
    val: float,
    group: str | None,
    max_bad: float,
    seed: int,
    head: Head | None = None,
    cut: str | None = None,
    detectors: Mapping[Detector, tuple[str, str]] | None = None,
    **options: Any,
) -> AdviceRequest:
    """Return the request for advice: every strategy that plugins provide, and every head or the one that is named."""
    from tlkit.advice.run import AdviceRequest

    plugins = load_plugins()
    heads = [plugins.get("head", name) for name in plugins.names("head")] if head is None else [head]
    strategies = [plugins.get("strategy", name) for name in plugins.names("strategy")]
    return AdviceRequest(
        backbones, heads, strategies, plugins.origin, val, group, max_bad, seed, cut, options, detectors=detectors or {}
    )


def configured(named: Mapping[str, str], options: Mapping[str, object] | None) -> dict[str, Any]:
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


def components_to_train(
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
    return configured({kind: name for kind, name in named.items() if name is not None}, options)


def is_automatic(strategy: str | None, budget: float | str | None) -> bool:
    """Return whether advice decides on the strategy; raise a UsageError for a budget that can't be kept."""
    automatic = strategy in (None, AUTO)
    if isinstance(budget, str) and budget != AUTO:
        raise UsageError(f"budget {budget!r} is no number of seconds", do=f'give a number, "{AUTO}" or None')
    if isinstance(budget, int | float) and not automatic:
        raise UsageError("a budget is for trial runs", do=f"use strategy {AUTO}, or leave the budget out")
    return automatic


def origins(components: Mapping[str, Component]) -> dict[str, tuple[str, str]]:
    """Return distribution and version of the plugin of each component, by kind."""
    return {kind: load_plugins().origin(component) for kind, component in components.items()}


def detectors(name: str | None, options: Mapping[str, object]) -> tuple[dict[str, Any], dict[str, object]]:
    """Return the detectors to choose from, all or the one named, as a training takes them, and the other options."""
    plugins, own = load_plugins(), {key: value for key, value in options.items() if key.startswith("detector.")}
    if own and name is None:
        raise UsageError(f"option {next(iter(own))}: a detector is chosen", do="name the detector, or leave it out")
    found = [plugins.get("detector", each) for each in plugins.names("detector")]
    if name is not None:
        found = [configured({"detector": name}, own)["detector"]]
    rest = {key: value for key, value in options.items() if key not in own}
    return {"detectors": {each: plugins.origin(each) for each in found}}, rest


def check_license(backbone: Backbone, accepted: Sequence[str]) -> None:
    """Raise an ArtifactError if weights have a license of another class; without any to accept, warn of some."""
    from tlkit.plugin.contract import LICENSE_CLASSES
    from tlkit.plugin.licenses import NON_COMMERCIAL, described_license, license_class

    if unknown := [each for each in accepted if each not in LICENSE_CLASSES]:
        raise UsageError(f"there is no license class {unknown[0]!r}, only {', '.join(LICENSE_CLASSES)}")
    what = f"the weights of backbone {backbone.name!r} have the license {described_license(backbone.weights)}"
    if accepted and license_class(backbone.weights) not in accepted:
        do = "choose another backbone; tlkit plugins show prints the license of each"
        raise ArtifactError(f"{what}, and only {', '.join(accepted)} is accepted", do=do)
    if not accepted and license_class(backbone.weights) == NON_COMMERCIAL:
        warn(what)


@contextmanager
def naming_plugins() -> Iterator[None]:
    """Raise what fails in a plugin's code, such as the forward pass of its module, as a PluginError that names it."""
    try:
        yield
    except Exception as error:
        from tlkit.plugin.blame import attributed
        from tlkit.util.resources import is_refused

        if isinstance(error, TlkitError | OSError) or is_refused(error) or (named := attributed(error)) is None:
            raise
        raise named from error


@contextmanager
def claimed_to_train(out: Path) -> Iterator[None]:
    """Claim the output of a training, for all processes of it; warn, if it is interrupted, that it can be resumed."""
    from tlkit.training.device import rank_and_world_size
    from tlkit.training.run_directory import best_so_far, discard_finished, is_unfinished

    is_main_process = rank_and_world_size()[0] == 0
    try:
        with claim(out if is_main_process else None):
            if is_main_process:
                discard_finished(out)
            yield
    except KeyboardInterrupt:
        if best := best_so_far(out):
            warn(f"{out} is the best so far: {best}; give the same options and --resume to improve it")
        elif is_unfinished(out):
            warn(f"{out} is not finished; give the same options and --resume to continue")
        raise


def opener(device: str, allow_cpu: bool, trust: bool) -> Opener:
    """Return what opens exports on a device, through the targets that plugins provide."""
    from tlkit.runtime.engine import Opener

    def by_suffix(suffix: str) -> Target | None:
        targets = (load_plugins().get("target", name) for name in load_plugins().names("target"))
        return next((target for target in targets if target.suffix == suffix), None)

    return Opener(lambda name: load_plugins().get("target", name), device, allow_cpu, trust, warn, by_suffix)


def open_model(
    path: Path, graph: str, target: str, precision: str, *, head: str | None, workers: int | None, opener: Opener
) -> Model:
    """Return an opened graph, or that of a bundle's export; ONNX needs no plugin."""
    from tlkit.model.exports import graph_file
    from tlkit.runtime.model import Model

    if (opened := opener.open_path(path, graph, target, precision)) is not None:
        return Model.from_session(*opened[:2], head=head)
    file = graph_file(path, graph, target, precision)
    return opener.on_device(lambda device: Model.open(file, graph=graph, workers=workers, head=head, device=device))


def opened(model: Model | StrPath, graph: str = "model", device: str = CPU) -> Model:
    """Return a model, opened on a device if it is a bundle or a graph."""
    if not isinstance(model, str | os.PathLike):
        return model
    on = opener(device, allow_cpu=False, trust=False)
    return open_model(local_path(model), graph, defaults.DEFAULT_TARGET, "fp32", head=None, workers=None, opener=on)


def trained_modules(bundle: StrPath) -> TrainedModules:
    """Return the modules of a bundle, which are built when they are needed."""
    from tlkit.verification.trained import TrainedModules

    return TrainedModules(open_bundle(bundle), _made_with)


def several(given: Sequence[str] | str) -> tuple[str, ...]:
    """Return names without repetitions; a bare string is one name."""
    return (given,) if isinstance(given, str) else tuple(dict.fromkeys(given))
