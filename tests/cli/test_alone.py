"""Deployment needs neither the network's plugin nor what trains: everything beyond the base can't be found."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from tests.kit.distribution import beyond, hide
from tlkit.cli import VERBS


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The environment of an installation without extras and without plugins."""
    hidden = {*beyond("tlkit"), "tlkit_standard"}
    assert {"torch", "sklearn", "pyarrow", "onnxscript"} <= hidden
    assert hidden.isdisjoint({"click", "numpy", "onnx", "onnxruntime", "PIL", "safetensors"})
    return {**hide(tmp_path_factory.mktemp("bare"), hidden), "TLKIT_DISABLE_PLUGINS": "all"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The environment of an installation without extras: `pip install tlkit`."""
    return hide(tmp_path_factory.mktemp("base"), beyond("tlkit") - {"tlkit_standard"})


# The verbs that need an extra, and it; the other tests here run the others.
ASK = {
    "train {photos} -o run": "train",
    "train {photos} -o run --strategy full": "train",
    "train {photos} -o run --budget 60": "train",
    "advise {photos}": "train",
    "export {run} --onnx": "train",
    "plugins check logistic": "train",
    "verify {run} --data {photos}": "train",
    "bench {run} --target torch": "train",
    "embed {run} {photos} -o features/": "parquet",
    "index features.parquet": "index",
    "search features.parquet {photos} --model {run}": "parquet",
    "search features.parquet {photos} --model {run} --approximate": "index",
    "look {run} {image} -o look.html": "train",
    "serve {run} --port 0": "serve",
}
WORK = {"predict", "embed", "eval", "report", "suggest", "verify", "inspect", "plugins", "doctor", "completion"}
LATER = {"card"}  # tried in an environment of its own, see benchmarks/reported/system.py


def test_every_verb_is_tried():
    assert {line.split()[0] for line in ASK} | WORK | LATER == set(VERBS)


@pytest.mark.parametrize(("line", "extra"), ASK.items())
def test_what_needs_an_extra_names_it(console_script, story, base, tmp_path, line, extra):
    (tmp_path / "features.parquet").touch()
    arguments = line.format(photos=story.root / "photos", run=story.run, image=story.root / "a.jpg").split()
    finished = console_script(*arguments, cwd=tmp_path, env=base)
    assert finished.code == 5, finished.err
    assert f'pip install "tlkit[{extra}]"' in finished.err.splitlines()[-1]
    assert [file.name for file in tmp_path.iterdir()] == ["features.parquet"]


@pytest.fixture
def do(console_script, bare, tmp_path):
    """Runs tlkit in an empty folder; it has to succeed."""

    def run(*args):
        finished = console_script(*args, cwd=tmp_path, env=bare)
        assert finished.code == 0, finished.err
        return finished

    return run


@pytest.fixture
def model(story, tmp_path):
    """A copy of model.onnx, far from its bundle."""
    return shutil.copyfile(story.model, tmp_path / "model.onnx")


def test_the_rest_is_really_hidden(console_script, story, bare):
    finished = console_script("train", story.root / "photos", "-o", "run", env=bare)
    assert finished.code == 2
    assert "there is no backbone 'efficientnet-lite0'" in finished.err
    finished = console_script("embed", story.run, story.root / "a.jpg", "-o", "f.parquet", env=bare)
    assert finished.code == 5
    assert 'pip install "tlkit[parquet]"' in finished.err


def test_predict_and_the_command_it_names_next(do, tlkit, shell, bare, story, model, tmp_path):
    finished = do("predict", model, story.root / "test")
    elsewhere = tlkit("predict", story.run, story.root / "test", env=story.env)
    assert finished.out == elsewhere.out != ""
    assert shell(finished.next, cwd=tmp_path, env=bare).code == 0


def test_embed(do, tlkit, story, model, tmp_path):
    do("embed", model, story.root / "test", "-o", "bare.npy")
    tlkit("embed", story.run, story.root / "test", "-o", tmp_path / "full.npy", env=story.env)
    assert np.array_equal(np.load(tmp_path / "bare.npy"), np.load(tmp_path / "full.npy"))


def test_eval(do, tlkit, story, model):
    facts = do("eval", model, story.root / "test", "--json").json
    elsewhere = tlkit("eval", story.run, story.root / "test", "--json", env=story.env).json
    assert (facts.pop("trained_on"), elsewhere.pop("trained_on")) == (None, 0)  # a graph alone does not know
    assert {**facts, "next": ""} == {**elsewhere, "next": ""}


def test_verify_and_inspect(do, story, model):
    assert do("verify", story.run, "--json").json["onnx/fp32"]["passed"] is True
    assert do("inspect", story.run, "--json").json["digest"] == do("inspect", model, "--json").json["bundle"]


def test_report_writes_its_page(do, story, model, tmp_path):
    do("report", model, story.root / "test", "-o", "report.html")
    assert [file.name for file in tmp_path.iterdir() if file.suffix == ".html"] == ["report.html"]


def test_predict_answers_with_unknown_images_and_sets(do, story, model):
    lines = do("predict", model, story.root / "test", "--unknown", "--coverage", "0.9").out.splitlines()
    assert lines
    assert all("\tnovelty " in line for line in lines)


def test_suggest(do, story, model):
    do("suggest", model, story.root / "test", "-n", "2", "-o", "next.csv")


def test_what_describes_this_machine(do):
    assert do("doctor").out
    assert do("completion", "bash").out


def test_plugins_says_that_they_are_disabled(do):
    facts = json.loads(do("plugins", "--json").out)["plugins"]
    assert {plugin["state"] for plugin in facts} == {"disabled"}
