"""What every test may use: real images, a cache of its own, and the command as a user starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
SHARED_DATA = Path(os.environ.get("TLKIT_SHARED_DATA") or CHECKOUT.parent / "shared" / "data")


@dataclass(frozen=True)
class Finished:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed with `--json`."""
        return json.loads(self.out)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "shared_data" in getattr(item, "fixturenames", ()):
            item.add_marker("shared_data")


@pytest.fixture(scope="session", autouse=True)
def _own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache that starts empty, and no plugin disabled, whatever the developer's own shell says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TLKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("TLKIT_DISABLE_PLUGINS", raising=False)
        yield


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The root of the repository."""
    return CHECKOUT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images: `ants_bees/{train,val}`, `sign_digits`, `cifar10/…`, `fashion_mnist/…`."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs real images in {SHARED_DATA}, or TLKIT_SHARED_DATA naming another folder")
    return SHARED_DATA


@pytest.fixture(scope="session")
def tlkit() -> Callable[..., Finished]:
    """Runs the installed console script in a process of its own: `tlkit("predict", bundle, cwd=…, env={…})`."""
    script = Path(sys.executable).with_name("tlkit")

    def run(*args: object, cwd: Path | None = None, env: dict[str, str] | None = None, timeout: float = 300) -> Finished:
        process = subprocess.run(
            [script, *map(str, args)],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            timeout=timeout,
            capture_output=True,
            text=True,
            check=False,
        )
        return Finished(process.returncode, process.stdout, process.stderr)

    return run
