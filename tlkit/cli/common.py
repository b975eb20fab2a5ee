"""What the verbs share: how results, progress and the next step are shown."""

from __future__ import annotations

import functools
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tlkit.errors import DataError, ResourceError, UsageError, one_line

if TYPE_CHECKING:
    from tlkit.advice.run import AdviceRequest
    from tlkit.model.bundle import Bundle
    from tlkit.plugin.contract import Backbone, Head, Target
    from tlkit.plugin.registry import Host
    from tlkit.runtime.model import Model

CPU = "cpu"
WIDTH, TIME = 20, 24  # of a progress bar, in characters, and of the time left with what stands around both

Opened = TypeVar("Opened")

FilePath = click.Path(path_type=Path)

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
head_option = click.option("--head", metavar="NAME", help="Of a graph with several heads, the one to use.")
trust_option = click.option(
    "--trust-engine", is_flag=True, help="Open engines that were built elsewhere: they are executable code."
)


def device_options(command: Callable[..., None]) -> Callable[..., None]:
    """What says where a graph runs."""
    device = click.option(
        "--device",
        type=click.Choice([CPU, "cuda", "tensorrt"]),
        default=CPU,
        show_default=True,
        help="Where to run it; a GPU needs tlkit[gpu].",
    )
    allow = click.option("--allow-cpu", is_flag=True, help="Where that device can't be used, say so and take the CPU.")
    return device(allow(command))


def on_device(opening: Callable[[str], Opened], *, device: str, allow_cpu: bool) -> Opened:
    """What is opened on a device; on the CPU instead only where that is allowed, and never without a word."""
    try:
        return opening(device)
    except ResourceError as error:
        if not allow_cpu or device == CPU:
            raise
        warn(f"{error.what}; the CPU is used instead")
        return opening(CPU)


def open_model(path: Path, *, device: str, allow_cpu: bool, **options: Any) -> Model:
    """A model on a device, see `on_device`."""
    from tlkit.runtime.model import Model

    return on_device(lambda chosen: Model.open(path, device=chosen, **options), device=device, allow_cpu=allow_cpu)


def options_of(pairs: Sequence[str]) -> dict[str, str]:
    """Return pairs like `head.pca=128` as a mapping. Raises one UsageError for all that are malformed."""
    options: dict[str, str] = {}
    problems = []
    for pair in pairs:
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or "." not in key:
            problems.append(f"--set {pair} is not of the form kind.option=value")
        elif options.setdefault(key, value) != value:
            problems.append(f"--set {pair}: {key} was set to {options[key]} before")
    if problems:
        raise UsageError("; ".join(problems))
    return options


max_bad_option = click.option(
    "--max-bad",
    type=click.FloatRange(0, 1),
    default=0.01,
    show_default=True,
    help="Share of images that may be unreadable before the command fails.",
)


class Seconds(click.ParamType[float]):
    """A length of time: 90, 90s, 2m or 1.5h, as seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", value.strip())
        if found is None or float(found[1]) <= 0:
            self.fail(f"{value!r} is not a time; write it as 90s, 2m or 1h", param, ctx)
        return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def show(result: Mapping[str, Any], lines: Sequence[str], as_json: bool) -> None:
    """Print a result on stdout: as JSON, or as lines for people."""
    click.echo(json.dumps(result, indent=2) if as_json else "\n".join(lines))


def wrote(path: Path | None, *, then: str) -> None:
    """Close a verb by naming what it wrote and the exact next command."""
    click.echo(f"wrote {'nothing' if path is None else one_line(str(path))}\nnext: {then}", err=True)


def rejected(name: object, reason: str) -> None:
    """Say on stderr that an image could not be used, and why."""
    click.echo(one_line(f"rejected {name}: {reason}"), err=True)


def warn(text: str) -> None:
    """Say on stderr what somebody should know, although the work goes on."""
    click.echo(one_line(f"tlkit: warning: {text}"), err=True)


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int], Callable[..., None]]]:
    """A maker of progress bars on stderr, shown only on a terminal: `bar(what, total)` gives `tick(n, said)`.

    A new bar takes over from the one before, which stays on its line as far as it came; one of nothing is a line.
    """
    with ExitStack() as shown:

        def bar(what: str, total: int) -> Callable[..., None]:
            shown.close()
            if not sys.stderr.isatty():
                return lambda _more, _said="": None
            if not total:
                click.echo(what, err=True)
                return lambda _more, _said="": None
            room = max(0, shutil.get_terminal_size().columns - len(what) - 2 * len(str(total)) - WIDTH - TIME)
            made: Any = click.progressbar(
                length=total,
                label=what,
                file=sys.stderr,
                show_pos=True,
                width=WIDTH,
                item_show_func=partial(_fit, room),
            )
            opened = shown.enter_context(made)
            return lambda more, said="": opened.update(more, said)

        yield bar


def _fit(room: int, said: str | None) -> str:
    """As much of it as there is room for: a bar that is longer than a line leaves the line behind it."""
    return (said or "")[:room]


@functools.cache
def host() -> Host:
    """The plugins; what is wrong with some of them is said once on stderr."""
    from tlkit.plugin.registry import load

    loaded = load()
    for warning in loaded.warnings:
        click.echo(f"tlkit: warning: {warning}", err=True)
    return loaded


def question(
    backbones: Sequence[Backbone],
    *,
    val: float,
    max_bad: float,
    seed: int,
    head: Head | None = None,
    cut: str | None = None,
    **options: Any,
) -> AdviceRequest:
    """What to advise on: every installed strategy, and every head, or the one that the user has chosen."""
    from tlkit.advice.run import AdviceRequest

    plugins = host()
    heads = [plugins.get("head", name) for name in plugins.names("head")] if head is None else [head]
    strategies = [plugins.get("strategy", name) for name in plugins.names("strategy")]
    return AdviceRequest(backbones, heads, strategies, plugins.origin, val, max_bad, seed, cut, options)


def target_of(by_product: str) -> Target:
    """The target that a by-product was built for; one that no plugin provides here is as good as of another machine."""
    from tlkit.runtime.engine import IncompatibleEngine

    try:
        found: Target = host().get("target", by_product)
    except UsageError as error:
        raise IncompatibleEngine(error.what, do="install the plugin that provides it") from error
    return found


def complete_component(kind: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """For a shell that completes a word: the names of the installed components of one kind."""

    def names(_context: click.Context, _parameter: click.Parameter, typed: str) -> list[str]:
        from tlkit.plugin.registry import load

        return [name for name in load().names(kind) if name.startswith(typed)]

    return names


def components(bundle: Bundle) -> tuple[Backbone, Head]:
    """The backbone and the head that a bundle was made with."""
    made = {"backbone": bundle.record.backbone, "head": bundle.record.head}
    backbone, head = (
        host().require(kind, component.name, component.distribution, component.version, component.options)
        for kind, component in made.items()
    )
    return backbone, head


def check_max_bad(rejected: Mapping[str, str], total: int, max_bad: float | None) -> None:
    """Fail, after the work is safe, if too many images could not be used: more than none, where nothing is allowed."""
    if len(rejected) > (max_bad or 0.0) * total:
        file, reason = next(iter(rejected.items()))
        raise DataError(
            f"{len(rejected)} of {total} images can't be used, the first because: {reason}",
            file=file,
            do="mend or remove them"
            + ("" if max_bad is None else f", or allow more than {max_bad:.1%} with --max-bad"),
        )
