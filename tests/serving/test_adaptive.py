"""All cores for a call that is alone, a core for each of several, and the same numbers from both."""

from __future__ import annotations

import threading

import numpy as np

from tests.kit.fake_cuda import replace_cuda
from tests.kit.serving import PATIENCE, open_graph, until
from tlkit.plugin.contract import Session
from tlkit.runtime.providers import SHAPES
from tlkit.runtime.session import OnnxSession
from tlkit.serving import adaptive
from tlkit.serving.adaptive import AdaptiveSession, adapted

ONE, TWO = np.zeros((1, 4, 4, 3), np.uint8), np.zeros((2, 4, 4, 3), np.uint8)


class Noted(Session):
    """A session that notes the number of images of each call, which waits for `gate`."""

    input, outputs, metadata, workers, batch_size = "images", ("logits",), {}, 2, 2

    def __init__(self):
        self.calls, self.gate, self.closed = [], threading.Event(), False
        self.gate.set()

    def run(self, array, outputs=None):
        self.calls.append(len(array))
        assert self.gate.wait(PATIENCE)
        return {"logits": np.zeros((len(array), 2), np.float32)}

    def close(self):
        self.closed = True


def test_a_call_that_is_alone_uses_all_cores_until_calls_overlap():
    shared, alone = Noted(), Noted()
    session = AdaptiveSession(shared, alone)
    session.run(ONE)
    session.run(TWO)
    assert (alone.calls, shared.calls) == ([1], [2])
    alone.gate.clear()
    first = threading.Thread(target=session.run, args=(ONE,))
    first.start()
    until(lambda: alone.calls == [1, 1])
    session.run(ONE)  # while the first one runs
    alone.gate.set()
    first.join(PATIENCE)
    assert shared.calls == [2, 1]
    session.run(ONE)  # under load the next calls are expected to overlap as well
    assert shared.calls == [2, 1, 1]
    session.run(ONE)
    assert alone.calls == [1, 1, 1]
    session.close()
    assert shared.closed
    assert alone.closed


def test_it_is_used_where_it_gives_the_same_to_the_bit(tiny_run, monkeypatch):
    images = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3), np.uint8)
    with open_graph(tiny_run) as model:
        both = adapted(model.session, images)
        assert isinstance(both, AdaptiveSession)
        assert both.run(images[:1])["logits"].tobytes() == model.session.run(images[:1])["logits"].tobytes()
        both._alone.close()
        monkeypatch.setattr(adaptive, "LARGEST", 1)
        assert adapted(model.session, images) is model.session
        monkeypatch.undo()
        monkeypatch.setattr(np, "array_equal", lambda *_, **__: False)
        assert adapted(model.session, images) is model.session


def test_a_gpu_runs_every_call_and_is_prepared_for_each_number_of_rows(tiny_run, monkeypatch):
    replace_cuda(monkeypatch)
    session = OnnxSession(tiny_run / "onnx/fp32/model.onnx", device="cuda")
    assert session.workers > 1
    assert adapted(session, np.zeros((1, 32, 32, 3), np.uint8)) is session
    assert {rows for _, rows, _ in session._bound._bindings} == set(SHAPES)
    assert session._bound.min_rows == 1
