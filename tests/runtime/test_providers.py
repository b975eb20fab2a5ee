"""ONNX Runtime's sessions on a GPU, tested with a stand-in for CUDA: buffers, order and parts."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest

from tests.kit.fake_cuda import Cuda, Status, replace_cuda
from tlkit import doctor
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


def test_a_buffer_is_filled_with_what_fits_its_type(monkeypatch):
    cuda, sizes = Cuda(), []
    channel = Channel(cuda)
    buffer = channel.allocate("images", (4, 2), np.uint8)
    monkeypatch.setattr(cuda, "cudaMemcpyAsync", lambda _to, _source, size, *_: sizes.append(size) or (Status(0),))
    buffer.send(np.ones((3, 2), np.int64), channel.stream)
    assert sizes == [6]
    assert buffer.host[:3].all()


def test_a_session_that_is_dropped_goes_before_its_streams(monkeypatch, tiny_run):
    cuda, provider = replace_cuda(monkeypatch)
    order, destroy = [], cuda.cudaStreamDestroy
    monkeypatch.setattr(provider, "__del__", lambda _: order.append("session"), raising=False)
    monkeypatch.setattr(cuda, "cudaStreamDestroy", lambda stream: order.append("stream") or destroy(stream))
    session = OnnxSession(tiny_run / "onnx/fp32/model.onnx", device="cuda")
    session.run(np.zeros((1, 32, 32, 3), np.uint8))
    del session
    assert order == ["session", *["stream"] * (1 + CALLS)]


def test_libraries_of_python_packages_are_loaded_before_it_starts_without_a_word(monkeypatch, tiny_run, capfd):
    _, provider = replace_cuda(monkeypatch)
    opened = []

    def preload():
        sys.stdout.write("Failed to load libcufft.so.12")
        opened.append(len(provider.opened))

    monkeypatch.setattr(onnxruntime, "preload_dlls", preload)
    OnnxSession(tiny_run / "onnx/fp32/model.onnx", device="cuda")
    assert opened == [0]
    assert doctor.fault("CUDAExecutionProvider") is None
    assert opened == [0, 1]
    assert capfd.readouterr() == ("", "")


def test_all_providers_share_the_stream_and_none_captures_graphs_or_rounds_to_tf32():
    shared = {"device_id": "0", "user_compute_stream": "7"}
    on_cuda = ("CUDAExecutionProvider", {**shared, "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"})
    assert provider_options("cuda", 7) == [on_cuda]
    assert provider_options("tensorrt", 7) == [("TensorrtExecutionProvider", shared), on_cuda]
    in_half = ("TensorrtExecutionProvider", {**shared, "trt_fp16_enable": "1"})
    assert provider_options("tensorrt", 7, half=True) == [in_half, on_cuda]
