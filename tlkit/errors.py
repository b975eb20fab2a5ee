"""Errors that a user can act on, and the exit code of each kind.

Every problem a user can cause or fix is raised as a `TlkitError`; the command line catches it once and
prints one line. Anything else that escapes is a bug in tlkit and ends with exit code 1.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

# Characters that would end a line or control the terminal, spelled as both Python and shells understand it.
_CONTROL = {code: ascii(chr(code))[1:-1] for code in (*range(32), 127)}
_CONTROL |= {code: f"\\u{code:04x}" for code in (*range(128, 160), 0x2028, 0x2029)}


def one_line(text: str) -> str:
    """Return `text` with its control characters escaped, as `\\n`; the name of a file may contain any of them."""
    return text.translate(_CONTROL)


def printable(text: str) -> str:
    """Return a text of several lines with all other control characters escaped."""
    return "\n".join(map(one_line, text.split("\n")))


def _joined(text: str) -> str:
    """Return the lines of another library's message as one; spaces inside a line may be part of a name, and stay."""
    return one_line(re.sub(r"\s*[\r\n]+\s*", " ", text.strip()))


class TlkitWarning(UserWarning):
    """Something a user should know although the work goes on."""


class TlkitNote(TlkitWarning):
    """Something that a user may want to know, and is no reason to worry."""


class TlkitError(Exception):
    """A problem the user can act on: what happened, in which file, and what to do about it."""

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, file: Path | str | None = None, do: str | None = None) -> None:
        self.what = what
        self.file = None if file is None else str(file)
        self.do = do
        super().__init__(self._line())

    def _line(self) -> str:
        text = _joined(self.what)
        text = text if self.file is None else f"{one_line(self.file)}: {text}"
        return text if self.do is None else f"{text.rstrip('.')}; {one_line(self.do)}"


class UsageError(TlkitError):
    """The command or call asks for something that does not exist or does not fit together."""

    exit_code = 2


class DataError(TlkitError):
    """The images or labels that were given are invalid or unreadable."""

    exit_code = 3


class ArtifactError(TlkitError):
    """A bundle, graph or engine is unsafe, corrupt or incompatible, or a plugin that it needs is missing."""

    exit_code = 4


class ResourceError(TlkitError):
    """Something outside tlkit is missing or exhausted: disk, memory, a lock, a runtime."""

    exit_code = 5


class GateError(TlkitError):
    """A check that guards deployment failed: parity, verification, an accuracy budget."""

    exit_code = 6


class PluginError(TlkitError):
    """A component of a plugin failed, or does not do what the contract says."""

    exit_code = 7

    def __init__(self, what: str, *, file: Path | str | None = None, do: str | None = None) -> None:
        super().__init__(what, file=file, do=do or "report it to the plugin's author, with what --debug shows")


# Extras of tlkit that install a package beyond the base.
_EXTRAS = dict.fromkeys(("torch", "torchvision", "sklearn", "onnxscript", "threadpoolctl"), "train")
_EXTRAS |= dict.fromkeys(("uvicorn", "starlette", "prometheus_client"), "serve")
_EXTRAS |= {"grpc": "serve-grpc", "pyarrow": "parquet", "usearch": "index", "matplotlib": "plot"}
_EXTRAS |= {"huggingface_hub": "card", "tensorboard": "tensorboard", "ray": "ray"}


def require(package: str, what: str, file: Path | str | None = None) -> None:
    """Raise a ResourceError that says what needs a package of an extra, and how to install it, if it is missing."""
    if find_spec(package) is None:
        raise ResourceError(f"{what} needs {package}", file=file, do=f'run: pip install "tlkit[{_EXTRAS[package]}]"')


def missing_package(error: ModuleNotFoundError, who: str = "this") -> ResourceError:
    """Return the failed import of a package that is not installed as what to install for it."""
    package = (error.name or "").partition(".")[0]
    install = f"tlkit[{_EXTRAS[package]}]" if package in _EXTRAS else package
    return ResourceError(f"{who} needs the package {package}, which is not installed", do=f'pip install "{install}"')
