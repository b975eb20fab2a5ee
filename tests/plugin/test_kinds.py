"""A new kind is one row and one base class: host, command line, checks, scaffold and documents follow."""

from __future__ import annotations

import runpy
import sys
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tlkit.cli.plugins import _lines
from tlkit.conformance import requirements
from tlkit.conformance.report import check
from tlkit.conformance.scaffold import names, write
from tlkit.plugin.contract import Component, option
from tlkit.plugin.discovery import Found
from tlkit.plugin.hooks import hookimpl
from tlkit.plugin.kinds import KINDS, Kind
from tlkit.plugin.registry import Host


class Category(Component):
    """A kind that tlkit does not have."""

    kind = "category"

    @abstractmethod
    def members(self, limit: int) -> Any:
        """Return members."""


@dataclass(frozen=True)
class Birds(Category):
    name = "birds"
    most: int = option(3, "how many at most")

    def members(self, limit: int) -> Any:
        return ["ant"]


class Plugin:
    @hookimpl
    def tlkit_categories(self) -> Any:
        return [Birds()]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setitem(KINDS, "category", Kind(Category, "categories of things"))
    return Host([Found("zoo", "tlkit-zoo", "1.0", "zoo", Plugin)])


def test_the_host_finds_it_and_the_command_line_lists_it(host: Host) -> None:
    assert host.warnings == ()
    assert host.get("category", "birds", {"most": 9}) == Birds(9)
    (plugin,) = host.plugins
    assert list(_lines(plugin))[1:] == ["  category  birds"]
    assert str(plugin.components[0]).splitlines()[0] == "category birds (tlkit-zoo 1.0)"


def test_without_a_row_there_is_no_such_hook() -> None:
    (plugin,) = Host([Found("zoo", "tlkit-zoo", "1.0", "zoo", Plugin)]).plugins
    assert plugin.reason is not None
    assert plugin.reason.startswith("there is no hook tlkit_categories")


def test_it_is_checked(host: Host) -> None:
    assert "options-are-settable" in requirements("category")
    report = check(host, "birds", only=["named", "frozen-dataclass", "options-are-settable", "copies-are-equal"])
    assert report.passed
    assert len(report.components[0].results) == 4


@pytest.mark.usefixtures("host")
def test_a_plugin_of_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = write(names("tlkit-my-birds", "category"), tmp_path / "new")
    assert (code.parent / "py.typed").exists()
    monkeypatch.syspath_prepend(tmp_path / "new")
    module = __import__("tlkit_my_birds")
    try:
        found = Found("mine", "tlkit-my-birds", "0.1", "tlkit_my_birds", lambda: module)
        host = Host([found])
        assert host.warnings == ()
        assert host.names("category") == ("my-birds",)
    finally:
        del sys.modules["tlkit_my_birds"]


def test_a_page_describes_it(host: Host, checkout: Path) -> None:
    pages = runpy.run_path(str(checkout / "docs/generate.py"))["pages"](host)
    page = pages["categories.md"]
    assert "def tlkit_categories() -> Iterable[Category]: ..." in page
    assert "#### `members` (abstract)" in page
    assert "- `options-are-settable`: " in page
