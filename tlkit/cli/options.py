"""Options that several verbs share, each documented once, and the types of what they take."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import click

from tlkit.plugin.contract import LICENSE_CLASSES
from tlkit.util.files import is_address, local_path
from tlkit.util.resources import use_at_most

Command = TypeVar("Command", bound=Callable[..., Any])
Decorator = Callable[[Command], Command]


class LocalPath(click.Path):
    """A file or folder; the address of something that is not on this machine is refused as it was typed."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        local_path(value)  # before it becomes a path, which has no two slashes in a row
        return Path(os.fsdecode(super().convert(value, param, ctx)))


class Place(LocalPath):
    """A file or folder, or the address of one as it was typed."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:  # type: ignore[override]
        return str(value) if is_address(str(value)) else super().convert(value, param, ctx)


class Seconds(click.ParamType[float | str]):
    """A length of time: 90, 90s, 2m or 1.5h, as seconds; or one of some words."""

    name = "time"

    def __init__(self, *words: str) -> None:
        self.words = words

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | str:
        if value in self.words:
            return str(value)
        if isinstance(value, int | float):
            return float(value)
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", value.strip())
        if found is None or float(found[1]) <= 0:
            self.fail(f"{value!r} is not a time; write it as 90s, 2m or 1h", param, ctx)
        return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


class Number(click.FloatRange):
    """A number within limits; NaN is within none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value!r} is not a number", param, ctx)
        return number


class NumberOr(Number):
    """A number within limits, or a word."""

    def __init__(self, word: str, low: float, high: float) -> None:
        super().__init__(low, high)
        self.word = word

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == self.word else super().convert(value, param, ctx)


