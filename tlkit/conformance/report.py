"""Check all components that a name stands for, and report the results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from tlkit.conformance import Result, checks, run
from tlkit.errors import UsageError
from tlkit.plugin.contract import Progress, silent
from tlkit.plugin.discovery import normalize
from tlkit.plugin.loading import RegisteredComponent
from tlkit.plugin.options import configure_all
from tlkit.plugin.registry import Host
from tlkit.util.text import did_you_mean


@dataclass(frozen=True, slots=True)
class ComponentReport:
    """Results of the checks of one component."""

    component: RegisteredComponent
    results: tuple[Result, ...]

    @property
    def failed(self) -> list[str]:
        """Names of the checks that fail."""
        return [result.name for result in self.results if result.state == "fail"]

    def __repr__(self) -> str:
        counts = Counter(result.state for result in self.results)
        each, summary = self.component, ", ".join(f"{count} {state}" for state, count in counts.items())
        lines = (
            f"  {result.state:<7}{result.seconds:5.1f} s  {': '.join(filter(None, [result.name, result.reason]))}"
            for result in self.results
        )
        return "\n".join([f"{each.kind} {each.name} ({each.distribution} {each.version}): {summary}", *lines])

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        facts = {name: getattr(self.component, name) for name in ("kind", "name", "distribution", "version")}
        return {**facts, "passed": not self.failed, "checks": [asdict(result) for result in self.results]}


@dataclass(frozen=True, slots=True)
class ConformanceReport:
    """Reports of all components that a name stands for; `problems` are those of the plugin itself."""

    name: str
    components: tuple[ComponentReport, ...]
    problems: tuple[str, ...] = ()

    @property
    def failures(self) -> list[str]:
        """Failures, one sentence per component."""
        named = {f"{each.component.kind} {each.component.name!r}": each.failed for each in self.components}
        return [*self.problems, *(f"{name} fails {', '.join(failed)}" for name, failed in named.items() if failed)]

    @property
    def passed(self) -> bool:
        """True if no check fails."""
        return not self.failures

    def __repr__(self) -> str:
        return "\n".join([*self.problems, *map(str, self.components)])

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "name": self.name,
            "passed": self.passed,
            "problems": list(self.problems),
            "components": [each.to_json() for each in self.components],
        }


def check(
    host: Host,
    name: str,
    kind: str | None = None,
    *,
    options: Mapping[str, object] | None = None,
    only: Collection[str] = (),
    pretrained: bool = False,
    progress: Progress = silent,
) -> ConformanceReport:
    """Run the checks of every component that `name` stands for, with `options` set as in `{"head.pca": 128}`.

    Raises UsageError if there is none.
    """
    components, problems = select(host, name, kind)
    components = _configured(components, options or {})
    if only:
        accepted = [each.component for each in components if each.reason is None]
        known = {check.name for component in accepted for check in checks(component)}
        if unknown := [each for each in only if each not in known]:
            raise UsageError(f"there is no check {unknown[0]!r}{did_you_mean(unknown[0], known)}")
    reports = tuple(ComponentReport(each, _results(each, only, pretrained, progress)) for each in components)
    return ConformanceReport(name, reports, tuple(problems))


def _configured(components: list[RegisteredComponent], options: Mapping[str, object]) -> list[RegisteredComponent]:
    """Return the components with their options set. Raises UsageError for those of a kind that is not among them."""
    configured = []
    kinds = {each.kind: each.component for each in components if each.reason is None}
    configure_all(kinds, options)
    for each in components:
        own = {key: value for key, value in options.items() if key.partition(".")[0].strip() == each.kind}
        accepted = each.reason is None
        component = configure_all({each.kind: each.component}, own)[each.kind] if accepted else each.component
        configured.append(replace(each, component=component))
    return configured


def select(host: Host, name: str, kind: str | None = None) -> tuple[list[RegisteredComponent], list[str]]:
    """Return the components of that name, those that match it as a pattern, or all of the plugin of that name.

    Refused ones are among them. The second list is of the problems of a plugin that may provide more. Raises UsageError
    if there are none of both.
    """
    components = [each for plugin in host.plugins for each in plugin.components if kind in (None, each.kind)]
    if named := [each for each in components if fnmatchcase(each.name, name)]:
        return named, []
    plugins = [each for each in host.plugins if normalize(name) in (normalize(each.name), normalize(each.distribution))]
    own = [each for plugin in plugins for each in plugin.components if kind in (None, each.kind)]
    problems = [f"{plugin} is {plugin.state}: {plugin.reason}" for plugin in plugins if plugin.state != "ok"]
    if own or problems:
        return own, problems
    what = f"plugin {name!r} has no {kind}" if plugins else f"there is no {kind or 'component or plugin'} {name!r}"
    known = {*(each.name for each in components), *(each.name for each in host.plugins)}
    raise UsageError(what + did_you_mean(name, known), do="see: tlkit plugins")


def _results(
    each: RegisteredComponent, only: Collection[str], pretrained: bool, progress: Progress
) -> tuple[Result, ...]:
    refusal = each.reason
    if refusal is None:
        try:
            own = [check.name for check in checks(each.component) if not only or check.name in only]
            tick = progress(each.name, len(own))
            return tuple(run(each.component, pretrained=pretrained, only=own, tick=tick)) if own else ()
        except UsageError as problem:  # an unknown exemption
            refusal = problem.what
    return (Result("accepted", "The registry accepts it, and its exemptions are known checks.", "fail", refusal),)
