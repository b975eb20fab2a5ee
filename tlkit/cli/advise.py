"""`tlkit advise`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tlkit import defaults
from tlkit.cli.options import (
    FilePath,
    budget_option,
    column_options,
    columns,
    complete,
    draw_options,
    json_option,
    max_bad_option,
    seed_option,
    set_option,
    strict_option,
)
from tlkit.cli.output import note_files, progress_bars, show, wrote


@click.command()
@click.argument("source")
@click.option(
    "--backbone",
    "backbones",
    multiple=True,
    default=[defaults.DEFAULT_BACKBONE],
    shell_complete=complete("backbone"),
    help="Pretrained network; repeatable, the first one is preferred.",
)
@budget_option
@click.option("--audit", is_flag=True, help="Report duplicates, leakage, label errors and shortcuts as well.")
@click.option("--html", "page", type=FilePath, help="Write a page with pictures to an .html file as well.")
@set_option
@column_options
@draw_options
@max_bad_option
@strict_option
@seed_option
@json_option
def command(source: str, page: Path | None, as_json: bool, **options: Any) -> None:
    """Recommend a strategy, a cut and a head for SOURCE, labelled as for training, with the evidence.

    The evidence: the size of the dataset, its domain shift from the pretraining data, and the accuracy of each
    stage's features. If that is not enough for a recommendation, the advice is inconclusive.

    \b
    Examples:
      tlkit advise photos/
      tlkit advise photos/ --backbone NAME --backbone NAME --json
      tlkit advise photos/ --audit --html advice.html
    """
    from tlkit.advice import html
    from tlkit.api import advise
    from tlkit.pages.html import check
    from tlkit.util.locks import claim

    if page is not None:
        check(page)
    click.get_current_context().with_resource(claim(page))
    options["options"] |= columns(options)
    with progress_bars() as progress:
        advice = advise(source, progress=progress, **options)
    note_files(advice)
    show({**advice.to_json(), "next": advice.command}, advice, as_json)
    if page is not None:
        html.write(page, advice)
    wrote(page, then=advice.command)
