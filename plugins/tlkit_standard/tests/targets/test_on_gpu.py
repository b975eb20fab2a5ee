"""Sessions on a GPU, tested with a stand-in for CUDA: buffers, order, parts, and CUDA graphs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from tlkit_standard.targets import _engine

from tests.kit.fake_cuda import Context, Cuda, Engine, library
from tlkit.errors import ArtifactError
from tlkit.plugin.contract import FEATURES


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (9, 5), dtype=np.uint8)


class TestEngine:
    @pytest.fixture
    def opened(self, tmp_path, monkeypatch):
        """A session, its engine and its CUDA."""

        def make(batch_size=4, **options):
            cuda = Cuda(**options)
            monkeypatch.setattr(_engine, "cuda_runtime", lambda: cuda)
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

    def test_a_recording_ends_whatever_stops_it(self, opened, images, monkeypatch):
        session, _, cuda = opened()
        session.run(images[:4])

        def stopped(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Context, "execute_async_v3", stopped)
            with pytest.raises(KeyboardInterrupt):
                session.run(images[:4])
        assert cuda.recording is None
        for _ in range(2):
            assert session.run(images[:4])[FEATURES].tolist() == images[:4].sum(axis=1, keepdims=True).tolist()

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
