"""Validation of every component, in sentences for its author; the host refuses a component with any fault."""

from __future__ import annotations

import functools
import inspect
import re
from typing import Any

from tlkit.plugin.contract import (
    ACTIVATIONS,
    BATCH,
    CONTRACT,
    FEATURES,
    IMAGES,
    LOGITS,
    PROBABILITIES,
    Component,
    Head,
    Preprocessing,
    Weights,
)
from tlkit.plugin.options import option_fault

_NAME = re.compile(r"[a-z0-9]+(?:(?:[./]|[-_]+)[a-z0-9]+)*")
_OUTPUT = re.compile(r"[a-z][a-z0-9_]*")
_TYPES: dict[str, tuple[type[Any], str]] = {
    "Preprocessing": (Preprocessing, "tlkit.Preprocessing"),
    "Weights": (Weights, "tlkit.Weights"),
    **{f"ClassVar[{kind.__name__}]": (kind, kind.__name__) for kind in (str, bool)},
    "ClassVar[tuple[str, ...]]": (tuple, "a tuple of str"),
}
_EXAMPLES = {
    "preprocessing": "Preprocessing(size, mean, std)",
    "weights": "Weights(origin, license)",
    "suffix": "'.engine'",
}


def kind_fault(component: object, contract: type[Component]) -> str | None:
    """Return why `component` is not an instance of `contract`, or None."""
    if isinstance(component, contract) and component.kind == contract.kind:
        return None
    return f"it is not an instance of a subclass of tlkit.plugin.contract.{contract.__name__}"


def name_fault(component: object) -> str | None:
    """Return what is wrong with the name of `component`, or None."""
    name = getattr(component, "name", None)
    fits = isinstance(name, str) and _NAME.fullmatch(name)
    return None if fits else "its name isn't lower-case words joined by '-', '_', '.' or '/'"


def frozen_fault(component: object) -> str | None:
    """Return why the options of `component` are mutable, or None."""
    parameters = getattr(component, "__dataclass_params__", None)
    if parameters is not None and parameters.frozen:
        return None
    return f"{type(component).__name__} is not a frozen dataclass"


def lacking_fault(component: object, contract: type[Component]) -> str | None:
    """Return what `component` does not declare although its contract demands it, or None; nothing is computed."""
    for base in contract.__mro__:
        for name, annotation in vars(base).get("__annotations__", {}).items():
            found = _declared(component, name)
            if found is None and name not in vars(base):
                return f"it has no {name}; declare: {name} = {_EXAMPLES.get(name, '...')}"
            kind, words = _TYPES.get(str(annotation), (object, ""))
            fits = isinstance(found, kind) and not (kind is tuple and {*map(type, found)} - {str})
            if not fits and not hasattr(found, "__get__"):  # as properties have
                return f"its {name} is {found!r}, not {words}"
    return None


def signature_fault(component: object, contract: type[Component]) -> str | None:
    """Return which method of `component` can't be called as the contract does, or None."""
    return _signature_fault(type(component), contract) if isinstance(component, Component) else None


@functools.cache  # a plugin may have a thousand instances of one class
def _signature_fault(cls: type[Component], contract: type[Component]) -> str | None:
    for name in {name for base in contract.__mro__ for name in vars(base) if not name.startswith("_")}:
        wanted, found = getattr(contract, name), getattr(cls, name)
        if not inspect.isfunction(wanted) or not inspect.isfunction(found) or wanted is found:
            continue
        parameters = inspect.signature(wanted).parameters.values()
        by_name = {each.name: each for each in parameters if each.kind is each.KEYWORD_ONLY}
        try:
            inspect.signature(found).bind(*(each for each in parameters if each.name not in by_name), **by_name)
        except TypeError as problem:
            called = ", ".join([each.name for each in parameters][1:])
            return f"its {name}() can't be called with ({called}), as contract {CONTRACT} does: {problem}"
    return None


def outputs_fault(component: object) -> str | None:
    """Return what is wrong with the outputs that a head declares, or None."""
    if not isinstance(component, Head):
        return None
    if component.activation not in ACTIVATIONS:
        return f"its activation is {component.activation!r}, not one of {', '.join(ACTIVATIONS)}"
    names, taken = component.scores, {IMAGES, FEATURES, LOGITS, PROBABILITIES, BATCH}
    bad = [name for name in names if not isinstance(name, str) or not _OUTPUT.fullmatch(name) or name in taken]
    if not isinstance(names, tuple) or bad or len(set(names)) < len(names):
        return f"its scores are {names!r}, not a tuple of different names like 'novelty'"
    return None


def _declared(component: object, name: str) -> object:
    """Return the attribute as it is declared in the component or its classes; None if it isn't."""
    own = getattr(component, "__dict__", {})
    return own.get(name, next((vars(each)[name] for each in type(component).__mro__ if name in vars(each)), None))


def fault(component: object, contract: type[Component]) -> str | None:
    """Return the first reason to refuse `component` as an instance of `contract`, or None."""
    if (wrong := kind_fault(component, contract)) or not isinstance(component, Component):
        return wrong
    return (
        name_fault(component)
        or frozen_fault(component)
        or lacking_fault(component, contract)
        or signature_fault(component, contract)
        or outputs_fault(component)
        or option_fault(component)
    )
