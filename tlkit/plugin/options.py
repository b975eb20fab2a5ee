"""Options of a component: description, values from `--set kind.option=value`, and a bundle's JSON.

A value is checked against the type that the option is annotated with: `bool`, `int`, `float`, `str`, `Path`,
`tuple[str, ...]` (in text, joined by commas), `Literal`, or a union of these with `None`; in a bundle, they are JSON
scalars, and lists of strings.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from tlkit.errors import ArtifactError, TlkitError, UsageError
from tlkit.plugin.blame import calling
from tlkit.plugin.contract import Component, option_fields
from tlkit.util.text import did_you_mean

AnyComponent = TypeVar("AnyComponent", bound=Component)

_PLAIN = (bool, int, float, str, Path, types.NoneType)
_STRINGS = tuple[str, ...]
_SETTABLE = "bool, int, float, str, Path, tuple[str, ...], Literal, or a union of these with None"
_SWITCHES = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@dataclass(frozen=True, slots=True)
class Option:
    """Option of a component. `default` is its value as the plugin declares it; no `choices`: any value."""

    name: str
    types: tuple[Any, ...]  # members of its annotation; those that every text is one of last
    default: Any
    help: str
    choices: tuple[Any, ...]
    minimum: float | None = None
    maximum: float | None = None
    local: bool = False  # holds on this machine alone: a bundle doesn't store it

    @property
    def type(self) -> str:
        """Type as text: `int | none`."""
        return " | ".join(_type_text(member) for member in sorted(self.types, key=_is_none))

    def read(self, text: str) -> Any:
        """Return the value that `text` spells. Raises ValueError if it spells none."""
        return self._accept(text, _from_text)

    def accept(self, value: object) -> Any:
        """Return `value`, an int converted to float and a str to Path if that is the type. Raises ValueError."""
        return self._accept(value, _from_value)

    def _accept(self, given: Any, convert: Callable[[Any, Any], Any]) -> Any:
        for member in self.types:
            try:
                value = convert(member, given)
            except (ValueError, OverflowError):
                continue
            if self._allows(value):
                return value
        raise ValueError(f"must be {self.allowed}, not {given!r}")

    @property
    def allowed(self) -> str:
        """Allowed values as text: `one of a, b`, or the type with its limits, as in `int from 1 to 9`."""
        if self.choices:
            return f"one of {', '.join(map(str, self.choices))}"
        return f"{self.type}{self.limits and ' '}{self.limits}"

    @property
    def limits(self) -> str:
        """Minimum and maximum as text; empty if there are none."""
        if self.minimum is not None and self.maximum is not None:
            return f"from {self.minimum:g} to {self.maximum:g}"
        least = "" if self.minimum is None else f"of at least {self.minimum:g}"
        return least if self.maximum is None else f"of at most {self.maximum:g}"

    def _allows(self, value: Any) -> bool:
        if value is None:  # which the annotation allows
            return True
        if self.choices:
            return all(each in self.choices for each in (value if isinstance(value, tuple) else (value,)))
        if isinstance(value, bool) or not isinstance(value, int | float):
            return True
        return (self.minimum is None or value >= self.minimum) and (self.maximum is None or value <= self.maximum)


def describe(component: Component) -> tuple[Option, ...]:
    """Return the options of `component`, in order. Raises TypeError for an annotation that can't be set."""
    return tuple(
        Option(
            field.name,
            _members(type(component), field),
            getattr(component, field.name),
            field.metadata.get("help", ""),
            tuple(field.metadata.get("choices") or ()),
            field.metadata.get("minimum"),
            field.metadata.get("maximum"),
            field.metadata.get("local", False),
        )
        for field in option_fields(component)
    )


def option_fault(component: Component) -> str | None:
    """Return why an option of `component` can't be set or stored, for the plugin's author, or None."""
    expected = {
        "help": str,
        "choices": Sequence | None,
        "minimum": float | int | None,
        "maximum": float | int | None,
    }
    for field in option_fields(component):
        for name, kind in expected.items():
            if not isinstance(value := field.metadata.get(name), kind):
                return f"option {field.name}: its {name} is {value!r}, not {getattr(kind, '__name__', kind)}"
    try:
        options = describe(component)
    except TypeError as problem:
        return str(problem)
    for option in options:
        try:
            option.accept(option.default)
        except ValueError as problem:
            return f"option {option.name}: its default {problem}"
    return None


def configure(component: AnyComponent, values: Mapping[str, object]) -> AnyComponent:
    """Return `component` with these option values. Raises one UsageError that names all problems."""
    options = {option.name: option for option in describe(component)}
    accepted, problems = {}, []
    for name, value in values.items():
        try:
            accepted[name] = _look_up(options, name).accept(value)
        except ValueError as problem:
            problems.append(f"{name}: {problem}")
    if not problems:
        with calling(component, "__post_init__()"):
            try:
                return dataclasses.replace(component, **accepted) if accepted else component  # type: ignore[type-var]
            except (ValueError, TlkitError) as problem:
                problems.append(str(problem))
    raise UsageError(f"{component.kind} {component.name!r}: {'; '.join(problems)}")


def configure_all(components: Mapping[str, Component], options: Mapping[str, object]) -> dict[str, Any]:
    """Return `components` (by kind) with `options` set, as in `{"head.pca": 128}`; a text is read as on a command line.

    Raises one UsageError that lists every problem, not only the first.
    """
    known = {kind: {option.name: option for option in describe(each)} for kind, each in components.items()}
    values: dict[str, dict[str, Any]] = {kind: {} for kind in components}
    problems = []
    for key, value in options.items():
        try:
            kind, option = _find(key, known)
            values[kind][option.name] = option.read(value.strip()) if isinstance(value, str) else option.accept(value)
        except ValueError as problem:
            problems.append(f"option {key}: {problem}")
    configured = {}
    for kind, component in components.items():
        try:
            configured[kind] = configure(component, values[kind])
        except UsageError as problem:
            problems.append(problem.what)
    if problems:
        raise UsageError("; ".join(problems))
    return configured


