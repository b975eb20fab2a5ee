"""Conformance: named checks of any component, whose failures speak to the plugin's author.

In the tests of a plugin:

    from tlkit.conformance import checks

    @pytest.mark.parametrize(("name", "check"), checks(MyNet()))
    def test_it_keeps_the_contract(name, check):
        check()

A check that can't run here is skipped. So is one that the plugin's `Reference` or the argument
`exempt={check: reason}` names. Exemptions are strict: one that isn't needed fails.

Backbones have random weights unless `pretrained=True`; checks of the pretrained weights need that, and without it the
network is blocked.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from types import ModuleType
from typing import Any, Literal, NamedTuple

from tlkit.conformance.reference import Reference, installed
from tlkit.conformance.subject import CheckFailed, Exempt, Function, Skipped, Subject
from tlkit.errors import UsageError
from tlkit.plugin.contract import Component, Tick
from tlkit.plugin.kinds import KINDS
from tlkit.util.text import did_you_mean

__all__ = ["Check", "CheckFailed", "Exempt", "Reference", "Result", "Skipped", "checks", "run"]

COMMON = "tlkit.conformance.component"  # module of the checks of every kind


class Check(NamedTuple):
    """Check by name. Calling it raises `CheckFailed`, or `Skipped`, which pytest and unittest count as a skip."""

    name: str
    call: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Result:
    """Result of a check: `about` is the requirement, `reason` why it failed, was exempt or was skipped.

    `seconds` include objects that it made for the checks after it.
    """

    name: str
    about: str
    state: Literal["pass", "fail", "exempt", "skip"]
    reason: str | None = None
    seconds: float = 0.0


def checks(
    component: Component,
    exempt: Mapping[str, str] | None = None,
    *,
    reference: Reference | None = None,
    pretrained: bool = False,
    only: Collection[str] = (),
) -> tuple[Check, ...]:
    """Return every check of a component, or those that `only` names, the simple ones first.

    Without a `reference`, it is the one that the component's package declares. They share what is expensive to make:
    use one set of checks for one component, and release it. Raises UsageError for an unknown exemption or name.
    """
    if not isinstance(component, Component) or component.kind not in KINDS:
        raise UsageError(
            f"{component!r} is no component",
            do=f"give an instance of a subclass of {', '.join(kind.base.__name__ for kind in KINDS.values())}",
        )
    functions = requirements(component.kind)
    reference = reference or installed(component)
    exemptions = _exemptions(component, reference, exempt or {}, functions)
    own = KINDS[component.kind].checks
    make: type[Subject[Any]] = import_module(own[0]).SUBJECT if own else Subject
    subject = make(component, pretrained=pretrained, exempt=exemptions, reference=reference)
    wanted = only or functions
    if unknown := [name for name in wanted if name not in functions]:
        raise UsageError(f"a {component.kind} has no check {unknown[0]!r}{did_you_mean(unknown[0], functions)}")
    return tuple(Check(name, _bind(name, function, subject)) for name, function in functions.items() if name in wanted)


def requirements(kind: str) -> dict[str, Function]:
    """Return the checks of a kind by name; each takes a `Subject` and says in its docstring what it asks for."""
    modules = [import_module(name) for name in (COMMON, *KINDS[kind].checks)]  # some import torch
    return {check.__name__.replace("_", "-"): check for module in modules for check in _functions(module)}


def run(
    component: Component,
    exempt: Mapping[str, str] | None = None,
    *,
    reference: Reference | None = None,
    pretrained: bool = False,
    only: Collection[str] = (),
    tick: Tick = lambda _more, _said="": None,
) -> list[Result]:
    """Return the results of the checks of a component, in order.

    `tick(0, name)` is called before each check, and `tick(1, name)` after it.
    """
    results = []
    for check in checks(component, exempt, reference=reference, pretrained=pretrained, only=only):
        tick(0, check.name)
        start = time.perf_counter()
        with contextlib.redirect_stdout(sys.stderr):  # results belong on stdout, and nothing a plugin prints
            result = _result(check)
        results.append(replace(result, seconds=round(time.perf_counter() - start, 3)))
        tick(1, check.name)
    return results


def _result(check: Check) -> Result:
    about = (check.call.__doc__ or "").partition("\n")[0]
    try:
        check.call()
    except Exempt as exempt:
        return Result(check.name, about, "exempt", str(exempt))
    except Skipped as skipped:
        return Result(check.name, about, "skip", str(skipped))
    except CheckFailed as failure:
        return Result(check.name, about, "fail", str(failure))
    return Result(check.name, about, "pass")


def _functions(module: ModuleType) -> Iterator[Function]:
    """Yield the public functions that a module defines, in the order of the source: each is a check."""
    for value in vars(module).values():
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not value.__name__.startswith("_"):
            yield value


def _exemptions(
    component: Component, reference: Reference, more: Mapping[str, str], known: Mapping[str, Function]
) -> dict[str, str]:
    try:
        exemptions = {**reference.exempt(component), **more}
    except Exception as error:
        raise UsageError(
            f"{component.kind} {component.name!r}: `exempt` of its reference raised {type(error).__name__}: {error}"
        ) from error
    unknown = [name for name in exemptions if name not in known]
    problems = [f"there is no check {name!r} to be exempt from{did_you_mean(name, known)}" for name in unknown]
    problems += [f"the exemption from {name!r} lacks its reason" for name, reason in exemptions.items() if not reason]
    if problems:
        raise UsageError(f"{component.kind} {component.name!r}: {'; '.join(problems)}")
    return exemptions


def _bind(name: str, function: Function, subject: Subject[Any]) -> Callable[[], None]:
    reason = subject.exempt.get(name)

    def check() -> None:
        __tracebackhide__ = True  # pytest goes on to the check itself
        try:
            subject.examine(name, function)
        except CheckFailed as failure:
            if reason is None:
                raise
            raise Exempt(reason) from failure
        if reason is not None:
            raise CheckFailed(f"it passes, though it is exempt ({reason})", do="remove the exemption")

    check.__name__ = str(subject.component.name)  # pytest puts it behind the name of the check
    check.__doc__ = function.__doc__
    return check
