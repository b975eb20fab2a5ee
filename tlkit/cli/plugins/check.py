"""`tlkit plugins check`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from tlkit.cli.common import host, json_option, progress_bars, show, wrote
from tlkit.cli.plugins import COMMANDS, KINDS
from tlkit.errors import GateError, UsageError

if TYPE_CHECKING:
    from tlkit.conformance import Result
    from tlkit.plugin.registry import RegisteredComponent


def _names(_context: click.Context, _parameter: click.Parameter, typed: str) -> list[str]:
    """For a shell that completes a word: what there is to check."""
    from tlkit.plugin.registry import load

    plugins = load().plugins
    known = {*(plugin.name for plugin in plugins), *(offered.name for plugin in plugins for offered in plugin.offers)}
    return sorted(name for name in known if name.startswith(typed))


@click.command(short_help=COMMANDS["check"])
@click.argument("name", shell_complete=_names)
@click.option("--kind", type=click.Choice(KINDS), help="Only offers of this kind.")
@click.option("--pretrained", is_flag=True, help="Check backbones with their pretrained weights, and those weights.")
@json_option
def command(name: str, kind: str | None, pretrained: bool, as_json: bool) -> None:
    """Check that offers keep the contract; each check passes, fails, is exempt with a reason, or is skipped.

    NAME is that of an offer, a pattern for several, or that of a plugin for all it offers. The exit code is the
    verdict: 0 if none fails, 6 if one does. Backbones have random weights unless --pretrained.

    \b
    Examples:
      tlkit plugins check mynet
      tlkit plugins check efficientnet-lite0 --pretrained
      tlkit plugins check 'timm/resnet*' --json
      tlkit plugins check tlkit-mynet --kind head
    """
    from tlkit.conformance.select import select

    selection = select(host(), name, kind)
    with progress_bars() as bars:
        reports = [(offered, _results(offered, pretrained, bars)) for offered in selection.offers]
    failed = [*selection.problems, *(line for offered, results in reports for line in _failures(offered, results))]
    lines = [*selection.problems, *(line for report in reports for line in _lines(*report))]
    show(
        {
            "name": name,
            "passed": not failed,
            "problems": list(selection.problems),
            "offers": [_offer(offered, results) for offered, results in reports],
        },
        lines,
        as_json,
    )
    if failed:
        raise GateError(
            f"{name} does not keep the contract: {'; '.join(failed)}", do="each reason stands with its check"
        )
    wrote(None, then="tlkit plugins")


def _results(offered: RegisteredComponent, pretrained: bool, bars: Any) -> list[Result]:
    from tlkit.conformance import Result, checks, run

    refusal = offered.reason
    if refusal is None:
        try:
            tick = bars(offered.name, len(checks(offered.offer)))
            return run(offered.offer, pretrained=pretrained, tick=tick)
        except UsageError as problem:  # with what it is exempt from
            refusal = problem.what
    return [Result("accepted", "It is given out, and what it is exempt from is known.", "fail", refusal)]


def _failures(offered: RegisteredComponent, results: list[Result]) -> Iterator[str]:
    names = [result.name for result in results if result.state == "fail"]
    if names:
        yield f"{offered.kind} {offered.name!r} fails {', '.join(names)}"


def _lines(offered: RegisteredComponent, results: list[Result]) -> Iterator[str]:
    counts = Counter(result.state for result in results)
    summary = ", ".join(f"{count} {state}" for state, count in counts.items())
    yield f"{offered.kind} {offered.name} ({offered.distribution} {offered.version}): {summary}"
    for result in results:
        reason = "" if result.reason is None else f": {result.reason}"
        yield f"  {result.state:<7}{result.name}{reason}"


def _offer(offered: RegisteredComponent, results: list[Result]) -> dict[str, Any]:
    return {
        "kind": offered.kind,
        "name": offered.name,
        "distribution": offered.distribution,
        "version": offered.version,
        "passed": all(result.state != "fail" for result in results),
        "checks": [asdict(result) for result in results],
    }
