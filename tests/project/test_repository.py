"""Content of the repository, and metadata of the package."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import tlkit

MACHINE = re.compile(r"(?<![\w.}$/])/(?:home|root|work|Users)/\w|file:///")
PLACES_IN_DOCS = re.compile(r"(?<![\w.])/(?:tmp|var|opt)/")
INDEX = re.compile(r"https?://[^\s\"']*/simple\b")
LARGEST = 1_048_576


@pytest.fixture(scope="module")
def tracked(checkout):
    """The files under version control that are there."""
    if not (checkout / ".git").exists():
        pytest.skip("needs a checkout: the list of files comes from git")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=checkout, capture_output=True, text=True, check=True)
    files = [file for name in listed.stdout.split("\0")[:-1] if (file := checkout / name).is_file()]
    assert len(files) >= 100
    return files


def lines(files):
    """File, number and text of every line of text."""
    for file in files:
        content = file.read_bytes()
        if b"\0" not in content:
            for number, line in enumerate(content.decode("utf-8").splitlines(), start=1):
                yield file, number, line


def test_no_file_is_large(tracked):
    assert [file.name for file in tracked if file.stat().st_size > LARGEST] == []


def test_nothing_speaks_of_the_machine_it_was_written_on(tracked):
    found = [
        f"{file}:{number}: {line.strip()}"
        for file, number, line in lines(each for each in tracked if each != Path(__file__))
        if MACHINE.search(line) or INDEX.search(line) or (file.suffix == ".md" and PLACES_IN_DOCS.search(line))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("see /home/me/photos", True),
        ("in '/root/x'", True),
        ("file:///somewhere", True),
        ("a/home/b and https://example.com/work/x", False),
        ("$HOME/work/x", False),
    ],
)
def test_the_pattern_for_paths_sees_them(line, found):
    assert bool(MACHINE.search(line)) is found


def test_nothing_tracked_is_ignored(tracked, checkout):
    names = "\0".join(str(file.relative_to(checkout)) for file in tracked)
    command = ["git", "check-ignore", "--no-index", "-z", "--stdin"]
    ignored = subprocess.run(command, cwd=checkout, input=names, capture_output=True, text=True, check=False)
    assert ignored.stdout == ""


def dangers(source):
    """Calls that run what a file holds."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (name for name in names if name.split(".")[0] in PICKLES)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if called == "torch.load" and arguments.get("weights_only") != "True":
                yield called
            if arguments.get("allow_pickle", "False") != "False":
                yield called
            if called in ("eval", "exec", "torch.jit.load"):
                yield called


PICKLES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def test_nothing_reads_a_pickle(checkout):
    files = [*checkout.glob("tlkit/**/*.py"), *checkout.glob("plugins/**/*.py")]
    files = [file for file in files if "tests" not in file.relative_to(checkout).parts]  # they may plant one
    assert len(files) > 30
    assert {file.name: found for file in files if (found := list(dangers(file.read_text("utf-8"))))} == {}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pickle", True),
        ("from joblib import load", True),
        ("torch.load(f)", True),
        ("torch.load(f, weights_only=False)", True),
        ("np.load(f, allow_pickle=True)", True),
        ("eval(text)", True),
        ("torch.load(f, weights_only=True); np.load(f); model.eval()", False),
    ],
)
def test_a_pickle_would_be_seen(source, found):
    assert bool(list(dangers(source))) is found


def test_a_bundle_and_its_graphs_hold_no_pickle(story):
    files = [file for file in story.run.rglob("*") if file.is_file()]
    assert {file.suffix for file in files} == {".json", ".jsonl", ".safetensors", ".onnx", ".png", ".bin"}
    assert not [file for file in files if file.read_bytes()[:2] in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05")]


def test_the_version_is_the_same_everywhere_and_has_an_entry_in_the_changelog(checkout):
    declared = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]["version"]
    assert tlkit.__version__ == declared
    headings = re.findall(r"^## \[(.+?)\]", (checkout / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert declared in headings
    assert headings.index(declared) <= 1  # nothing but unreleased changes may stand above it


def test_the_public_names_are_few_and_there():
    names = set(tlkit.__all__) - {"__version__"}
    assert 20 <= len(names) <= 55  # tests/test_api.py compares their signatures
    assert all(getattr(tlkit, name).__name__ == name for name in names if isinstance(getattr(tlkit, name), type))
    assert set(tlkit.__all__) <= set(dir(tlkit))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = tlkit.Nothing


def test_importing_it_loads_no_framework():
    source = "import sys, tlkit; print(sorted({'torch', 'numpy', 'onnx', 'click', 'pluggy'} & set(sys.modules)))"
    finished = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert finished.stdout == "[]\n"


def test_type_checkers_see_every_public_name():
    """They can't follow names that are imported at first use, and read the imports made for them instead."""
    statements = ast.parse(Path(tlkit.__file__).read_text()).body
    guarded = [node for node in statements if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    named = {alias.asname or alias.name for block in guarded for node in block.body for alias in node.names}
    assert named == set(tlkit.__all__) - {"__version__"}
