"""Validation of every component, in sentences for its author; the host refuses a component with any fault."""

from __future__ import annotations

import re

from tlkit.plugin.contract import Component
from tlkit.plugin.options import option_fault

_NAME = re.compile(r"[a-z0-9]+(?:(?:[./]|[-_]+)[a-z0-9]+)*")


def kind_fault(component: object, contract: type[Component]) -> str | None:
    """Return why `component` is not an instance of `contract`, or None."""
    if isinstance(component, contract) and component.kind == contract.kind:
        return None
    return f"it is not an instance of a subclass of tlkit.plugin.contract.{contract.__name__}"


def name_fault(component: object) -> str | None:
    """Return what is wrong with the name of `component`, or None."""
    name = getattr(component, "name", None)
    if isinstance(name, str) and _NAME.fullmatch(name):
        return None
    return "its name isn't lower-case words joined by '-', '_', '.' or '/'"


def frozen_fault(component: object) -> str | None:
    """Return why the options of `component` are mutable, or None."""
    parameters = getattr(component, "__dataclass_params__", None)
    if parameters is not None and parameters.frozen:
        return None
    return f"{type(component).__name__} is not a frozen dataclass"


def fault(component: object, contract: type[Component]) -> str | None:
    """Return the first reason to refuse `component` as an instance of `contract`, or None."""
    if (wrong := kind_fault(component, contract)) or not isinstance(component, Component):
        return wrong
    return name_fault(component) or frozen_fault(component) or option_fault(component)
