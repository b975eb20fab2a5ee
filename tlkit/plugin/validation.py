"""What is asked of every offer, in sentences for its author. The host refuses an offer that any of these faults."""

from __future__ import annotations

import re

from tlkit.plugin.contract import Component
from tlkit.plugin.options import option_fault

_NAME = re.compile(r"[a-z0-9]+(?:(?:[./]|[-_]+)[a-z0-9]+)*")


def kind_fault(offer: object, contract: type[Component]) -> str | None:
    """Why `offer` is not what `contract` says; None where it is."""
    if isinstance(offer, contract) and offer.kind == contract.kind:
        return None
    return f"it is not an instance of a subclass of tlkit.plugin.contract.{contract.__name__}"


def name_fault(offer: object) -> str | None:
    """Why `offer` can't be called what it is called; None where it can."""
    name = getattr(offer, "name", None)
    if isinstance(name, str) and _NAME.fullmatch(name):
        return None
    return "its name isn't lower-case words joined by '-', '_', '.' or '/'"


def frozen_fault(offer: object) -> str | None:
    """Why the options of `offer` could change under way; None where they can't."""
    parameters = getattr(offer, "__dataclass_params__", None)
    if parameters is not None and parameters.frozen:
        return None
    return f"{type(offer).__name__} is not a frozen dataclass"


def fault(offer: object, contract: type[Component]) -> str | None:
    """The first reason not to give `offer` out as what `contract` says; None where there is none."""
    if (wrong := kind_fault(offer, contract)) or not isinstance(offer, Component):
        return wrong
    return name_fault(offer) or frozen_fault(offer) or option_fault(offer)