def complete(kind: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Return what completes a word in a shell: the names of the components of one kind."""

    def names(_context: click.Context, _parameter: click.Parameter, typed: str) -> list[str]:
        from tlkit.plugin.registry import load

        return [name for name in load().names(kind) if name.startswith(typed)]

    return names


def complete_names(_context: click.Context, _parameter: click.Parameter, typed: str) -> list[str]:
    """Return what completes the name of a plugin or component in a shell."""
    from tlkit.plugin.registry import load

    plugins = load().plugins
    known = {*(plugin.name for plugin in plugins), *(each.name for plugin in plugins for each in plugin.components)}
    return sorted(name for name in known if name.startswith(typed))


def _settings(_context: click.Context, _parameter: click.Parameter, pairs: Iterable[str]) -> dict[str, str]:
    """Return pairs like `head.pca=128` as a mapping. Raises one error for all that are malformed."""
    options: dict[str, str] = {}
    problems = []
    for pair in pairs:
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or "." not in key:
            problems.append(f"--set {pair} is not of the form kind.option=value")
        elif options.setdefault(key, value) != value:
            problems.append(f"--set {pair}: {key} was set to {options[key]} before")
    if problems:
        raise click.UsageError("; ".join(problems))
    return options


def together(*decorators: Decorator[Command]) -> Decorator[Command]:
    """Return several options as one decorator, in this order."""
    return lambda command: reduce(lambda inner, decorator: decorator(inner), reversed(decorators), command)


FilePath = LocalPath()
PlacePath = Place()

_DEVICES = ("cpu", "cuda", "tensorrt")


def _limit(_context: click.Context, _parameter: click.Parameter, threads: int | None) -> None:
    if threads is not None:
        use_at_most(threads)


def _task(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[int, int] | None:
    found = re.fullmatch(r"(\d+)/(\d+)", text or "")
    if text is not None and found is None:
        raise click.BadParameter(f"{text!r} is not of the form 3/100")
    return found and (int(found[1]), int(found[2]))


def columns(options: dict[str, Any]) -> dict[str, str]:
    """Take the options "column" out of a verb's, and return them as options of a source."""
    given = {f"source.{name}": options.pop(name, None) for name in ("column", "label_column")}
    return {name: value for name, value in given.items() if value is not None}


_ALLOW_CPU = click.option("--allow-cpu", is_flag=True, help="Use the CPU, with a warning, if the device can't be used.")
_COLUMNS = together(
    click.option("--column", metavar="NAME", help="Column of a Parquet file with the images; also source.column."),
    click.option("--label-column", metavar="NAME", help="Column with their labels; also source.label_column."),
)
OPTIONS: Mapping[str, Decorator[Any]] = {
    "transform": together(
        click.option(
            "--metric", type=click.Choice(["cosine", "dot"]), default="cosine", help="Similarity of two images."
        ),
        click.option("--power", type=Number(0, 1, min_open=True), default=1.0, help="Exponent that damps features."),
        click.option("--whiten", type=click.IntRange(0), default=0, help="Principal components to whiten; 0: none."),
    ),
    "json": click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
    "head": click.option("--head", metavar="NAME", help="Head to use of a graph with several."),
    "split": click.option(
        "--split", type=click.Choice(["train", "val", "test"]), help="Split to use of a dataset with splits of its own."
    ),
    "trust": click.option(
        "--trust-engine", is_flag=True, help="Open engines built elsewhere, now and later: they are executable code."
    ),
    "set": click.option(
        "--set",
        "options",
        multiple=True,
        callback=_settings,
        metavar="KIND.OPTION=VALUE",
        help="Set an option of a component; repeatable.",
    ),
    "max_bad": click.option(
        "--max-bad",
        type=Number(0, 1),
        default=0.01,
        help="Share of images that may be unreadable before the command fails.",
    ),
    "draw": together(
        click.option(
            "--val",
            type=Number(0, 1, min_open=True, max_open=True),
            default=0.2,
            help="Share of images to validate on, if the dataset has no split of its own.",
        ),
        click.option(
            "--group",
            metavar="REGEX",
            help="Images in whose paths REGEX finds the same stay in one split and fold: copies, frames, one patient.",
        ),
    ),
    "size": click.option("--size", type=click.IntRange(1), help="Input size in pixels; the backbone's own by default."),
    "seed": click.option(
        "--seed", type=click.IntRange(0, 2**32 - 1), default=0, help="Seed of every random number generator."
    ),
    "strict": click.option(
        "--strict", is_flag=True, help="Refuse a dataset with the same file in two splits or in two classes."
    ),
    "budget": click.option(
        "--budget",
        type=Seconds(),
        help="Time for trial runs that settle close calls, such as 90s or 2m; none by default.",
    ),
    "training_budget": click.option(
        "--budget",
        type=Seconds("auto", "none"),
        default="auto",
        callback=lambda _context, _parameter, given: None if given == "none" else given,
        help="Time in which auto looks for better than its first bundle, such as 90s or 5m, by trials of every "
        "strategy; none: as long as it takes; auto: at most 10m on a CPU, for what is advised.",
    ),
    "device": together(
        click.option(
            "--device", type=click.Choice(_DEVICES), default="cpu", help="Device to run on; a GPU needs tlkit[gpu]."
        ),
        _ALLOW_CPU,
    ),
    "any_device": together(
        click.option(
            "--device",
            type=click.Choice(["auto", *_DEVICES]),
            default="auto",
            help="Device to run on; a GPU needs tlkit[gpu]. auto takes the one that was measured to be done first.",
        ),
        _ALLOW_CPU,
    ),
    "threads": click.option(
        "--threads",
        type=click.IntRange(1),
        callback=_limit,
        expose_value=False,
        help="Threads to decode and compute with; all processors that this process may use by default.",
    ),
    "column": _COLUMNS,
    "job": together(
        click.option(
            "--workers", type=click.IntRange(1), help="Processes of a job, which share the cores; 1 by default."
        ),
        click.option(
            "--shard", metavar="I/N", callback=_task, help="Do the I-th of N parts of a job, as one of N tasks."
        ),
        click.option(
            "--ray",
            is_flag=False,
            flag_value="",
            metavar="[ADDRESS]",
            callback=lambda _context, _parameter, address: address or address == "",
            help="Run a job on a Ray cluster: at ADDRESS, or the one that Ray finds or starts here.",
        ),
        click.option(
            "--shard-rows", type=click.IntRange(1), help="Images in a shard of a job; 256 to 10,000 by default."
        ),
        click.option("--dtype", type=click.Choice(["float32", "float16"]), help="Number format of a job [float32]."),
        click.option("--vectors", type=click.Choice(["fixed", "list"]), help="Lists in the parts of a job [fixed]."),
        click.option("--source", metavar="NAME", help="Source that reads the images, where several can."),
        _COLUMNS,
    ),
    "labels": together(
        click.option("--topk", type=click.IntRange(1), default=1, help="Number of labels per image."),
        click.option(
            "--coverage",
            type=float,
            help="Print instead the labels of a set that holds the right one at this rate, such as 0.9.",
        ),
        click.option(
            "--unknown", is_flag=True, help="Print unknown for images of no known class, and each one's novelty."
        ),
    ),
    "trainer": together(
        click.option(
            "--detector",
            metavar="NAME",
            shell_complete=complete("detector"),
            help="Detector of unknown images; the installed one that tells them best by default.",
        ),
        click.option(
            "--refit/--no-refit",
            default=True,
            help="Solve the head again on a fine-tuned trunk; keep it if it is no worse on the validation images.",
        ),
        click.option(
            "--views",
            type=click.IntRange(0),
            default=4,
            help="Augmented views cached per image while stages are frozen; 0 draws a new view every epoch.",
        ),
        click.option("--cache/--no-cache", default=True, help="Cache the output of the frozen stages on disk."),
        click.option(
            "--blend",
            type=NumberOr("auto", 0, 1),
            default=1.0,
            help="Share of the fine-tuning in the trunk's weights, 0: the pretrained ones; auto: the best on "
            "validation.",
        ),
        click.option("--resume", is_flag=True, help="Resume an interrupted training of the same bundle."),
        click.option("--tensorboard", type=FilePath, help="Folder to write training curves to, for TensorBoard."),
        click.option(
            "--device",
            type=click.Choice(["auto", "cpu", "cuda"]),
            default="auto",
            help="Device to train stages on; auto uses a GPU if there is one.",
        ),
        click.option(
            "--precision",
            type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
            default="auto",
            help="Mixed-precision dtype for training; auto uses bf16 if the GPU supports it.",
        ),
        click.option("--compile", is_flag=True, help="Compile the trained modules with torch.compile."),
        click.option(
            "--license",
            multiple=True,
            type=click.Choice(LICENSE_CLASSES),
            help="Refuse pretrained weights whose license is of another class; repeatable.",
        ),
        click.option("--tf32", is_flag=True, help="Allow TF32 in fp32 matrix products and convolutions on a GPU."),
    ),
}


def shared(*names: str) -> Decorator[Any]:
    """Return some of the shared options as one decorator, in this order."""
    return together(*(OPTIONS[name] for name in names))
