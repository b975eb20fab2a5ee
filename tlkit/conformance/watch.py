"""Watch the files and network addresses that code opens, whatever library it uses.

Python's audit events tell of every file that Python opens and every address it looks up or connects to. The native
code of safetensors opens files without one, so its door is watched as well.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors

WEIGHTS = frozenset(
    {".bin", ".ckpt", ".gguf", ".h5", ".msgpack", ".npy", ".npz", ".onnx", ".pb", ".pickle", ".pkl", ".pt", ".pth"}
    | {".safetensors", ".tar", ".tflite"}
)
CODE = frozenset({".dll", ".dylib", ".py", ".pyc", ".pyd", ".so"})
BIG = 1 << 20  # bytes; what a library reads while it is imported is smaller, or code

_NETWORK = frozenset({"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request"})
_open_watches: list[Watch] = []
_file_watches: list[Watch] = []  # those of them that look at files
_doors: list[tuple[Any, Any]] = []  # modules whose `safe_open` is watched, with the original


@dataclass(eq=False)
class Watch:
    """The weights files that were opened, or looked for, and the addresses that were refused."""

    files: list[str] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)

    def see(self, event: str, args: tuple[Any, ...]) -> bool:
        """Note what an audit event is about; return True for the network."""
        if event == "open" and _reads(*args[1:3]) and is_weights(args[0]):
            self.files.append(Path(os.fsdecode(args[0])).name)
        if event not in _NETWORK or (event == "socket.connect" and isinstance(args[1], str | bytes)):
            return False  # such a socket is in this machine's file system, and reaches no network
        self.addresses.append(str(args[1] if event == "socket.connect" else args[0]))
        return True


@contextmanager
def watching(watch: Watch, *, files: bool = True) -> Iterator[None]:
    """Have `watch` see all that this process does, and keep it from the network; without `files`, see that alone."""
    _hook_once()
    if files and not _file_watches:
        _doors.extend(_watch_safetensors())
    _file_watches.extend([watch] * files)
    _open_watches.append(watch)
    try:
        yield
    finally:
        _open_watches.remove(watch)
        if files:
            _file_watches.remove(watch)
        while _doors and not _file_watches:  # the last to end, in whatever order they began
            module, original = _doors.pop()
            vars(module)["safe_open"] = original


def is_weights(path: object) -> bool:
    """Return True for the path of weights: by its suffix, or by its size unless it is code."""
    if not isinstance(path, str | bytes | os.PathLike):
        return False  # a descriptor: its file was opened by name before
    file = Path(os.fsdecode(path))
    if file.suffix in CODE:
        return False
    try:
        return file.suffix in WEIGHTS or file.stat().st_size >= BIG
    except OSError:
        return False


def _reads(mode: object, flags: object) -> bool:
    if isinstance(mode, str):
        return "r" in mode
    return not (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR))


@functools.cache
def _hook_once() -> None:
    """Audit hooks can't be taken away, so there is one, which does nothing unless something watches."""
    sys.addaudithook(_hook)


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if [True for watch in _open_watches if watch.see(event, args)]:  # each has to see it
        raise OSError(f"the network is out of bounds here ({event})")


def _watch_safetensors() -> list[tuple[Any, Any]]:
    """Put a door that raises audit events before `safe_open`, in every module that has it; returns where it was."""
    original = safetensors.safe_open

    def safe_open(filename: Any, *args: Any, **kwargs: Any) -> Any:
        sys.audit("open", filename, "rb", 0)
        return original(filename, *args, **kwargs)

    modules = list(sys.modules.values())
    places = [each for each in modules if getattr(each, "__dict__", {}).get("safe_open") is original]
    for module in places:
        vars(module)["safe_open"] = safe_open
    return [(module, original) for module in places]
