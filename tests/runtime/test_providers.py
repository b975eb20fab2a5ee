"""ONNX Runtime's sessions on a GPU, tested with a stand-in for CUDA: buffers, order and parts."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from tests.kit.fake_cuda import Cuda
from tlkit.plugin.contract import FEATURES, LOGITS
from tlkit.runtime.cuda import Channel
from tlkit.runtime.providers import BoundSession, provider_options
from tlkit.runtime.session import OnnxSession


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
        one, _ = self.make(file, batch_size=4)
        plain = OnnxSession(file)
        for wanted in ([FEATURES], [LOGITS, FEATURES], list(plain.outputs)):
            for rows in (1, 4, 11, 3):
                got, expected = one.run(images[:rows], wanted), plain.run(images[:rows], wanted)
                assert list(got) == wanted
                for name in wanted:
                    assert np.allclose(got[name], expected[name], atol=1e-6)
        assert one.seconds == pytest.approx(0.002)

    def test_fewer_rows_are_computed_in_one_of_a_few_shapes(self, file):
        images = np.random.default_rng(0).integers(0, 256, (70, 32, 32, 3), dtype=np.uint8)
        one, _ = self.make(file)
        expected = OnnxSession(file).run(images)[FEATURES]
        for rows in (1, 2, 8, 9, 63, 70):
            assert np.allclose(one.run(images[:rows], [FEATURES])[FEATURES], expected[:rows], atol=1e-6)
        assert {rows for rows, _ in one._bindings} == {1, 8, 64}

    def test_results_stay_when_the_buffers_are_used_again(self, file):
        images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
        one, _ = self.make(file)
        first = one.run(images[:1], [FEATURES])[FEATURES]
        kept = first.copy()
        one.run(images[1:], [FEATURES])
        assert (first == kept).all()

    def test_buffers_are_allocated_once_and_given_back(self, file):
        images = np.zeros((3, 32, 32, 3), np.uint8)
        one, cuda = self.make(file)
        before = set(cuda.memory)
        one.run(images, [FEATURES])
        one.run(images[:1], [LOGITS])
        assert set(cuda.memory) == before
        one.close()
        assert not cuda.memory
        one.close()  # again, as when it is deleted

    def test_an_array_that_does_not_fit_is_refused(self, file):
        one, _ = self.make(file)
        with pytest.raises(ValueError, match="broadcast"):
            one.run(np.zeros((2, 8, 8, 3), np.uint8), [FEATURES])


def test_all_providers_share_the_stream_and_none_captures_graphs_or_rounds_to_tf32():
    shared = {"device_id": "0", "user_compute_stream": "7"}
    on_cuda = ("CUDAExecutionProvider", {**shared, "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"})
    assert provider_options("cuda", 7) == [on_cuda]
    assert provider_options("tensorrt", 7) == [("TensorrtExecutionProvider", shared), on_cuda]
