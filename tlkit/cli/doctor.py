"""`tlkit doctor`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from tlkit.cli.common import host, json_option, show, wrote
from tlkit.errors import ResourceError

if TYPE_CHECKING:
    from tlkit.doctor import Diagnosis


@click.command(short_help="Find out what this machine can run, and what is wrong with the installation.")
@json_option
def command(as_json: bool) -> None:
    """Find out what this machine can run, and what is wrong with the installation.

    Versions, the GPU and its driver, the providers of ONNX Runtime that really start (each is tried on a small graph),
    the targets, the plugins, and packages that clash. The exit code is 5 if something has to be mended.

    \b
    Examples:
      tlkit doctor
      tlkit doctor --json
    """
    from tlkit.doctor import diagnose

    found = diagnose()
    loaded = host()
    targets = {name: loaded.get("target", name).missing() for name in loaded.names("target")}
    facts: dict[str, Any] = {**found.to_json(), "targets": targets, "plugins": list(loaded.warnings)}
    show(facts, list(_lines(found, targets, loaded.warnings)), as_json)
    if found.problems:
        first = found.problems[0]
        more = f" ({len(found.problems) - 1} more above)" if len(found.problems) > 1 else ""
        raise ResourceError(f"{first.what}{more}", do=first.do)
    wrote(None, then="tlkit plugins")


def _lines(found: Diagnosis, targets: dict[str, str | None], warnings: Sequence[str]) -> Iterator[str]:
    yield found.system
    yield ", ".join(f"{name} {version}" for name, version in found.versions.items())
    yield from (
        f"GPU: {gpu.name}, driver {gpu.driver}, compute capability {gpu.compute_capability}, {gpu.memory}"
        for gpu in found.gpus
    )
    if not found.gpus:
        yield "GPU: none from NVIDIA; engines can be built for one, and not run"
    if found.cuda is not None:
        yield f"CUDA: the driver runs {found.cuda} at most"
    for provider in found.providers:
        yield f"provider {provider.name}: {'starts' if provider.starts else f'does not start: {provider.why}'}"
    for name, missing in targets.items():
        yield f"target {name}: {missing or 'can be built here'}"
    yield from (f"plugin: {warning}" for warning in warnings)
    yield from (f"could be better: {each.what}; {each.do}" for each in found.advice)
    yield from (f"PROBLEM: {each.what}; {each.do}" for each in found.problems)
    if not found.problems:
        yield "nothing has to be mended"
