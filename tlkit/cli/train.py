"""`tlkit train`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tlkit.cli.common import (
    FilePath,
    Seconds,
    complete_component,
    host,
    json_option,
    max_bad_option,
    options_of,
    progress_bars,
    question,
    rejected,
    show,
    warn,
    wrote,
)
from tlkit.errors import UsageError, one_line
from tlkit.util.text import quoted

if TYPE_CHECKING:
    from tlkit.advice.run import Advice

AUTO, HEAD = "auto", "logistic"


@click.command(short_help="Train on a folder of labelled images and write a bundle.")
@click.argument("source", type=FilePath)
@click.option("-o", "--out", type=FilePath, required=True, help="The bundle to write; must not exist yet.")
@click.option(
    "--backbone",
    default="efficientnet-lite0",
    show_default=True,
    help="The pretrained network.",
    shell_complete=complete_component("backbone"),
)
@click.option("--size", type=click.IntRange(1), help="Pixels of the network's input; the backbone's own unless given.")
@click.option(
    "--cut", help="The last stage to keep, and with auto nothing moves then; the strategy decides unless given."
)
@click.option(
    "--strategy",
    default=AUTO,
    show_default=True,
    help="How to train; auto does what `tlkit advise` recommends, and keeps the advice in the bundle.",
    shell_complete=complete_component("strategy"),
)
@click.option(
    "--head",
    help=f"The classifier on the features; auto decides unless given, and with another strategy it is {HEAD}.",
    shell_complete=complete_component("head"),
)
@click.option(
    "--set", "settings", multiple=True, metavar="KIND.OPTION=VALUE", help="An option of a component; repeatable."
)
@click.option(
    "--val",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.2,
    show_default=True,
    help="Share of images to validate on, where the data has no split of its own.",
)
@max_bad_option
@click.option(
    "--golden", type=click.IntRange(0), default=8, show_default=True, help="Validation images to keep in the bundle."
)
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Seed of all that is random."
)
@click.option(
    "--refit/--no-refit",
    default=True,
    show_default=True,
    help="Solve the head again on a trunk that moved, where that loses nothing on the validation images.",
)
@click.option(
    "--views",
    type=click.IntRange(0),
    default=4,
    show_default=True,
    help="Views of each image that training takes turns at while stages are frozen; 0: another in every epoch.",
)
@click.option(
    "--cache/--no-cache",
    default=True,
    show_default=True,
    help="Keep the output of the frozen stages for each view on disk, and begin every epoch there.",
)
@click.option("--resume", is_flag=True, help="Go on where an interrupted training of the same bundle was left off.")
@click.option("--tensorboard", type=FilePath, help="A folder to write what happens to, for TensorBoard.")
@click.option(
    "--device",
    type=click.Choice(("auto", "cpu", "cuda")),
    default="auto",
    show_default=True,
    help="What stages move on; auto: a GPU where there is one.",
)
@click.option(
    "--precision",
    type=click.Choice(("auto", "fp32", "bf16", "fp16")),
    default="auto",
    show_default=True,
    help="Format of products while stages move; auto: bf16 on a GPU that has it.",
)
@click.option("--compile", "compiled", is_flag=True, help="Compile what learns with torch.compile.")
@click.option("--tf32", is_flag=True, help="Let a GPU round the factors of fp32 products to 10 bits.")
@click.option("--budget", type=Seconds(), help="With auto: time for trial runs that settle close calls, such as 2m.")
@json_option
def command(
    source: Path,
    out: Path,
    backbone: str,
    size: int | None,
    cut: str | None,
    strategy: str,
    head: str | None,
    settings: tuple[str, ...],
    val: float,
    max_bad: float,
    golden: int,
    seed: int,
    refit: bool,
    views: int,
    cache: bool,
    resume: bool,
    tensorboard: Path | None,
    device: str,
    precision: str,
    compiled: bool,
    tf32: bool,
    budget: float | None,
    as_json: bool,
) -> None:
    """Train on SOURCE and write a bundle.

    SOURCE is a folder with a folder for each class, a folder with train/ and val/ (and test/) of such, or a CSV or
    Parquet table with the columns path, label and, if you like, split. Unless a strategy is named, what fits the images
    is found out first, as by `tlkit advise`; a head or a cut that you name stays. Where there is not enough to tell, it
    says so, and trains a classifier on the features of the frozen network.

    \b
    Examples:
      tlkit train photos/ -o run/
      tlkit train photos/ -o run/ --budget 5m
      tlkit train photos/ -o run/ --resume
      tlkit train photos/ -o run/ --backbone efficientnet-lite1 --cut stage4 --head svm --set head.pca=128
      tlkit train photos.csv -o run/ --strategy frozen --head mlp --set head.hidden=256 --seed 7
      tlkit train photos/ -o run/ --strategy partial --set strategy.trainable=2 --set strategy.epochs=5
      torchrun --nproc-per-node 4 -m tlkit train photos/ -o run/ --strategy full
    """
    common: dict[str, Any] = {"val": val, "max_bad": max_bad, "golden": golden, "seed": seed}
    common |= {"refit": refit, "views": views, "cache": cache, "size": size, "cut": cut}
    advice: Advice | None = None
    if strategy != AUTO and budget is not None:
        raise UsageError("--budget is for trial runs", do=f"take --strategy {AUTO}, or leave it out")
    named = {"backbone": backbone}
    if strategy == AUTO:
        _check_settings(settings, head)
    else:
        named["strategy"], head = strategy, head or HEAD
    components, origins = _configured(named | ({"head": head} if head else {}), settings)

    from tlkit.training.run import DeviceOptions, RunOptions, TrainingConfig, train

    how = RunOptions(DeviceOptions(device, precision, compiled, tf32), resume, tensorboard, warn=warn)
    with progress_bars() as bars, _told_how_to_go_on(out):
        if strategy == AUTO:
            from tlkit.advice.auto import train_auto

            asked = question([components["backbone"]], head=components.get("head"), **common)
            trained, advice = train_auto(source, out, asked, how, budget, bars)
            strategy, head = advice.recommendation.strategy, advice.recommendation.head
        else:
            trained = train(source, out, TrainingConfig(**components, origins=origins, **common), bars, how)

    for line in trained.skipped:
        click.echo(one_line(f"skipped {line}"), err=True)
    for name, reason in trained.rejected.items():
        rejected(name, reason)
    scores = trained.metrics
    low, high = scores.interval
    then = f"tlkit export {quoted(out)} --onnx"
    show(
        {
            "bundle": str(out),
            "digest": trained.digest,
            "backbone": backbone,
            "cut": trained.cut,
            "stages": dict(trained.provenance),
            "strategy": strategy,
            "head": head,
            "advice": None if advice is None else advice.recommendation.to_json(),
            "report": dict(trained.report),
            "images": dict(trained.images),
            "decoded": trained.decoded,
            "rejected": dict(trained.rejected),
            "skipped": list(trained.skipped),
            "val": scores.to_json(),
            "epochs": list(trained.epochs),
            "next": then,
        },
        [
            f"{backbone} up to {trained.cut}, {strategy} strategy, {head} head",
            f"{trained.images['train']} images to train on, {trained.images['val']} to validate on",
            f"{trained.decoded} images decoded, the others known from earlier runs",
            f"validation accuracy {scores.accuracy:.1%} (95 %: {low:.1%} to {high:.1%})",
            f"macro-F1 {scores.macro_f1:.3f}, ECE {scores.ece:.3f}",
            *_changed(trained.provenance),
            *([] if advice is None else ["", *_advised(advice)]),
        ],
        as_json,
    )
    wrote(out, then=then)


@contextmanager
def _told_how_to_go_on(out: Path) -> Iterator[None]:
    """Say, when a training is interrupted, how it is taken up."""
    from tlkit.training.run_directory import is_unfinished

    try:
        yield
    except KeyboardInterrupt:
        if is_unfinished(out):
            click.echo(one_line(f"{out} is not finished: give the same command with --resume to go on"), err=True)
        raise


def _changed(provenance: Mapping[str, str]) -> list[str]:
    """A line that says which stages are no more the original's, where there are any."""
    changed = [f"{stage} {what}" for stage, what in provenance.items() if what != "original"]
    return [f"{len(changed)} of {len(provenance)} stages changed: {', '.join(changed)}"] if changed else []


def _advised(advice: Advice) -> list[str]:
    """Why it was done so."""
    from tlkit.advice.page import summary

    return summary(advice.recommendation)


def _check_settings(settings: Sequence[str], head: str | None) -> None:
    """Refuse options of what auto decides."""
    for pair in settings:
        kind = pair.partition(".")[0].strip()
        if kind == "strategy" or (kind == "head" and head is None):
            do = f"name the {kind} with --{kind}, or leave it out"
            raise UsageError(f"--set {pair}: which {kind} it is to be, {AUTO} decides", do=do)


def _configured(named: Mapping[str, str], settings: Sequence[str]) -> tuple[dict[str, Any], dict[str, tuple[str, str]]]:
    """The components of these names by kind, with their options, and where they come from.

    Raises one UsageError for all names that no plugin provides.
    """
    from tlkit.plugin.options import configure_all

    plugins = host()
    components, problems = dict[str, Any](), []
    for kind, name in named.items():
        try:
            components[kind] = plugins.get(kind, name)
        except UsageError as problem:
            problems.append(problem.what)
    if problems:
        raise UsageError("; ".join(problems))
    origins = {kind: plugins.origin(component) for kind, component in components.items()}
    return components | configure_all(components, options_of(settings)), origins
