"""Load one plugin: register its hooks, call them, validate the components they return."""

from __future__ import annotations

import contextlib
import signal
import sys
import textwrap
import threading
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from tlkit.plugin import blame, hooks
from tlkit.plugin.contract import Backbone, Component
from tlkit.plugin.discovery import Found
from tlkit.plugin.kinds import by_hook
from tlkit.plugin.licenses import license_class
from tlkit.plugin.options import describe, to_json
from tlkit.plugin.validation import fault
from tlkit.util.text import table

DISABLE_VARIABLE = "TLKIT_DISABLE_PLUGINS"

_REASON_LENGTH = 300
SLOW, LOAD_LIMIT = 10.0, 60.0  # seconds until a plugin that is loading is named, and ended
AGAIN = 1.0  # seconds until a plugin is ended again that has caught it


@dataclass(frozen=True, slots=True)
class RegisteredComponent:
    """Component that a hook returned, or whatever was refused for `reason`."""

    kind: str
    name: str
    component: Any
    distribution: str
    version: str
    reason: str | None = None
    doubled: bool = False  # refused because another has the name: bundles that were made with it are opened

    @property
    def state(self) -> Literal["ok", "refused"]:
        """`ok` if the host returns it."""
        return "ok" if self.reason is None else "refused"

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name} ({self.distribution} {self.version})>"

    def __str__(self) -> str:
        lines = [f"{self.kind} {self.name} ({self.distribution} {self.version})"]
        if self.reason is not None:
            return f"{lines[0]} refused: {self.reason}"
        facts = self.to_json(details=True)
        options = [["option", "type", "default", "allowed", "help"]]
        for each in facts.pop("options"):
            default = "none" if each["default"] is None else each["default"]
            allowed = ", ".join(map(str, each["choices"] or ())) or each["limits"]
            options.append([each["name"], each["type"], default, allowed, each["help"]])
        details = ((name, value) for name, value in facts.items() if isinstance(value, Mapping))
        lines += [f"  {name}: " + ", ".join(f"{key} {value}" for key, value in each.items()) for name, each in details]
        return "\n".join(lines + [f"  {line}" for line in table(options, left=5) if len(options) > 1])

    def to_json(self, *, details: bool = False) -> dict[str, Any]:
        """Return kind, name, state and options; with `details`, a backbone's weights and preprocessing as well.

        A library of networks is imported for these.
        """
        facts: dict[str, Any] = {"kind": self.kind, "name": self.name, "distribution": self.distribution}
        facts |= {"version": self.version, "state": self.state, "reason": self.reason, "options": []}
        if self.reason is not None:
            return facts
        values = to_json(self.component, local=True)
        if details and isinstance(self.component, Backbone):
            weights = self.component.weights
            facts["weights"] = asdict(weights) | {"license_class": license_class(weights)}
            facts["preprocessing"] = asdict(self.component.preprocessing)
        for each in describe(self.component):
            option = {"name": each.name, "type": each.type, "default": values[each.name], "local": each.local}
            option |= {"choices": list(each.choices) or None, "limits": each.limits, "help": each.help}
            facts["options"].append(option)
        return facts


class Failure(NamedTuple):
    """Reason in one line, and the traceback for the plugin's author."""

    reason: str
    traceback: str


class _TooSlow(BaseException):
    """A plugin takes too long to load; no Exception, which it may catch."""


@contextlib.contextmanager
def _collecting(found: Found, what: str, failures: list[Failure]) -> Iterator[None]:
    """Run a plugin's code: what it prints goes to stderr, what it raises is added to `failures`."""
    try:
        with blame.contained(lambda: str(found)), contextlib.redirect_stdout(sys.stderr), _in_time(found):
            yield
    except KeyboardInterrupt:
        raise
    except (hooks.PluginFault, _TooSlow) as fault:
        failures.append(Failure(str(fault), traceback.format_exc()))
    except BaseException as error:  # noqa: BLE001  # also SystemExit: a plugin that exits must not end the host
        failures.append(Failure(f"{what}: {blame.summary(error)}", traceback.format_exc()))


@contextlib.contextmanager
def _in_time(found: Found) -> Iterator[None]:
    """Say so where a plugin takes long to load, and end it where it doesn't end.

    Only the main thread can be interrupted, and only where the system has interval timers; elsewhere it is named alone.
    """
    skip = f"{DISABLE_VARIABLE}={found.name} skips it"
    slow = threading.Timer(SLOW, lambda: sys.stderr.write(f"tlkit: {found} takes long to load; {skip}\n"))
    slow.daemon = True
    timed = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()

    def end(_signal: int, _frame: object) -> None:
        raise _TooSlow(f"it doesn't finish loading within {LOAD_LIMIT:g} s; {skip}")

    before = signal.signal(signal.SIGALRM, end) if timed else None
    slow.start()
    try:
        if timed:
            signal.setitimer(signal.ITIMER_REAL, LOAD_LIMIT, AGAIN)
        yield
    finally:
        slow.cancel()
        if timed:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def load_components(found: Found) -> tuple[list[RegisteredComponent], list[Failure]]:
    """Return the components of one plugin and its failures. A hook that fails loses its own components only."""
    blame.remember(found.module, found.distribution, found.version)
    components: list[RegisteredComponent] = []
    failures: list[Failure] = []
    with _collecting(found, "it failed to load", failures):
        manager = hooks.register(found.load())
    if failures:
        return components, failures
    for hook, kind in by_hook().items():
        with _collecting(found, f"{hook} failed", failures):
            components += [_validate(component, kind.base, found) for component in hooks.call(manager, hook)]
    return components, failures


def _validate(component: Any, contract: type[Component], found: Found) -> RegisteredComponent:
    name = getattr(component, "name", None)
    label = name if isinstance(name, str) else textwrap.shorten(repr(component), _REASON_LENGTH)
    return RegisteredComponent(
        contract.kind, label, component, found.distribution, found.version, fault(component, contract)
    )
