"""The Python API: its signatures, what importing it costs, and how names, options and paths are resolved."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import tlkit
from tests.kit.distribution import install
from tlkit.errors import DataError, ResourceError, TlkitWarning, UsageError

SNAPSHOT = Path(__file__).with_name("signatures.txt")
PLUGIN_AUTHOR = {
    "Backbone",
    "Component",
    "DatasetStatistics",
    "Head",
    "OptimizationProfile",
    "Phase",
    "Preprocessing",
    "Session",
    "Strategy",
    "Target",
    "TlkitError",
    "Weights",
    "hookimpl",
    "option",
}


def signatures() -> str:
    """Every public function with its signature, and every public class with its fields and public methods."""
    lines = []
    for name in sorted(tlkit.__all__):
        value = getattr(tlkit, name)
        if inspect.isfunction(value):
            lines.append(f"{name}{inspect.signature(value)}")
        elif inspect.isclass(value):
            lines.append(f"class {name}({', '.join(base.__name__ for base in value.__bases__)})")
            methods = [each for each in vars(value) if not each.startswith("_") or each == "__init__"]
            for method in sorted(methods):
                found = inspect.getattr_static(value, method)
                function = getattr(found, "__func__", found)
                if inspect.isfunction(function):
                    lines.append(f"    {method}{inspect.signature(function)}")
    return re.sub(r" at 0x\w+", "", "\n".join(lines)) + "\n"


def test_the_public_signatures_change_on_purpose_only():
    """After a change on purpose, `python -m tests.test_api` writes the snapshot, and CHANGELOG gives the reason."""
    assert signatures() == SNAPSHOT.read_text("utf-8")


def test_every_public_name_is_there_and_is_documented():
    assert set(tlkit.__all__) >= PLUGIN_AUTHOR
    assert set(tlkit.__all__) <= set(dir(tlkit))
    for name in tlkit.__all__:
        value = getattr(tlkit, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, name


def test_a_public_function_is_not_hidden_by_a_room():
    source = """
