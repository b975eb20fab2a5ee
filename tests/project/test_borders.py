"""The borders of the project: who may import what, how light an import is, and what the linters say."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest


class Border(NamedTuple):
    """A package, the only modules that may import it (with what is below them), and what others do instead."""

    package: str
    allowed: tuple[str, ...]
    instead: str


BORDERS = (
    Border(
        "torch",
        (
            "tlkit.model.batchnorm",
            "tlkit.model.trunk",
            "tlkit.model.modules",
            "tlkit.model.novelty",
            "tlkit.model.recorder",
            "tlkit.model.stages",
            "tlkit.model.weights",
            "tlkit.graph.trace",
            "tlkit.training",
            "tlkit.advice.quick_trial",
            "tlkit.advice.trials",
            "tlkit.conformance",
            "plugins",
        ),
        "compose networks in tlkit.model.trunk, trace in tlkit.graph.trace, train in tlkit.training.run and its loop; "
        "elsewhere work on NumPy arrays, and import torch for type checkers only",
    ),
    Border(
        "click",
        ("tlkit.cli", "tlkit.progress"),
        "raise a TlkitError or return a value, and let the verb in tlkit.cli parse and print",
    ),
    Border(
        "pluggy",
        ("tlkit.plugin.hooks",),
        "ask tlkit.plugin.registry.load() for components; a plugin marks its hooks with tlkit.plugin.hooks.hookimpl",
    ),
    Border(
        "tlkit_standard",
        ("plugins.tlkit_standard",),
        "ask tlkit.plugin.registry for the component by kind and name: the host has no favorite plugin",
    ),
    Border(
        "sklearn",
        ("tlkit.training", "tlkit.advice", "tlkit.audit", "tlkit.pages.layouts", "plugins"),
        "fit in a head's `solve` (a plugin) or in tlkit.training; what is deployed runs without scikit-learn",
    ),
    Border(
        "scipy",
        ("tlkit.training", "tlkit.advice", "tlkit.audit", "tlkit.util.statistics", "plugins"),
        "use it in a head's `solve` (a plugin) or in tlkit.training; it comes with scikit-learn, which trains",
    ),
)


class Import(NamedTuple):
    """One import that happens when the program runs, wherever it stands in the file."""

    line: int
    module: str


def runtime_imports(node: ast.AST) -> Iterator[Import]:
    """All imports below `node` but those under `if TYPE_CHECKING`."""
    if isinstance(node, ast.Import):
        yield from (Import(node.lineno, alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield Import(node.lineno, node.module or "")
    skipped = node.body if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING") else ()
    for child in ast.iter_child_nodes(node):
        if child not in skipped:
            yield from runtime_imports(child)


def below(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def trespasses(source: str, module: str) -> Iterator[str]:
    for line, imported in runtime_imports(ast.parse(source)):
        for border in BORDERS:
            if below(imported, (border.package,)) and not below(module, border.allowed):
                yield f"{module}, line {line}: imports {border.package}. Instead: {border.instead}."


def test_each_package_is_imported_only_where_it_may_be(checkout: Path) -> None:
    files = [*checkout.glob("tlkit/**/*.py"), *checkout.glob("plugins/**/*.py")]
    assert len(files) > 30
    found = []
    for file in files:
        module = ".".join(file.relative_to(checkout).with_suffix("").parts).removesuffix(".__init__")
        found += trespasses(file.read_text("utf-8"), module)
    if found:
        pytest.fail("\n".join(found), pytrace=False)


@pytest.mark.parametrize(
    ("source", "module", "trespass"),
    [
        ("import torch.nn", "tlkit.data.preprocessing", True),
        ("def f():\n    from torch import nn", "tlkit.data.preprocessing", True),
        ("from torch import nn", "tlkit.model.trunk", False),
        ("from torch import nn", "tlkit.model.trunk.pooling", False),
        ("from torch import nn", "tlkit.model.trunks", True),
        ("import torchvision_like", "tlkit.data.preprocessing", False),
        ("if TYPE_CHECKING:\n    import torch", "tlkit.data.preprocessing", False),
        ("if TYPE_CHECKING:\n    pass\nelse:\n    import torch", "tlkit.data.preprocessing", True),
        ("import click", "plugins.tlkit_standard.heads", True),
        ("from tlkit_standard.heads import HEADS", "tlkit.plugin.registry", True),
        ("from tlkit_standard.heads import HEADS", "plugins.tlkit_standard", False),
    ],
)
def test_the_borders_are_seen(source: str, module: str, trespass: bool) -> None:
    assert bool(list(trespasses(source, module))) is trespass


OPEN_TO_PLUGINS = ("tlkit", "tlkit.plugin.contract", "tlkit.plugin.support")
OPEN_TO_REFERENCES = "tlkit.conformance"  # to modules of a plugin that are called so


def out_of_bounds(source: str, *, reference: bool) -> list[str]:
    """All that a source imports of tlkit although it may change; imports for type checkers count as well."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [getattr(node, "module", None) or alias.name for node in nodes for alias in node.names]
    ours = [name for name in names if below(name, ("tlkit",))]
    return [each for each in ours if each not in OPEN_TO_PLUGINS and not (reference and each == OPEN_TO_REFERENCES)]


