"""A new plugin: a package that passes its checks as it stands, made from the templates beside this module."""

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
from tlkit.util.files import atomic_dir
from tlkit.version import __version__

PREFIX = "tlkit-"
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")

TODO = {
    "backbone": "Put your network into `stages`, with its own pixel recipe, and say where its weights come from.",
    "head": "Put your classifier into `module` and `solve`; a head that learns by gradient leaves out `solve`.",
    "strategy": "Put your plan into `phases`, and choose where to `cut`.",
    "target": "Put your runtime into `build` and the session, and what it needs into `missing`.",
}
TRY = {
    "backbone": "tlkit train photos/ -o run/ --backbone {component}",
    "head": "tlkit train photos/ -o run/ --head {component}",
    "strategy": "tlkit train photos/ -o run/ --strategy {component}",
    "target": "tlkit export run/ --{component}",
}


@dataclass(frozen=True, slots=True)
class Names:
    """What the templates fill in."""

    distribution: str
    module: str
    component: str
    kind: str
    suffix: str
    range: str
    try_: str
    todo: str

    @property
    def class_(self) -> str:
        """The class of the component; its kind at the end keeps it apart from whatever the module imports."""
        return "".join(word.capitalize() for word in self.component.split("-")) + self.kind.capitalize()


def names(name: str, kind: str) -> Names:
    """The names that follow from that of a distribution. Raises UsageError for one that a package can't have."""
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
    return Names(
        distribution=name,
        module=module,
        component=component,
        kind=kind,
        suffix="." + component.replace("-", "_"),
        range=contract_range(__version__),
        try_=TRY[kind].format(component=component),
        todo=TODO[kind],
    )


def contract_range(version: str) -> str:
    """The versions with the contract of this one, by Semantic Versioning: `>=0.1,<0.2` or `>=1.4,<2`."""
    major, minor = map(int, version.split(".")[:2])
    return f">={major}.{minor},<{major + 1}" if major else f">=0.{minor},<0.{minor + 1}"


def write(found: Names, out: Path) -> Path:
    """Write the package into the new folder `out`, whole or not at all; returns the file with the code."""
    fields = {key.rstrip("_"): value for key, value in asdict(found).items()} | {"class": found.class_}
    with atomic_dir(out) as folder:
        for template, file in (
            ("pyproject.toml", "pyproject.toml"),
            ("README.md", "README.md"),
            (f"{found.kind}.py", f"{found.module}.py"),
            ("test.py", f"tests/test_{found.module}.py"),
        ):
            text = resources.files(__package__).joinpath("templates", f"{template}.tmpl").read_text("utf-8")
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_text(Template(text).substitute(fields), "utf-8")
    return out / f"{found.module}.py"