import pkgutil, tlkit
rooms = [module.name for module in pkgutil.walk_packages(tlkit.__path__, "tlkit.")]
print(sorted(set(tlkit.__all__) & {room.removeprefix("tlkit.") for room in rooms}))
"""
    finished = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert finished.stdout == "[]\n"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'tlkit' has no attribute 'trian'"):
        _ = tlkit.trian


def test_importing_the_functions_loads_no_framework():
    source = "import json, sys, tlkit; tlkit.train, tlkit.load, tlkit.Backbone; print(json.dumps(list(sys.modules)))"
    finished = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    heavy = {"numpy", "onnx", "onnxruntime", "PIL", "pyarrow", "safetensors", "scipy", "sklearn", "torch", "pluggy"}
    assert heavy.isdisjoint(json.loads(finished.stdout))


class TestTrain:
    """Arguments that are refused before any image is read."""

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            ({"head": "logistics", "strategy": "frosen"}, "strategy 'frosen'.*'frozen'.*head 'logistics'.*'logistic'"),
            ({"strategy": "frozen", "options": {"head.pcs": 3}}, r"option head.pcs: .*did you mean 'pca'"),
            ({"strategy": "frozen", "options": {"head.pca": 1.5}}, "option head.pca: must be int, not 1.5"),
            ({"strategy": "frozen", "options": {"head.pca": "1.5"}}, "option head.pca: must be int, not '1.5'"),
            ({"strategy": "frozen", "options": {"pca": 3}}, "option pca: is not of the form kind.option"),
            ({"options": {"head.pca": 3}}, "option head.pca: auto decides on the head; name the head"),
            ({"strategy": "auto", "options": {"strategy.epochs": 3}}, "auto decides on the strategy"),
            ({"strategy": "frozen", "budget": 10.0}, "a budget is for trial runs; use strategy auto"),
        ],
    )
    def test_refused(self, pictures, tmp_path, arguments, says):
        with pytest.raises(UsageError, match=says):
            tlkit.train(pictures, tmp_path / "run", **arguments)
        assert list(tmp_path.iterdir()) == []

    def test_an_address_is_named_as_it_was_given(self, tmp_path):
        with pytest.raises(ResourceError, match=r"^(reading )?made-up://bucket/x (can't be reached|needs)"):
            tlkit.train("made-up://bucket/x", tmp_path / "run")
        with pytest.raises(UsageError, match=r"^s3://bucket/run: only local files"):
            tlkit.train(tmp_path, "s3://bucket/run")


def test_a_result_stands_where_a_bundle_does(own_run):
    class Result:
        def __fspath__(self):
            return str(own_run)

    assert tlkit.inspect(Result()).exports == ("onnx/fp32",)
    assert tlkit.verify(Result()).passed


def test_paths_may_be_text_and_one_is_not_a_sequence_of_letters(own_run, pictures, tmp_path):
    one = min(pictures.rglob("*.png"))
    with tlkit.load(str(own_run)) as model:
        assert tlkit.embed(model, str(one), str(tmp_path / "one.npy")).rows == 1
        assert tlkit.embed(str(own_run), [str(one), max(pictures.rglob("*.png"))], tmp_path / "two.npy").rows == 2
        result = tlkit.evaluate(model, str(pictures))
    assert result.metrics.images == 36
    assert str(result) == repr(result)
    assert str(result).startswith(f"36 images (all)\ntrained on {result.trained_on} of these 36: ")
    assert "\naccuracy  " in str(result)
    assert result.to_json()["labels"] == ["dark", "light", "middle"]


def test_progress_is_a_callable(own_run, pictures):
    said = []

    def progress(what, total):
        return lambda more, _said="": said.append((what, total, more))

    tlkit.evaluate(own_run, pictures, progress=progress)
    assert {(what, total) for what, total, _ in said} == {("evaluating", 36)}
    assert sum(more for *_, more in said) == 36


def test_the_cpu_takes_over_only_where_that_is_allowed_and_with_a_warning(own_run):
    with pytest.raises(ResourceError):
        tlkit.load(own_run, device="cuda")
    with pytest.warns(TlkitWarning, match="the CPU is used instead"):
        tlkit.load(own_run, device="cuda", allow_cpu=True)


def test_components_are_listed_by_kind_and_pattern():
    names = [component.name for component in tlkit.list_components("backbone", "efficientnet-lite*")]
    assert len(names) == 3
    assert {component.kind for component in tlkit.list_components()} >= {"backbone", "head", "strategy", "target"}
    assert tlkit.list_components("head", "nothing*") == []
    (svm,) = tlkit.list_components("head", "svm")
    assert str(svm).startswith("head svm (tlkit ")
    assert repr([svm]).startswith("[<head svm (tlkit ")


def test_a_broken_plugin_is_a_warning_and_no_error(tmp_path):
    install(tmp_path, "raising", "raise ValueError('out of order')")
    source = """
import sys, warnings
sys.path.insert(0, sys.argv[1])
import tlkit
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        tlkit.list_components()
print([(each.category.__name__, str(each.message)) for each in caught])
"""
    command = [sys.executable, "-c", source, str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert finished.stdout.count("TlkitWarning") == 1
    assert "out of order" in finished.stdout


def test_a_bundle_that_is_not_there():
    for call in (tlkit.verify, tlkit.inspect, tlkit.export, tlkit.load, tlkit.benchmark):
        with pytest.raises(DataError, match="nowhere"):
            call("nowhere")


def test_nothing_is_printed(own_run, pictures, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tlkit.verify(own_run)
        tlkit.inspect(own_run)
        tlkit.evaluate(own_run, pictures)
        tlkit.list_components()
    assert capfd.readouterr() == ("", "")


if __name__ == "__main__":
    SNAPSHOT.write_text(signatures(), "utf-8")
