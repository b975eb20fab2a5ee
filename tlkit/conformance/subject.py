"""Base of all checks: the component under test, objects prepared from it, failures and skips."""

from __future__ import annotations

import functools
import inspect
import textwrap
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Generic, TypeVar
from unittest import SkipTest

from tlkit.conformance.reference import Reference
from tlkit.conformance.watch import Watch, watching
from tlkit.errors import GateError, PluginError, TlkitError
from tlkit.plugin.contract import Component
from tlkit.util.text import listed

AnyComponent = TypeVar("AnyComponent", bound=Component)
Made = TypeVar("Made")
_MESSAGE = 300  # characters of what a plugin raised; libraries put whole shapes and configurations there

Function = Callable[[Any], None]  # a check: it takes a Subject


class CheckFailed(GateError):
    """Fault of a component, and the remedy for its author."""


class _Depends(CheckFailed):
    """The check depends on another that fails."""


class Skipped(SkipTest):
    """Reason that a check can't run here."""


class Exempt(Skipped):
    """Reason that a component is exempt from a check that it fails."""


def expect(held: bool, what: str, *, do: str) -> None:
    """Raise CheckFailed with `what` is wrong and what its author should `do`, unless `held`."""
    __tracebackhide__ = True  # pytest shows the line that expects it
    if not held:
        raise CheckFailed(what, do=do)


def expect_none(names: Sequence[object], what: str, *, do: str) -> None:
    """Raise CheckFailed with `what` is wrong of which `names`, unless there are none."""
    __tracebackhide__ = True
    expect(not names, f"{what}: {listed(names)}", do=do)


class Subject(Generic[AnyComponent]):
    """Component under test. Objects that checks share are `prepared` once, whether that succeeds or fails."""

    def __init__(
        self, component: AnyComponent, *, pretrained: bool, exempt: Mapping[str, str], reference: Reference
    ) -> None:
        self.component = component
        self.pretrained = pretrained
        self.exempt = exempt
        self.reference = reference
        self._running = ""
        self._prepared: dict[str, tuple[Any, Exception | None]] = {}

    def examine(self, name: str, function: Function) -> None:
        """Run a check, without pretrained weights away from the network.

        Whatever the component's code raises is a failure of that check, and so is reaching for the network.
        """
        __tracebackhide__ = True
        self._running = name
        network = Watch()
        try:
            with nullcontext() if self.pretrained else watching(network, files=False):
                function(self)
            do = "download only with `pretrained=True`"
            expect(not network.addresses, f"it tried to reach {listed(network.addresses)}", do=do)
        except (CheckFailed, SkipTest):
            raise
        except (Exception, SystemExit) as error:
            root = _root(error)
            raised = root.what if isinstance(root, PluginError) else f"it raised {type(root).__name__}: {root}"
            what = textwrap.shorten(raised, _MESSAGE)
            raise CheckFailed(what + _place(root, type(self.component)), do="fix it there") from error

    def prepare(self, name: str, owner: str, make: Callable[[], Made]) -> Made:
        """Return what `make` returned at the first call.

        If it raised, the check `owner` fails with the reason; any other fails because it depends on that.
        """
        if name not in self._prepared:
            try:
                self._prepared[name] = make(), None
            except Exception as error:  # noqa: BLE001  # raised again for every check that needs it
                self._prepared[name] = None, error
        made, problem = self._prepared[name]
        if problem is None:
            return made  # type: ignore[no-any-return]  # one dictionary holds what many functions make
        if owner == self._running or isinstance(problem, SkipTest | _Depends):
            raise problem
        if owner in self.exempt:
            raise Skipped(f"it depends on {owner}, which is exempt") from problem
        raise _Depends(f"it depends on {owner}, which fails", do="fix that first") from problem


def _root(error: BaseException) -> BaseException:
    """Return the root cause of an error, at most down to a TlkitError that a component raised itself."""
    while error.__cause__ is not None and (isinstance(error, PluginError) or not isinstance(error, TlkitError)):
        error = error.__cause__
    return error


def _place(error: BaseException, kind: type) -> str:
    """` (in file.py, line n)`: the innermost line of the plugin itself that an error went through, if any."""
    try:
        folder = Path(inspect.getfile(kind)).parent
    except (OSError, TypeError):
        return ""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(folder)]
    return f" (in {Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""


def prepared(owner: str) -> Callable[[Callable[[Any], Made]], Made]:
    """Make a method an attribute that is made once; the check called `owner` is the one to fail where it can't be."""

    def decorate(make: Callable[[Any], Made]) -> Any:
        @functools.wraps(make)
        def get(subject: Subject[Any]) -> Made:
            return subject.prepare(make.__name__, owner, lambda: make(subject))

        return property(get)

    return decorate
