"""Real distributions on sys.path, broken in every way we know, all installed at once beside the standard plugin."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.kit.distribution import install

GOOD = """
from dataclasses import dataclass
from tlkit.plugin.contract import Head, option
from tlkit.plugin.hooks import hookimpl

@dataclass(frozen=True)
class Toy(Head):
    name = "NAME"
    size: int = option(3, "how large")

    def module(self, width, classes):
        raise NotImplementedError
"""
BACKBONE = """
from dataclasses import dataclass
from tlkit import Backbone, Preprocessing, Weights, hookimpl

@dataclass(frozen=True)
class Toy(Backbone):
    name = "NAME"
    preprocessing = Preprocessing(64, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    weights = Weights("a seed", "MIT")

    def stages(self, *, pretrained):
        raise NotImplementedError

@hookimpl
def tlkit_backbones():
    return [Toy()]
"""
HEADS = "\n@hookimpl\ndef tlkit_heads():\n    return [Toy()]\n"


@dataclass
class Case:
    """The source of a plugin's module, and what the host has to make of it."""

    source: str
    state: str = "broken"
    reason: str = ""  # a regular expression for the plugin's reason, or for that of its refused component
    components: tuple[str, ...] = ()
    entry_point: str = ""
    requires: tuple[str, ...] = ()


def toy(name: str) -> str:
    return GOOD.replace("NAME", name)


def network(name: str) -> str:
    return BACKBONE.replace("NAME", name)


CASES = {
    "fine": Case(toy("fine-toy") + HEADS, "ok", components=("fine-toy",)),
    "prints": Case("print('hello from import')\n" + toy("printing-toy") + HEADS, "ok", components=("printing-toy",)),
    "raises": Case("import no_such_package", reason="failed to load: ModuleNotFoundError: .*no_such_package"),
    "exits": Case("import sys\nsys.exit(3)", reason="failed to load: SystemExit: 3"),
    "rebels": Case("class Odd(BaseException): ...\nraise Odd", reason="failed to load: .*Odd"),
    "garbled": Case("def", reason="failed to load: SyntaxError"),
    "mute": Case("class Mute(Exception):\n    __str__ = None\nraise Mute", reason="failed to load: .*Mute"),
    "empty": Case("", reason="implements none of tlkit_backbones, tlkit_heads"),
    "signature": Case(
        toy("x") + "@hookimpl\ndef tlkit_heads(config):\n    return [Toy()]", reason=r"tlkit_heads\(config\)"
    ),
    "misspelt": Case(
        toy("x") + HEADS + "@hookimpl\ndef tlkit_head():\n    return [Toy()]",
        reason=r"there is no hook tlkit_head \(did you mean 'tlkit_heads'\?\)",
    ),
    "unmarked": Case(
        toy("x") + HEADS + "def tlkit_targets():\n    return []", reason="tlkit_targets lacks the decorator"
    ),
    "newer": Case(
        toy("newer-toy") + HEADS + "@hookimpl(optionalhook=True)\ndef tlkit_samplers():\n    return []",
        "ok",
        components=("newer-toy",),
    ),
    "raising": Case(
        toy("raising-toy") + HEADS + "@hookimpl\ndef tlkit_targets():\n    yield Toy()\n    raise OSError('no driver')",
        reason="tlkit_targets failed: OSError: no driver",
        components=("raising-toy",),  # a hook that fails takes only its own components with it
    ),
    "nothing": Case(toy("x") + "@hookimpl\ndef tlkit_heads():\n    Toy()", reason="tlkit_heads returned NoneType"),
    "single": Case(toy("x") + "@hookimpl\ndef tlkit_heads():\n    return Toy()", reason="tlkit_heads returned Toy"),
    "kind": Case(
        toy("a-head") + "@hookimpl\ndef tlkit_targets():\n    return [Toy()]", "ok", "not an instance .*contract.Target"
    ),
    "klass": Case(toy("a-class") + "@hookimpl\ndef tlkit_heads():\n    return [Toy]", "ok", "not an instance .*Head"),
    "nameless": Case(toy("x").replace("    name =", "    label =") + HEADS, "ok", "its name isn't"),
    "capital": Case(toy("Toy Head") + HEADS, "ok", "its name isn't lower-case"),
    "escaping": Case(toy("../toy") + HEADS, "ok", "its name isn't lower-case"),
    "thawed": Case(toy("thawed").replace("(frozen=True)", "") + HEADS, "ok", "Toy is not a frozen dataclass"),
    "plain": Case(toy("plain").replace("@dataclass(frozen=True)", "") + HEADS, "ok", "Toy is not a frozen dataclass"),
    "untyped": Case(toy("untyped").replace("int", "list[int]") + HEADS, "ok", r"option size: .*list\[int\]"),
    "default": Case(toy("default").replace("option(3", "option('3'") + HEADS, "ok", "size: its default must be int"),
    "twin": Case(toy("fine-toy") + HEADS, "ok", "both broken-fine 1.0 and broken-twin 1.0 provide it"),
    "impostor": Case(
        network("efficientnet-lite0"),
        "ok",
        "both tlkit .* and broken-impostor 1.0 provide it",  # though it would come first by name
    ),
    "weightless": Case(
        network("weightless-toy").replace('    weights = Weights("a seed", "MIT")\n', ""),
        "ok",
        r"it has no weights; declare: weights = Weights\(origin, license\)",
    ),
    "unprepared": Case(
        network("unprepared-toy").replace("Preprocessing(64, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))", "64"),
        "ok",
        "its preprocessing is 64, not tlkit.Preprocessing",
    ),
    "dated": Case(
        network("dated-toy").replace("*, pretrained", ""),
        "ok",
        r"its stages\(\) can't be called with \(pretrained\), as contract 1 does",
    ),
    "moving": Case(
        "import os, sys\nos.chdir('/')\nsys.stdout = None\n" + toy("moving-toy") + HEADS,
        "ok",
        components=("moving-toy",),
    ),
    "fitting": Case(toy("fitting-toy") + HEADS, "ok", components=("fitting-toy",), requires=("tlkit[train]>=0.1",)),
    "later": Case(
        "raise RuntimeError('it was imported')",
        "incompatible",
        "it requires tlkit <3,>=2, and this is 0.1.0; install a version of broken-later for this one",
        requires=("numpy", "tlkit[train]>=2,<3"),
    ),
    "earlier": Case("raise RuntimeError", "incompatible", "requires tlkit ==0.0.9", requires=("Tlkit (==0.0.9)",)),
    "namesake": Case(toy("namesake-toy") + HEADS, "ok", components=("namesake-toy",), entry_point="fine"),
}

REPORT = """
import json
from tlkit.plugin import registry
loaded = registry.load()
plugins = [
    {
        "distribution": plugin.distribution,
        "name": plugin.name,
        "version": plugin.version,
        "state": plugin.state,
        "reason": plugin.reason,
        "traceback": plugin.traceback,
        "components": [registered.name for registered in plugin.components if registered.state == "ok"],
        "refused": [registered.reason for registered in plugin.components if registered.state == "refused"],
    }
    for plugin in loaded.plugins
]
print(json.dumps({"plugins": plugins, "warnings": loaded.warnings, "heads": loaded.names("head")}))
"""


def report(site: Path, disabled: str = "") -> tuple[dict[str, Any], str]:
    """Result of the host with `site` on its path, and what arrived on stderr."""
    env = {**os.environ, "PYTHONPATH": str(site), "TLKIT_DISABLE_PLUGINS": disabled}
    command = [sys.executable, "-c", REPORT]
    process = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout), process.stderr


