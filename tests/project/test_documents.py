"""Documents do what they say: their commands run, so does their Python, and their links lead somewhere.

Every command of every document is run, or it is in `PARSED` (its options are checked) or `SKIPPED`, with the reason.
The README and the walk-through of CONTRIBUTING run as they stand, on real weights, the other documents with the tiny
backbone in place of the large ones; all in forks of one process. That a shell finds the command is `story`'s test.
"""

from __future__ import annotations

import ast
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.util import find_spec

import click
import numpy as np
import onnx
import pytest

from tests.kit.components import environment
from tests.kit.distribution import describe, entry_points, install_project
from tests.kit.faults import preprocessed
from tests.kit.modes import pictures_of_every_mode
from tests.kit.tiny import write_images
from tests.project.documents import LANGUAGES, blocks, broken_links, commands, documents, name_of
from tlkit.cli import cli
from tlkit.conformance.scaffold import names, write
from tlkit.data.preprocessing import load
from tlkit.plugin.kinds import KINDS
from tlkit.runtime.model import Model

# Commands that are neither run nor parsed, and why.
SKIPPED = {
    r"pip (un)?install ": "it changes the environment that the tests run in",
    r"make ": "tests/project/test_demo.py runs the demo, and `make test` is this suite",
    r"python (benchmarks/|-m benchmarks)": "tests/project/test_benchmarks.py runs every script",
    r"curl ": "tests/serving/test_client.py sends the same to a server",
    r"python -m build |twine ": "publishing needs a network and an account",
}
# Commands whose options alone are checked, and why.
PARSED = {
    r"tlkit serve ": "it serves until it is stopped; tests/serving starts servers",
    r"torchrun ": "tests/training/test_processes.py starts several processes",
    r"tlkit .*--(tensorrt|device|gpu)\b": "it needs an NVIDIA GPU, or an engine that takes minutes to build",
    r"tlkit (train|advise) .*(timm|torchvision|transformers)/": "it needs weights from the network",
    r"tlkit embed .*--ray": "tests/embedding/test_cluster.py starts a cluster",
    r"tlkit .*executorch": "lowering takes a minute; tests/plugins/test_packages.py does it",
    r"tlkit (embed|train) .*('|\.zip|list\.csv|s3:)": "it needs archives and tables, which the tests of sources make",
    r"tlkit plugins check my": "tests/conformance/test_scaffold.py runs the checks of a new plugin",
}
TINY_DEFAULTS = """
from tlkit import defaults
defaults.DEFAULT_BACKBONE, defaults.DEFAULT_HEAD = "tiny", "line"
"""
NEEDS = {
    "plugins/tlkit-openvino/README.md": "openvino",
    "plugins/tlkit-torchvision/README.md": "torchvision",
    "plugins/tlkit-transformers/README.md": "transformers",
}
# Python that imports one of them runs where it is installed; the last needs a server with pgvector, which PGHOST names.
OPTIONAL = ("duckdb", "polars", "datasets", "lancedb", "psycopg")
PROSE_ONLY = "..."  # in the body of Python that shows a signature
SERVER = "localhost:8000"  # in Python that tests/serving/test_client.py runs
STORY = ("README.md", "CONTRIBUTING.md")  # run on real weights, each by a test of its own


def reason(command: str, table: dict[str, str]) -> str | None:
    return next((why for pattern, why in table.items() if re.match(pattern, command)), None)


def runnable(lines: Iterable[str]) -> list[str]:
    return [line for line in lines if not reason(line, SKIPPED) and not reason(line, PARSED)]


def parse(command: str) -> None:
    """Check the verb, the options and their values; nothing is run."""
    words = shlex.split(command)
    verb, *arguments = words[words.index("tlkit") + 1 :]
    with click.Context(cli) as context:
        found = cli.get_command(context, verb)
        assert found is not None, f"there is no command {verb!r}"
        found.make_context(verb, arguments, context)


def test_every_block_names_its_language_and_python_is_python():
    found = {name_of(document): blocks(document) for document in documents()}
    assert len(found) >= 12
    assert sum(len(each) for each in found.values()) >= 25
    for name, each in found.items():
        assert {block.language for block in each} <= LANGUAGES, name
        for block in each:
            if block.language == "python":
                ast.parse(block.text)


def test_every_link_leads_somewhere():
    assert [link for document in documents() for link in broken_links(document)] == []


@pytest.fixture(scope="module")
def tiny_place(tmp_path_factory, forks):
    """photos/, test/, a.jpg, b.jpg and an exported bundle of the tiny backbone, and the environment it needs."""
    root = tmp_path_factory.mktemp("place")
    write_images(root / "photos")
    shutil.copytree(root / "photos", root / "test")
    shutil.copytree(root / "photos/middle", root / "unlabelled")
    for name in ("a.jpg", "b.jpg"):
        shutil.copy(root / "photos/dark/00.png", root / name)
    env = environment(root / "site")
    train = "tlkit train photos/ -o run/ --strategy frozen --backbone tiny --head line"
    run_all(forks, [train, "tlkit export run/ --onnx"], root, env)
    return root, env


