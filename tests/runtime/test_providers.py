"""ONNX Runtime's sessions on a GPU, tested with a stand-in for CUDA: buffers, order and parts."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.kit.fake_cuda import replace_cuda
from tlkit.plugin.contract import FEATURES, LOGITS
from tlkit.runtime.cuda import Channel
from tlkit.runtime.providers import CALLS, BoundSession, provider_options
from tlkit.runtime.session import OnnxSession


class TestBoundSession:
    """ONNX Runtime's own I/O binding, on its CPU provider: the buffers are the stand-in's, which are the computer's."""

    @pytest.fixture
    def file(self, tiny_run):
        return tiny_run / "onnx/fp32/model.onnx"

    @pytest.fixture
    def make(self, monkeypatch):
        """Return a function that opens a graph on the stand-in."""

        def made(file, seed=0, **options):
            cuda, session = replace_cuda(monkeypatch, seed=seed)
            channel = Channel(cuda)
            opened = session(file, providers=provider_options("cuda", channel.stream))
            return BoundSession(opened, channel, **options), cuda

        return made

    def test_it_gives_what_a_session_gives_in_parts_and_for_some_outputs(self, file, make):
        images = np.random.default_rng(0).integers(0, 256, (11, 32, 32, 3), dtype=np.uint8)
        plain = OnnxSession(file)
        one, _ = make(file, batch_size=4)
        for wanted in ([FEATURES], [LOGITS, FEATURES], list(plain.outputs)):
            for rows in (1, 4, 11, 3):
                got, expected = one.run(images[:rows], wanted), plain.run(images[:rows], wanted)
                assert list(got) == wanted
                for name in wanted:
                    assert np.allclose(got[name], expected[name], atol=1e-6)
        assert one.seconds == pytest.approx(0.002)

    def test_fewer_rows_are_computed_in_one_of_a_few_shapes(self, file, make):
        images = np.random.default_rng(0).integers(0, 256, (70, 32, 32, 3), dtype=np.uint8)
        expected = OnnxSession(file).run(images)[FEATURES]
        one, _ = make(file)
        for rows in (1, 2, 8, 9, 63, 70):
            assert np.allclose(one.run(images[:rows], [FEATURES])[FEATURES], expected[:rows], atol=1e-6)
        assert {rows for _, rows, _ in one._bindings} == {1, 8, 64}

    def test_results_stay_when_the_buffers_are_used_again(self, file, make):
        images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
        one, _ = make(file)
        first = one.run(images[:1], [FEATURES])[FEATURES]
        kept = first.copy()
        one.run(images[1:], [FEATURES])
        assert (first == kept).all()

    def test_buffers_are_allocated_once_and_given_back(self, file, make):
        images = np.zeros((3, 32, 32, 3), np.uint8)
        one, cuda = make(file)
        before = set(cuda.memory)
        one.run(images, [FEATURES])
        one.run(images[:1], [LOGITS])
        assert set(cuda.memory) == before
        one.close()
        assert not cuda.memory
        one.close()  # again, as when it is deleted

    @pytest.mark.parametrize("seed", range(3))
    def test_one_call_is_copied_while_another_is_computed_and_each_waits_once(self, file, make, seed):
        images = np.random.default_rng(seed).integers(0, 256, (12, 4, 32, 32, 3), dtype=np.uint8)
        expected = [OnnxSession(file).run(each)[FEATURES] for each in images]
        one, cuda = make(file, seed, batch_size=4)
        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(lambda each: one.run(each, [FEATURES])[FEATURES], images))
        assert np.allclose(found, expected, atol=1e-6)
        assert cuda.waits == len(images)
        copied = {channel._copying for channel in one._channels[1:]}
        assert len(copied | {one._channels[0].stream}) == 1 + CALLS

    def test_an_array_that_does_not_fit_is_refused(self, file, make):
        one, _ = make(file)
        with pytest.raises(ValueError, match="broadcast"):
            one.run(np.zeros((2, 8, 8, 3), np.uint8), [FEATURES])


def test_all_providers_share_the_stream_and_none_captures_graphs_or_rounds_to_tf32():
    shared = {"device_id": "0", "user_compute_stream": "7"}
    on_cuda = ("CUDAExecutionProvider", {**shared, "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"})
    assert provider_options("cuda", 7) == [on_cuda]
    assert provider_options("tensorrt", 7) == [("TensorrtExecutionProvider", shared), on_cuda]
