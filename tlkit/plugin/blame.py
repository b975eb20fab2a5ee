"""Calls into components: each goes through `calling`, which names the component that fails and undoes what it changed.

The base classes of the contract wrap the methods and properties of their subclasses with it, so no call is forgotten.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import textwrap
import threading
import traceback
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial, wraps
from pathlib import Path
from typing import Any

from tlkit.errors import PluginError, TlkitError, TlkitWarning, missing_package

_MESSAGE = 300  # characters of what a plugin raised; libraries put whole shapes and configurations there
_OURS = "tlkit"
_CONTRACT = "tlkit.plugin."  # modules with base classes of components
_STREAMS = ("stdout", "stderr")
# Attributes of a session.
_TOLD: dict[str, Any] = {"input": str, "outputs": (tuple, list), "metadata": Mapping, "batch_size": int}
_POOL = "ThreadPoolExecutor"  # whose threads end with the process
_FULL = (errno.ENOSPC, errno.EDQUOT)

_OWNER = "tlkit_component"  # attribute of modules, sessions and readers: the component that made them, also of copies

# What methods and properties of the contract give, where something else would be met far from the component: words,
# classes (those of the contract and PyTorch by name), and the class of the elements.
_NONE: type = type(None)
_GIVES: dict[str, tuple[str, tuple[type | str, ...], type | str]] = {
    "preprocessing": ("a Preprocessing", ("Preprocessing",), ""),
    "weights": ("Weights", ("Weights",), ""),
    "stages": ("a mapping from names to modules", (Mapping,), "Module"),
    **dict.fromkeys(("module", "restore", "fit"), ("a module", ("Module",), "")),
    **dict.fromkeys(("pool", "classifier", "solve", "solve_grouped"), ("a module or None", ("Module", _NONE), "")),
    "stand_in": ("a head or None", ("Head", _NONE), ""),
    "phases": ("a sequence of phases", (Sequence,), "Phase"),
    "cut": ("the name of a stage", (str,), ""),
    "prepare": ("a function or None", (Callable, _NONE), ""),  # type: ignore[dict-item]
    "candidates": ("a sequence of components", (Sequence,), "Component"),
    **dict.fromkeys(("report", "migrate"), ("a mapping", (Mapping,), "")),
    "machine": ("a mapping from names to texts", (Mapping,), str),
    **dict.fromkeys(("missing", "incompatible", "example"), ("a text or None", (str, _NONE), "")),
    "accepts": ("True or False", (bool,), ""),
    "records": ("an iterator of records", (Iterable,), ""),
    "open": ("a Session with its input, outputs and metadata, or a Reader", ("Session", "Reader"), ""),
    "read": ("bytes", (bytes,), ""),
}

_origins: dict[str, tuple[str, str]] = {}  # distribution and version by the top-level package of its plugin
_local = threading.local()
_left: list[tuple[threading.Thread, str]] = []  # threads that components started and did not end, with their names


def remember(module: str, distribution: str, version: str) -> None:
    """Remember the distribution of a plugin's module, to name it where the plugin fails."""
    _origins[_package(module)] = (distribution, version)


def described(component: object) -> str:
    """Return a component as it is named in messages: `backbone 'x' (tlkit-x 1.2)`."""
    if owner := getattr(component, "__dict__", {}).get(_OWNER):
        return str(owner)
    kind, name = getattr(component, "kind", None), getattr(component, "name", None)
    text = f"{kind} {name!r}" if kind and name else type(component).__name__
    origin = _origins.get(_package(type(component).__module__))
    return f"{text} ({' '.join(origin)})" if origin else text


@contextlib.contextmanager
def calling(component: object, where: str) -> Iterator[None]:
    """Run a component's code: what it raises is a PluginError that names it, and what it changed is put back.

    TlkitErrors pass, and so do interrupts and exhausted memory or disks. A package that it imports and that is not
    installed is a ResourceError.
    """
    with contained(lambda: f"{described(component)} in {where}"), _named(component, where):
        yield


@contextlib.contextmanager
def contained(who: Callable[[], str]) -> Iterator[None]:
    """Undo at the end what a plugin's code changed for the whole process, and warn of it; `who` names the code."""
    if getattr(_local, "inside", False):  # the outermost call does it
        yield
        return
    _local.inside = True
    before, threads = _surroundings(), set(threading.enumerate())
    try:
        yield
    finally:
        _local.inside = False
        new = [thread for thread in threading.enumerate() if thread not in threads and not thread.daemon]
        _left.extend((thread, who()) for thread in new if not thread.name.startswith(_POOL))
        for what in _put_back(before):
            warnings.warn(f"{who()} changed {what}; it was put back", TlkitWarning, stacklevel=4)


def left_running(patience: float) -> list[str]:
    """Return which components left threads that would keep the process for ever, as none ends within some seconds."""
    for thread, _ in _left:
        thread.join(patience)
    return [f"{who} left its thread {thread.name!r}" for thread, who in _left if thread.is_alive()]