class Report(NamedTuple):
    plugins: dict[str, dict[str, Any]]  # by distribution
    warnings: list[str]
    heads: list[str]
    err: str


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """All cases installed at once."""
    site = tmp_path_factory.mktemp("site")
    for name, case in CASES.items():
        module = f"broken_{name}"
        entry_points = f"[tlkit]\n{case.entry_point or name} = {module}\n"
        install(site, f"broken-{name}", case.source, entry_points, case.requires)
    install(site, "broken-table", "", "[tlkit]\nthis is no entry point\n")
    install(site, "broken-module", "", "[tlkit]\nmodule = no_such_module\n")
    install(site, "broken-metadata", toy("orphan-toy") + HEADS)
    site.joinpath("broken_metadata-1.0.dist-info", "METADATA").unlink()
    install(site, "other-group", "raise RuntimeError", "[console_scripts]\ntlkit-x = other_group:main\n")
    answer, err = report(site)
    by_distribution = {plugin["distribution"]: plugin for plugin in answer["plugins"]}
    return Report(by_distribution, answer["warnings"], answer["heads"], err)


@pytest.mark.parametrize("name", CASES)
def test_each_plugin_is_judged_by_itself(everything: Report, name: str) -> None:
    case, plugin = CASES[name], everything.plugins[f"broken-{name}"]
    assert plugin["state"] == case.state
    assert tuple(plugin["components"]) == case.components
    reasons = [*plugin["refused"], *([plugin["reason"]] if plugin["reason"] else [])]
    assert len(reasons) == bool(case.reason)
    assert all(re.search(case.reason, reason) for reason in reasons)
    assert bool(plugin["traceback"]) is (case.state == "broken")


