"""An architecture is traced once per machine, whatever the weights, and cut without another trace."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from tests.kit.tiny import Tiny
from tests.kit.vit import TinyVit
from tlkit.errors import PluginError, UsageError
from tlkit.graph import trace
from tlkit.graph.compose import stage_output
from tlkit.model import trunk as trunks
from tlkit.runtime.session import OnnxSession
from tlkit.util.files import cache_dir


@pytest.fixture(scope="module", autouse=True)
def traced(tmp_path_factory):
    """An empty cache for this module, and the modules that PyTorch traces."""
    modules, real = [], trace._export

    def export(module, *rest, **how):
        modules.append(module)
        return real(module, *rest, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TLKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(trace, "_export", export)
        yield modules


@pytest.fixture(scope="module")
def tiny():
    return trunks.build(Tiny())


def retrained(trunk, seed):
    """Give a trunk other weights and statistics, as a training does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in trunk.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(1 + 0.2 * torch.rand(tensor.shape, generator=generator))
    return trunk


@pytest.mark.parametrize("backbone", [Tiny(), TinyVit()])
def test_other_weights_cuts_and_maps_need_no_other_trace(backbone, traced):
    traced.clear()
    file = trace.stage_graph(trunks.build(backbone))
    assert len(traced) == 1
    assert trace.stage_graph(trunks.build(backbone)) == file
    trunk = retrained(trunks.build(backbone), 0)
    size = trunk.preprocessing.size
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    for part in (trunk, *(trunk.upto(name) for name in trunk.names)):
        got = OnnxSession(trace.stage_graph(part)).run(images)
        with torch.inference_mode():
            outputs = [each.numpy() for each in trunks.StageOutputs(part)(torch.from_numpy(images))]
        assert list(got) == [stage_output(name) for name in part.names]
        for array, expected in zip(got.values(), outputs, strict=False):
            assert np.allclose(array, expected, rtol=1e-4, atol=1e-4)
        (features,) = OnnxSession(trace.map_graph(part)).run(images).values()
        assert np.allclose(features, outputs[-1], rtol=1e-4, atol=1e-4)
    assert len(traced) == 1


def test_half_precision_is_traced_once_too(traced, tmp_path):
    traced.clear()
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    for seed in (0, 1):
        trunk = retrained(trunks.build(Tiny()), seed)
        onnx.save(trace.half_precision_graph(trunk), tmp_path / "half.onnx")
        (got,) = OnnxSession(tmp_path / "half.onnx").run(images).values()
        with torch.inference_mode():
            assert np.allclose(got, trunk(torch.from_numpy(images)).numpy(), rtol=0.02, atol=0.02)
    assert len(traced) == 1


def test_the_cached_architecture_holds_no_weights(tiny):
    trace.stage_graph(tiny)
    parts = [tiny.upto(name) for name in tiny.names]
    files = [next(cache_dir("graphs").glob(f"{trunks.architecture_hash(part)}-*-architecture.*")) for part in parts]
    state = trunks.StageOutputs(tiny).state_dict()
    for file in files:
        weights = [each for each in onnx.load(file).graph.initializer if each.name in state]
        assert weights
        assert not any(each.raw_data or each.float_data for each in weights)


def test_another_structure_or_tie_is_another_architecture(tiny):
    tied = trunks.build(Tiny())
    tied.stages["second"][1].weight = tied.stages["second"][1].bias
    other = trunks.build(Tiny())
    other.stages["third"][2] = torch.nn.ReLU6()
    assert len({trunks.architecture_hash(each) for each in (tiny, tied, other, tiny.upto("second"))}) == 4
    assert trunks.architecture_hash(retrained(trunks.build(Tiny()), 0)) == trunks.architecture_hash(tiny)


def test_weights_beyond_what_a_file_holds_are_not_traced(tiny, monkeypatch):
    sizes = [sum(tensor.nbytes for tensor in stage.state_dict().values()) for stage in tiny.stages.values()]
    first, last = tiny.names[0], tiny.names[-1]
    assert trace.traceable(tiny, last) is tiny
    monkeypatch.setattr(trace, "LARGEST", sum(sizes) - 1)
    assert trace.traceable(tiny, first).names == tiny.names[:-1]
    with pytest.raises(UsageError, match=f"up to stage '{last}' take .*--cut {tiny.names[-2]}"):
        trace.traceable(tiny, last)
    monkeypatch.setattr(trace, "LARGEST", sizes[0] - 1)
    with pytest.raises(UsageError, match="take another backbone"):
        trace.traceable(tiny, first)


