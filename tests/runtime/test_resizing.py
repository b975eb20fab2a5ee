"""The graph that resizes: on ONNX Runtime's CPU provider, alone, and before a network on the stand-in for CUDA."""

from __future__ import annotations

import math
import os
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest

from tests.kit.fake_cuda import replace_cuda
from tlkit.data.decoders import Waits
from tlkit.data.preprocessing import load
from tlkit.data.resampling import SUPPORT, layout, pack
from tlkit.errors import ResourceError
from tlkit.plugin.contract import FEATURES, LOGITS, Preprocessing
from tlkit.runtime import pipeline, providers, resizing
from tlkit.runtime.cuda import Channel
from tlkit.runtime.devices import AutomaticSession
from tlkit.runtime.model import Model
from tlkit.runtime.pipeline import StoredImage, stream
from tlkit.runtime.providers import CALLS
from tlkit.runtime.resizing import ROWS
from tlkit.runtime.session import OnnxSession


def preprocessing_of(size, interpolation="bicubic", mode="center", crop_pct=0.875):
    return Preprocessing(size, (0.5,) * 3, (0.5,) * 3, crop_pct, mode, interpolation)


def resized(rows, preprocessing):
    """Run the graph, optimized as ever, on the CPU."""
    return resizing.resize(rows, layout(preprocessing))


@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize("interpolation", SUPPORT)
@pytest.mark.parametrize("size", [3, 33, 64])
def test_it_gives_the_bytes_of_the_cpu_for_random_images(size, interpolation, mode):
    preprocessing = preprocessing_of(size, interpolation, mode)
    rows, images = resizing.examples(preprocessing, 30)
    assert len({image.tobytes() for image in images}) > 10
    assert np.array_equal(resized(rows, preprocessing), images)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_it_gives_them_for_images_of_all_kinds(odd, pictures, interpolation):
    files = [*odd, *sorted(pictures.rglob("*.png"))]
    for size, mode in ((32, "center"), (40, "squash")):
        preprocessing = preprocessing_of(size, interpolation, mode)
        rows = np.stack([pack(file, preprocessing) for file in files])
        assert np.array_equal(resized(rows, preprocessing), [load(file, preprocessing) for file in files])


