"""Write a new plugin: a package that passes its checks as it stands, made from the templates beside this module."""

from __future__ import annotations

import importlib.util
import keyword
import re
import sys
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from string import Template

from tlkit.errors import UsageError
from tlkit.plugin.contract import CONTRACT
from tlkit.plugin.kinds import KINDS
from tlkit.util.files import atomic_dir
from tlkit.version import __version__

PREFIX = "tlkit-"
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class Names:
    """Names of a new plugin."""

    distribution: str
    module: str
    component: str
    kind: str

    @property
    def class_(self) -> str:
        """Name of the component's class; its kind at the end avoids clashes with what the module imports."""
        return "".join(word.capitalize() for word in self.component.split("-")) + self.kind.capitalize()


def names(name: str, kind: str) -> Names:
    """Return the names that follow from that of a distribution. Raises UsageError for an invalid one."""
    component = name.removeprefix(PREFIX)
    if not _NAME.fullmatch(component):
        raise UsageError(
            f"a plugin can't be called {name!r}", do="use lower-case words joined by '-', as in tlkit-mynet"
        )
    module = name.replace("-", "_")
    if keyword.iskeyword(module) or module in sys.stdlib_module_names or importlib.util.find_spec(module):
        raise UsageError(
            f"there is a Python module {module!r} already", do=f"call it {PREFIX}{component}, or otherwise"
        )
    return Names(name, module, component, kind)


def contract_range(version: str) -> str:
    """Return the range of versions with this contract, by Semantic Versioning: `>=0.1,<0.2` or `>=1.4,<2`."""
    major, minor = map(int, version.split(".")[:2])
    return f">={major}.{minor},<{major + 1}" if major else f">=0.{minor},<0.{minor + 1}"


def write(found: Names, out: Path) -> Path:
    """Write the package atomically into the new folder `out`; return the file with the code."""
    kind = KINDS[found.kind]
    fields = asdict(found) | {
        "class": found.class_,
        "suffix": "." + found.component.replace("-", "_"),
        "range": contract_range(__version__),
        "commands": "\n".join(f"$ {command.format(name=found.component)}" for command in kind.commands),
        "task": kind.task,
        "contract": CONTRACT,
        "hook": kind.hook,
        "base": kind.base.__name__,
        "base_module": kind.base.__module__,
        "methods": "\n".join(_method(name) for name in sorted(kind.base.__abstractmethods__)),
    }
    templates = resources.files(__package__).joinpath("templates")
    own = f"{found.kind}.py.tmpl"
    with atomic_dir(out) as folder:
        for template, file in (
            ("pyproject.toml.tmpl", "pyproject.toml"),
            ("README.md.tmpl", "README.md"),
            ("release.yml.tmpl", ".github/workflows/release.yml"),
            (own if templates.joinpath(own).is_file() else "component.py.tmpl", f"{found.module}/__init__.py"),
            ("py.typed.tmpl", f"{found.module}/py.typed"),
            ("test.py.tmpl", f"tests/test_{found.module}.py"),
        ):
            text = templates.joinpath(template).read_text("utf-8")
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(Template(text).substitute(fields), "utf-8")
    return out / found.module / "__init__.py"


def _method(name: str) -> str:
    return f"\n    def {name}(self, *args: Any, **kwargs: Any) -> Any:\n        raise NotImplementedError\n"
