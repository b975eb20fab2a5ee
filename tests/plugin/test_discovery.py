"""Metadata of a distribution, read without importing it."""

from __future__ import annotations

import json
import os
from importlib import metadata
from pathlib import Path

import pytest

from tests.kit.distribution import describe, install
from tlkit.errors import ArtifactError, UsageError
from tlkit.plugin import discovery
from tlkit.plugin.discovery import find, provenance, suspects
from tlkit.plugin.registry import Host


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
    advice = "install a version of some-plugin for this one"
    assert incompatible(site, *requires) == f"it requires tlkit {range_}, and this is 0.1.0; {advice}"


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


class TestContract:
    """A plugin says in its group of entry points which contract it was written for."""

    def found(self, site: Path, points: str) -> list[tuple[str, str | None]]:
        install(site, "some-plugin", "raise RuntimeError", points)
        return [(each.module, each.incompatible) for each in find("tlkit") if each.distribution == "some-plugin"]

    @pytest.mark.parametrize("group", ["tlkit", "tlkit.1"])
    def test_this_one(self, site: Path, group: str) -> None:
        assert self.found(site, f"[{group}]\nx = some_plugin\n") == [("some_plugin", None)]

    def test_another_one_is_not_imported(self, site: Path) -> None:
        found = self.found(site, "[tlkit.2]\nx = some_plugin\n")
        reason = (
            "it was written for contract 2 of plugins, and this tlkit 0.1.0 has contract 1; "
            "install a version of some-plugin for this one"
        )
        assert found == [("some_plugin", reason)]

    def test_of_several_the_right_one_is_taken(self, site: Path) -> None:
        points = "[tlkit]\nx = some_plugin\n[tlkit.2]\nx = some_plugin.later\n[tlkit.conformance]\nx = y\n"
        assert self.found(site, points) == [("some_plugin", None)]

    def test_a_plugin_that_declares_none_is_for_the_first(self, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(discovery, "CONTRACT", 2)
        ((_, reason),) = self.found(site, "[tlkit]\nx = some_plugin\n")
        assert reason is not None
        assert reason.startswith("it was written for contract 1")


class TestHidden:
    """Metadata that hides another distribution of the same name is named."""

    def test_two_versions(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for version in ("1.0", "1.1"):
            (tmp_path / version).mkdir()
            describe(tmp_path / version, "some-plugin", "[tlkit]\nx = some_plugin\n", version)
            monkeypatch.syspath_prepend(tmp_path / version)
        found = {each.version: each.incompatible for each in find("tlkit") if each.distribution == "some-plugin"}
        assert found == {"1.1": None, "1.0": f"some-plugin 1.1 in {tmp_path / '1.1'} hides it; remove one of the two"}

    def test_one_that_calls_itself_tlkit(self, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        describe(site, "tlkit", "[tlkit]\nevil = evil\n", "99")
        monkeypatch.setattr(discovery, "_is_this", lambda distribution: distribution.version != "99")
        own = {each.version: each for each in find("tlkit") if each.distribution == "tlkit"}
        assert own["0.1.0"].incompatible is None
        assert own["99"].incompatible is not None
        assert own["99"].incompatible.startswith("tlkit 0.1.0 in ")

    def test_tlkit_is_known_by_its_place(self, checkout: Path, tmp_path: Path) -> None:
        for root, url, ours in ((checkout, "", True), (tmp_path, checkout.as_uri(), True), (tmp_path, "", False)):
            place = tmp_path / str(len(list(tmp_path.iterdir()))) / "tlkit-0.1.0.dist-info"
            place.mkdir(parents=True)
            place.joinpath("direct_url.json").write_text(json.dumps({"url": url}))
            located = type("Located", (metadata.PathDistribution,), {"locate_file": lambda *_, root=root: root})
            assert discovery._is_this(located(place)) is ours, (root, url)

    @pytest.mark.parametrize("latest", ["0.9", "1.0"])
    def test_of_two_in_one_folder_the_latest_is_taken(self, site: Path, latest: str) -> None:
        for version in ("0.9", "1.0"):
            describe(site, "some-plugin", "[tlkit]\nx = some_plugin\n", version)
            for file in (site / f"some_plugin-{version}.dist-info").iterdir():
                os.utime(file, (0, int(version == latest)))
        found = {each.version: each.incompatible for each in find("tlkit") if each.distribution == "some-plugin"}
        assert [version for version, reason in found.items() if reason is None] == [latest]
        assert len(found) == 2

    def test_metadata_without_entry_points_hides_none(self, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        install(site, "some-plugin", "")
        describe(site, "some-plugin", "", "0.9")
        (site / "first").mkdir()
        describe(site / "first", "some-plugin", "", "0.8")
        monkeypatch.syspath_prepend(site / "first")
        assert [each.version for each in find("tlkit") if each.distribution == "some-plugin"] == ["1.0"]

    def test_without_metadata_of_its_own_tlkit_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(discovery.metadata, "distributions", list)
        (own,) = find("tlkit")
        assert own.incompatible is not None
        assert "pip install --force-reinstall" in own.incompatible
        host = Host([own])
        with pytest.raises(UsageError, match="its metadata is missing or damaged"):
            host.get("backbone", "some")

    @pytest.mark.parametrize(
        "content",
        [b"[tlkit]\nx = some_plugin\n\xff", "[tlkit]\nx = some_plugin".encode("utf-16"), b"\xef\xbb\xbf[tlkit]\nx = y"],
    )
    def test_entry_points_that_cant_be_parsed_are_named(self, site: Path, content: bytes) -> None:
        install(site, "some-plugin", "")
        (site / "some_plugin-1.0.dist-info/entry_points.txt").write_bytes(content)
        (plugin,) = (each for each in Host(find("tlkit")).plugins if each.distribution == "some-plugin")
        assert plugin.state == "broken"

    def test_a_plugin_without_metadata_has_the_name_of_its_folder(self, site: Path) -> None:
        install(site, "some-plugin", "")
        (site / "some_plugin-1.0.dist-info/METADATA").unlink()
        assert ("some_plugin", "1.0") in {(each.distribution, each.version) for each in find("tlkit")}

    def test_what_may_hide_a_plugin_is_named(self, site: Path) -> None:
        before = suspects()
        describe(site, "some-plugin", "", requires=["tlkit>=0.1"])
        (site / "other_plugin-2.0.dist-info").mkdir()
        assert sorted(set(suspects()) - set(before)) == [
            "some-plugin requires tlkit and declares no plugin",
            f"the metadata in {site}/other_plugin-2.0.dist-info is damaged",
        ]
        for name in ("some-plugin", "other_plugin"):
            with pytest.raises(ArtifactError, match=r"declares no plugin; |is damaged; "):
                Host([]).require("backbone", "x", name, "1.0", {})
