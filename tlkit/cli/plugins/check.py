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
    known = {
        *(plugin.name for plugin in plugins),
        *(registered.name for plugin in plugins for registered in plugin.components),
    }
    return sorted(name for name in known if name.startswith(typed))


@click.command(short_help=COMMANDS["check"])
@click.argument("name", shell_complete=_names)
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
      tlkit plugins check efficientnet-lite0 --pretrained
      tlkit plugins check 'timm/resnet*' --json
      tlkit plugins check tlkit-mynet --kind head
    """
    from tlkit.conformance.select import select

    selection = select(host(), name, kind)
    with progress_bars() as bars:
        reports = [(registered, _results(registered, pretrained, bars)) for registered in selection.components]
    failed = [
        *selection.problems,
        *(line for registered, results in reports for line in _failures(registered, results)),
    ]
    lines = [*selection.problems, *(line for report in reports for line in _lines(*report))]
    show(
        {
            "name": name,
            "passed": not failed,
            "problems": list(selection.problems),
            "components": [_component(registered, results) for registered, results in reports],
        },
        lines,
        as_json,
    )
    if failed:
        raise GateError(
            f"{name} does not keep the contract: {'; '.join(failed)}", do="each reason stands with its check"
        )
    wrote(None, then="tlkit plugins")


def _results(registered: RegisteredComponent, pretrained: bool, bars: Any) -> list[Result]:
    from tlkit.conformance import Result, checks, run

    refusal = registered.reason
    if refusal is None:
        try:
            tick = bars(registered.name, len(checks(registered.component)))
            return run(registered.component, pretrained=pretrained, tick=tick)
        except UsageError as problem:  # with what it is exempt from
            refusal = problem.what
    return [Result("accepted", "It is given out, and what it is exempt from is known.", "fail", refusal)]


def _failures(registered: RegisteredComponent, results: list[Result]) -> Iterator[str]:
    names = [result.name for result in results if result.state == "fail"]
    if names:
        yield f"{registered.kind} {registered.name!r} fails {', '.join(names)}"


def _lines(registered: RegisteredComponent, results: list[Result]) -> Iterator[str]:
    counts = Counter(result.state for result in results)
    summary = ", ".join(f"{count} {state}" for state, count in counts.items())
    yield f"{registered.kind} {registered.name} ({registered.distribution} {registered.version}): {summary}"
    for result in results:
        reason = "" if result.reason is None else f": {result.reason}"
        yield f"  {result.state:<7}{result.name}{reason}"


def _component(registered: RegisteredComponent, results: list[Result]) -> dict[str, Any]:
    return {
        "kind": registered.kind,
        "name": registered.name,
        "distribution": registered.distribution,
        "version": registered.version,
        "passed": all(result.state != "fail" for result in results),
        "checks": [asdict(result) for result in results],
    }
