"""Write a page for each kind of component: those of the standard plugin, the contract and the checks.

Run `python docs/generate.py` after changing one of them. A test renders the pages again and compares. The graphs that
the standard backbones come with are written again if they are not those of their stages.
"""

from __future__ import annotations

import inspect
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tlkit_standard.backbones import BACKBONES

from tlkit.conformance import requirements
from tlkit.graph.trace import shipped_graph, write_graph
from tlkit.model.trunk import build
from tlkit.plugin import contract, phases
from tlkit.plugin.contract import Component, option
from tlkit.plugin.kinds import KINDS, Kind
from tlkit.plugin.options import describe, to_json
from tlkit.plugin.registry import Host, load

HERE = Path(__file__).parent
STANDARD = "tlkit"  # the distribution whose components are listed


def pages(host: Host) -> dict[str, str]:
    """Return the text of every page by its file name."""
    return {f"{_title(kind)}.md": "\n".join(_page(kind, host)) + "\n" for kind in KINDS.values()}


def _title(kind: Kind) -> str:
    return kind.plural


def _page(kind: Kind, host: Host) -> Iterator[str]:
    components = [host.get(kind.name, name) for name in host.names(kind.name)]
    standard = [each for each in components if host.origin(each)[0] == STANDARD]
    yield f"# {_title(kind).capitalize()}\n"
    yield f"{inspect.getdoc(kind.base)}\n"
    yield "## Components of the standard plugin\n"
    for component in standard:
        modules = [type(each).__module__ for each in standard]
        yield from _component(component, alone=modules.count(type(component).__module__) == 1)
    yield "## The contract\n"
    yield f"The hook returns {kind.about}.\n"
    yield f"```python\n@tlkit.hookimpl\ndef {kind.hook}() -> Iterable[{kind.base.__name__}]: ...\n```\n"
    yield from _class(kind.base, (kind.base, Component))
    for type_ in _types(kind.base):
        yield from _class(type_, (type_,))
    yield "### `option`\n"
    yield f"```python\ndef option{_signature(option)}: ...\n```\n\n{inspect.getdoc(option)}\n"
    yield "## The checks\n"
    yield "`tlkit plugins check` and [tests of the plugin](../CONTRIBUTING.md#check-and-test-it) run them:\n"
    for name, check in requirements(kind.name).items():
        yield f"- `{name}`: {(inspect.getdoc(check) or '').splitlines()[0]}"
    yield f"\n`tlkit plugins new tlkit-mine --kind {kind.name}` writes a package that passes its checks as it stands."
    yield "The whole contract: [contract.py](../tlkit/plugin/contract.py)."


def _component(component: Any, *, alone: bool) -> Iterator[str]:
    yield f"### `{component.name}`\n"
    yield f"{_explanation(type(component), alone)}\n"
    if component.kind == "backbone":
        size, weights = component.preprocessing.size, component.weights
        yield f"{size} x {size} pixels; weights: {weights.origin} ({weights.license}).\n"
    options = describe(component)
    if not options:
        return
    values = to_json(component, local=True)
    yield "| option | default | type | meaning |"
    yield "|---|---|---|---|"
    for each in options:
        default = "none" if values[each.name] is None else values[each.name]
        allowed = ", ".join(map(str, each.choices)) or each.limits
        meaning = f"{each.help} ({allowed})" if allowed else each.help
        yield f"| `{each.name}` | {default} | {_cell(each.type)} | {_cell(meaning)} |"
    yield ""


def _explanation(kind: type, alone: bool) -> str:
    """Return the docstring of the class, after that of its module if it is `alone` in there."""
    own = kind.__doc__ if kind.__doc__ and not kind.__doc__.startswith(f"{kind.__name__}(") else None
    return "\n\n".join(
        inspect.cleandoc(text) for text in (inspect.getmodule(kind).__doc__ if alone else None, own) if text
    )


def _class(type_: type, members_of: tuple[type, ...]) -> Iterator[str]:
    """Yield fields and methods of a class of the contract, the abstract methods first."""
    yield f"### `{type_.__name__}`\n"
    if type_ not in [kind.base for kind in KINDS.values()]:
        yield f"{inspect.getdoc(type_)}\n"
    fields = [field for each in reversed(members_of) for field in _fields(each) if field[0] != "kind"]
    if fields:
        yield "| attribute | type | default | meaning |"
        yield "|---|---|---|---|"
        yield from (
            f"| `{name}` | `{_cell(annotation)}` | {default} | {_cell(meaning)} |"
            for name, annotation, default, meaning in fields
        )
        yield ""
    methods = [
        function
        for each in members_of
        for name, function in vars(each).items()
        if inspect.isfunction(function) and not name.startswith("_")
    ]
    for function in sorted(methods, key=lambda each: not getattr(each, "__isabstractmethod__", False)):
        abstract = " (abstract)" if getattr(function, "__isabstractmethod__", False) else ""
        yield f"#### `{function.__name__}`{abstract}\n"
        yield f"```python\ndef {function.__name__}{_signature(function)}: ...\n```\n"
        yield f"{inspect.getdoc(function)}\n"


def _fields(type_: type) -> Iterator[tuple[str, str, str, str]]:
    """Yield name, type, default and comment of the attributes that a class of the contract declares."""
    for line in inspect.getsource(type_).splitlines():
        if declared := re.match(r"    (\w+): ([^#=]+?)(?: = ([^#]+?))?(?:  # .*)?$", line):
            name, annotation, default = declared.groups()
            tokens = tokenize.generate_tokens(io.StringIO(line.strip()).readline)
            comments = [token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT]
            annotation = re.sub(r"ClassVar\[(.+)\]", r"\1", annotation)
            meaning = re.sub(r"\b[A-Z]{5,}\b", _value, " ".join(comments))
            yield name, annotation, f"`{default}`" if default else "", meaning


def _value(constant: re.Match[str]) -> str:
    """Return the value of a constant of the contract, such as the names of the optimizers."""
    value = getattr(contract, constant[0], constant[0])
    return f"`{value}`" if isinstance(value, str) else ", ".join(f"`{each}`" for each in value)


def _types(base: type) -> list[type]:
    """Return the classes of the contract that a base class mentions, and those that these mention."""
    modules = (phases.__name__, contract.__name__, base.__name__)
    own = [each for each in vars(contract).values() if inspect.isclass(each) and each.__module__ in modules]
    found = [base]
    for one in found:
        source = inspect.getsource(one)
        found += [each for each in own if each not in found and re.search(rf"\b{each.__name__}\b", source)]
    return [each for each in found if not issubclass(each, Component)]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _signature(function: Any) -> str:
    return re.sub(r"'([^']*)'", r"\1", str(inspect.signature(function)))


if __name__ == "__main__":
    for file, text in pages(load()).items():
        (HERE / file).write_text(text)
    for backbone in BACKBONES:
        if backbone.graph is not None and shipped_graph(build(backbone, pretrained=False)) is None:
            write_graph(backbone, backbone.graph)
