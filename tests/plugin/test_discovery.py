"""Metadata of a distribution, read without importing it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.kit.distribution import install
from tlkit.plugin.discovery import find, provenance


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that comes first on Python's path."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def incompatible(site: Path, *requires: str) -> str | None:
    install(site, "some-plugin", "raise RuntimeError", requires=requires)
    (found,) = (found for found in find("tlkit") if found.distribution == "some-plugin")
    return found.incompatible


@pytest.mark.parametrize(
    "requires",
    [
        (),
        ("tlkit",),
        ("tlkit>=0.1,<0.2",),
        ("tlkit[train]~=0.1.0",),
        ("tlkit==0.*",),
        ('tlkit>=9; python_version < "3"',),
        ('tlkit>=9; extra == "later"',),
        ("tlkit-timm>=9",),
        ("tlkit_timm>=9", "tlkit.timm>=9"),
        ("tlkit => 9",),  # no installer would have let that through
        ("numpy>=99",),  # an installer's business, not ours
    ],
)
def test_a_plugin_for_this_version_is_fit(site: Path, requires: tuple[str, ...]) -> None:
    assert incompatible(site, *requires) is None


@pytest.mark.parametrize(
    ("requires", "range_"),
    [
        (("tlkit>=2",), ">=2"),
        (("numpy", "TLKIT[train] >=0.2, <0.3"), "<0.3,>=0.2"),
        (("tlkit; extra == 'x'", "tlkit!=0.1.0"), "!=0.1.0"),
        (("tlkit<0.1",), "<0.1"),
        (('tlkit>=9; python_version >= "3"',), ">=9"),
    ],
)
def test_a_plugin_for_another_version_is_not(site: Path, requires: tuple[str, ...], range_: str) -> None:
    assert incompatible(site, *requires) == f"it requires tlkit {range_}, and this is 0.1.0"


@pytest.mark.parametrize(
    ("files", "origin"),
    [
        ({}, "Python's path: no installer recorded it"),
        ({"INSTALLER": "pip\n"}, "a package index"),
        (
            {"direct_url.json": {"url": "file://host/x", "dir_info": {"editable": True}}},
            "file://host/x (editable)",
        ),
        ({"direct_url.json": {"url": "file://host/x", "dir_info": {}}}, "file://host/x"),
        (
            {
                "direct_url.json": {
                    "url": "https://example.org/x.git",
                    "vcs_info": {"vcs": "git", "commit_id": "c0ffee"},
                }
            },
            "https://example.org/x.git@c0ffee",
        ),
        ({"direct_url.json": ["garbled"]}, "an unknown origin"),
    ],
)
def test_where_it_came_from_is_known(site: Path, files: dict[str, object], origin: str) -> None:
    install(site, "some-plugin", "")
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        site.joinpath("some_plugin-1.0.dist-info", name).write_text(text)
    assert provenance("some-plugin") == origin


def test_what_is_not_installed_comes_from_nowhere() -> None:
    assert provenance("no-such-distribution") == "an unknown origin"
