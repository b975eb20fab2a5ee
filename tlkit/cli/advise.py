"""`tlkit advise`."""

from __future__ import annotations

from pathlib import Path

import click

from tlkit.cli.common import (
    FilePath,
    Seconds,
    complete_component,
    host,
    json_option,
    max_bad_option,
    progress_bars,
    question,
    rejected,
    show,
    wrote,
)


@click.command(short_help="Say which strategy, cut and head fit a folder of images, and why.")
@click.argument("source", type=FilePath)
@click.option(
    "--backbone",
    "backbones",
    default="efficientnet-lite0",
    show_default=True,
    help="The pretrained network, or several with commas between them.",
    shell_complete=complete_component("backbone"),
)
@click.option("--budget", type=Seconds(), help="Time for short trial runs, such as 90s or 2m; none unless given.")
@click.option("--audit", is_flag=True, help="Look for duplicates, leaks, wrong labels and shortcuts as well.")
@click.option("--html", "page", type=FilePath, help="Write it with pictures to one .html file as well.")
@click.option(
    "--val",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.2,
    show_default=True,
    help="Share of images to validate on, where the data has no split of its own.",
)
@max_bad_option
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Seed of all that is random."
)
@json_option
def command(
    source: Path,
    backbones: str,
    budget: float | None,
    audit: bool,
    page: Path | None,
    val: float,
    max_bad: float,
    seed: int,
    as_json: bool,
) -> None:
    """Look at SOURCE, labelled as for training, and say what fits it: strategy, cut and head, with the evidence.

    How much data, how far from the images of the pretraining, how accurate each stage's features are. Where that is
    not enough to tell, it says so.

    \b
    Examples:
      tlkit advise photos/
      tlkit advise photos/ --backbone efficientnet-lite0,efficientnet-lite2 --json
      tlkit advise photos/ --audit --html advice.html
    """
    plugins = host()
    chosen = [plugins.get("backbone", name.strip()) for name in dict.fromkeys(backbones.split(","))]

    from tlkit.advice import html
    from tlkit.advice.run import advise

    if page is not None:
        html.check(page)
    request = question(chosen, val=val, max_bad=max_bad, seed=seed)
    with progress_bars() as bars:
        advice = advise(source, request, bars, budget=budget, audit=audit)
    for name, reason in advice.rejected.items():
        rejected(name, reason)
    show(advice.to_json() | {"next": advice.command}, [str(advice)], as_json)
    if page is not None:
        html.write(page, advice)
    wrote(page, then=advice.command)
