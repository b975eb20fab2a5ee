"""Processes whose look-ups of names and connections are written down and refused, those of native code as well."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("watch.c")
PHONED = "TLKIT_PHONED"  # names the file to write them to
PYTHON = """
import os, sys

def watch(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        note(event, arguments[0])
    elif event == "socket.connect" and isinstance(arguments[1], tuple) and arguments[1][0] not in ("127.0.0.1", "::1"):
        note(event, arguments[1][0])

def note(event, name):
    with open(os.environ["TLKIT_PHONED"], "a") as phoned:
        phoned.write(f"{event} {name}\\n")

sys.addaudithook(watch)
"""  # what a process runs first where there is no compiler


def environment(folder: Path) -> dict[str, str]:
    """The variables with which a process writes down whom it phones, to the file of `PHONED`; made in `folder`."""
    variables = {PHONED: str(folder / "phoned")}
    compiler = shutil.which("cc") or shutil.which("gcc")
    if sys.platform.startswith("linux") and compiler is not None:
        library = folder / "watch.so"
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], check=True)
        variables["LD_PRELOAD"] = " ".join(filter(None, [str(library), os.environ.get("LD_PRELOAD")]))
    return variables


def phoned(variables: dict[str, str]) -> list[str]:
    """Whom processes with these variables have phoned."""
    file = Path(variables[PHONED])
    return file.read_text().splitlines() if file.exists() else []