def test_the_graph_of_a_cut_has_its_stages(tiny):
    graph = onnx.load(trace.stage_graph(tiny.upto("second")))
    assert [o.name for o in graph.graph.output] == [stage_output("first"), stage_output("second")]
    onnx.checker.check_model(graph, full_check=True)


def test_a_backbone_that_comes_with_its_graph_is_not_traced(tiny, traced, tmp_path, monkeypatch):
    file, expected = tmp_path / "tiny.onnx.gz", trace.stage_graph(tiny).read_bytes()
    trace.write_graph(Tiny(), file)
    monkeypatch.setenv("TLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Tiny, "graph", file)
    traced.clear()
    assert trace.stage_graph(trunks.build(Tiny())).read_bytes() == expected
    assert not traced
    monkeypatch.setattr(TinyVit, "graph", file)
    assert trace.shipped_graph(trunks.build(TinyVit())) is None


def test_the_graph_that_a_backbone_comes_with_serves_the_sizes_at_which_it_is_the_same(tmp_path, monkeypatch):
    def at(size):
        return trunks.build(Tiny(), preprocessing=replace(Tiny.preprocessing, size=size))

    traced, complete = trace._traced(at(64)), onnx.load(trace.maps_graph(at(64)))
    file = tmp_path / "tiny.onnx.gz"
    trace.write_graph(Tiny(), file, [32, 64])
    monkeypatch.setattr(Tiny, "graph", file)
    monkeypatch.setenv("TLKIT_CACHE", str(tmp_path / "cache"))
    shipped = onnx.load(trace.maps_graph(at(64)))
    for part in ("node", "initializer", "input", "output"):
        assert list(getattr(shipped.graph, part)) == list(getattr(complete.graph, part))
    assert {each.name for each in shipped.graph.value_info} == {each.name for each in complete.graph.value_info}
    assert trace.shipped_graph(at(96)) is None, "it was not tried at this size"
    another = onnx.ModelProto()
    another.CopyFrom(traced)
    another.graph.node[0].attribute.add(name="another")
    monkeypatch.setattr(trace, "_traced", lambda trunk: traced if trunk.preprocessing.size == 32 else another)
    trace.write_graph(Tiny(), file, [64])
    assert trace.shipped_graph(at(64)) is None, "its graph is another at this size"


def test_a_graph_is_written_for_the_only_size_that_a_backbone_takes(tmp_path, monkeypatch):
    own = TinyVit.preprocessing.size
    monkeypatch.setattr(TinyVit, "graph", tmp_path / "vit.onnx.gz")
    trace.write_graph(TinyVit(), TinyVit.graph, [own, 2 * own])
    assert trace.shipped_graph(trunks.build(TinyVit())) is not None


@pytest.mark.parametrize(
    ("stage", "pool", "said"),
    [
        (lambda x: x.double(), None, r"the output of stage 'odd' for two images is torch.float64 \(2, 8, 8, 8\)"),
        (
            lambda x: x[:1],
            None,
            r"the output of stage 'odd' for two images is torch.float32 \(1, 8, 8, 8\), not a tensor",
        ),
        (lambda x: (x, x), None, "the output of stage 'odd' for two images is tuple"),
        (lambda x: x[:, :0], None, r"the output of stage 'odd' for two images is torch.float32 \(2, 0, 8, 8\)"),
        (
            None,
            lambda x: x,
            r"the pooled output of stage 'first' for two images is .* not features torch.float32 \(2, wid",
        ),
        (None, lambda _x: None, "the pooled output of stage 'first' for two images is NoneType"),
    ],
)
def test_what_gives_no_features_is_named_before_it_is_traced(stage, pool, said):
    def made(forward):
        module = torch.nn.Identity()
        module.forward = forward
        return module

    class Odd(Tiny):
        def stages(self, *, pretrained):
            first = dict(super().stages(pretrained=pretrained)).popitem()[1]
            given = {"first": torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 4, padding=1)).eval()}
            return given if stage is None else {"first": torch.nn.Conv2d(3, 8, 4, 4), "odd": made(stage), "last": first}

        def pool(self):
            return None if pool is None else made(pool)

    with pytest.raises(PluginError, match=f"^backbone 'tiny'.*: {said}"):
        trace.stage_graph(trunks.build(Odd()))
