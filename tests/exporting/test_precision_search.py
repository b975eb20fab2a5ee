"""The search takes the first candidate within the budget; it is written, and verified like everything else."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from tests.kit.exporting import built, export_of, exported, modules, replayed, searched
from tests.kit.tiny import Line, Tiny, forget_source, resign
from tlkit.errors import ArtifactError, DataError, GateError, UsageError
from tlkit.exporting import candidates as made_by
from tlkit.exporting import precision_search
from tlkit.exporting import run as running
from tlkit.exporting.candidates import Candidate, SearchPolicy
from tlkit.exporting.gate import check_half_precision
from tlkit.exporting.precision_search import PrecisionSearch
from tlkit.exporting.run import export
from tlkit.graph import trace
from tlkit.model import exports
from tlkit.model import trunk as trunks
from tlkit.model.bundle import open_bundle
from tlkit.model.exports import Exports
from tlkit.model.modules import run_half
from tlkit.model.reference_images import parity_images
from tlkit.plugin.contract import FEATURES, LOGITS
from tlkit.runtime.model import Model
from tlkit.runtime.session import OnnxSession
from tlkit.verification.trained import TrainedModules


@pytest.fixture
def search(own_run, tiny_config):
    """Searches from a precision; what is written is in `own_run`."""

    def run(precision, **options):
        return searched(own_run, tiny_config.backbone, tiny_config.head, precision, **options)

    return run


def blind(graph):
    """A trunk that sees nothing: its last weights are zero."""
    spoiled = onnx.ModelProto()
    spoiled.CopyFrom(graph)
    weight = [tensor for tensor in spoiled.graph.initializer if len(tensor.dims) == 4][-1]
    weight.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(weight)), weight.name))
    return spoiled


@pytest.fixture
def bad_int8(monkeypatch):
    """int8 that falls apart unless some layers are kept; `bad_int8.enough` of them are."""

    class Spoiler:
        enough = 99

    real = made_by.quantize

    def spoiled(graph, ranges, *, keep=(), **more):
        return real(graph, ranges, keep=keep, **more) if len(keep) >= Spoiler.enough else blind(graph)

    monkeypatch.setattr(made_by, "quantize", spoiled)
    return Spoiler


class TestFirst:
    def search(self, run):
        bundle = open_bundle(run)
        return PrecisionSearch(modules(run, Tiny(), Line()), Exports.of(bundle), parity_images(bundle))

    def test_fp32_loses_nothing_and_a_blind_trunk_much(self, tiny_run):
        search, trunk = self.search(tiny_run), onnx.load(tiny_run / "onnx/fp32/trunk.onnx")
        _, (same,) = search.first([Candidate("fp32", trunk)], None)
        _, (worse,) = search.first([Candidate("int8", blind(trunk))], None)
        assert (same.drop, same.agreement) == (0, 1)
        assert same.interval[1] == 1
        assert worse.drop == pytest.approx(100 * (same.accuracy - worse.accuracy))
        assert worse.drop > 30
        assert worse.agreement < 0.7
        assert worse.images == same.images == len(search.val)

    def test_the_first_within_the_budget_is_taken_and_no_other_is_made(self, tiny_run):
        trunk = onnx.load(tiny_run / "onnx/fp32/trunk.onnx")
        made = []

        def candidates():
            for name, graph in (("int8", blind(trunk)), ("fp16", trunk), ("fp32", trunk)):
                made.append(name)
                yield Candidate(name, graph)

        taken, results = self.search(tiny_run).first(candidates(), 0.5)
        assert (taken.precision, made, [each.name for each in results]) == ("fp16", ["int8", "fp16"], made)

    def test_a_budget_that_none_meets_is_refused_with_what_each_lost(self, tiny_run):
        trunk = onnx.load(tiny_run / "onnx/fp32/trunk.onnx")
        with pytest.raises(GateError, match=r"drop of 0\.5 perc.*int8, 2 layers in float: \d\d\.\d\d.*--max-drop"):
            self.search(tiny_run).first([Candidate("int8", blind(trunk), ("a", "b"))], 0.5)

    @pytest.mark.parametrize("images", ["all", "some"])
    def test_a_trunk_that_gives_nan_is_broken(self, tiny_run, images, monkeypatch):
        trunk = onnx.load(tiny_run / "onnx/fp32/trunk.onnx")
        search, real = self.search(tiny_run), precision_search.run_samples

        def run(model, samples, *more):
            if model.file == search.model:
                return real(model, samples, *more)
            if images == "all":
                raise DataError("no image can be read; the first: makes the network's output NaN")
            got = real(model, samples[1:], *more)
            return replace(got, rejected={str(samples[0].path): "makes the network's output NaN"})

        monkeypatch.setattr(precision_search, "run_samples", run)
        with pytest.raises(GateError, match="fp16 gives NaN or infinity for images that fp32 has outputs for"):
            search.first([Candidate("fp16", trunk)], None)
        with pytest.raises(GateError, match=r"\(drops: fp16: \d\d+\.\d\d, broken\)"):
            search.first([Candidate("fp16", trunk)], 0.5)

    def test_without_a_budget_the_first_is_taken(self, tiny_run):
        trunk = onnx.load(tiny_run / "onnx/fp32/trunk.onnx")
        assert self.search(tiny_run).first([Candidate("int8", blind(trunk))], None)[0].precision == "int8"

    def test_only_so_many_images_are_measured_as_the_policy_says(self, tiny_run):
        search = self.search(tiny_run)
        search.policy = SearchPolicy(max_images=4)
        _, (result,) = search.first([Candidate("fp32", onnx.load(tiny_run / "onnx/fp32/trunk.onnx"))], None)
        assert result.images == 4


class TestWritten:
    @pytest.mark.parametrize("precision", ["int8", "fp16"])
    def test_it_is_written_proven_and_of_use(self, own_run, search, pictures, precision):
        written, found = search(precision)
        assert written.folder == own_run / "onnx" / precision
        assert all(verdict.passed for verdict in written.verdicts.values())
        record = json.loads((written.folder / "manifest.json").read_text())
        assert (record["precision"], record["precision_search"]) == (precision, json.loads(json.dumps(found.to_json())))
        assert replayed(own_run, precision).passed
        for path in (written.folder, written.folder / "model.onnx"):
            model = Model.open(path)
            assert model.session.metadata["tlkit.precision"] == precision
            assert model.predict([pictures / "dark/00.png"])[0].labels == ("dark",)
        assert Model.open(written.folder, graph="trunk").embed([pictures / "dark/00.png"]).shape == (1, 8)

    def test_the_speed_of_int8_is_measured_and_said_if_it_is_slower(self, own_run, tiny_config, monkeypatch):
        monkeypatch.setattr(running, "MEASURED", 0)
        run = partial(exported, own_run, tiny_config.backbone, tiny_config.head, "int8")
        monkeypatch.setattr(running, "NOTICEABLE", 10)
        assert run().int8_speed is None
        monkeypatch.setattr(running, "NOTICEABLE", 0)
        report = run()
        assert report.to_json()["int8_speed"] > 0
        for speed, lines in ((0.5, 1), (1.5, 0), (None, 0)):
            text = repr(replace(report, int8_speed=speed))
            assert text.count("int8 is slower than fp32 on this processor") == lines

    def test_int8_lists_the_images_it_was_calibrated_on(self, own_run, search):
        search("int8")
        calibration = json.loads((own_run / "onnx/int8/manifest.json").read_text())["precision_search"]["calibration"]
        assert calibration["from"].startswith("the training split of ")
        assert len(calibration["images"]) > 16

    def test_int8_twice_is_the_same_file(self, own_run, search):
        search("int8")
        before = (own_run / "onnx/int8/trunk.onnx").read_bytes()
        search("int8")
        assert (own_run / "onnx/int8/trunk.onnx").read_bytes() == before

    def test_a_correction_that_takes_features_away_from_those_of_fp32_is_left_out(self, own_run, search, monkeypatch):
        real = made_by.correct_biases
        monkeypatch.setattr(made_by, "correct_biases", lambda *given, **more: blind(real(*given, **more)))
        _, found = search("int8", max_drop=0.5)
        assert [candidate.name for candidate in found.candidates] == ["int8"]

    def test_int8_has_the_weights_that_were_rounded_by_their_inputs(self, own_run, search, monkeypatch):
        real, given = made_by.round_weights, {}

        def shifted(*arguments):
            given.update({name: np.minimum(levels, 126) + 1 for name, levels in real(*arguments).items()})
            return given

        monkeypatch.setattr(made_by, "round_weights", shifted)
        search("int8")
        stored = {each.name: each for each in onnx.load(own_run / "onnx/int8/model.onnx").graph.initializer}
        last = list(given)[-1]
        assert np.array_equal(numpy_helper.to_array(stored[f"{last}_quantized"]), given[last])

    def test_fp16_keeps_pixels_and_outputs_in_float32(self, own_run, search):
        search("fp16")
        graph = onnx.load(own_run / "onnx/fp16/model.onnx").graph
        kinds = {len(tensor.dims): tensor.data_type for tensor in graph.initializer}
        assert kinds[4] == TensorProto.FLOAT16
        assert all(t.data_type == TensorProto.FLOAT for t in graph.initializer if list(t.dims) == [3, 1, 1])
        assert {output.type.tensor_type.elem_type for output in graph.output} == {TensorProto.FLOAT}
        assert graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8

    def test_fp16_needs_no_images_but_for_a_budget(self, own_run, search):
        forget_source(own_run)
        written, found = search("fp16")
        assert (written.drawn_from, found.candidates) == ("the golden images", ())
        for options in ({"precision": "fp16", "max_drop": 1.0}, {"precision": "int8"}):
            with pytest.raises(DataError, match="not on this machine any more; name others like them with --data"):
                search(**options)

    def test_layers_are_left_in_float_until_it_is_good_enough(self, own_run, search, bad_int8):
        bad_int8.enough = 1
        written, found = search("int8", max_drop=0.5)
        assert [candidate.name for candidate in found.candidates] == ["int8", "int8, 1 layer in float"]
        assert found.candidates[0].drop > 30
        assert found.candidates[1].kept == (found.sensitivity[0].name,)
        assert written.folder == own_run / "onnx/int8"

    def test_or_else_a_higher_precision_is_taken(self, own_run, search, bad_int8):
        written, found = search("int8", max_drop=0.5)
        assert [candidate.name for candidate in found.candidates][-1] == "fp16"
        assert written.folder == own_run / "onnx/fp16"
        assert not (own_run / "onnx/int8").exists()

    def test_up_to_fp32_which_only_gets_a_record(self, own_run, search, bad_int8, monkeypatch):
        real = trace.half_precision_graph
        monkeypatch.setattr(trace, "half_precision_graph", lambda trunk: blind(real(trunk)))
        graphs = (own_run / "onnx/fp32/model.onnx").read_bytes()
        written, found = search("int8", max_drop=0.5)
        assert found.candidates[-1].name == "fp32"
        assert written.folder == own_run / "onnx/fp32"
        assert (own_run / "onnx/fp32/model.onnx").read_bytes() == graphs
        assert json.loads((own_run / "onnx/fp32/manifest.json").read_text())["precision_search"]["max_drop"] == 0.5
        assert replayed(own_run).passed

    @pytest.mark.usefixtures("bad_int8")
    def test_without_a_fallback_nothing_is_written(self, own_run, search):
        with pytest.raises(GateError, match="no candidate stays within"):
            search("int8", max_drop=0.5, fallback=False)
        assert [place.name for place in (own_run / "onnx").iterdir()] == ["fp32"]

    @pytest.mark.usefixtures("bad_int8")
    def test_rubbish_is_not_written_even_without_a_budget(self, own_run, search):
        with pytest.raises(GateError, match="does not compute what was trained"):
            search("int8")
        assert [place.name for place in (own_run / "onnx").iterdir()] == ["fp32"]

    def test_no_images_to_measure_on(self, own_run, search, tmp_path, pictures):
        shutil.copytree(pictures, tmp_path / "photos/train")
        (tmp_path / "photos/test").mkdir()
        shutil.copytree(pictures / "dark", tmp_path / "photos/test/dark")
        shutil.rmtree(tmp_path / "photos/train")
        with pytest.raises(DataError):
            search("int8", data=tmp_path / "photos")


class TestVerify:
    @pytest.mark.parametrize("precision", ["int8", "fp16"])
    @pytest.mark.parametrize("name", ["trunk.onnx", "head.onnx", "model.onnx"])
    def test_a_changed_weight_is_caught(self, own_run, search, precision, name):
        search(precision)
        file = own_run / "onnx" / precision / name
        graph = onnx.load(file)
        scale = change_a_weight(graph)
        onnx.save(graph, file)
        with pytest.raises(ArtifactError, match=f"changed after export; .*--onnx --precision {precision}"):
            replayed(own_run, precision)
        resign(own_run, name, precision)
        result = replayed(own_run, precision)
        assert [graph for graph, verdict in result.verdicts.items() if not verdict.passed] == [name.split(".")[0]], (
            scale
        )

    def test_it_is_held_against_what_it_gave_when_it_was_built(self, own_run, search):
        search("int8")
        bundle = open_bundle(own_run)
        kept = export_of(own_run, "int8").expected()
        assert {name: array.shape for name, array in kept.items()} == {FEATURES: (4, 8), LOGITS: (4, 3)}
        verdict = replayed(bundle.root, "int8").verdicts["model"]
        assert verdict.comparisons[0].feature_error == pytest.approx(0, abs=1e-6)
        assert not np.array_equal(kept[FEATURES], bundle.expected()[FEATURES])
        assert export_of(own_run).expected() is None

    def test_another_bundles_by_product_is_refused(self, own_run, search, tmp_path):
        search("int8")
        record = own_run / "onnx/int8/manifest.json"
        record.write_text(json.dumps(json.loads(record.read_text()) | {"bundle": "0" * 64}))
        with pytest.raises(ArtifactError, match="exported from another bundle"):
            Model.open(own_run / "onnx/int8")

    def test_a_by_product_alone_is_still_of_use(self, own_run, search, tmp_path, pictures):
        search("int8")
        shutil.copytree(own_run / "onnx/int8", tmp_path / "deployed")
        assert Model.open(tmp_path / "deployed").predict([pictures / "light/00.png"])[0].labels == ("light",)
        (tmp_path / "deployed/model.onnx").write_bytes(b"")
        with pytest.raises(
            ArtifactError, match="deployed: model is missing or was changed after export; export it again"
        ):
            Model.open(tmp_path / "deployed")


def change_a_weight(graph):
    """Make the first float weight, or the first scale of int8 weights, a tenth larger."""
    for tensor in graph.graph.initializer:
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16) and (
            len(tensor.dims) in (2, 4)
            or (len(tensor.dims) == 1 and tensor.name.endswith("_scale") and tensor.dims[0] > 3)
        ):
            array = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array((array * 1.1).astype(array.dtype), tensor.name))
            return tensor.name
    raise AssertionError("there is no weight")


class TestTargets:
    def test_a_target_is_built_from_the_graphs_of_that_precision(self, own_run, search):
        from tlkit_standard.targets.onnx import Onnx

        class Copy(Onnx):
            name = "copy"

        search("int8")
        written = built(own_run, Copy(), precision="int8")
        assert written.folder == own_run / "copy/int8"
        images, _ = parity_images(open_bundle(own_run))
        one, other = (OnnxSession(own_run / place / "int8/model.onnx").run(images) for place in ("onnx", "copy"))
        assert np.array_equal(one[LOGITS], other[LOGITS])
        assert replayed(own_run, "int8", "copy").passed

    def test_a_precision_it_does_not_take_is_refused(self, own_run):
        from tlkit_standard.targets.onnx import Onnx

        class Float(Onnx):
            precisions = ("fp32", "fp16")

        with pytest.raises(UsageError, match="onnx takes no int8 graph; choose one of fp32, fp16"):
            built(own_run, Float(), precision="int8")

    def test_a_target_that_wants_int8_about_zero_gets_that(self, own_run, search):
        from tlkit_standard.targets.onnx import Onnx

        class Symmetric(Onnx):
            name = "symmetric"
            precisions = ("fp32", exports.SYMMETRIC)

        report = export(modules(own_run, Tiny(), Line()), [Symmetric()], precision="int8")
        assert [each.folder for each in report.exports] == [own_run / "onnx/int8-symmetric", own_run / "symmetric/int8"]
        assert list(report.searches) == [exports.SYMMETRIC]
        images, _ = parity_images(open_bundle(own_run))
        one, other = (
            OnnxSession(own_run / place / "model.onnx").run(images)
            for place in ("onnx/int8-symmetric", "symmetric/int8")
        )
        assert np.array_equal(one[LOGITS], other[LOGITS])
        assert replayed(own_run, "int8", "symmetric").passed

    def test_what_was_not_exported_in_that_precision_names_the_command(self, own_run):
        from tlkit_standard.targets.onnx import Onnx

        with pytest.raises(ArtifactError, match=r"run: tlkit export .* --onnx --precision fp16"):
            built(own_run, Onnx(), precision="fp16")


# --- real half precision ---


@pytest.mark.parametrize(("gain", "fits"), [(1.0, True), (1e6, False)])
def test_activations_beyond_float16_are_refused(gain, fits):
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    trunk = trunks.build(Tiny())
    first, second = trunk.stages["first"], trunk.stages["second"]
    first[1].weight.data *= gain  # what one layer multiplies the next one divides by
    first[1].bias.data *= gain
    second[0].weight.data /= gain
    with torch.inference_mode():
        features = trunk(torch.from_numpy(images)).numpy()
    half = SimpleNamespace(half_features=partial(run_half, trunk), bundle=SimpleNamespace(root="run"))
    with nullcontext() if fits else pytest.raises(GateError, match=r"exceed float16 .65,504.: 4 of 4 images"):
        check_half_precision(half, images, features)


def test_a_trunk_that_overflows_is_not_exported_in_fp16_and_a_search_goes_on(search, monkeypatch, own_run):
    def overflowing(self, given):
        return np.full((len(given), self.bundle.record.width), np.inf, np.float32)

    monkeypatch.setattr(TrainedModules, "half_features", overflowing)
    with pytest.raises(GateError, match="exceed float16"):
        search("fp16")
    assert not (own_run / "onnx/fp16").exists()
    _, result = search("fp16", max_drop=50.0)
    assert [(each.name, each.in_tolerance) for each in result.candidates] == [("fp16", False), ("fp32", True)]