@pytest.mark.parametrize("name", CASES)
def test_each_trouble_is_one_warning_with_distribution_and_version(everything: Report, name: str) -> None:
    about = [warning for warning in everything.warnings if f"(broken-{name} 1.0)" in warning]
    assert len(about) == bool(CASES[name].reason)
    assert all("\n" not in warning and re.search(CASES[name].reason, warning) for warning in about)


def test_the_rest_works(everything: Report) -> None:
    assert everything.plugins["tlkit"]["state"] == "ok"
    assert everything.plugins["tlkit"]["components"]
    assert {"fine-toy", "printing-toy", "newer-toy", "raising-toy", "namesake-toy"} <= set(everything.heads)


def test_the_host_s_own_distribution_comes_first_and_the_others_in_order(everything: Report) -> None:
    first, *others = everything.plugins
    assert first == "tlkit"
    assert others == sorted(others)


def test_what_a_plugin_prints_goes_to_stderr(everything: Report) -> None:
    assert "hello from import" in everything.err  # and stdout was JSON, or there would be no report


def test_a_plugin_without_metadata_still_loads(everything: Report) -> None:
    assert "orphan-toy" in everything.heads


def test_entry_points_that_can_t_be_read_or_found_are_broken_plugins(everything: Report) -> None:
    assert everything.plugins["broken-table"]["state"] == "broken"
    assert "no_such_module" in everything.plugins["broken-module"]["reason"]
    assert "other-group" not in everything.plugins


@pytest.mark.parametrize("disabled", ["marked", "Broken.Marked", "fine,marked", "all"])
def test_a_disabled_plugin_is_listed_and_not_imported(tmp_path: Path, disabled: str) -> None:
    marker = tmp_path / "imported"
    source = f"open({str(marker)!r}, 'w').close()\n" + toy("marked-toy") + HEADS
    install(tmp_path, "broken-marked", source, "[tlkit]\nmarked = broken_marked\n")
    install(tmp_path, "broken-fine", toy("fine-toy") + HEADS, "[tlkit]\nfine = broken_fine\n")
    answer, _ = report(tmp_path, disabled)
    states = {plugin["distribution"]: plugin["state"] for plugin in answer["plugins"]}
    assert states["broken-marked"] == "disabled"
    assert "marked-toy" not in answer["heads"]
    assert not marker.exists()
    assert answer["warnings"] == []
    assert (states["tlkit"] == "disabled") is (disabled == "all")


def test_a_disabled_name_that_matches_nothing_is_one_warning(tmp_path: Path) -> None:
    answer, _ = report(tmp_path, "no-such, neither")
    assert answer["warnings"] == ["TLKIT_DISABLE_PLUGINS names no installed plugin: neither, no-such"]


def test_the_first_on_the_path_shadows_a_distribution_of_the_same_name(tmp_path: Path) -> None:
    install(tmp_path, "broken-fine", toy("fine-toy") + HEADS)
    second = tmp_path / "second"
    second.mkdir()
    install(second, "Broken.Fine", toy("other-toy") + HEADS)
    answer, _ = report(Path(f"{tmp_path}{os.pathsep}{second}"))
    assert [plugin["distribution"] for plugin in answer["plugins"]] == ["tlkit", "broken-fine"]
