"""Sessions on a GPU, tested with a stand-in for CUDA: buffers, order, parts, and CUDA graphs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from tlkit_standard.targets import _engine

from tests.kit.fake_cuda import Cuda, Engine, library
from tlkit.errors import ArtifactError
from tlkit.plugin.contract import FEATURES, LOGITS
from tlkit.runtime import providers
from tlkit.runtime.cuda import Channel
from tlkit.runtime.providers import BoundSession, provider_options
from tlkit.runtime.session import OnnxSession


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (9, 5), dtype=np.uint8)


class TestEngine:
    @pytest.fixture
    def opened(self, tmp_path, monkeypatch):
        """A session, its engine and its CUDA."""

        def make(batch_size=4, **options):
            cuda = Cuda(**options)
            monkeypatch.setattr(_engine, "runtime", lambda: cuda)
            monkeypatch.setattr(_engine, "gpu", lambda: None)
            (tmp_path / "x.engine").write_bytes(b"engine")
            engine = Engine(cuda, batch_size)
            trt = library(engine)
            session = _engine.EngineSession(trt, SimpleNamespace(worst="no engine"), tmp_path / "x.engine")
            assert trt.made[0].engine_host_code_allowed
            return session, engine, cuda

        return make

    def test_any_number_of_rows_goes_through_in_parts(self, opened, images):
        session, _, _ = opened()
        assert (session.input, session.outputs, session.batch_size) == ("images", ("features",), 4)
        for rows in (1, 3, 4, 8, 9, 2, 9):
            got = session.run(images[:rows])[FEATURES]
            assert got.tolist() == images[:rows].sum(axis=1, keepdims=True).tolist()
        assert session.gpu_seconds == pytest.approx(3 * 0.002)

    def test_a_size_that_comes_again_is_recorded_once_and_launched_from_then_on(self, opened, images):
        session, engine, cuda = opened()
        for start in range(4):
            got = session.run(images[start : start + 4])[FEATURES]
            assert got.tolist() == images[start : start + 4].sum(axis=1, keepdims=True).tolist()
        computed = [name for name in cuda.done if name not in ("send", "fetch")]
        assert computed == ["kernel", "graph", "graph", "graph"]
        fixed = engine.contexts[-1]
        session.run(images[:3])
        assert fixed.shapes == [(4, 5)]  # the context that was recorded sees no other shape

    def test_only_a_few_sizes_are_recorded_and_the_largest_always(self, opened, images):
        session, engine, _ = opened(batch_size=9)
        for rows in (1, 2, 3, 5, 6, 9, 7):
            session.run(images[:rows])
        assert sorted(session._captured) == [1, 2, 3, 9]
        assert engine.contexts[0].shapes == [(5, 5), (6, 5), (7, 5)]

    def test_what_cannot_be_recorded_is_done_as_it_was(self, opened, images):
        session, _, cuda = opened(records=False)
        for _ in range(3):
            got = session.run(images[:4])[FEATURES]
            assert got.tolist() == images[:4].sum(axis=1, keepdims=True).tolist()
        assert "graph" not in cuda.done

    def test_its_memory_is_given_back(self, opened, images):
        session, _, cuda = opened()
        session.run(images)
        assert cuda.memory
        del session
        assert not cuda.memory

    def test_what_is_no_engine_is_refused(self, opened, tmp_path):
        opened()
        (tmp_path / "y.engine").write_bytes(b"no engine")
        with pytest.raises(ArtifactError, match="can't be loaded: no engine; build it again"):
            _engine.EngineSession(library(None), SimpleNamespace(worst="no engine"), tmp_path / "y.engine")


class TestBoundSession:
    """ONNX Runtime's own I/O binding, on its CPU provider: the buffers are the stand-in's, which are the computer's."""

    @pytest.fixture
    def file(self, tiny_run):
        return tiny_run / "onnx/fp32/model.onnx"

    def make(self, file, **options):
        cuda = Cuda()
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        return BoundSession(session, Channel(cuda), memory="cpu", **options), cuda

    def test_it_gives_what_a_session_gives_in_parts_and_for_some_outputs(self, file):
        images = np.random.default_rng(0).integers(0, 256, (11, 32, 32, 3), dtype=np.uint8)
        one, _ = self.make(file, graphs=False, batch_size=4)
        plain = OnnxSession(file)
        for wanted in ([FEATURES], [LOGITS, FEATURES], list(plain.outputs)):
            for rows in (1, 4, 11, 3):
                got, expected = one.run(images[:rows], wanted), plain.run(images[:rows], wanted)
                assert list(got) == wanted
                for name in wanted:
                    assert np.allclose(got[name], expected[name], atol=1e-6)
        assert one.seconds == pytest.approx(0.002)

    def test_results_stay_when_the_buffers_are_used_again(self, file):
        images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
        one, _ = self.make(file, graphs=False)
        first = one.run(images[:1], [FEATURES])[FEATURES]
        kept = first.copy()
        one.run(images[1:], [FEATURES])
        assert (first == kept).all()

    def test_buffers_are_allocated_once_and_given_back(self, file):
        images = np.zeros((3, 32, 32, 3), np.uint8)
        one, cuda = self.make(file, graphs=False)
        before = set(cuda.memory)
        one.run(images, [FEATURES])
        one.run(images[:1], [LOGITS])
        assert set(cuda.memory) == before
        del one
        assert not cuda.memory

    def test_a_call_that_comes_again_gets_a_graph_of_its_own(self, file, monkeypatch):
        entries = []

        class Options(onnxruntime.RunOptions):
            def add_run_config_entry(self, name, value):
                entries.append((name, value))

        monkeypatch.setattr(providers.onnxruntime, "RunOptions", Options)
        one, _ = self.make(file, graphs=True)
        images = np.zeros((3, 32, 32, 3), np.uint8)
        for rows in (3, 3, 1, 3, 1):
            one.run(images[:rows], [FEATURES])
        assert entries == [("gpu_graph_id", number) for number in ("-1", "1", "-1", "1", "2")]

    def test_an_array_that_does_not_fit_is_refused(self, file):
        one, _ = self.make(file, graphs=False)
        with pytest.raises(ValueError, match="broadcast"):
            one.run(np.zeros((2, 8, 8, 3), np.uint8), [FEATURES])


def test_providers_share_the_stream_and_only_the_first_records():
    assert provider_options("cuda", 7, graphs=True) == [
        ("CUDAExecutionProvider", {"device_id": "0", "user_compute_stream": "7", "enable_cuda_graph": "1"})
    ]
    first, second = provider_options("tensorrt", 7, graphs=False)
    assert first[1] == {"device_id": "0", "user_compute_stream": "7", "trt_cuda_graph_enable": "0"}
    assert second == ("CUDAExecutionProvider", {"device_id": "0", "user_compute_stream": "7"})