def test_it_gives_them_for_every_nth_picture_of_the_data_sets(shared_data):
    files = sorted(chain.from_iterable(shared_data.rglob(f"*.{suffix}") for suffix in ("jpg", "png")))
    preprocessing = preprocessing_of(224)
    for file in files[:: max(1, len(files) // 30)]:
        assert np.array_equal(resized(pack(file, preprocessing)[None], preprocessing)[0], load(file, preprocessing))


def test_what_lies_in_unused_rows_of_a_buffer_does_no_harm():
    preprocessing = preprocessing_of(16)
    rows = resizing.examples(preprocessing, 2)[0]
    for value in (0, 127, 128, 255):
        rows[1] = value
        assert np.array_equal(resized(rows, preprocessing)[0], resized(rows[:1], preprocessing)[0])


@pytest.fixture
def file(tiny_run):
    return tiny_run / "onnx/fp32/model.onnx"


@pytest.fixture
def there(monkeypatch):
    """The stand-in for CUDA, and the numbers of images that were packed."""
    packed = []
    monkeypatch.setattr(pipeline, "pack", lambda *given: packed.append(1) or pack(*given))
    cuda, provider = replace_cuda(monkeypatch)
    return SimpleNamespace(cuda=cuda, provider=provider, packed=packed)


@pytest.fixture
def images(odd, pictures, tmp_path):
    """Files of many sizes, among them one that is no image and one that is missing."""
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"text")
    return [*odd[:6], broken, *sorted(pictures.rglob("*.png"))[:12], *odd[6:], tmp_path / "gone.png"]


def outcome(session, file, images, **options):
    preprocessing = Model.from_session(session, file).preprocessing
    batches = list(stream(session, preprocessing, images, [FEATURES, LOGITS], hashed=True, **options))
    arrays = [batch.arrays for batch in batches if batch.arrays]
    records = [image for batch in batches for image in batch.images]
    return records, [np.concatenate([each[name] for each in arrays]).tobytes() for name in (FEATURES, LOGITS)]


def prepared(session, file):
    preprocessing = Model.from_session(session, file).preprocessing
    assert session.layout is None
    session.prepare_resizing(preprocessing)
    session.resizing_rate = math.inf
    return session.layout == layout(preprocessing)


@pytest.mark.parametrize("batch_size", [None, 5, 1])
def test_a_stream_through_it_has_the_bits_order_and_reasons_of_one_without(file, images, there, batch_size):
    expected = outcome(OnnxSession(file, device="cuda"), file, images, batch_size=batch_size)
    assert not there.packed
    session = OnnxSession(file, device="cuda")
    assert prepared(session, file)
    for given in (images, [StoredImage(str(each), each.read_bytes) for each in images if each.name != "gone.png"]):
        there.packed.clear()
        found = outcome(session, file, given, batch_size=batch_size)
        assert found[1] == expected[1]
        assert found[0] == expected[0][: len(given)]
        assert len(there.packed) == len(given) - (given is images)
    session.close()


def test_many_images_have_it_prepared_while_the_first_are_decoded(file, images, there, monkeypatch):
    made = []
    monkeypatch.setattr(pipeline, "FROM", len(images) + 1)
    prepare = OnnxSession.prepare_resizing
    monkeypatch.setattr(OnnxSession, "prepare_resizing", lambda *given: made.append(1) or prepare(*given))
    session = AutomaticSession(file, lambda device, images: OnnxSession(file, device=device, images=images))
    expected = outcome(session, file, images)
    session.settle(len(images), "cuda")
    assert outcome(session, file, images) == expected
    assert not made
    for _ in range(2):
        assert outcome(session, file, [*images, images[0]])[1] != expected[1]
    assert made
    assert outcome(session, file, images) == expected
    assert len(there.packed) >= len(images)
    assert len(there.provider.opened) == 3  # the network on either device, and the graph that resizes


def test_a_device_that_fails_later_leaves_what_was_packed_for_it_to_the_cpu(file, images, there, recwarn):
    session = AutomaticSession(file, lambda device, images: OnnxSession(file, device=device, images=images))
    expected = outcome(session, file, images)
    session.settle(len(images), "cuda")
    assert prepared(session.opened, file)
    there.provider.failure = "CUDA failure 700: an illegal memory access was encountered"
    assert outcome(session, file, images, batch_size=2) == expected
    assert "CUDA failure 700" in str(recwarn[0].message)
    assert there.packed
    there.packed.clear()
    assert outcome(session, file, images) == expected
    assert not there.packed


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs memory without a name, as Linux has it")
@pytest.mark.usefixtures("own_cache")
def test_processes_pack_as_well(file, images, there, monkeypatch):
    monkeypatch.setattr(pipeline, "PROBED", 8)
    monkeypatch.setattr(pipeline, "cores", lambda: 1)
    session = OnnxSession(file, device="cuda")
    expected = outcome(session, file, images, batch_size=4)
    monkeypatch.setattr(Waits, "seconds", lambda _: 1e3)
    monkeypatch.setattr(pipeline, "load", None)  # nothing is decoded here
    assert outcome(session, file, images, batch_size=4) == expected
    assert prepared(session, file)
    sent, run = [], OnnxSession.run
    monkeypatch.setattr(OnnxSession, "run", lambda one, array, *more: sent.append(array.ndim) or run(one, array, *more))
    assert outcome(session, file, images, batch_size=4) == expected
    assert set(sent[-5:]) == {2}
    assert not there.packed


def test_a_gpu_that_is_not_faster_than_the_images_are_done_leaves_it_to_the_cpu(file, images, there):
    session = OnnxSession(file, device="cuda")
    expected = outcome(session, file, images)
    assert prepared(session, file)
    session.resizing_rate = 0.0
    assert outcome(session, file, images) == expected
    assert not there.packed
    session = OnnxSession(file, device="cuda")
    session.prepare_resizing(Model.from_session(session, file).preprocessing)
    assert session.resizing_rate == pytest.approx(session.batch_size / 0.002)  # by the clock of the stand-in


def test_large_batches_are_resized_in_parts(file, images, there, monkeypatch):
    monkeypatch.setattr(providers, "BATCH", 4)
    monkeypatch.setattr(providers, "MANY_BATCH", 10)
    expected = outcome(OnnxSession(file), file, images, batch_size=10)
    session = OnnxSession(file, device="cuda", images=10**6)
    assert prepared(session, file)
    there.cuda.done.clear()
    records, arrays = outcome(session, file, images[:10], batch_size=10)
    assert there.cuda.done[-7:].count("network") == 4  # three parts, and what they are for
    assert records == expected[0][:10]
    assert all(whole.startswith(part) for whole, part in zip(expected[1], arrays, strict=True))


def other_pixels(monkeypatch):
    examples = resizing.examples
    monkeypatch.setattr(resizing, "examples", lambda *given: (examples(*given)[0], examples(*given)[1] ^ 1))


def no_memory(monkeypatch):
    """Refuse the rows of the second channel."""
    asked, allocate = [], Channel.allocate

    def refusing(channel, name, *more):
        asked.append(name)
        if asked.count(ROWS) == CALLS:
            raise ResourceError("CUDA: out of memory")
        return allocate(channel, name, *more)

    monkeypatch.setattr(Channel, "allocate", refusing)


def no_kernel(monkeypatch):
    monkeypatch.setattr(resizing, "graph", lambda _: b"no graph")


@pytest.mark.parametrize("fault", [other_pixels, no_memory, no_kernel], ids=lambda each: each.__name__)
def test_a_device_that_can_not_leaves_it_to_the_cpu_and_says_why(file, images, there, monkeypatch, recwarn, fault):
    session = OnnxSession(file, device="cuda")
    expected, memory = outcome(session, file, images), set(there.cuda.memory)
    fault(monkeypatch)
    assert not prepared(session, file)
    (told,) = recwarn
    assert str(told.message).startswith("the CPU resizes images, as cuda can't: ")
    assert set(there.cuda.memory) == memory
    assert not prepared(session, file)  # nor is it tried again
    assert outcome(session, file, images) == expected
    assert not there.packed


def test_other_preprocessing_and_the_cpu_stay_as_they_are(file, images, there, monkeypatch):
    monkeypatch.setattr(pipeline, "FROM", 1)
    bordered = preprocessing_of(32, mode="border")
    session = OnnxSession(file, device="cuda")
    batches = list(stream(session, bordered, images, [FEATURES]))
    assert sum(len(batch.readable()) for batch in batches) == len(images) - 2
    assert session.layout is None
    assert not prepared(OnnxSession(file), file)
    outcome(OnnxSession(file), file, images)
    assert not there.packed