@contextlib.contextmanager
def _named(component: object, where: str) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, GeneratorExit, MemoryError, TlkitError):
        raise
    except BaseException as error:  # also SystemExit: a plugin that exits must not end the command
        if isinstance(error, OSError) and error.errno in _FULL:
            raise
        who = described(component)
        selves = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
        made_by = [owner for each in selves if (owner := getattr(each, "__dict__", {}).get(_OWNER))] or [who]
        raise failure(made_by[-1], where if made_by[-1] == who else f"{where} of {who}", error) from error  # a module's


def failure(who: str, where: str, error: BaseException) -> TlkitError:
    """Return what a component raised as an error that names it."""
    if isinstance(error, ModuleNotFoundError) and error.name and _package(error.name) not in _origins:
        return missing_package(error, who)
    return PluginError(f"{who} failed in {where}: {summary(error)}")


def summary(error: BaseException) -> str:
    """Return an exception on one line, as Python prints it: `ValueError: no such file`."""
    line = traceback.format_exception_only(error)[-1]  # str() would fail if __str__ raises
    return textwrap.shorten(line, _MESSAGE)


def attributed(error: BaseException) -> TlkitError | None:
    """Return an error of a module that a component made, or of a plugin's own code, as the fault of that; else None.

    It is for code that is not called through a component: the forward pass of a module, a thread. The innermost frame
    that is tlkit's, a plugin's or such a module's decides.
    """
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    for each in reversed(chain):
        owner = who = where = ""
        for frame, line in traceback.walk_tb(each.__traceback__):
            name, module = f"{frame.f_code.co_name}()", frame.f_locals.get("self")
            made_by = getattr(module, "__dict__", {}).get(_OWNER, "")
            owner = made_by or owner
            if place := _place(frame, line):
                who, where = (owner, f"{name} ({_line(frame, line)})") if owner else (place, name)
            elif made_by:
                who, where = owner, f"forward() of {type(module).__name__}"
            elif _package_of(frame) == _OURS and name != "__torch_function__()":  # which runs inside of the module
                owner = who = ""
        if who:
            return failure(who, where, each)
    return None


def foreign(frames: Iterable[tuple[types.FrameType, int]]) -> tuple[types.FrameType | None, str]:
    """Return the outermost frame of a plugin that is not of tlkit's own distribution; and, if one runs, its place.

    `frames` come with their lines, the outermost first, which is tlkit's unless a plugin started the thread: that is
    nobody's call. The place in words is empty if the innermost is tlkit's.
    """
    known = _known(frames)
    if not known or _package_of(known[0][0]) != _OURS:
        return None, ""
    theirs = [each for each in known if _origins.get(_package_of(each[0]), (_OURS,))[0] != _OURS]
    if not theirs:
        return None, ""
    runs = theirs[-1] is known[-1]
    return theirs[0][0], f"{theirs[-1][0].f_code.co_name}() of {_place(*theirs[-1])}" if runs else ""


def _known(frames: Iterable[tuple[types.FrameType, int]]) -> list[tuple[types.FrameType, int]]:
    """Return the frames that are tlkit's or a plugin's, not a library's."""
    return [(frame, line) for frame, line in frames if _package_of(frame) in {_OURS, *_origins}]


def _place(frame: types.FrameType, line: int) -> str:
    """Return the plugin, file and line of a frame in words; empty for one of tlkit."""
    who = " ".join(_origins.get(_package_of(frame), ()))
    return f"plugin {who} ({_line(frame, line)})" if who else ""


def _line(frame: types.FrameType, line: int) -> str:
    return f"{Path(frame.f_code.co_filename).name}, line {line}"


def guard(cls: type) -> None:
    """Wrap the methods and properties that a plugin's class defines for the contract with `calling`.

    Sessions run thousands of times a second and in threads, so their failures are named and nothing else is looked at.
    """
    bases = [base for base in cls.__mro__ if base.__module__.startswith(_CONTRACT)]
    if _package(cls.__module__) == _OURS:
        return
    context = calling if any(hasattr(base, "kind") for base in bases) else _named
    names = {name for base in bases for name in (*vars(base), *vars(base).get("__annotations__", ()))}
    for name in {name for name in names if not name.startswith("_")} - {"kind", "name"}:
        owner = next((base for base in cls.__mro__ if name in vars(base)), bases[0])
        value = vars(owner).get(name)  # the class's own, or that of a class it is mixed with
        if owner in bases or getattr(value, "guarded", False):
            continue
        if isinstance(value, cached_property):
            value.func = _guarded(value.func, context, name)
        elif isinstance(value, property) and value.fget is not None:
            setattr(cls, name, property(_guarded(value.fget, context, name), value.fset, value.fdel, value.__doc__))
        elif any(isinstance(vars(base).get(name), types.FunctionType) for base in bases):
            method = value if isinstance(value, types.FunctionType) else _method(value)
            setattr(cls, name, _guarded_run(method) if name == "run" else _guarded(method, context, f"{name}()"))


def _method(value: Any) -> Callable[..., Any]:
    """Return what a class has in place of a method, such as a class method, as a function of the instance."""
    bind = getattr(value, "__get__", lambda *_: value)
    return lambda self, *args, **kwargs: bind(self, type(self))(*args, **kwargs)


