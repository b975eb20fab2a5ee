"""Checks are named, run, exempted and reported, whatever they look at."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from contextlib import suppress

import pytest

from tests.conformance.broken.strategies import BROKEN, Plan
from tests.kit.tiny import Tiny
from tlkit.conformance import CheckFailed, Exempt, Reference, Skipped, checks, run
from tlkit.errors import ResourceError, UsageError
from tlkit.plugin.contract import Phase

HASTY = BROKEN["epochs-are-positive"][0]


def results(component, exempt=None, **how):
    return {result.name: result for result in run(component, exempt, **how)}


def test_names_are_words_and_each_check_says_what_it_asks_for():
    for result in run(Plan()):
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", result.name)
        assert re.fullmatch(r"[A-Z`].*[.:]", result.about)


def test_checks_are_told_apart_by_pytest():
    (first, *_), (other, *_) = checks(Plan()), checks(HASTY)
    assert (first.name, first.call.__name__, other.call.__name__) == ("named", "plan", "plan")
    assert first.call.__doc__


def test_a_failure_says_what_is_wrong_and_what_to_do():
    result = results(HASTY)["epochs-are-positive"]
    assert result.state == "fail"
    assert result.reason.endswith("a phase has 0 epochs; keep them within 1 and 10,000")


class TestExemptions:
    def test_a_check_that_fails_may_be_exempt(self):
        result = results(HASTY, {"epochs-are-positive": "it is a joke"})["epochs-are-positive"]
        assert (result.state, result.reason) == ("exempt", "it is a joke")

    def test_one_that_passes_may_not(self):
        result = results(HASTY, {"pure": "perhaps"})["pure"]
        assert result.state == "fail"
        assert result.reason == "it passes, though it is exempt (perhaps); remove the exemption"

    def test_a_reference_brings_its_own(self):
        class Joking(Reference):
            def exempt(self, component):
                return {"epochs-are-positive": f"{component.name} is a joke"}

        assert results(HASTY, reference=Joking())["epochs-are-positive"].state == "exempt"
        with pytest.raises(Exempt, match="plan is a joke"):
            dict(checks(HASTY, reference=Joking()))["epochs-are-positive"]()

    def test_from_an_unknown_check_is_an_error(self):
        with pytest.raises(
            UsageError, match=r"strategy 'plan': .* no check 'epochs' .*; .*'pures' .*\(did you mean 'pure"
        ):
            checks(HASTY, {"epochs": "x", "pures": "x"})

    def test_that_can_not_be_asked_for_are_an_error(self):
        class Secretive(Reference):
            def exempt(self, component):
                raise OSError("not now")

        with pytest.raises(UsageError, match="`exempt` of its reference raised OSError: not now"):
            checks(Plan(), reference=Secretive())

    def test_without_a_reason_is_an_error(self):
        with pytest.raises(UsageError, match="the exemption from 'pure' lacks its reason"):
            checks(HASTY, {"pure": ""})


class Raising(Plan):
    def phases(self, stages, facts):
        print("I am about to raise")  # noqa: T201
        raise OSError("no such plan" + ", really" * 100)


class TestWhatAPluginRaises:
    def test_is_a_failure_that_names_the_place(self):
        result = results(Raising())["answers"]
        assert result.state == "fail"
        assert re.search(r"it raised OSError: no such plan,.*\[\.\.\.\] \(in test_checks.py, line \d+\)", result.reason)
        assert len(result.reason) < 400

    def test_is_told_once_and_the_rest_depends_on_it(self):
        others = [each for each in run(Raising()) if each.reason and each.name != "answers"]
        assert len(others) >= 5
        reasons = {each.reason for each in others if each.name != "leaves-its-arguments-alone"}
        assert reasons == {"it depends on answers, which fails; fix that first"}

    def test_is_skipped_where_what_it_depends_on_is_exempt(self):
        result = results(Raising(), {"answers": "later"})["pure"]
        assert (result.state, result.reason) == ("skip", "it depends on answers, which is exempt")

    def test_an_interrupt_ends_it(self):
        class Interrupting(Plan):
            def phases(self, stages, facts):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(Interrupting())

    def test_an_exit_is_a_failure_like_others(self):
        class Exiting(Plan):
            def phases(self, stages, facts):
                raise SystemExit(3)

        assert results(Exiting())["answers"].reason.startswith("it raised SystemExit: 3 (in test_checks.py")

    def test_stages_that_give_no_tensor_are_named(self):
        class Pair(Tiny):
            def stages(self, *, pretrained):
                stages = dict(super().stages(pretrained=pretrained))
                stages["second"].forward = lambda x: (x, x)
                return stages

        named = dict(checks(Pair()))
        with pytest.raises(CheckFailed, match=r"^second gives tuple; have each stage return one tensor$"):
            named["chains"]()
        with pytest.raises(CheckFailed, match=r"^it depends on chains, which fails; fix that first$"):
            named["every-cut-agrees"]()

    def test_what_it_prints_is_no_result(self, capsys):
        run(Raising())
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "about to raise" in captured.err


def test_every_check_ticks_once():
    ticks = []
    done = run(Plan(), tick=lambda more, said="": ticks.append((more, said)))
    assert ticks == [(more, check.name) for check in checks(Plan()) for more in (0, 1)]
    assert all(result.seconds >= 0 for result in done)


def test_the_network_is_blocked():
    class Calling(Plan):
        def phases(self, stages, facts):
            with suppress(OSError):
                socket.create_connection(("192.0.2.1", 9), timeout=0.01)
            return super().phases(stages, facts)

    result = results(Calling())["answers"]
    assert result.state == "fail"
    assert result.reason.startswith("it tried to reach 192.0.2.1")


@pytest.mark.parametrize("thing", [Plan, "plan", None, Phase(1, 1e-3)])
def test_what_is_no_component_is_refused(thing):
    with pytest.raises(
        UsageError, match="is no component; give an instance of a subclass of Backbone, Head, Detector, S"
    ):
        checks(thing)


class TestWeights:
    def test_are_not_looked_for_unless_asked(self):
        with pytest.raises(Skipped, match="it needs the pretrained weights"):
            dict(checks(Tiny()))["pretrained-is-not-random"]()

    def test_that_are_not_here_skip_what_needs_them(self):
        class IncompatibleEngine(Tiny):
            def stages(self, *, pretrained):
                if pretrained:
                    raise ResourceError("the weights are in the package x", do="run: pip install x")
                return super().stages(pretrained=False)

        named = dict(checks(IncompatibleEngine(), pretrained=True))
        for name in ("chains", "traces", "pretrained-is-always-the-same"):
            with pytest.raises(Skipped, match="the weights are in the package x"):
                named[name]()
        named["builds"]()


THREE_LINES = """
import pytest
from tlkit.conformance import checks
from tests.conformance.broken.strategies import BROKEN, Plan

