"""`tlkit plugins check`."""

from __future__ import annotations

from typing import Any

import click

from tlkit.cli.options import complete_names, shared
from tlkit.cli.output import progress_bars, show, wrote
from tlkit.cli.plugins import KINDS
from tlkit.errors import GateError


@click.command()
@click.argument("name", shell_complete=complete_names)
@click.option("--kind", type=click.Choice(KINDS), help="Only components of this kind.")
@click.option("--only", multiple=True, metavar="CHECK", help="Run only this check; repeatable.")
@click.option(
    "--pretrained", is_flag=True, help="Check backbones with their pretrained weights, which may be downloaded."
)
@shared("set", "json")
def command(name: str, as_json: bool, **how: Any) -> None:
    """Check that components keep the contract; each check passes, fails, is exempt with a reason, or is skipped.

    NAME is that of a component, a pattern for several, or that of a plugin for all its components. The exit code is the
    verdict: 0 if none fails, 6 if one does. Without --pretrained, backbones have random weights, and no check reaches
    the network.

    \b
    Examples:
      tlkit plugins check mynet
      tlkit plugins check NAME --pretrained --set backbone.OPTION=VALUE
      tlkit plugins check NAME --only traces --only every-cut-agrees
      tlkit plugins check 'mynet/*' --json
      tlkit plugins check tlkit-mynet --kind head
    """
    from tlkit.conformance.report import check
    from tlkit.resolve import load_plugins

    with progress_bars() as progress:
        report = check(load_plugins(), name, progress=progress, **how)
    show(report.to_json(), report, as_json)
    if not report.passed:
        what = f"{name} does not keep the contract: {'; '.join(report.failures)}"
        raise GateError(what, do="the reasons stand with the checks")
    wrote(None, then="tlkit plugins")
