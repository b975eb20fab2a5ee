"""Every cache misses when one thing that decides changes, and hits when nothing does."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import fields, replace

import onnx
import onnxruntime
import PIL
import pytest
import torch
from tlkit_standard.detectors import Energy
from tlkit_standard.strategies import STRATEGIES

from tests.kit.tiny import Line, Scored, Seeded
from tlkit.graph import trace
from tlkit.model import trunk as trunks
from tlkit.model.trunk import fingerprint
from tlkit.plugin import sources
from tlkit.runtime import feature_cache
from tlkit.runtime.feature_cache import FeatureCache
from tlkit.training.config import TrainingConfig
from tlkit.training.device import Device, DeviceOptions
from tlkit.training.run import make_plan

PLUGIN = """
from dataclasses import dataclass
from pathlib import Path
import torch
from torch import nn
from tlkit import Backbone, Preprocessing, Weights, option
from decides.functions import bend

class Layer(nn.Module):
    def __init__(self, gain):
        super().__init__()
        self.linear, self.gain = nn.Linear(3, 5), gain
    def forward(self, x):
        return bend(self.linear(x.mean((2, 3))) * self.gain)

@dataclass(frozen=True)
class Decides(Backbone):
    name = "decides"
    preprocessing = Preprocessing(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    weights = Weights("a formula", license="Apache-2.0")
    gain: float = option(1.0, "read by forward alone")
    file: Path | None = option(None, "file with another gain", local=True)
    def stages(self, *, pretrained):
        torch.manual_seed(0)
        return {"only": Layer(float(self.file.read_text()) if self.file else self.gain)}
"""
FILES = {
    "__init__.py": PLUGIN,
    "functions.py": "import torch\nbend = torch.relu\n",
    "tables/values.txt": "1 2 3",
}


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Writes the plugin, with some of its files changed, and imports it as another process would."""
    monkeypatch.setenv("TLKIT_CACHE", str(tmp_path / "cache"))
    for name in ("_architecture", "extract_graph"):  # tracing takes seconds, and is not asked for
        monkeypatch.setattr(trace, name, lambda *_: None)
    monkeypatch.setattr(trace, "_complete", lambda *_: onnx.ModelProto(ir_version=10))
    monkeypatch.syspath_prepend(tmp_path / "site")

    def load(**changed):
        for name, content in {**FILES, **changed}.items():
            file = tmp_path / "site/decides" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
        for name in [name for name in sys.modules if name.partition(".")[0] == "decides"]:
            del sys.modules[name]
        importlib.invalidate_caches()
        sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
        try:
            module = importlib.import_module("decides")
        finally:
            sys.dont_write_bytecode = before
        sources._sources.cache_clear()
        return module.Decides

    yield load
    sources._sources.cache_clear()


def keys(backbone, change=lambda _: None, setting="cpu, all"):
    """The names of the cached graph, of the features and of the frozen views, and the identity of a run."""
    trunk = trunks.build(backbone)
    change(trunk)
    graph = trace.stage_graph(trunk)
    with FeatureCache(graph, trunk.preprocessing, setting) as cache:
        pass
    return graph, cache.file, fingerprint(trunk), str(sources.identity(backbone))


def flip(trunk):
    with torch.no_grad():
        trunk.stages["only"].linear.weight.view(torch.int32)[0, 0] ^= 1


def test_what_does_not_decide_hits(plugin, tmp_path):
    before = keys(plugin()())
    site = tmp_path / "site/decides"
    (site / "__pycache__").mkdir()
    (site / "__pycache__/functions.cpython-311.pyc").write_bytes(b"changed")
    (site.parent / "another_distribution.py").touch()
    assert keys(plugin()()) == before


@pytest.mark.parametrize(
    "files",
    [
        {"__init__.py": PLUGIN.replace("* self.gain", "* self.gain + 1")},
        {"functions.py": "import torch\nbend = torch.sigmoid\n"},
        {"tables/values.txt": "1 2 4"},
        {"new.py": ""},
    ],
    ids=lambda files: next(iter(files)),
)
def test_any_file_of_a_plugin_decides(plugin, files):
    before = keys(plugin()())
    assert not set(before) & set(keys(plugin(**files)()))


def test_an_option_that_only_forward_reads_decides(plugin):
    component = plugin()
    before = keys(component())
    assert not set(before) & set(keys(component(gain=2.0)))


def test_a_file_that_an_option_names_decides(plugin, tmp_path):
    component, file = plugin(), tmp_path / "gain.txt"
    file.write_text("2.0")
    before = keys(component(file=file))
    assert keys(component(file=file)) == before
    file.write_text("3.0")
    assert not set(before) & set(keys(component(file=file)))


def test_one_bit_of_a_weight_decides(plugin):
    component = plugin()
    before, after = keys(component()), keys(component(), flip)
    assert not set(before[:3]) & set(after[:3])


def test_the_version_of_pytorch_decides(plugin, monkeypatch):
    component = plugin()
    before = keys(component())
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert not set(before[:3]) & set(keys(component())[:3])


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        (onnxruntime, "__version__", "9.9"),
        (PIL, "__version__", "9.9"),
        (feature_cache, "processor_kind", lambda: "another"),
    ],
    ids=["ONNX Runtime", "Pillow", "processor"],
)
def test_what_runs_the_graph_decides_on_the_features(plugin, monkeypatch, module, name, value):
    component = plugin()
    graph, features, *_ = keys(component())
    assert keys(component(), setting="cpu, off")[1] != features
    monkeypatch.setattr(module, name, value)
    again, others, *_ = keys(component())
    assert (again, others != features) == (graph, True)


