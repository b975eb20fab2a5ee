"""`tlkit plugins check`."""

from __future__ import annotations

import click

from tlkit.cli.options import complete_names, json_option
from tlkit.cli.output import progress_bars, show, wrote
from tlkit.cli.plugins import KINDS
from tlkit.errors import GateError


@click.command()
@click.argument("name", shell_complete=complete_names)
@click.option("--kind", type=click.Choice(KINDS), help="Only components of this kind.")
@click.option("--pretrained", is_flag=True, help="Check backbones with their pretrained weights, and those weights.")
@json_option
def command(name: str, kind: str | None, pretrained: bool, as_json: bool) -> None:
    """Check that components keep the contract; each check passes, fails, is exempt with a reason, or is skipped.

    NAME is that of a component, a pattern for several, or that of a plugin for all its components. The exit code is the
    verdict: 0 if none fails, 6 if one does. Backbones have random weights unless --pretrained.

    \b
    Examples:
      tlkit plugins check mynet
      tlkit plugins check NAME --pretrained
      tlkit plugins check 'mynet/*' --json
      tlkit plugins check tlkit-mynet --kind head
    """
    from tlkit.conformance.report import check
    from tlkit.resolve import load_plugins

    with progress_bars() as progress:
        report = check(load_plugins(), name, kind, pretrained=pretrained, progress=progress)
    show(report.to_json(), report, as_json)
    if not report.passed:
        what = f"{name} does not keep the contract: {'; '.join(report.failures)}"
        raise GateError(what, do="the reasons stand with the checks")
    wrote(None, then="tlkit plugins")
