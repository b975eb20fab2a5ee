"""The wheel, the source distribution, and the few dependencies of the base."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from email import message_from_bytes

import pytest
from packaging.requirements import Requirement
from tlkit_standard.backbones import BACKBONES

import tlkit
from tests.kit.fixtures import alone

# What using an exported graph takes. Whoever adds to it makes every deployment larger.
BASE = {
    "click",
    "numpy",
    "onnx",
    "onnxruntime",
    "packaging",
    "pillow",
    "platformdirs",
    "pluggy",
    "safetensors",
}


@pytest.fixture(scope="session")
def built(common_tmp, checkout):
    """A folder with the wheel and the source distribution of this checkout."""
    place = common_tmp / "dist"
    with alone(common_tmp / "dist.lock"):
        if not (place / "done").exists():
            command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--sdist", "--outdir", place]
            subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True)
            (place / "done").touch()
    return place


@pytest.fixture
def wheel(built):
    return next(built.glob("tlkit-*.whl"))


@pytest.fixture
def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return message_from_bytes(archive.read(f"tlkit-{tlkit.__version__}.dist-info/METADATA"))


def sources(checkout):
    """The modules that belong into the wheel, as they are named in it."""
    found = {str(file.relative_to(checkout)) for file in (checkout / "tlkit").rglob("*.py")}
    standard = [file.relative_to(checkout / "plugins") for file in (checkout / "plugins/tlkit_standard").rglob("*.py")]
    return found | {str(file) for file in standard if "tests" not in file.parts}


def test_the_wheel_holds_the_two_packages_and_nothing_else(wheel, checkout):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    facts = f"tlkit-{tlkit.__version__}.dist-info"
    assert {name for name in names if name.endswith(".py")} == sources(checkout)
    templates = {name for name in names if name.startswith("tlkit/") and not name.endswith((".py", "py.typed"))}
    assert all((checkout / name).is_file() for name in templates)
    assert {name for name in names - templates if not name.endswith(".py")} == {
        "tlkit/py.typed",
        f"{facts}/METADATA",
        f"{facts}/RECORD",
        f"{facts}/WHEEL",
        f"{facts}/entry_points.txt",
        f"{facts}/licenses/LICENSE",
        *(f"tlkit_standard/backbones/{backbone.graph.name}" for backbone in BACKBONES),
    }
    assert wheel.stat().st_size < 800_000  # no weights, no data


def test_the_wheel_names_the_command_and_the_standard_plugin(wheel):
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"tlkit-{tlkit.__version__}.dist-info/entry_points.txt").decode()
    assert text.replace("\n\n", "\n").splitlines() == [
        "[console_scripts]",
        "tlkit = tlkit.cli:main",
        "[tlkit]",
        "standard = tlkit_standard",
    ]


def test_the_metadata_is_complete(metadata, checkout):
    assert (metadata["Name"], metadata["Version"]) == ("tlkit", tlkit.__version__)
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload() == (checkout / "README.md").read_text()


def test_the_base_asks_for_little(metadata, checkout):
    requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist")]
    base = {each.name for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})}
    declared = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
    assert base == BASE == {Requirement(line).name for line in declared["dependencies"]}
    assert set(metadata.get_all("Provides-Extra")) == set(declared["optional-dependencies"])
    assert all(each.specifier for each in requirements if each.name != "tlkit")  # an oldest version, at the least


def test_the_source_distribution_builds_the_same(built, checkout):
    with tarfile.open(next(built.glob("tlkit-*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {name if name.startswith("tlkit/") else f"plugins/{name}" for name in sources(checkout)}
    assert wanted | {"README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml", "PKG-INFO", "tlkit/py.typed"} <= names
    assert not [name for name in names if re.match(r"(tests|benchmarks|\.venv)/", name)]


@pytest.mark.slow
def test_installed_alone_it_predicts(wheel, story, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    run = tmp_path / "venv/bin"
    install = [run / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel]
    subprocess.run(install, check=True)
    listed = subprocess.run([run / "python", "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout
    assert not re.search(r"^(torch|scikit-learn|scipy|pyarrow) ", listed, re.MULTILINE)
    for line in (
        ["predict", story.model, story.root / "test"],
        ["embed", story.model, story.root / "test", "-o", tmp_path / "f.npy"],
        ["eval", story.model, story.root / "test"],
        ["verify", story.run],
        ["inspect", story.run],
    ):
        finished = subprocess.run([run / "tlkit", *line], capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stderr