def test_modules_beside_a_single_module_decide(tmp_path, monkeypatch):
    """A distribution of two modules without a package, in an editable installation."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "decides_alone.py").write_text("import decides_other")
    (tmp_path / "decides_other.py").write_text("a = 1")
    importlib.import_module("decides_alone")
    before = sources.sources("decides_alone")
    (tmp_path / "decides_other.py").write_text("a = 2")
    assert sources.sources("decides_alone") == before  # what was imported goes on
    sources._sources.cache_clear()
    assert sources.sources("decides_alone") != before


def test_what_an_installer_recorded_decides(tmp_path, monkeypatch):
    site = tmp_path / "site-packages"
    (site / "decides_wheel-1.dist-info").mkdir(parents=True)
    monkeypatch.syspath_prepend(site)
    (site / "decides_wheel.py").touch()
    (site / "decides_layers.py").write_text("a = 1")
    (site / "stranger.py").touch()
    for name, content in {
        "METADATA": "Metadata-Version: 2.1\nName: decides-wheel\nVersion: 1\n",
        "entry_points.txt": "[tlkit]\ndecides = decides_wheel\n",
        "RECORD": "decides_wheel.py,,\ndecides_layers.py,,\n",
    }.items():
        (site / "decides_wheel-1.dist-info" / name).write_text(content)
    importlib.import_module("decides_wheel")
    before = sources.sources("decides_wheel")
    sources._sources.cache_clear()
    (site / "stranger.py").write_text("changed")
    assert sources.sources("decides_wheel") == before
    sources._sources.cache_clear()
    (site / "decides_layers.py").write_text("a = 2")
    assert sources.sources("decides_wheel") != before


def test_options_and_sources_of_every_component_are_in_the_identity_of_a_run():
    identity = sources.identity(Line())
    assert identity["name"] == Line.name
    assert identity["sources of the plugin"] == sources.sources("tests")


# What decides on a training, and what takes effect when the bundle is written: a resumed run may have another.
CHANGES = {
    "backbone": Seeded(),
    "strategy": replace(STRATEGIES[0], epochs=3),
    "head": Scored(),
    "detectors": {Energy(): ("tlkit", "0.1.0")},
    "cut": "first",
    "size": 64,
    "val": 0.4,
    "group": r"(\d+)\.png",
    "seed": 1,
    "refit": False,
    "views": 2,
    "cache": False,
    "blend": 0.5,
}
LATER = {"origins", "max_bad", "golden", "golden_strip", "advice"}
CPU = DeviceOptions("cpu", "fp32")


def test_every_field_of_a_configuration_is_known():
    assert {field.name for field in fields(TrainingConfig)} == LATER | set(CHANGES)


def test_what_decides_on_a_training_decides_whether_it_is_resumed(pictures, tiny_config, tmp_path):
    _, features = make_plan(pictures, tmp_path / "run", tiny_config).read(lambda _: None)

    def identity(options=CPU, features=features, **changes):
        plan = make_plan(pictures, tmp_path / "run", replace(tiny_config, **changes))
        return json.dumps(plan.identity(features, Device(options)), sort_keys=True)

    before, files = identity(), features.sha256
    assert identity(golden=1, max_bad=0.5, golden_strip=True) == before
    for name, value in CHANGES.items():
        assert identity(**{name: value}) != before, name
    assert identity(DeviceOptions("cpu", "bf16")) != before
    assert identity(DeviceOptions("cpu", "fp32", compile=True)) != before
    assert identity(DeviceOptions("cpu", "fp32", tf32=True)) == before  # a CPU has none
    assert identity(features=replace(features, sha256=[files[1], *files[1:]])) != before
