"""README.md and CONTRIBUTING.md do what they say: their commands are run, and their Python is."""

from __future__ import annotations

import inspect
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.kit.distribution import describe, entry_points
from tlkit.plugin import hooks


class Block(NamedTuple):
    """A fenced block: its language, its text, and the file it is to be written to, where its first line names one."""

    language: str
    text: str
    file: str | None


def blocks(document):
    """All fenced blocks of a document, in order."""
    found, inside = [], None
    for line in document.read_text("utf-8").splitlines(keepends=True):
        if not line.startswith("```"):
            if inside is not None:
                inside.append(line)
        elif inside is None:
            language, inside = line[3:].strip(), []
        else:
            named = re.match(r"# file: (\S+)", inside[0])
            found.append(Block(language, "".join(inside), named[1] if named else None))
            inside = None
    assert inside is None, "a block that is not closed"
    return found


def commands(found):
    """What is typed behind the prompts, in order, without what installs tlkit itself or makes the project."""
    lines = [line for block in found if block.language == "console" for line in block.text.splitlines()]
    typed = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return [line for line in typed if not re.match(r'make |pip install "?tlkit\b', line)]


@pytest.fixture
def place(story, tmp_path):
    """What the documents take for granted: photos/, test/ and a.jpg, and nothing trained."""
    for name in ("photos", "test"):
        shutil.copytree(story.root / name, tmp_path / name)
    shutil.copy(story.root / "a.jpg", tmp_path)
    return tmp_path


def test_the_commands_of_the_readme_run_in_order(shell, story, place, checkout):
    lines = commands(blocks(checkout / "README.md"))
    assert len(lines) >= 8
    assert {line.split()[1] for line in lines} >= {"train", "export", "verify", "predict", "embed", "eval", "plugins"}
    for line in lines:
        finished = shell(line, cwd=place, env=story.env)
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


def test_the_other_python_of_the_readme_runs(snippets, story):
    rest = [text for text in snippets if "sys.argv" not in text]
    assert rest
    for text in rest:
        source = f"{text}\nprint(features.dtype, features.shape)"
        command = [sys.executable, "-c", source]
        finished = subprocess.run(command, cwd=story.root, capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stderr
        assert [line.split()[0] for line in finished.stdout.splitlines()] == ["a.jpg", "b.jpg", "float32"]
        comment = re.search(r"# (float32 \(.*\))$", text, re.MULTILINE)
        assert finished.stdout.splitlines()[-1] == comment[1]


def test_the_plugin_of_the_walk_through_works(shell, story, place, checkout):
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
        assert line.startswith(("tlkit ", "pytest ")), f"what is this test to do with: {line}"
        done[line] = shell(line, cwd=place, env=env)
        assert done[line].code == 0, (line, done[line].err)
        assert "warning" not in done[line].err
    assert paths
    assert "mynet" in done["tlkit plugins"].out
    assert "edges" in done["tlkit plugins"].out
    assert " passed" in done["pytest tlkit-edges/"].out
    assert "onnx/fp32: 8 golden images, pixels identical" in done["tlkit verify run/"].out


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
    real = []
    for name, hook in inspect.getmembers(hooks, inspect.isfunction):
        if name.startswith("tlkit_"):
            signature = inspect.signature(hook)
            real.append((name, ", ".join(signature.parameters), signature.return_annotation))
    assert sorted(stated) == real
    assert len(real) >= 4


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md"])
def test_every_link_to_a_file_leads_somewhere(checkout, name):
    document = checkout / name
    targets = re.findall(r"\]\(([^)#\s]+)", document.read_text())
    assert [each for each in targets if "://" not in each and not (document.parent / each).exists()] == []
    assert Path(document).exists()