def test_plugins_import_the_contract_and_their_support_alone(checkout: Path) -> None:
    files = [file for file in checkout.glob("plugins/**/*.py") if "tests" not in file.relative_to(checkout).parts]
    assert len(files) > 25
    found = {
        str(file.relative_to(checkout)): names
        for file in files
        if (names := out_of_bounds(file.read_text("utf-8"), reference=file.stem == "conformance"))
    }
    assert found == {}


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("from tlkit import Backbone\nimport tlkit\nfrom tlkit.plugin.support import sha256", []),
        ("def f():\n    from tlkit.util.files import sha256", ["tlkit.util.files"]),
        ("import tlkit.errors, tlkit_timm", ["tlkit.errors"]),
        ("from tlkit.conformance import Reference", ["tlkit.conformance"]),
    ],
)
def test_what_plugins_may_not_import_is_seen(source: str, names: list[str]) -> None:
    assert out_of_bounds(source, reference=False) == names


HEAVY = ("numpy", "onnx", "onnxruntime", "PIL", "pyarrow", "scipy", "sklearn", "torch")
LOADED = """
import json, pkgutil, sys
from importlib import import_module
prefixes, packages = json.loads(sys.argv[1])
import tlkit
names = ["tlkit", *(module.name for module in pkgutil.walk_packages(tlkit.__path__, "tlkit."))]
wanted = [name for name in names if any(name == p or name.startswith(p + ".") for p in prefixes)]
for name in wanted:
    import_module(name)
print(json.dumps([wanted, sorted(set(packages) & set(sys.modules))]))
"""


def imported_with(prefixes: tuple[str, ...], packages: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """The modules of tlkit below `prefixes`, and those of `packages` that importing them all brings along."""
    command = [sys.executable, "-c", LOADED, json.dumps([prefixes, packages])]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    modules, loaded = json.loads(process.stdout)
    return modules, loaded


def test_what_every_command_and_plugin_imports_is_light() -> None:
    modules, loaded = imported_with(("tlkit.errors", "tlkit.util.files", "tlkit.plugin"), HEAVY)
    assert {"tlkit.errors", "tlkit.plugin.contract", "tlkit.plugin.registry", "tlkit.plugin.options"} <= set(modules)
    assert len(modules) >= 7
    assert loaded == []


def test_the_command_line_and_the_public_names_load_no_framework() -> None:
    process = subprocess.run(
        [sys.executable, "-c", "import json, sys, tlkit, tlkit.cli; print(json.dumps(list(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(HEAVY).isdisjoint(json.loads(process.stdout))


def test_what_is_deployed_runs_without_what_trains() -> None:
    verbs = ("predict", "embed", "eval", "verify", "inspect", "plugins")
    deployed = ("tlkit.data", "tlkit.runtime.model", "tlkit.model.bundle", *(f"tlkit.cli.{verb}" for verb in verbs))
    modules, loaded = imported_with(deployed, ("scipy", "sklearn", "torch"))
    assert len(modules) >= 10
    assert loaded == []


@pytest.mark.parametrize("command", ["ruff check", "ruff format --check", "mypy", "lint-imports"])
def test_linters_find_nothing(command: str, checkout: Path) -> None:
    tool, *arguments = command.split()
    process = subprocess.run(
        [Path(sys.executable).with_name(tool), *arguments], cwd=checkout, capture_output=True, text=True, check=False
    )
    if process.returncode != 0:
        pytest.fail(f"{command}\n{process.stdout}{process.stderr}", pytrace=False)
