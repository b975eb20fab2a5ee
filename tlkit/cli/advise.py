"""`tlkit advise`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tlkit import defaults
from tlkit.cli.options import FilePath, columns, complete, shared
from tlkit.cli.output import claim_beside, done, progress_bars


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
@shared("size", "budget")
@click.option("--audit", is_flag=True, help="Report duplicates, leakage, label errors and shortcuts as well.")
@click.option("--html", "page", type=FilePath, help="Write a page with pictures to an .html file as well.")
@shared("set", "column", "draw", "max_bad", "strict", "seed", "json")
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

    claim_beside(page, check)
    options["options"] |= columns(options)
    with progress_bars() as progress:
        advice = advise(source, progress=progress, **options)
    done(advice, as_json, then=advice.command, out=page, save=lambda file: html.write(file, advice))
