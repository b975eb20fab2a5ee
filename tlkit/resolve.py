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
from tlkit.errors import ArtifactError, DataError, TlkitError, TlkitWarning, UsageError
from tlkit.util.files import is_address, local_path
from tlkit.util.locks import claim
from tlkit.util.patterns import is_pattern

if TYPE_CHECKING:
    from tlkit.advice.run import AdviceRequest
    from tlkit.data.dataset import FoundImages
    from tlkit.embedding.hits import Hit
    from tlkit.embedding.job import Job, Place
    from tlkit.embedding.manifest import Opened, Row
    from tlkit.model.bundle import Bundle
    from tlkit.plugin.contract import Backbone, Head, Source, Target
    from tlkit.plugin.loading import RegisteredComponent
    from tlkit.plugin.registry import Host
    from tlkit.runtime.engine import Opener
    from tlkit.runtime.model import Model
    from tlkit.verification.trained import TrainedModules

StrPath = str | os.PathLike[str]

AUTO = "auto"  # the strategy that follows the advice
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
    return backbone, head


def advice_request(
    backbones: Sequence[Backbone],
    *,
    val: float,
    group: str | None,
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
    return AdviceRequest(backbones, heads, strategies, plugins.origin, val, group, max_bad, seed, cut, options)


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


def find_places(images: Sequence[StrPath] | StrPath, name: str | None, options: Mapping[str, object]) -> list[Place]:
    """Return the places that are named, each with the source that reads it: the one that accepts it, or that of `name`.

    Patterns such as `tars/{0000..0123}.tar` and `photos/*.parquet` are expanded. Raises DataError and UsageError.
    """
    from tlkit.embedding.job import Place
    from tlkit.plugin.options import to_json
    from tlkit.util.patterns import expand

    given = [images] if isinstance(images, str | os.PathLike) else images
    found = []
    for text in (each for pattern in given for each in expand(os.fspath(pattern))):
        source = _source_of(text, name, options)
        place = text if is_address(text) else os.path.abspath(text)
        found.append(Place(place, source.name, *load_plugins().origin(source), to_json(source, local=True), text))
    return found


def labeled_images(source: StrPath, options: Mapping[str, object]) -> tuple[Path, dict[str, object]]:
    """Return the folder or table of labeled images that a source is, and the options that are not the source's.

    A folder and a table are used where they lie; what another source reads, or a pattern names, is unpacked first.
    """
    text = os.fspath(source)
    own = {key: value for key, value in options.items() if key.partition(".")[0] == "source"}
    rest = {key: value for key, value in options.items() if key not in own}
    if not own and os.path.isdir(text):
        return Path(text), rest
    if not own and not is_address(text) and not is_pattern(text):
        sources = [load_plugins().get("source", name) for name in load_plugins().names("source")]
        accepting = [each for each in sources if os.path.exists(text) and each.accepts(text)]
        if not accepting or any(each.in_place for each in accepting):
            return Path(text), rest  # reading it says what is wrong
    from tlkit.embedding.unpacked import unpacked

    return unpacked(open_places(find_places(text, None, own)), warn), rest


def _source_of(place: str, name: str | None, options: Mapping[str, object]) -> Source:
    """Return the source of a name, or the one that accepts a place, with those of the options that it has."""
    names = load_plugins().names("source") if name is None else [name]
    sources = {each: _with_its_options(load_plugins().get("source", each), options) for each in names}
    if name is not None:
        return sources[name]
    accepting = [each for each, source in sources.items() if source.accepts(place)]
    if len(accepting) == 1:
        return sources[accepting[0]]
    if accepting:
        do = f"choose one of them with --source: {', '.join(accepting)}"
        raise UsageError("several sources read it", file=place, do=do)
    if not is_address(place) and not os.path.exists(place):
        raise DataError("no such file or folder", file=place)
    raise DataError(f"no source reads it; installed: {', '.join(names)}", file=place)


def _with_its_options(source: Source, options: Mapping[str, object]) -> Source:
    """Return a source with those of the options set that it has; one that no source has is refused."""
    from tlkit.plugin.contract import option_fields

    host = load_plugins()
    fields = {name: option_fields(host.get("source", name)) for name in host.names("source")}
    others = {f"source.{field.name}" for each in fields.values() for field in each}
    others -= {f"source.{field.name}" for field in fields[source.name]}
    own = {key: value for key, value in options.items() if key not in others}
    found: Source = configured({"source": source.name}, own)["source"]
    return found


def image_reader(job: Job | None, parts: Mapping[str, int]) -> Callable[[Hit], bytes]:
    """Return what reads the image of a hit: from the places of its job, whose `parts` by key are known, or its path."""
    if job is None:
        return lambda hit: Path(hit.key).read_bytes()
    places = open_places(job.record.places)

    @functools.lru_cache(maxsize=4)
    def rows(part: int) -> dict[str, Row]:
        return {row.key: row for row in reversed(job.rows(part))}

    def read(hit: Hit) -> bytes:
        row = rows(parts[hit.key])[hit.key]
        return places[row.source].read(row)

    return read


def open_places(places: Sequence[Place]) -> list[Opened]:
    """Return places with their readers; of several, the keys of each begin with its name as it was given."""
    from tlkit.embedding.manifest import Opened

    opened = []
    for each in places:
        source = load_plugins().require("source", each.source, each.distribution, each.version, each.options)
        given = each.given if len(places) > 1 else ""
        opened.append(Opened(source, each.place, source.open(each.place), given))
    return opened


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
    from tlkit.training.run_directory import discard_finished, is_unfinished

    is_main_process = rank_and_world_size()[0] == 0
    try:
        with claim(out if is_main_process else None):
            if is_main_process:
                discard_finished(out)
            yield
    except KeyboardInterrupt:
        if is_unfinished(out):
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


def trained_modules(bundle: StrPath) -> TrainedModules:
    """Return the modules of a bundle, which are built when they are needed."""
    from tlkit.verification.trained import TrainedModules

    return TrainedModules(open_bundle(bundle), _made_with)


def several(given: Sequence[str] | str) -> tuple[str, ...]:
    """Return names without repetitions; a bare string is one name."""
    return (given,) if isinstance(given, str) else tuple(dict.fromkeys(given))
