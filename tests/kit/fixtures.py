"""Fixtures for every test: real images, a cache of its own, and the command as a user starts it."""

from __future__ import annotations

import fcntl
import json
import os
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from tests.kit import tiny
from tests.kit.components import empty_cache
from tests.kit.forks import Finished, Forks
from tests.kit.tracing import prepare_once

if TYPE_CHECKING:
    from tlkit.runtime.model import Model
    from tlkit.training.config import TrainingConfig

# A machine may be slow; that is no reason to fail.
hypothesis.settings.register_profile("tlkit", deadline=None)
hypothesis.settings.load_profile("tlkit")

CHECKOUT = Path(__file__).resolve().parents[2]
DIGITS = ("0", "1", "5", "6")
SHARED_DATA = Path(os.environ.get("TLKIT_SHARED_DATA") or CHECKOUT.parent / "shared" / "data")


@dataclass(frozen=True)
class Story:
    """A real run, made by the commands a user types, and what these said; not to be changed."""

    root: Path  # where they ran: photos/, test/ (other images of the same classes), a.jpg, b.jpg, run/
    env: dict[str, str]  # names the cache they filled
    said: dict[str, Finished]  # by verb: train and export

    @property
    def run(self) -> Path:
        """The bundle, exported."""
        return self.root / "run"

    @property
    def model(self) -> Path:
        """Its graph from images to probabilities."""
        return self.run / "onnx/fp32/model.onnx"


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs, from processes that are started as well, unless tests that need one are asked for: `-m gpu`."""
    if config.getoption("markexpr") != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs real images, and put the tests of the project first: the longest of all are among them."""
    for item in items:
        if "shared_data" in getattr(item, "fixturenames", ()):
            item.add_marker("shared_data")
    items.sort(key=lambda item: "/tests/project/" not in item.path.as_posix())


def pytest_collection_finish() -> None:
    """Have traces prepared once in this process, if tests of it will trace."""
    if "torch" in sys.modules:
        prepare_once()


@pytest.fixture(scope="session", autouse=True)
def _own_environment(common_tmp: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache that starts empty, and no plugin disabled, whatever the developer's own shell says.

    All workers share the graphs in it, as the caches do that `empty_cache` makes: each architecture is traced once.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TLKIT_CACHE", str(common_tmp))
        patch.setenv("TLKIT_CACHE", str(empty_cache(tmp_path_factory.mktemp("own") / "cache")))
        patch.delenv("TLKIT_DISABLE_PLUGINS", raising=False)
        yield


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache for one test, empty but for the graphs that were traced so far."""
    cache = empty_cache(tmp_path / "cache")
    monkeypatch.setenv("TLKIT_CACHE", str(cache))
    return cache


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


def finish(command: list[Any], cwd: Path | None, env: dict[str, str] | None) -> Finished:
    """Run a command to its end, with `env` added to the environment and the project's own commands on the path."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    process = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PATH": path, **(env or {})},
        capture_output=True,
        text=True,
        errors="surrogateescape",  # names of files may be any bytes
        check=False,
    )
    return Finished(process.returncode, process.stdout, process.stderr)


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Processes that share one import of PyTorch: `forks.run(["script.py", ...], cwd=…, env={…})`."""
    with Forks() as made:
        yield made


@pytest.fixture(scope="session")
def tlkit(forks: Forks) -> Callable[..., Finished]:
    """Runs a command line in a fork: `tlkit("predict", bundle, cwd=…, env={…})`."""

    def run(*args: object, **options: Any) -> Finished:
        return forks.run(["tlkit", *args], **options)

    return run


@pytest.fixture(scope="session")
def console_script() -> Callable[..., Finished]:
    """Runs the installed console script, which imports what it needs: `console_script("--help", cwd=…, env={…})`."""
    script = Path(sys.executable).with_name("tlkit")

    def run(*args: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> Finished:
        return finish([script, *map(str, args)], cwd, env)

    return run


@pytest.fixture(scope="session")
def shell() -> Callable[..., Finished]:
    """Runs a command line as one types it: `shell("tlkit predict run/ a.jpg | head -1", cwd=…, env={…})`."""

    def run(line: str, *, cwd: Path, env: dict[str, str] | None = None) -> Finished:
        return finish(["bash", "-c", f"set -o pipefail; {line}"], cwd, env)

    return run


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """One process at a time; the workers of pytest-xdist are processes."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def common_tmp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers share, where what is dear is made once."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def story(common_tmp: Path, shell: Callable[..., Finished], tlkit: Callable[..., Finished]) -> Story:
    """EfficientNet-Lite0 with its real weights, trained on handwritten digits and exported, with no features cached."""
    root, cache = common_tmp / "story", common_tmp / "story-cache"
    record, env = root / "said.json", {"TLKIT_CACHE": str(cache)}
    with alone(common_tmp / "story.lock"):
        if not record.exists():
            shutil.rmtree(root, ignore_errors=True)  # of a worker that was killed
            shutil.rmtree(cache, ignore_errors=True)
            empty_cache(cache)
            write_digits(root)
            train = shell("tlkit train photos/ -o run/ --strategy frozen", cwd=root, env=env)
            export = tlkit(*shlex.split(train.next)[1:], cwd=root, env=env) if train.code == 0 else train
            record.write_text(json.dumps({"train": asdict(train), "export": asdict(export)}))
    said = {verb: Finished(**facts) for verb, facts in json.loads(record.read_text()).items()}
    assert [finished.code for finished in said.values()] == [0, 0], said
    return Story(root, env, said)