EXEMPT = {"lr-decay-is-a-factor": "growth"}

@pytest.mark.parametrize(("name", "check"), checks(Plan(), {"pure": "perhaps"}))
def test_plan(name, check):
    check()

@pytest.mark.parametrize(("name", "check"), checks(BROKEN["lr-decay-is-a-factor"][0], EXEMPT))
def test_growing(name, check):
    check()
"""


def test_under_pytest(tmp_path, checkout):
    (tmp_path / "test_plan.py").write_text(THREE_LINES)
    env = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", "-c", os.devnull, "test_plan.py"]
    finished = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert re.search(rf"1 failed, {2 * len(checks(Plan())) - 2} passed, 1 skipped", finished.stdout)
    assert re.search(r"FAILED \S+::test_plan\[pure-plan\] - ", finished.stdout)
    assert "it passes, though it is exempt (perhaps); remove the exemption" in finished.stdout
    assert re.search(r"SKIPPED .* growth", finished.stdout)


def test_the_kit_is_imported_without_a_framework():
    code = """
import json, sys
from tlkit.conformance import checks, run
from tests.conformance.broken.strategies import Plan
print(json.dumps([len(run(Plan())), sorted({"torch", "onnx", "numpy"} & set(sys.modules))]))
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, loaded = json.loads(finished.stdout)
    assert count == len(checks(Plan()))
    assert loaded == []


def test_a_component_from_a_file_in_no_package_is_declared_again_from_there(tmp_path, checkout):
    script = tmp_path / "my script.py"
    script.write_text(
        "from dataclasses import dataclass\nfrom tests.conformance.broken.strategies import Plan\n"
        "from tlkit.conformance import run\n@dataclass(frozen=True)\nclass Mine(Plan):\n    x: int = 1\n"
        "if __name__ == '__main__':\n"
        "    print({each.name: each.state for each in run(Mine())}['declared-cheaply'])\n"
    )
    env = {**os.environ, "PYTHONPATH": str(checkout)}
    finished = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True, check=True)
    assert finished.stdout == "pass\n"
