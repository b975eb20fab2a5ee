"""`tlkit plugins check`: every check by name, and the verdict as the exit code."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from tests.kit.distribution import describe, install
from tlkit.conformance.report import select
from tlkit.errors import UsageError
from tlkit.plugin import hooks
from tlkit.plugin.contract import Head, Strategy
from tlkit.plugin.discovery import Found
from tlkit.plugin.registry import Host

PLANS = """
from dataclasses import dataclass
from tlkit import Phase, Strategy, hookimpl, option

@dataclass(frozen=True)
class Plan(Strategy):
    name: str
    epochs: int = option(3, "how many epochs")

    def phases(self, stages, facts):
        print("thinking")
        return (Phase(self.epochs, 1e-3),)

@hookimpl
def tlkit_strategies():
    plans = [Plan("good"), Plan("lazy", 0), Plan("Bad Name")]
    return [*plans, Plan("excused", 0), Plan("needless"), Plan("confused")]
"""
REFERENCE = """
from tlkit.conformance import Reference

class Excuses(Reference):
    def exempt(self, plan):
        if plan.name == "confused":
            return {"everything": "please"}
        return {"epochs-are-positive": "it never trains"} if plan.name in ("excused", "needless") else {}
"""
POINTS = "[tlkit]\ntlkit-plans = tlkit_plans\n[tlkit.conformance]\nplans = tlkit_plans.conformance:Excuses\n"


@pytest.fixture
def env(tmp_path):
    """The environment of a process with a plugin of good and bad plans."""
    package = tmp_path / "tlkit_plans"
    package.mkdir()
    package.joinpath("__init__.py").write_text(PLANS)
    package.joinpath("conformance.py").write_text(REFERENCE)
    describe(tmp_path, "tlkit-plans", POINTS)
    install(tmp_path, "tlkit-broken", "raise OSError('no driver')")
    return {"PYTHONPATH": str(tmp_path)}


def test_every_check_by_name(tlkit, env):
    finished = tlkit("plugins", "check", "good", env=env)
    assert finished.code == 0, finished.err
    title, *lines = finished.out.splitlines()
    assert title == f"strategy good (tlkit-plans 1.0): {len(lines)} pass"
    assert len(lines) >= 15
    assert re.fullmatch(r"  pass    +\d+\.\d s  named", lines[0])
    assert all(line.startswith("  pass   ") for line in lines)
    assert finished.next == "tlkit plugins"
    assert "thinking" in finished.err


def test_a_failure_is_the_exit_code_and_is_said_on_one_line(tlkit, env):
    finished = tlkit("plugins", "check", "lazy", env=env)
    assert finished.code == 6
    assert re.search(r"  fail +\d\.\d s  epochs-are-positive: for 1 stages", finished.out)
    last = finished.err.splitlines()[-1]
    assert last.startswith("tlkit: lazy does not keep the contract: strategy 'lazy' fails epochs-are-positive;")


def test_an_exemption_stands_with_its_reason_and_must_be_needed(tlkit, env):
    finished = tlkit("plugins", "check", "excused", env=env)
    assert finished.code == 0
    assert re.search(r"  exempt +\d\.\d s  epochs-are-positive: it never trains", finished.out)
    needless = tlkit("plugins", "check", "needless", env=env)
    assert needless.code == 6
    assert "it passes, though it is exempt (it never trains); remove the exemption" in needless.out


def test_a_plugin_with_all_its_components_as_json(tlkit, env):
    finished = tlkit("plugins", "check", "Tlkit_Plans", "--json", env=env)
    assert finished.code == 6
    facts = finished.json
    assert (facts["name"], facts["passed"], facts["problems"]) == ("Tlkit_Plans", False, [])
    verdicts = {component["name"]: component["passed"] for component in facts["components"]}
    assert verdicts == {
        "good": True,
        "lazy": False,
        "excused": True,
        "Bad Name": False,
        "needless": False,
        "confused": False,
    }
    refused = next(component for component in facts["components"] if component["name"] == "Bad Name")
    assert [check["name"] for check in refused["checks"]] == ["accepted"]
    check = facts["components"][0]["checks"][0]
    assert check.keys() == {"name", "about", "state", "reason", "seconds"}


def test_options_are_set_and_single_checks_are_run(tlkit, env):
    some = ("plugins", "check", "good", "--only", "pure", "--only", "epochs-are-positive", "--json")
    (component,) = tlkit(*some, env=env).json["components"]
    assert [check["name"] for check in component["checks"]] == ["pure", "epochs-are-positive"]
    finished = tlkit(*some, "--set", "strategy.epochs=0", env=env)
    assert finished.code == 6
    assert [check["state"] for check in finished.json["components"][0]["checks"]] == ["pass", "fail"]
    unknown = tlkit("plugins", "check", "good", "--only", "purr", env=env)
    assert unknown.code == 2
    assert unknown.err.endswith("tlkit: there is no check 'purr' (did you mean 'pure'?)\n")
    other = tlkit("plugins", "check", "good", "--set", "head.pca=3", env=env)
    assert (other.code, other.out) == (2, "")
    assert "option head.pca: no 'head' to set here, only strategy" in other.err


def test_an_exemption_from_nothing_known_fails(tlkit, env):
    finished = tlkit("plugins", "check", "confused", env=env)
    assert finished.code == 6
    assert "accepted: strategy 'confused': there is no check 'everything' to be exempt from" in finished.out


def test_a_shell_completes_the_name(tlkit, env):
    line = {"_TLKIT_COMPLETE": "bash_complete", "COMP_WORDS": "tlkit plugins check goo", "COMP_CWORD": "3"}
    assert tlkit(env={**env, **line}).out == "plain,good\n"


def test_a_broken_plugin_fails(tlkit, env):
    finished = tlkit("plugins", "check", "tlkit-broken", env=env)
    assert finished.code == 6
    assert "is broken: it failed to load: OSError: no driver" in finished.out


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("goood", "there is no component or plugin 'goood' (did you mean 'good'?); see: tlkit plugins"),
        ("good --kind head", "there is no head 'good'"),
        ("tlkit-plans --kind head", "plugin 'tlkit-plans' has no head"),
        ("good --kind hat", "'hat' is not one of"),
    ],
)
def test_what_is_not_there_is_a_usage_error(tlkit, env, line, said):
    finished = tlkit("plugins", "check", *line.split(), env=env)
    assert finished.code == 2
    assert said in finished.err.splitlines()[-1]


@dataclass(frozen=True)
class Plan(Strategy):
    name: str

    def phases(self, stages, facts):
        return ()


@dataclass(frozen=True)
class Line(Head):
    name: str

    def module(self, width, classes):
        raise NotImplementedError


class Toys:
    @hooks.hookimpl
    def tlkit_strategies(self):
        return [Plan("a"), Plan("lib/one"), Plan("lib/two")]

    @hooks.hookimpl
    def tlkit_heads(self):
        return [Line("a")]


@pytest.mark.parametrize(
    ("name", "kind", "found"),
    [
        ("a", None, ["head a", "strategy a"]),
        ("a", "head", ["head a"]),
        ("lib/*", None, ["strategy lib/one", "strategy lib/two"]),
        ("toys", None, ["head a", "strategy a", "strategy lib/one", "strategy lib/two"]),
        ("tlkit.toys", "head", ["head a"]),
    ],
)
def test_names_patterns_and_plugins(name, kind, found):
    host = Host([Found("toys", "tlkit-toys", "1", "toys", Toys)])
    assert [f"{each.kind} {each.name}" for each in select(host, name, kind)[0]] == found


def test_no_such_pattern():
    with pytest.raises(UsageError, match=r"there is no component or plugin 'lab/\*'"):
        select(Host([Found("toys", "tlkit-toys", "1", "toys", Toys)]), "lab/*")
