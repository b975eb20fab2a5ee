"""Mutated artifacts are refused by a line and an exit code, never by a bug; what is not refused gives what it gave."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from random import Random

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kit.hostile import mutate
from tests.kit.serving import open_graph
from tests.kit.tiny import resign, resign_bundle
from tlkit import cli
from tlkit.errors import TlkitError
from tlkit.serving.loading import Loader
from tlkit.serving.models import retire
from tlkit.serving.scheduler import Scheduler

SETTINGS = settings(
    max_examples=int(os.environ.get("TLKIT_EXAMPLES", "15")),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(
        [-1, 0, 2**70, 1e308, float("nan"), float("inf"), "", "\0", "\ud800", "../x", "\x1b[31m", "x" * 300]
    ),
    st.sampled_from([[], {}, [[]], [None], {"a": {}}, {"": ""}]),
)
ENDS = (0, 3, 4, 5, 6)  # 1 would be a bug, 2 a wrong command line
VERBS = ("inspect {run}", "verify {run}", "predict {run} {photos}")


@pytest.fixture
def ends(own_run, pictures, tmp_path, capsys):
    """Runs a verb on a copy of a bundle that a function has changed; the exit code."""

    def run(change, verb):
        place = tmp_path / "mutated"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(own_run, place)
        change(place)
        code = cli.run(verb.format(run=place, photos=pictures).split())
        said = capsys.readouterr()
        assert code in ENDS, said.err
        assert "a bug in tlkit" not in said.err
        assert code == 0 or said.err.count("\n") >= 1
        return code

    return run


def places(content, path=()):
    """All paths of a JSON value to what can be replaced."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield (*path, key)
        if len(path) < 4:
            yield from places(value, (*path, key))


def change_json(file, chance, value):
    """Replace or remove one value, or add one under another name."""
    content = json.loads(file.read_text())
    *above, last = chance.choice([path for path in places(content) if path[0] not in ("digest", "files")])
    parent = content
    for key in above:
        parent = parent[key]
    if value is None and isinstance(parent, dict) and chance.random() < 0.5:
        del parent[last]
    else:
        parent[last] = value
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("verb", VERBS)
@SETTINGS
@given(seed=st.integers(0, 2**32), value=VALUES)
def test_a_record_of_another_shape(ends, verb, seed, value):
    def change(run):
        change_json(run / "bundle.json", Random(seed), value)
        resign_bundle(run)

    ends(change, verb)


@pytest.mark.parametrize("verb", ["inspect {run}", "card {run} -o {run}/card"])
@pytest.mark.parametrize("count", [2**70, "many", None])
def test_counts_that_are_none_are_refused(ends, verb, count):
    """Metrics are not checked when a bundle is opened, but where they are shown."""
    if "card" in verb:
        pytest.importorskip("huggingface_hub")

    def change(run):
        content = json.loads((run / "bundle.json").read_text())
        content["metrics"]["val"]["confusion"][0][0] = count
        (run / "bundle.json").write_text(json.dumps(content))
        resign_bundle(run)

    assert ends(change, verb) == 4


@pytest.mark.parametrize("verb", VERBS)
@SETTINGS
@given(seed=st.integers(0, 2**32), value=VALUES)
def test_a_manifest_of_another_shape(ends, verb, seed, value):
    ends(lambda run: change_json(run / "onnx/fp32/manifest.json", Random(seed), value), verb)


@pytest.mark.parametrize("verb", VERBS)
def test_a_manifest_that_is_nested_too_deeply(ends, verb):
    assert ends(lambda run: (run / "onnx/fp32/manifest.json").write_text("[" * 5000), verb) in (0, 4)


@pytest.mark.parametrize("name", [b"MatMul", b"tlkit.labels", b"probabilities"])
def test_a_graph_with_bytes_that_are_no_text(ends, name):
    """ONNX's checker quotes them in its complaint, or ONNX Runtime in a name; Python can't decode that."""

    def change(run):
        content = (run / "onnx/fp32/model.onnx").read_bytes()
        assert name in content or name == b"MatMul"
        other = content.replace(b"Gemm", b"Ge\xe5m") if name == b"MatMul" else content
        (run / "model.onnx").write_bytes(other.replace(name, name[:3] + b"\xe5" + name[4:]))

    for verb in ("predict {run}/model.onnx {photos}", "inspect {run}/model.onnx"):
        assert ends(change, verb) == 4


@SETTINGS
@given(seed=st.integers(0, 2**32), value=VALUES, name=st.sampled_from(["labels", "preprocessing", "heads", "cut"]))
def test_metadata_of_another_shape(ends, seed, value, name):
    def change(run):
        graph = onnx.load(run / "onnx/fp32/model.onnx")
        facts = {prop.key: prop.value for prop in graph.metadata_props}
        facts[f"tlkit.{name}"] = json.dumps(value) if Random(seed).random() < 0.8 else "{"
        onnx.helper.set_model_props(graph, facts)
        onnx.save(graph, run / "model.onnx")

    for verb in ("inspect {run}/model.onnx", "predict {run}/model.onnx {photos}", "eval {run}/model.onnx {photos}"):
        ends(change, verb)


@pytest.mark.parametrize(
    "name", ["trunk.safetensors", "head.safetensors", "golden/0.png", "golden/expected.safetensors"]
)
@SETTINGS
@given(seed=st.integers(0, 2**32))
def test_files_that_are_mutated_and_signed_again(ends, name, seed):
    def change(run):
        (run / name).write_bytes(mutate((run / name).read_bytes(), Random(seed)))
        resign_bundle(run)

    ends(change, "verify {run}" if "expected" in name or "png" in name else "inspect {run}")


@SETTINGS
@given(seed=st.integers(0, 2**32))
def test_a_mutated_graph(ends, seed):
    def change(run):
        file = run / "onnx/fp32/model.onnx"
        (run / "model.onnx").write_bytes(mutate(file.read_bytes(), Random(seed)))

    ends(change, "predict {run}/model.onnx {photos}")


@pytest.mark.parametrize("name", ["bundle.json", "onnx/fp32/trunk.onnx"])
@SETTINGS
@given(seed=st.integers(0, 2**32), value=VALUES)
def test_a_server_refuses_what_is_mutated_and_signed_again(own_run, name, seed, value):
    place = own_run.parent / "mutated"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(own_run, place)
    if name.endswith(".json"):
        change_json(place / name, Random(seed), value)
    else:
        (place / name).write_bytes(mutate((place / name).read_bytes(), Random(seed)))
    if name.startswith("onnx"):
        with contextlib.suppress(ValueError, KeyError, TypeError):  # of a manifest that lost its files
            resign(place, "trunk.onnx")
    else:
        resign_bundle(place)
    loader = Loader([place], "onnx/fp32", open_graph, lambda session, _: Scheduler(session, 8))
    with contextlib.suppress(TlkitError):
        retire(loader.load(strict=True))


@pytest.mark.parametrize("name", ["bundle.json", "trunk.safetensors", "golden/0.png", "onnx/fp32/model.onnx"])
@SETTINGS
@given(seed=st.integers(0, 2**32))
def test_verify_passes_nothing_that_was_changed(ends, name, seed):
    def change(run):
        before = (run / name).read_bytes()
        (run / name).write_bytes(mutate(before, Random(seed)))

    assert ends(change, "verify {run}") != 0
