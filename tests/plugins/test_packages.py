"""The plugins that are published apart: each is built as a wheel, found where that is installed, and put to use."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.kit.fixtures import alone, finish

NEEDS = {
    "tlkit-example": "torch",
    "tlkit-executorch": "executorch",
    "tlkit-openvino": "openvino",
    "tlkit-ort": "onnxruntime",
    "tlkit-timm": "timm",
    "tlkit-torchvision": "torchvision",
    "tlkit-transformers": "transformers",
}
FAMILIES = {
    "tlkit-timm": 1000,
    "tlkit-torchvision": 60,
    "tlkit-transformers": 60,
}  # packages with a backbone per architecture of a library

each = pytest.mark.parametrize("name", NEEDS)


def need(package):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}")


def wheel(source, place):
    """The wheel of a package, built into `place` by the first test of this run that asks for it."""
    place.mkdir(exist_ok=True)
    with alone(place.with_suffix(".lock")):
        if not list(place.glob("*.whl")):
            command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", place, source]
            subprocess.run(command, capture_output=True, text=True, check=True)
    (built,) = place.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def built(common_tmp, checkout):
    """The wheels by the names of the packages."""
    return {name: wheel(checkout / "plugins" / name, common_tmp / name) for name in NEEDS}


@pytest.fixture
def unpacked(built, tmp_path):
    """`unpacked(name, ...)`: the environment of a process in which these packages are installed."""

    def unpack(*names):
        for name in names:
            with zipfile.ZipFile(built[name]) as archive:
                archive.extractall(tmp_path / "site")
        return {"PYTHONPATH": str(tmp_path / "site"), "HF_HUB_OFFLINE": "1"}

    return unpack


def test_every_package_of_this_folder_is_tested(checkout):
    assert {file.parent.name for file in checkout.glob("plugins/tlkit-*/pyproject.toml")} == set(NEEDS)


@each
def test_the_wheel_holds_the_modules_and_nothing_else(built, checkout, name):
    with zipfile.ZipFile(built[name]) as archive:
        names = {file for file in archive.namelist() if ".dist-info/" not in file}
    folder = checkout / "plugins" / name
    modules = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.suffix in {".py", ".typed"}}
    assert names == {file for file in modules if not file.startswith("tests/")}


@each
def test_it_is_listed_with_its_components(tlkit, unpacked, name):
    if name in FAMILIES:
        need(NEEDS[name])
    said = tlkit("plugins", "--json", env=unpacked(name))
    (plugin,) = [found for found in said.json["plugins"] if found["distribution"] == name]
    assert (plugin["state"], plugin["reason"]) == ("ok", None)
    assert {component["state"] for component in plugin["components"]} == {"ok"}
    assert len(plugin["components"]) > FAMILIES.get(name, 0)


def test_no_framework_is_needed_to_list_them(unpacked):
    code = "import sys; from tlkit.plugin.registry import load; load(); print(*sys.modules)"
    said = finish([sys.executable, "-c", code], None, unpacked(*NEEDS))
    assert {"tlkit_executorch", "tlkit_openvino", "tlkit_ort"} <= set(said.out.split())
    frameworks = {"torch", "torchvision", "transformers", "timm", "openvino", "onnx", "executorch", "onnxruntime"}
    assert frameworks.isdisjoint(said.out.split())


@pytest.mark.parametrize(
    ("name", "tests"),
    [
        ("tlkit-example", "tests"),
        pytest.param("tlkit-executorch", "tests", marks=pytest.mark.slow),
        ("tlkit-openvino", "tests"),
        ("tlkit-ort", "tests"),
        ("tlkit-timm", "tests/test_listing.py"),
        ("tlkit-torchvision", "tests"),
        ("tlkit-transformers", "tests"),
        pytest.param("tlkit-timm", "tests", marks=pytest.mark.slow),
    ],
)
def test_its_own_tests_pass(forks, unpacked, checkout, name, tests):
    need(NEEDS[name])
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", checkout / "plugins" / name / tests]
    said = forks.run(command, cwd=checkout, env=unpacked(name))
    assert said.code == 0, said.out
    assert re.search(r"\d+ passed", said.out)


def test_the_example_is_that_of_the_document(checkout):
    text = (checkout / "CONTRIBUTING.md").read_text()
    (shown,) = re.findall(r"```python\n# file: \S+/tlkit_edges\.py\n(.*?)```", text, re.DOTALL)
    assert shown == (checkout / "plugins/tlkit-example/tlkit_example.py").read_text()


@pytest.fixture(scope="session")
def edges_run(built, tlkit, pictures, tmp_path_factory):
    """A bundle of the example's backbone."""
    with zipfile.ZipFile(built["tlkit-example"]) as archive:
        archive.extractall(site := tmp_path_factory.mktemp("site"))
    run = tmp_path_factory.mktemp("edges") / "run"
    options = ["--backbone", "edges", "--cut", "textures", "--strategy", "frozen"]
    said = tlkit("train", pictures, "-o", run, *options, env={"PYTHONPATH": str(site)})
    assert said.code == 0, said.err
    return run


