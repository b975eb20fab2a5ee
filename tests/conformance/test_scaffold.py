"""A new plugin: refused where it can't be, clean as it is written, and from there to a deployed model."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.kit.distribution import install_project
from tlkit.conformance.scaffold import contract_range, names, write
from tlkit.errors import UsageError
from tlkit.plugin.kinds import KINDS
from tlkit.version import __version__


@pytest.fixture(scope="module", params=KINDS)
def project(request, tmp_path_factory):
    """A new plugin of each kind: its names, and its folder."""
    found = names(f"tlkit-my-{request.param}", request.param)
    folder = tmp_path_factory.mktemp("new") / "project"
    assert write(found, folder).is_file()
    return found, folder


def test_the_package_is_described_as_it_is(project):
    found, folder = project
    files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    module = {f"{found.module}/__init__.py", f"{found.module}/py.typed", f"tests/test_{found.module}.py"}
    assert files == module | {".github/workflows/release.yml", "README.md", "pyproject.toml"}
    content = tomllib.loads((folder / "pyproject.toml").read_text())
    assert content["project"]["name"] == f"tlkit-my-{found.kind}"
    assert content["project"]["entry-points"] == {"tlkit.1": {f"my-{found.kind}": found.module}}
    assert content["project"]["dependencies"] == [f"tlkit[train]{contract_range(__version__)}"]
    assert content["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == [found.module]
    assert not [
        line
        for file in folder.rglob("*.*")
        if file.is_file()
        for line in file.read_text().splitlines()
        if "$" in line and not line.startswith("$ ") and "${{ matrix.python }}" not in line
    ]


def test_it_is_clean(project, checkout):
    _, folder = project
    ruff = Path(sys.executable).with_name("ruff")
    settings = ["--config", str(checkout / "pyproject.toml"), "--config", "lint.ignore=['ARG001', 'S101']"]
    for command in (["check", *settings, "--no-cache"], ["format", "--check", *settings[:2], "--no-cache"]):
        finished = subprocess.run([ruff, *command, "."], cwd=folder, capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stdout + finished.stderr


@pytest.mark.slow
def test_its_types_are_right(project):
    _, folder = project
    mypy = [sys.executable, "-m", "mypy", "--cache-dir", os.devnull]  # what to look at is in its pyproject.toml
    finished = subprocess.run(mypy, cwd=folder, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("MyNet", "can't be called 'MyNet'; use lower-case words joined by '-', as in tlkit-mynet"),
        ("tlkit-", "can't be called"),
        ("tlkit-3d", "can't be called"),
        ("my_net", "can't be called"),
        ("../x", "can't be called"),
        ("x; rm -rf ~", "can't be called"),
        ("-x", "can't be called"),
        ("json", "there is a Python module 'json' already; call it tlkit-json, or otherwise"),
        ("class", "there is a Python module 'class' already"),
        ("torch", "there is a Python module 'torch' already"),
        ("tlkit", "there is a Python module 'tlkit' already"),
        ("tlkit-standard", "there is a Python module 'tlkit_standard' already"),
    ],
)
def test_names_that_a_package_can_t_have(name, said):
    with pytest.raises(UsageError) as refused:
        names(name, "backbone")
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("name", "module", "component", "class_"),
    [
        ("tlkit-mynet", "tlkit_mynet", "mynet", "MynetHead"),
        ("my-net2", "my_net2", "my-net2", "MyNet2Head"),
        ("tlkit-head", "tlkit_head", "head", "HeadHead"),
    ],
)
def test_names_follow_from_the_distribution(name, module, component, class_):
    found = names(name, "head")
    assert (found.module, found.component, found.class_) == (module, component, class_)


@pytest.mark.parametrize(
    ("version", "range_"),
    [("0.1.0", ">=0.1,<0.2"), ("0.12.3rc1", ">=0.12,<0.13"), ("1.4.2", ">=1.4,<2"), ("2.0", ">=2.0,<3")],
)
def test_the_range_of_the_contract(version, range_):
    assert contract_range(version) == range_


class TestCommand:
    def test_what_is_there_is_left_alone(self, tlkit, tmp_path):
        (tmp_path / "tlkit-mynet").mkdir()
        (tmp_path / "tlkit-mynet" / "mine").write_text("mine")
        finished = tlkit("plugins", "new", "tlkit-mynet", "--kind", "head", cwd=tmp_path)
        assert finished.code == 2
        assert finished.err == "tlkit: tlkit-mynet: it exists already; choose another -o, or remove it first\n"
        assert [file.name for file in (tmp_path / "tlkit-mynet").iterdir()] == ["mine"]

    def test_a_name_that_is_taken_is_refused(self, tlkit, tmp_path):
        finished = tlkit("plugins", "new", "tlkit-onnx", "--kind", "target", cwd=tmp_path)
        assert finished.code == 2
        assert "there is a target 'onnx' already" in finished.err
        assert list(tmp_path.iterdir()) == []

    def test_the_kind_is_needed(self, tlkit, tmp_path):
        finished = tlkit("plugins", "new", "tlkit-mynet", cwd=tmp_path)
        assert finished.code == 2
        assert "--kind" in finished.err

    def test_it_goes_where_it_is_told(self, tlkit, tmp_path):
        finished = tlkit(
            "plugins", "new", "my-net", "--kind", "strategy", "-o", "a place/for it", "--json", cwd=tmp_path
        )
        assert finished.code == 0, finished.err
        assert finished.json["code"] == "a place/for it/my_net/__init__.py"
        assert finished.next == "pip install -e 'a place/for it' && tlkit plugins check my-net"


@pytest.fixture
def begin(tlkit, forks, tmp_path, pictures):
    """Begins a plugin and installs it; what follows runs commands with it."""
    site = tmp_path / "site"
    site.mkdir()
    env = {"PYTHONPATH": str(site)}

    def run(kind):
        made = tlkit("plugins", "new", f"tlkit-my{kind}", "--kind", kind, cwd=tmp_path)
        assert made.code == 0, made.err
        install_project(site, tmp_path / f"tlkit-my{kind}")

        def do(line, code=0):
            finished = forks.run(shlex.split(line.format(photos=pictures)), cwd=tmp_path, env=env)
            assert finished.code == code, finished.err
            return finished

        return do

    return run


def test_a_new_backbone_is_listed_checked_and_recorded_in_a_bundle(begin):
    do = begin("backbone")
    listed = {plugin["distribution"]: plugin for plugin in do("tlkit plugins --json").json["plugins"]}
    assert [component["name"] for component in listed["tlkit-mybackbone"]["components"]] == ["mybackbone"]
    assert listed["tlkit-mybackbone"]["allowed"].startswith("everything")
    checked = do("tlkit plugins check mybackbone --pretrained --json").json
    assert checked["passed"]
    states = {check["name"]: check["state"] for check in checked["components"][0]["checks"]}
    assert {name for name, state in states.items() if state == "skip"} == {
        "preprocessing-equals-the-library",
        "local-options-keep-the-structure",
        "features-equal-the-library",
        "logits-equal-the-library",
        "classifier-fits",
    }
    settings = "--backbone mybackbone --cut stage3 --set backbone.width=8 --golden 4"
    trained = do(f"tlkit train {{photos}} -o run {settings} --json").json
    assert trained["metrics"]["accuracy"] > 0.8
    record = json.loads(do("tlkit inspect run --json").out)
    assert record["backbone"]["distribution"] == "tlkit-mybackbone"
    assert record["backbone"]["options"] == {"width": 8}
    if importlib.util.find_spec("tensorrt_rtx"):
        do("tlkit export run --tensorrt-rtx")


def test_a_new_head_and_strategy_train_and_a_new_target_is_built(begin):
    do = begin("head")
    begin("strategy")
    begin("target")
    for name in ("myhead", "mystrategy", "mytarget"):
        do(f"tlkit plugins check {name}")
    settings = "--cut stem --head myhead --strategy mystrategy --set strategy.steps=50 --golden 4"
    do(f"tlkit train {{photos}} -o run {settings}")
    do("tlkit export run --target mytarget")
    do("tlkit verify run")


def readme_commands(folder):
    """Return the commands in the console blocks of a README."""
    blocks = re.findall(r"```console\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]


def test_every_command_of_its_readme_has_options_that_exist(project, forks):
    _, folder = project
    commands = [command for command in readme_commands(folder) if command.startswith("tlkit ")]
    assert len(commands) >= 3
    for command in commands:
        finished = forks.run([*shlex.split(command), "--help"], cwd=folder)
        assert finished.code == 0, f"{command}: {finished.err}"


# All but the backbone's train the default backbone, at its own size.
@pytest.mark.parametrize(
    "kind", [kind if kind == "backbone" else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_every_command_of_its_readme_runs(kind, tlkit, forks, tmp_path, pictures):
    name, site = f"tlkit-my{kind}", tmp_path / "site"
    folder = tmp_path / name
    assert tlkit("plugins", "new", name, "--kind", kind, cwd=tmp_path).code == 0
    (folder / "photos").symlink_to(pictures)
    install, *commands = readme_commands(folder)
    assert install == "pip install -e '.[test]'"
    site.mkdir()
    install_project(site, folder)  # as pip would
    assert len(commands) >= 4
    assert all(any(name in command for command in commands) for name in ("plugins check", "pytest", "train"))
    commands.remove("mypy")  # `test_its_types_are_right` runs it
    for command in commands:
        words = ["-m", "pytest", "-p", "no:cacheprovider"] if command == "pytest" else shlex.split(command)
        finished = forks.run(words, cwd=folder, env={"PYTHONPATH": str(site)})
        assert finished.code == 0, f"{command}: {finished.err}{finished.out}"
