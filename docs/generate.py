"""Write a page for each kind of component: what the standard plugin has of it, and what the contract asks for.

Run `python docs/generate.py` after changing either. A test renders the pages again and compares.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tlkit.conformance import checks
from tlkit.plugin import hooks
from tlkit.plugin.contract import Component
from tlkit.plugin.options import describe, to_json
from tlkit.plugin.registry import BASE_CLASSES, Host, load

HERE = Path(__file__).parent
PREFIX = "tlkit_"  # of every hook
STANDARD = "tlkit"  # the distribution whose components are listed


def pages(host: Host) -> dict[str, str]:
    """The text of every page by its file name."""
    return {
        f"{hook.removeprefix(PREFIX)}.md": "\n".join(_page(hook, contract, host)) + "\n"
        for hook, contract in BASE_CLASSES.items()
    }


def _page(hook: str, contract: type[Component], host: Host) -> Iterator[str]:
    kind = contract.kind
    yield f"# {hook.removeprefix(PREFIX).capitalize()}\n"
    yield f"{inspect.getdoc(contract)}\n"
    yield "## Components of the standard plugin\n"
    for name in host.names(kind):
        component = host.get(kind, name)
        if host.origin(component)[0] == STANDARD:
            yield from _component(component)
    yield "## What a plugin writes\n"
    yield f"The hook: {inspect.getdoc(getattr(hooks, hook))}\n"
    yield f"```python\n@hookimpl\ndef {hook}{_signature(getattr(hooks, hook))}: ...\n```\n"
    for member, function in inspect.getmembers(contract, inspect.isfunction):
        if not member.startswith("_") and function.__qualname__.startswith(contract.__name__):
            must = " (must be written)" if getattr(function, "__isabstractmethod__", False) else ""
            yield f"### `{member}`{must}\n"
            yield f"```python\ndef {member}{_signature(function)}: ...\n```\n"
            yield f"{inspect.getdoc(function)}\n"
    yield "## What is checked\n"
    yield "By `tlkit plugins check`, and by [tests of the plugin](../CONTRIBUTING.md#check-and-test-it):\n"
    first = next(host.get(kind, name) for name in host.names(kind) if host.origin(host.get(kind, name))[0] == STANDARD)
    for check in checks(first):
        yield f"- `{check.name}`: {(inspect.getdoc(check.call) or '').splitlines()[0]}"
    yield f"\n`tlkit plugins new tlkit-mine --kind {kind}` writes a package that passes its checks as it stands;"
    yield "`tlkit plugins check` runs them. The whole contract: [contract.py](../tlkit/plugin/contract.py)."


def _component(component: Any) -> Iterator[str]:
    yield f"### `{component.name}`\n"
    yield f"{_explanation(type(component))}\n"
    if component.kind == "backbone":
        size, weights = component.preprocessing.size, component.weights
        yield f"{size} x {size} pixels; weights: {weights.origin} ({weights.license}).\n"
    options = describe(component)
    if not options:
        return
    values = to_json(component)
    yield "| option | default | type | meaning |"
    yield "|---|---|---|---|"
    for option in options:
        default = "none" if values[option.name] is None else values[option.name]
        choices = f" ({', '.join(map(str, option.choices))})" if option.choices else ""
        kind, help_ = option.type.replace("|", "or"), option.help.replace("|", "\\|")
        yield f"| `{option.name}` | {default} | {kind} | {help_}{choices} |"
    yield ""


def _explanation(kind: type) -> str:
    """The class's own docstring, or that of its module: one file for each thing."""
    own = kind.__doc__ if kind.__doc__ and not kind.__doc__.startswith(f"{kind.__name__}(") else None
    return inspect.cleandoc(own or inspect.getmodule(kind).__doc__ or "")


def _signature(function: Any) -> str:
    return re.sub(r"'([^']*)'", r"\1", str(inspect.signature(function)))


if __name__ == "__main__":
    for file, text in pages(load()).items():
        (HERE / file).write_text(text)