def run_all(forks, lines, root, env):
    """Run commands one after the other; each has to succeed."""
    for line in lines:
        words = shlex.split(line)
        assert words[0] == "tlkit", line
        if words[1] == "train":  # as if those before it had not been run
            shutil.rmtree(root / words[words.index("-o") + 1], ignore_errors=True)
        finished = forks.run(words, cwd=root, env=env)
        assert finished.code == 0, (line, finished.err)


def with_tiny(command: str) -> str:
    """The command with the tiny backbone and one epoch."""
    command = re.sub(r"efficientnet-lite\d", "tiny", command)
    command = re.sub(r"(strategy\.epochs)=\d+", r"\1=1", command)
    if command.startswith(("tlkit train", "tlkit advise")) and "--backbone" not in command:
        command += " --backbone tiny"
    if re.search(r"--strategy (full|partial|probe-then-tune|gradual|replace|scratch|surgical|lora)", command):
        command += "" if "--head" in command else " --head line"
        command += "" if "strategy.epochs" in command else " --set strategy.epochs=1"
    return command


ONES = [document for document in documents() if name_of(document) not in STORY and blocks(document)]


@pytest.mark.parametrize("document", ONES, ids=name_of)
def test_the_commands_and_the_python_of_a_document_run(document, forks, tiny_place, monkeypatch):
    root, env = tiny_place
    needed = NEEDS.get(name_of(document))
    if needed and find_spec(needed) is None:
        pytest.skip(f"needs {needed}")
    if document.parent.parent.name == "plugins":
        install_project(root / "site", document.parent)
    lines = commands(blocks(document))
    monkeypatch.chdir(root)
    for line in lines:
        if reason(line, PARSED):
            parse(line)
    if not (root / "run/onnx").exists():  # another document trained run/ again
        run_all(forks, ["tlkit export run/ --onnx"], root, env)
    run_all(forks, [with_tiny(line) for line in runnable(lines)], root, env)
    python = [block.text for block in blocks(document) if block.language == "python" and PROSE_ONLY not in block.text]
    absent = [f"import {package}\n" for package in OPTIONAL if find_spec(package) is None]
    absent += [] if "PGHOST" in os.environ else ["import psycopg\n"]
    python = [text for text in python if SERVER not in text and not any(each in text for each in absent)]
    for text in python:
        done = forks.run(["-c", TINY_DEFAULTS + text], cwd=root, env=env)
        assert done.code == 0, (text, done.err)


@pytest.mark.parametrize("kind", ["backbone", "head", "source", "strategy", "target"])
def test_the_readme_of_a_new_plugin_does_what_it_says(kind, forks, tiny_place, tmp_path, monkeypatch):
    root, env = tiny_place
    write(names(f"tlkit-my{kind}", kind), tmp_path / "new")
    install_project(root / "site", tmp_path / "new")
    found = blocks(tmp_path / "new" / "README.md")
    lines = commands(found)
    assert {block.language for block in found} <= LANGUAGES
    assert f"tlkit plugins check my{kind}" in lines
    monkeypatch.chdir(root)
    for line in lines:
        if reason(line, PARSED):
            parse(line)
    typed = [with_tiny(line) for line in runnable(lines) if line not in ("pytest", "mypy")]
    assert typed
    run_all(forks, typed, root, env)


def test_the_commands_of_the_readme_run_in_order(forks, story, place, checkout):
    lines = commands(blocks(checkout / "README.md"))
    for line in lines:
        if reason(line, PARSED):
            parse(line)
    run = runnable(lines)
    assert len(run) >= 8
    assert {line.split()[1] for line in run} >= {"train", "export", "verify", "predict", "embed", "eval", "plugins"}
    for line in run:
        finished = forks.run(shlex.split(line), cwd=place, env=story.env)
        assert finished.code == 0, (line, finished.err)
        assert "warning" not in finished.err
    assert (place / "features.parquet").exists()


@pytest.fixture(scope="module")
def snippets(checkout):
    found = [block.text for block in blocks(checkout / "README.md") if block.language == "python"]
    assert len(found) >= 2
    return found


def test_the_script_without_tlkit_gives_what_predict_gives(snippets, tlkit, story, tmp_path):
    script = next(text for text in snippets if "sys.argv" in text)
    assert "tlkit" not in re.sub(r'"tlkit\.\w+"', "", script)  # but for the names of facts in the graph
    (tmp_path / "script.py").write_text(script)
    names = ["a.jpg", "b.jpg", *(f"test/6/{file.name}" for file in sorted((story.root / "test/6").iterdir())[:2])]
    expected = tlkit("predict", story.model, *names, cwd=story.root).out.splitlines()
    for name, line in zip(names, expected, strict=True):
        command = [sys.executable, tmp_path / "script.py", story.model, name]
        finished = subprocess.run(command, cwd=story.root, capture_output=True, text=True, check=True)
        label, probability = finished.stdout.split()
        assert [name, label] == line.split("\t")[:2]
        assert float(probability) == pytest.approx(float(line.split("\t")[2]), abs=1e-4)


