"""Values of JSON as the types that a record declares: one check at the border, which names the field that is wrong."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

DEEPEST = 50
PLAIN = (str, int, float, bool)

_hints = functools.cache(typing.get_type_hints)


def parse_json(text: str | bytes) -> Any:
    """Return a value of JSON; raises ValueError, also for one so deep that it could not be written again."""
    try:
        value = json.loads(text)
    except RecursionError:
        value = deep = True
    else:
        opened = str(text, "utf-8", "replace") if isinstance(text, bytes) else text
        deep = opened.count("[") + opened.count("{") > DEEPEST and _is_deeper(value, DEEPEST)
    if deep:
        raise ValueError(f"it is nested more than {DEEPEST} times")
    return value


def _is_deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return not levels or any(_is_deeper(each, levels - 1) for each in inner)


def read_as(kind: Any, value: Any, where: str = "") -> Any:
    """Return a value of JSON as a type: a dataclass, a named tuple, `tuple[X, ...]`, `Mapping[str, X]` or a plain one.

    A missing field takes its default. Raises ValueError that names the field.
    """
    origin = typing.get_origin(kind)
    if kind is Any:
        return _read_any(value, where)
    if dataclasses.is_dataclass(kind) or hasattr(kind, "_fields"):
        return _read_fields(kind, value, where)
    if origin is tuple:
        return _read_tuple(typing.get_args(kind), value, where)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        _check(isinstance(value, dict), "an object", value, where)
        inner = typing.get_args(kind)[1]
        read = _reader(inner)
        return {_text(key, where): read(inner, each, _at(where, key)) for key, each in value.items()}
    if origin in (typing.Union, types.UnionType):
        return (
            None
            if value is None
            else read_as(next(k for k in typing.get_args(kind) if k is not type(None)), value, where)
        )
    return _read_plain(kind, value, where)


def _reader(kind: Any) -> Callable[[Any, Any, str], Any]:
    """Return what reads a type, the most frequent ones without a look at all others."""
    return _read_plain if kind in PLAIN else read_as


def _read_fields(kind: Any, value: Any, where: str) -> Any:
    """Return a dataclass or a named tuple; raises ValueError for what is missing, unknown or refused by itself."""
    _check(isinstance(value, dict), "an object", value, where)
    hints = _hints(kind)
    if unknown := sorted(set(value) - hints.keys()):
        raise ValueError(f"{_at(where, unknown[0])} is unknown")
    fields = {name: _reader(hint)(hint, value[name], _at(where, name)) for name, hint in hints.items() if name in value}
    try:
        return kind(**fields)
    except TypeError as error:
        raise ValueError(f"{where or 'it'}: a field is missing: {error}") from error
    except ValueError as error:
        raise ValueError(f"{where or 'it'}: {error}") from error


def _read_tuple(members: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    endless = members[-1] is Ellipsis
    _check(isinstance(value, list) and (endless or len(value) == len(members)), "a list", value, where)
    kinds = [members[0]] * len(value) if endless else members
    return tuple(
        read_as(kind, each, _at(where, number)) for number, (kind, each) in enumerate(zip(kinds, value, strict=True))
    )


def _read_plain(kind: Any, value: Any, where: str) -> Any:
    if kind is str:
        _check(isinstance(value, str), "a text", value, where)
        return _text(value, where)
    if kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        _check(number, "a finite number", value, where)
        return float(value)
    _check(
        isinstance(value, kind) and isinstance(value, bool) == (kind is bool), f"of type {kind.__name__}", value, where
    )
    return value


def _read_any(value: Any, where: str) -> Any:
    """Return a value of any shape, whose texts can be printed."""
    if isinstance(value, str):
        return _text(value, where)
    if isinstance(value, dict):
        return {_text(key, where): _read_any(each, _at(where, key)) for key, each in value.items()}
    return [_read_any(each, where) for each in value] if isinstance(value, list) else value


def _text(value: str, where: str) -> str:
    """Return a text that can be encoded; names of files may hold bytes that are not UTF-8."""
    if value.isascii():
        return value
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise ValueError(f"{where or 'a name'} is no valid text: {value!r:.80}") from error
    return value


def _check(right: bool, what: str, value: Any, where: str) -> None:
    if not right:
        raise ValueError(f"{where or 'it'} is not {what}: {value!r:.80}")


def _at(where: str, name: object) -> str:
    return f"{where}.{name}" if where else str(name)
