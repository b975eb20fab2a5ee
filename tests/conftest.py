"""What every test may use: real images, a cache of its own, and the command as a user starts it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from tests import tiny

if TYPE_CHECKING:
    from tlkit.learn.train import Recipe

# A machine may be slow; that is no reason to fail.
hypothesis.settings.register_profile("tlkit", deadline=None)
hypothesis.settings.load_profile("tlkit")

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

    def run(
        *args: object, cwd: Path | None = None, env: dict[str, str] | None = None, timeout: float = 300
    ) -> Finished:
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


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three classes of twelve pictures."""
    return tiny.write_images(tmp_path_factory.mktemp("pictures") / "photos")


@pytest.fixture(scope="session")
def tiny_recipe() -> Recipe:
    """The tiny backbone, cut at its second stage, with a head that learns by gradient."""
    from tlkit_standard.strategies import STRATEGIES

    from tlkit.learn.train import Recipe

    strategy = replace(STRATEGIES[0], epochs=200, lr=0.1)
    return Recipe(tiny.Tiny(), strategy, tiny.Line(), tiny.ORIGINS, cut="second", golden=4)


@pytest.fixture(scope="session")
def tiny_run(pictures: Path, tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the tiny backbone, exported; not to be changed (see `own_run`)."""
    from tlkit.deploy.publish import publish_onnx
    from tlkit.learn.train import train
    from tlkit.model.bundle import open_bundle

    run = tmp_path_factory.mktemp("tiny") / "run"
    train(pictures, run, tiny_recipe)
    publish_onnx(open_bundle(run), tiny_recipe.backbone, tiny_recipe.head)
    return run


@pytest.fixture
def own_run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of `tiny_run` to do with as one likes."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))