@pytest.mark.parametrize("mode", ["squash", "border"])
def test_the_script_without_tlkit_knows_every_crop_mode(
    snippets, tiny_run, pictures, tmp_path, monkeypatch, capsys, mode
):
    graph = onnx.load(tiny_run / "onnx/fp32/model.onnx")
    preprocessed(crop_mode=mode, size=32)(graph)
    onnx.save(graph, tmp_path / "model.onnx")
    (tmp_path / "script.py").write_text(next(text for text in snippets if "sys.argv" in text))
    image = min(pictures.rglob("*.png"))  # 48 x 40 pixels
    expected = Model.open(tmp_path / "model.onnx").predict(image)[0]
    assert expected.probability != Model.open(tiny_run).predict(image)[0].probability
    monkeypatch.setattr("sys.argv", ["script.py", str(tmp_path / "model.onnx"), str(image)])
    runpy.run_path(str(tmp_path / "script.py"))
    label, probability = capsys.readouterr().out.split()
    assert (label, float(probability)) == (expected.label, pytest.approx(expected.probability, abs=1e-6))


def test_the_script_without_tlkit_sees_what_predict_sees_or_refuses(snippets, tiny_run, tmp_path, monkeypatch):
    (tmp_path / "script.py").write_text(next(text for text in snippets if "sys.argv" in text))
    graph = tiny_run / "onnx/fp32/model.onnx"
    preprocessing, seen, refused = Model.open(graph).preprocessing, [], []
    for file in pictures_of_every_mode(tmp_path):
        monkeypatch.setattr("sys.argv", ["script.py", str(graph), str(file)])
        try:
            pixels = np.asarray(runpy.run_path(str(tmp_path / "script.py"))["square"])
        except SystemExit as end:
            refused.append((file.name, str(end)))
            continue
        assert np.abs(pixels.astype(int) - load(file, preprocessing)).max() <= 1, file.name
        seen.append(file.name)
    assert len(seen) >= 20
    assert {"L.JPEG", "RGBA.PNG", "RGBA.WEBP", "LA.PNG", "P.GIF", "index.png", "gray.png"} <= set(seen)
    assert {"I-16.PNG", "CMYK.JPEG", "F.TIFF", "RGBA.BMP"} <= {name for name, _ in refused}
    assert {why for _, why in refused} == {"save it with 8 bits per channel, in gray or RGB, as JPEG or PNG"}


def test_the_other_python_of_the_readme_runs(snippets, forks, story, place):
    shutil.copy(story.root / "b.jpg", place)
    rest = [text for text in snippets if "sys.argv" not in text]
    assert rest
    for text in rest:
        source = f"{text}\nprint(features.dtype, features.shape)"
        finished = forks.run(["-c", source], cwd=place, env=story.env)
        assert finished.code == 0, finished.err
        lines = finished.out.splitlines()
        assert [line.split()[0] for line in lines[-3:]] == ["a.jpg", "b.jpg", "float32"]
        comment = re.search(r"# (float32 \(.*\))$", text, re.MULTILINE)
        assert lines[-1] == comment[1]


def test_the_plugin_of_the_walk_through_works(forks, story, place, checkout):
    found = blocks(checkout / "CONTRIBUTING.md")
    written = [block for block in found if block.file]
    assert len(written) >= 2
    for block in written:
        (place / block.file).parent.mkdir(parents=True, exist_ok=True)
        (place / block.file).write_text(block.text)

    lines, paths, done = commands(found), [], {}
    assert len(lines) >= 5
    for line in lines:
        env = {**story.env, "PYTHONPATH": ":".join(map(str, paths))}
        if line.startswith("pip install -e "):
            paths += installed(place / shlex.split(line)[-1])
            continue
        if reason(line, SKIPPED):
            continue
        words = shlex.split(line)
        assert words[0] in ("tlkit", "pytest"), f"what is this test to do with: {line}"
        done[line] = forks.run(words if words[0] == "tlkit" else ["-m", *words], cwd=place, env=env)
        assert done[line].code == 0, (line, done[line].err)
        assert "warning" not in done[line].err
    assert paths
    assert "mynet" in done["tlkit plugins"].out
    assert "edges" in done["tlkit plugins"].out
    assert " passed" in done["pytest tlkit-edges/"].out
    assert " golden images, pixels identical" in done["tlkit verify run/"].out


def installed(project):
    """The paths by which an editable install would make a project known; running pip would change this environment."""
    facts = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    site = project.parent / f"site-{project.name}"
    site.mkdir()
    describe(site, facts["name"], entry_points(facts), facts["version"])
    return [site, project]


def test_the_hooks_stand_there_with_their_signatures(checkout):
    text = (checkout / "CONTRIBUTING.md").read_text()
    stated = re.findall(r"^def (tlkit_\w+)\((.*?)\) -> (\S+): \.\.\.$", text, re.MULTILINE)
    real = sorted((kind.hook, "", f"Iterable[{kind.base.__name__}]") for kind in KINDS.values())
    assert sorted(stated) == real
    assert len(real) >= 4