@pytest.mark.parametrize(
    ("target", "model"),
    [
        ("ort", "model.ort"),
        pytest.param("openvino", "model.onnx", marks=pytest.mark.slow),
        pytest.param("executorch", "model.executorch", marks=pytest.mark.slow),
    ],
)
def test_what_a_target_built_is_verified_and_used_like_a_graph(
    tlkit, unpacked, edges_run, pictures, tmp_path, target, model
):
    need(NEEDS[f"tlkit-{target}"])
    env, run = unpacked("tlkit-example", f"tlkit-{target}"), shutil.copytree(edges_run, tmp_path / "run")
    place = run / target / "fp32"
    for command in (
        ["export", run, "--target", target],
        ["verify", run, "--target", target],
        ["verify", place / model, "--against", run],
        ["inspect", place / model],
        ["embed", place / model, pictures / "light", "-o", tmp_path / "features.npy"],
        ["eval", place, pictures],
    ):
        said = tlkit(*command, env=env)
        assert said.code == 0, said.err
    record = json.loads((place / "manifest.json").read_text())
    assert set(record["parity"]) == {"trunk", "head", "model"}
    assert record["unproven"] == []
    answers = [tlkit("predict", each, pictures / "light/00.png", env=env).out for each in (place / model, run)]
    assert answers[0].split()[1] == answers[1].split()[1] == "light"


@pytest.mark.slow
def test_from_timms_weights_file_to_a_verified_graph(tlkit, unpacked, pictures, tmp_path):
    need("timm")
    env, run, weights = unpacked("tlkit-timm"), tmp_path / "run", tmp_path / "weights.pth"
    code = f"import timm, torch; torch.save(timm.create_model('test_vit').state_dict(), {str(weights)!r})"
    assert finish([sys.executable, "-c", code], None, None).code == 0
    train = ["train", pictures, "-o", run, "--backbone", "timm/test_vit", "--set", f"backbone.checkpoint={weights}"]
    assert tlkit(*train, env=env).code == 0
    weights.unlink()  # whoever opens the bundle needs it no more
    for command in (["export", run, "--onnx"], ["verify", run]):
        said = tlkit(*command, env=env)
        assert said.code == 0, said.err
    without = tlkit("predict", run, pictures / "dark")  # and the graph needs neither timm nor the plugin
    assert without.code == 0, without.err


@pytest.fixture(scope="session")
def fresh(common_tmp, checkout, built):
    """The commands of an environment in which tlkit and its plugins are installed from wheels and nothing else is.

    What these depend on comes from this environment: it is not installed twice.
    """
    place = common_tmp / "fresh"
    with alone(common_tmp / "fresh.lock"):
        if not place.exists():
            host = wheel(checkout, common_tmp / "tlkit")
            venv.create(place, with_pip=True)
            install = [place / "bin/python", "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
            subprocess.run([*install, host, *built.values()], capture_output=True, text=True, check=True)
            variables = {"base": str(place), "platbase": str(place)}
            own = Path(sysconfig.get_path("purelib", "venv", variables))
            own.joinpath("dependencies.pth").write_text(sysconfig.get_path("purelib") + os.linesep)
    return place / "bin"


@pytest.mark.slow
def test_they_work_in_a_fresh_environment(fresh, pictures, tmp_path):
    outside = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    where = finish([fresh / "python", "-c", "import tlkit; print(tlkit.__file__)"], tmp_path, outside)
    assert Path(where.out.strip()).is_relative_to(fresh.parent)

    plugins = finish([fresh / "tlkit", "plugins", "--json"], tmp_path, outside).json["plugins"]
    states = {plugin["distribution"]: plugin["state"] for plugin in plugins}
    expected = {name: "ok" for name in NEEDS if name not in FAMILIES or importlib.util.find_spec(NEEDS[name])}
    assert expected.items() <= states.items()

    train = ["train", pictures, "-o", "run", "--backbone", "edges", "--strategy", "frozen"]
    for command in (train, ["export", "run", "--onnx"], ["verify", "run"]):
        said = finish([fresh / "tlkit", *map(str, command)], tmp_path, outside)
        assert said.code == 0, said.err
