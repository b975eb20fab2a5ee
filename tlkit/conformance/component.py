"""Checks of a component of any kind."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from tlkit.conformance.declare import declare
from tlkit.conformance.subject import Skipped, Subject, expect
from tlkit.plugin import validation
from tlkit.plugin.kinds import KINDS
from tlkit.plugin.options import describe, from_json, option_fault, to_json


def named(subject: Subject[Any]) -> None:
    """The name is lower-case words joined by `-`, `_`, `.` or `/`."""
    fault = validation.name_fault(subject.component)
    expect(fault is None, f"{fault}: {getattr(subject.component, 'name', None)!r}", do="rename it, as in 'my-net'")


def frozen_dataclass(subject: Subject[Any]) -> None:
    """The component is a frozen dataclass of its contract: it is immutable."""
    contract = KINDS[subject.component.kind].base
    fault = validation.kind_fault(subject.component, contract) or validation.frozen_fault(subject.component)
    expect(fault is None, str(fault), do=f"declare: @dataclass(frozen=True) class ...({contract.__name__})")


def options_are_settable(subject: Subject[Any]) -> None:
    """Each option has a type that can be set and stored, a default of that type, and a line of help."""
    fault = option_fault(subject.component)
    expect(fault is None, str(fault), do="declare it: epochs: int = option(10, 'how many epochs')")
    silent = [option.name for option in describe(subject.component) if not option.help.strip()]
    expect(not silent, f"options without help: {', '.join(silent)}", do="say in `option(..., help)` what they do")


def options_survive_a_bundle(subject: Subject[Any]) -> None:
    """The component comes back from the options that a bundle records, as JSON."""
    stored = json.loads(json.dumps(to_json(subject.component)))
    again = from_json(subject.component, stored)
    do = "leave options as they were given: `__post_init__` may refuse values, not change them"
    expect(again == subject.component, f"with its own options {stored} it becomes another: {again!r}", do=do)


def copies_are_equal(subject: Subject[Any]) -> None:
    """A copy is equal, has the same hash and the same `repr`, without paths or addresses of this machine."""
    copy = dataclasses.replace(subject.component)
    expect(copy == subject.component, "a copy of it is not equal to it", do="leave `eq` to the dataclass")
    expect(hash(copy) == hash(subject.component), "a copy has another hash", do="leave `hash` to the dataclass")
    shown = repr(subject.component)
    place = re.search(r"at 0x[0-9a-f]+", shown) or re.search(re.escape(str(Path.home())) + r"\b", shown)
    do = "keep objects and absolute paths out of its fields"
    expect(shown == repr(copy) and place is None, f"its repr tells of this process or machine: {shown}", do=do)


def declared_cheaply(subject: Subject[Any]) -> None:
    """Importing the plugin and listing its components loads no framework (measured in a new process)."""
    heavy = declare(type(subject.component))
    if heavy is None:
        raise Skipped("it was not defined in a file")
    do = "import heavy packages, and names of tlkit.plugin.support that need them, inside the methods that use them"
    expect(not heavy, f"declaring it imports {', '.join(heavy)}", do=do)
