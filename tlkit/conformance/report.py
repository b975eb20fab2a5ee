"""The checks of all components that a name stands for, and their results."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from tlkit.conformance import Result, checks, run
from tlkit.conformance.select import select
from tlkit.errors import UsageError
from tlkit.plugin.contract import Progress, silent
from tlkit.plugin.registry import Host, RegisteredComponent


@dataclass(frozen=True, slots=True)
class ComponentReport:
    """The results of one component's checks."""

    component: RegisteredComponent
    results: tuple[Result, ...]

    @property
    def failed(self) -> list[str]:
        """The names of the checks that fail."""
        return [result.name for result in self.results if result.state == "fail"]

    def __str__(self) -> str:
        counts = Counter(result.state for result in self.results)
        each, summary = self.component, ", ".join(f"{count} {state}" for state, count in counts.items())
        lines = (
            f"  {result.state:<7}{result.name}{'' if result.reason is None else f': {result.reason}'}"
            for result in self.results
        )
        return "\n".join([f"{each.kind} {each.name} ({each.distribution} {each.version}): {summary}", *lines])

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON knows it."""
        facts = {name: getattr(self.component, name) for name in ("kind", "name", "distribution", "version")}
        return {**facts, "passed": not self.failed, "checks": [asdict(result) for result in self.results]}


@dataclass(frozen=True, slots=True)
class ConformanceReport:
    """The reports of all components that a name stands for; `problems` keep a plugin from providing more."""

    name: str
    components: tuple[ComponentReport, ...]
    problems: tuple[str, ...] = ()

    @property
    def failures(self) -> list[str]:
        """What fails, a sentence for each component."""
        named = {f"{each.component.kind} {each.component.name!r}": each.failed for each in self.components}
        return [*self.problems, *(f"{name} fails {', '.join(failed)}" for name, failed in named.items() if failed)]

    @property
    def passed(self) -> bool:
        """The verdict: no check fails."""
        return not self.failures

    def __str__(self) -> str:
        return "\n".join([*self.problems, *map(str, self.components)])

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON knows it."""
        return {
            "name": self.name,
            "passed": self.passed,
            "problems": list(self.problems),
            "components": [each.to_json() for each in self.components],
        }


def check(
    host: Host, name: str, kind: str | None = None, *, pretrained: bool = False, progress: Progress = silent
) -> ConformanceReport:
    """Run the checks of every component that `name` stands for. Raises UsageError where there is none."""
    selection = select(host, name, kind)
    reports = tuple(ComponentReport(each, _results(each, pretrained, progress)) for each in selection.components)
    return ConformanceReport(name, reports, selection.problems)


def _results(each: RegisteredComponent, pretrained: bool, progress: Progress) -> tuple[Result, ...]:
    refusal = each.reason
    if refusal is None:
        try:
            tick = progress(each.name, len(checks(each.component)))
            return tuple(run(each.component, pretrained=pretrained, tick=tick))
        except UsageError as problem:  # with what it is exempt from
            refusal = problem.what
    return (Result("accepted", "The registry accepts it, and knows what it is exempt from.", "fail", refusal),)