def _guarded(function: Callable[..., Any], context: Callable[[object, str], Any], where: str) -> Callable[..., Any]:
    if getattr(function, "guarded", False):  # that of a base class; and a dataclass with slots is made twice
        return function
    name = where.removesuffix("()")
    words, kinds, of = _GIVES.get(name, ("", (object,), ""))

    @wraps(function)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        with context(self, where):
            value = function(self, *args, **kwargs)
        if not _fits(value, kinds, of):
            returned = f"it returned {type(value).__name__}, not {words}"
            raise PluginError(f"{described(self)} failed in {where}: {returned}")
        return _owned(self, name, value) if context is calling else value

    call.guarded = True  # type: ignore[attr-defined]
    return call


def _fits(value: Any, kinds: Sequence[type | str], of: type | str = "") -> bool:
    """Return whether a value is of one of these kinds, and its elements of another."""
    bases = {base.__name__ for base in type(value).__mro__ if base.__module__.startswith((_CONTRACT, "torch.nn."))}
    if not any(kind in bases if isinstance(kind, str) else isinstance(value, kind) for kind in kinds):
        return False
    told = {name: getattr(value, name, None) for name in _TOLD} if "Session" in bases else {}
    if not all(isinstance(given, _TOLD[name]) and given not in (0, "", ()) for name, given in told.items()):
        return False
    elements = value.values() if isinstance(value, Mapping) else value
    return all(_fits(each, (of,)) for each in (elements if of else ()))


def _guarded_run(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the `run` of a session, which has to give what it is asked for, a row for each that it is given."""

    @wraps(function)
    def run(self: Any, array: Any, outputs: Sequence[str] | None = None) -> Any:
        __tracebackhide__ = True
        with _named(self, "run()"):
            found = function(self, array, outputs)
            for name in self.outputs if outputs is None else outputs:
                if (kind := getattr(found[name], "dtype", type(found[name]))) != "float32":
                    raise TypeError(f"it gives {name} of {kind}, not float32")
                if len(found[name]) != len(array):
                    raise ValueError(f"it gives {len(found[name])} rows of {name} for {len(array)}")
        return found

    run.guarded = True  # type: ignore[attr-defined]
    return run


def _owned(component: object, method: str, value: Any) -> Any:
    """Return what a method gave, so that what fails in it later names the component: modules, iterators, functions."""
    if method == "records":
        return _iterated(component, value)
    if method == "prepare" and value is not None:
        return calling(component, "the function of prepare()")(value)
    if method == "open":
        with contextlib.suppress(AttributeError):  # it may be frozen, or have slots
            setattr(value, _OWNER, described(component))
    for given in value.values() if method == "stages" else (value,):
        for module in given.modules() if _fits(given, ("Module",)) else ():
            module.__dict__.setdefault(_OWNER, described(component))  # it may hold those of another
    return value


def _iterated(component: object, records: Iterable[Any]) -> Iterator[Any]:
    from tlkit.plugin.component import is_record

    with _named(component, "records()"):
        for each in records:
            if not is_record(each):
                raise TypeError(f"it yielded {each!r}, which is no Record with fields of the types of the contract")
            yield each


def owner_of(module: Any) -> str:
    """Return the component that a part of a module comes from, as messages name it; empty if none does."""
    return next((vars(each)[_OWNER] for each in module.modules() if _OWNER in vars(each)), "")


_Settings = dict[str, tuple[Any, Callable[[Any], object]]]  # values by name, in words, with what sets them


def _surroundings() -> _Settings:
    """Return what a plugin's code may change for the whole process."""
    found: _Settings = {f"sys.{name}": (getattr(sys, name), partial(setattr, sys, name)) for name in _STREAMS}
    with contextlib.suppress(OSError):  # the folder may be gone
        found["the working directory"] = os.getcwd(), os.chdir
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_default_device"):  # else half imported
        found["PyTorch's default dtype"] = torch.get_default_dtype(), torch.set_default_dtype
        found["PyTorch's gradient mode"] = torch.is_grad_enabled(), torch.set_grad_enabled
        found["PyTorch's default device"] = torch.get_default_device(), partial(_set_device, torch)
    return found


def _set_device(torch: Any, device: Any) -> None:
    torch.set_default_device(None if device.type == "cpu" else device)  # a CPU that is set slows every call down


def _put_back(before: _Settings) -> Iterator[str]:
    """Undo what was changed; yields it in words."""
    torch, after = sys.modules.get("torch"), _surroundings()
    known = {name: value for name, (value, _) in before.items()}
    if torch is not None and len(after) > len(known):
        known = {"PyTorch's default dtype": torch.float32, "PyTorch's gradient mode": True} | known
    for name, (value, put) in after.items():
        if known.get(name, value) != value:
            with contextlib.suppress(OSError):  # the folder may be gone
                put(known[name])
                yield name


def _package_of(frame: types.FrameType) -> str:
    return _package(str(frame.f_globals.get("__name__", "")))


def _package(module: str) -> str:
    return module.partition(".")[0]
