"""Run commands of tlkit one after the other in one process, which imports PyTorch once.

`python -m tests.kit.commands` reads a JSON list of command lines and prints a JSON list of [exit code, stdout, stderr].
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run_all(lines: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each command line, up to the first that fails."""
    path = os.pathsep.join(filter(None, [env.get("PYTHONPATH"), str(ROOT)]))
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        cwd=cwd,
        env={**os.environ, **env, "PYTHONPATH": path},
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [tuple(each) for each in json.loads(done.stdout)]


def main() -> None:
    """Run what standard input lists."""
    from tlkit.cli import run

    results = []
    for line in json.load(sys.stdin):
        program, *arguments = shlex.split(line)
        assert program == "tlkit", line
        if arguments[0] == "train":  # as if those before it had not been run
            shutil.rmtree(arguments[arguments.index("-o") + 1], ignore_errors=True)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run(arguments)
        results.append((code, out.getvalue(), err.getvalue()))
        if code:
            break
    print(json.dumps(results))  # noqa: T201 - the result, for `run_all`


if __name__ == "__main__":
    main()
