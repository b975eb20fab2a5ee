"""Run all benchmarks, one after the other: `python -m benchmarks`, or `make bench`. Takes most of an hour."""

from __future__ import annotations

import subprocess
import sys

from benchmarks._bench import PYTHON, ROOT

NAMES = (
    "adapters",
    "advise",
    "embed",
    "faults",
    "finetune",
    "heads",
    "hostile",
    "int8",
    "integrity",
    "memory",
    "precision",
    "reference",
    "shared",
    "startup",
    "train",
)


def main() -> int:
    codes = {
        name: subprocess.run([PYTHON, f"benchmarks/{name}.py"], cwd=ROOT, check=False).returncode for name in NAMES
    }
    missed = [name for name, code in codes.items() if code]
    print(f"missed a bar, or could not be run: {', '.join(missed) or 'none'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