def to_json(component: Component, *, local: bool = False) -> dict[str, Any]:
    """Return the options of `component` and their values as JSON; with `local`, those of this machine as well."""
    return {each.name: _plain(each.default) for each in describe(component) if local or not each.local}


def differences(component: Component, other: Component) -> dict[str, Any]:
    """Return the options of another configuration of a component in which it differs from this one, as JSON values."""
    own = to_json(component)
    return {name: value for name, value in to_json(other).items() if value != own.get(name)}


def changed(component: Component) -> dict[str, str]:
    """Return the options that differ from their defaults as `--set` takes them: `{"width": "32"}`."""
    values = {field.name: getattr(component, field.name) for field in option_fields(component)}
    texts = {
        name: ",".join(value) if isinstance(value, tuple) else str(_plain(value)) for name, value in values.items()
    }
    defaults = {field.name: field.default for field in option_fields(component)}
    return {
        name: text.lower() if values[name] in (None, True, False) else text
        for name, text in texts.items()
        if values[name] != defaults[name]
    }


def from_json(component: AnyComponent, values: Mapping[str, object], *, local: bool = False) -> AnyComponent:
    """Return `component` with the option values that a bundle recorded. Raises ArtifactError for unknown ones.

    Local options keep their defaults, as a value from another machine means nothing here; unless `local` says that it
    does.
    """
    left_out = set[str]() if local else {each.name for each in describe(component) if each.local}
    try:
        return configure(component, {name: value for name, value in values.items() if name not in left_out})
    except UsageError as problem:
        raise ArtifactError(problem.what) from problem


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return value.as_posix() if isinstance(value, Path) else value


def _find(key: str, known: Mapping[str, Mapping[str, Option]]) -> tuple[str, Option]:
    """Return the kind and the option that `kind.option` names. Raises ValueError."""
    kind, dot, name = key.strip().partition(".")
    if not dot:
        raise ValueError("is not of the form kind.option")
    if kind not in known:
        raise ValueError(f"no {kind!r} to set here, only {', '.join(known)}{did_you_mean(kind, known)}")
    return kind, _look_up(known[kind], name)


def _look_up(options: Mapping[str, Option], name: str) -> Option:
    if name not in options:
        known = f"only {', '.join(options)}" if options else "it has none"
        raise ValueError(f"no such option, {known}{did_you_mean(name, options)}")
    return options[name]


@functools.cache  # a plugin may have a thousand instances of one class
def _members(cls: type[Component], field: dataclasses.Field[Any]) -> tuple[Any, ...]:
    """Return the types that the annotation of an option allows. Raises TypeError."""
    annotation = _annotation(cls, field) if isinstance(field.type, str) else field.type
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    members = typing.get_args(annotation) if is_union else (annotation,)
    for member in members:
        if member not in (*_PLAIN, _STRINGS) and typing.get_origin(member) is not Literal:
            raise TypeError(f"option {field.name}: its type {member} can't be set; use {_SETTABLE}")
    return tuple(sorted(members, key=(str, Path, _STRINGS).__contains__))


def _annotation(cls: type[Component], field: dataclasses.Field[Any]) -> Any:
    """Resolve the type of one field alone: others may name what is imported for type checkers only."""
    owner = next(base for base in cls.__mro__ if field.name in vars(base).get("__annotations__", ()))
    alone = types.SimpleNamespace(__annotations__={field.name: field.type})
    try:
        return typing.get_type_hints(alone, vars(sys.modules[owner.__module__]))[field.name]
    except NameError as problem:
        raise TypeError(f"option {field.name}: its type can't be resolved ({problem})") from problem


def _type_text(member: Any) -> str:
    if typing.get_origin(member) is Literal:
        return " | ".join(map(str, typing.get_args(member)))
    if member == _STRINGS:
        return "str,str,..."
    return "none" if _is_none(member) else str(member.__name__).lower()


def _is_none(member: Any) -> bool:
    return member is types.NoneType


def _from_text(member: Any, text: str) -> Any:
    """Return `text` as one member of an annotation. Raises ValueError."""
    if member is bool:
        words: Mapping[str, Any] = _SWITCHES
    elif _is_none(member):
        words = {"none": None}
    elif typing.get_origin(member) is Literal:
        words = {str(value): value for value in typing.get_args(member)}
    elif member == _STRINGS:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    else:
        return _finite(member(text))
    if text not in words:
        raise ValueError(text)
    return words[text]


def _from_value(member: Any, value: Any) -> Any:
    """Return `value` as one member of an annotation. Raises ValueError, or OverflowError for a huge int."""
    if typing.get_origin(member) is Literal:
        fits = any(value == allowed and type(value) is type(allowed) for allowed in typing.get_args(member))
    elif isinstance(value, bool):  # an int in Python, but never meant as one
        fits = member is bool
    elif member is float and isinstance(value, int):
        value, fits = float(value), True
    elif member is Path and isinstance(value, str):
        value, fits = Path(value), True
    elif member == _STRINGS:
        fits = isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)
        value = tuple(value) if fits else value
    else:
        fits = isinstance(value, member)
    if not fits:
        raise ValueError(value)
    return _finite(value)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(value)
    return value
