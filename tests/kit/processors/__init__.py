"""Processes that see another processor than the one they run on: without VNNI, or without AVX-512."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("other_processor.c")
KINDS = ("avx2", "avx512")  # which one it sees; avx512 is without VNNI
REFUSED = 77  # its exit code where Linux or the processor can't have CPUID fault


def compiled(folder: Path) -> Path | str:
    """The library that hides instructions, made in `folder`, or the reason why it can't be had here."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not sys.platform.startswith("linux") or os.uname().machine != "x86_64" or compiler is None:
        return "needs Linux on x86-64 and a C compiler"
    library = folder / "other_processor.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], check=True)
    if subprocess.run(["true"], env=environment(library, "avx2"), check=False).returncode == REFUSED:
        return "this machine can't have CPUID fault"
    return library


def environment(library: Path, kind: str) -> dict[str, str]:
    """The variables with which a process sees a processor of that kind."""
    return {**os.environ, "LD_PRELOAD": str(library), "TLKIT_PROCESSOR": kind}
