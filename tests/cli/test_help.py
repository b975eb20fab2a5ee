"""Help, examples, nearest names and shell completion: what one leans on before knowing the commands."""

from __future__ import annotations

import json
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import tlkit.cli
from tlkit.cli import VERBS, cli
from tlkit.version import __version__

HEAVY = {"numpy", "onnx", "onnxruntime", "PIL", "pyarrow", "safetensors", "scipy", "sklearn", "torch"}


def commands(group=cli, *path):
    """Every command, and every command below one, by the words that it is called with."""
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)


COMMANDS = {" ".join(words): command for words, command in commands()}


def examples(name):
    """The command lines below "Examples:" in a command's help, without what a shell takes care of."""
    text = CliRunner().invoke(cli, [*name.split(), "--help"]).output
    assert "  Examples:\n" in text
    lines = text.split("  Examples:\n")[1].split("\n\n")[0].splitlines()
    return [re.search(r"\btlkit [^>)|]*", line)[0] for line in lines]


def test_the_tables_of_commands_say_what_the_commands_say():
    shared = {"options", "output"}
    assert {module.name for module in pkgutil.iter_modules(tlkit.cli.__path__)} - shared == set(VERBS)
    groups = [cli, *(command for command in COMMANDS.values() if isinstance(command, click.Group))]
    for group in groups:
        told = {name: group.get_command(click.Context(group), name).short_help for name in group.verbs}
        assert dict(group.verbs) == told


@pytest.mark.parametrize("name", COMMANDS)
def test_each_example_is_a_command_line_that_parses(name, monkeypatch):
    monkeypatch.setattr(click.Command, "invoke", lambda _command, _context: None)  # parse, and do nothing
    lines = examples(name)
    assert len(lines) >= 2
    for line in lines:
        assert line.startswith(f"tlkit {name}")
        cli.main(shlex.split(line)[1:], standalone_mode=False)  # raises click.UsageError for what doesn't parse


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_told_on_one_page(name):
    module = sys.modules[COMMANDS[name].callback.__module__]
    assert len(Path(module.__file__).read_text("utf-8").splitlines()) <= 80


@pytest.mark.parametrize("name", COMMANDS)
def test_each_option_is_explained(name):
    options = [each for each in COMMANDS[name].params if isinstance(each, click.Option)]
    assert all(each.help and each.help.endswith(".") for each in options)


def test_help_of_every_verb_loads_nothing_heavy():
    source = f"""
import contextlib, io, json, sys
from tlkit.cli import run
out = io.StringIO()
with contextlib.redirect_stdout(out):
    codes = [run(line.split()) for line in {["--help", "--version", *(f"{name} --help" for name in COMMANDS)]}]
print(json.dumps([codes, len(out.getvalue()), list(sys.modules)]))
"""
    finished = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    codes, length, modules = json.loads(finished.stdout)
    assert set(codes) == {0}
    assert length > 3000
    assert HEAVY.isdisjoint(modules)


def test_without_arguments_the_help_is_shown_and_it_is_an_error(console_script):
    finished = console_script()
    assert (finished.code, finished.out) == (2, "")
    assert finished.err.startswith("Usage: tlkit")
    assert console_script("--help").out == finished.err
    assert console_script("--debug").err == finished.err


def test_version(console_script):
    finished = console_script("--version")
    assert (finished.code, finished.out, finished.err) == (0, f"tlkit, version {__version__}\n", "")


def test_as_a_module():
    finished = subprocess.run([sys.executable, "-m", "tlkit", "--version"], capture_output=True, text=True, check=True)
    assert __version__ in finished.stdout


@pytest.mark.parametrize(("typed", "meant"), [("predikt", "predict"), ("evaluate", "eval"), ("verfy", "verify")])
def test_a_mistyped_verb_is_recognized(tlkit, typed, meant):
    assert f"did you mean '{meant}'?" in tlkit(typed).err


@pytest.mark.parametrize(("verb", "typed", "meant"), [("train", "--hed", "--head"), ("embed", "--outt", "--out")])
def test_a_mistyped_option_is_recognized(tlkit, verb, typed, meant):
    assert re.search(f"Did you mean.*{meant}'", tlkit(verb, typed, "x").err)


class TestCompletion:
    @pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
    def test_the_script_is_what_the_shell_understands(self, tlkit, name, tmp_path):
        finished = tlkit("completion", name)
        assert finished.code == 0
        assert "_TLKIT_COMPLETE" in finished.out
        if shutil.which(name):
            (tmp_path / "script").write_text(finished.out)
            subprocess.run([name, "-n", "script"], cwd=tmp_path, check=True)

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            (("tlkit", "pre"), {"predict"}),
            (("tlkit", "train", "--back"), {"--backbone"}),
            (("tlkit", "train", "--backbone", "efficientnet-l"), {f"efficientnet-lite{n}" for n in range(3)}),
            (("tlkit", "train", "--strategy", ""), {"frozen"}),
            (("tlkit", "train", "--head", "log"), {"logistic"}),
            (("tlkit", "completion", "f"), {"fish"}),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
    )
    def test_bash_completes(self, tlkit, shell, tmp_path, words, expected):
        (tmp_path / "script").write_text(tlkit("completion", "bash").out)
        typed = shlex.join(words)
        line = f"source ./script; COMP_WORDS=({typed}) COMP_CWORD={len(words) - 1}; _tlkit_completion tlkit"
        finished = shell(f'{line}; printf "%s\\n" "${{COMPREPLY[@]}}"', cwd=tmp_path)
        assert set(finished.out.split()) >= expected
        assert all(word.startswith(words[-1]) for word in finished.out.split())

    def test_names_are_completed_without_a_framework(self):
        source = """
import sys
from click.shell_completion import ShellComplete
from tlkit.cli import cli
items = ShellComplete(cli, {}, "tlkit", "_TLKIT_COMPLETE").get_completions(["train", "--head"], "")
print([item.value for item in items], "torch" in sys.modules, "numpy" in sys.modules)
"""
        finished = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
        assert "'logistic'" in finished.stdout
        assert finished.stdout.endswith("] False False\n")