@pytest.fixture
def place(story: Story, tmp_path: Path) -> Path:
    """A folder as the documents assume it: photos/ (eight of each class), test/ and a.jpg, and nothing trained."""
    shutil.copytree(story.root / "test", tmp_path / "test")
    shutil.copy(story.root / "a.jpg", tmp_path)
    for folder in (story.root / "photos").iterdir():
        (tmp_path / "photos" / folder.name).mkdir(parents=True)
        for file in sorted(folder.iterdir())[:8]:
            shutil.copy(file, tmp_path / "photos" / folder.name)
    return tmp_path


def write_digits(root: Path) -> None:
    """Write the images of the README: photos/ and test/ with class folders (here of four digits), a.jpg and b.jpg.

    The digits are four that are easily told apart, so that a test may expect most answers to be right.
    """
    from PIL import Image

    runpy.run_path(str(CHECKOUT / "demo/digits.py"))["write"](root / "all", 20)
    for label in DIGITS:
        for number, file in enumerate(sorted((root / "all" / label).iterdir())):
            place = root / ("photos" if number < 15 else "test") / label
            place.mkdir(parents=True, exist_ok=True)
            file.rename(place / file.name)
    for name, label in (("a.jpg", "1"), ("b.jpg", "5")):
        with Image.open(min((root / "test" / label).iterdir())) as image:
            image.save(root / name, quality=95)
    shutil.rmtree(root / "all")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three classes of twelve pictures."""
    return tiny.write_images(tmp_path_factory.mktemp("pictures") / "photos")


@pytest.fixture(scope="session")
def odd(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Images of all kinds."""
    return tiny.write_odd_images(tmp_path_factory.mktemp("odd") / "photos")


@pytest.fixture(scope="session")
def tiny_config() -> TrainingConfig:
    """The tiny backbone, cut at its second stage, with a head that learns by gradient."""
    from tlkit_standard.strategies import STRATEGIES

    from tlkit.training.config import TrainingConfig

    strategy = replace(STRATEGIES[0], epochs=200, lr=0.1)
    return TrainingConfig(tiny.Tiny(), strategy, tiny.Line(), tiny.ORIGINS, cut="second", golden=4)


@pytest.fixture(scope="session")
def tiny_run(pictures: Path, tiny_config: TrainingConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the tiny backbone, exported; not to be changed (see `own_run`)."""
    from tests.kit.exporting import exported
    from tlkit.training.run import train

    run = tmp_path_factory.mktemp("tiny") / "run"
    train(pictures, run, tiny_config)
    exported(run, tiny_config.backbone, tiny_config.head)
    return run


@pytest.fixture(scope="session")
def novel_config(tiny_config: TrainingConfig) -> TrainingConfig:
    """That of a head with a detector."""
    from tlkit_standard.detectors import Energy, NeighborEnergy

    return replace(tiny_config, detectors=dict.fromkeys((NeighborEnergy(images=9), Energy()), ("tlkit", "0.1.0")))


@pytest.fixture(scope="session")
def novel_run(pictures: Path, novel_config: TrainingConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose head has a detector, exported in every precision; not to be changed."""
    from tests.kit.exporting import exported
    from tlkit.model.novelty import DetectingHead
    from tlkit.training.run import train

    run = tmp_path_factory.mktemp("novel") / "run"
    train(pictures, run, novel_config)
    for precision in ("fp32", "fp16", "int8"):
        head = DetectingHead(novel_config.head, next(iter(novel_config.detectors)))
        exported(run, novel_config.backbone, head, precision)
    return run


@pytest.fixture(scope="session")
def tiny_trunk(tiny_run: Path) -> Iterator[Model]:
    """The trunk of `tiny_run`, opened to embed with."""
    from tlkit.runtime.model import Model

    with Model.open(tiny_run, graph="trunk") as opened:
        yield opened


@pytest.fixture
def own_run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of `tiny_run` to do with as one likes."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))
