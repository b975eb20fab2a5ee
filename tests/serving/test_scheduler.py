"""The queue: batches form under load, large requests are split, and what nobody waits for is not run."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from tests.kit.serving import PATIENCE, Slow, open_graph, until
from tlkit.serving.protocol import ProtocolError
from tlkit.serving.scheduler import Job, Scheduler


@pytest.fixture
def gate():
    return threading.Event()


@pytest.fixture
def scheduler(tiny_run, gate):
    made = Scheduler(Slow(open_graph(tiny_run, "model").session, gate), 40)
    yield made
    gate.set()
    made.close()


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (count, 32, 32, 3), np.uint8)


def submitted(scheduler, *job):
    made = Job(*job)
    scheduler.submit(made)
    return made


def later(seconds=PATIENCE):
    return time.monotonic() + seconds


def test_load_forms_batches_and_every_request_gets_its_own_rows(scheduler, gate):
    session = scheduler.session
    jobs = [submitted(scheduler, images(1, 99), ["logits"], later())]
    until(lambda: not scheduler._queue)  # the only worker has it
    jobs += [submitted(scheduler, images(count, count), ["logits"], later()) for count in (3, 20, 1, 2)]
    gate.set()
    answers = [job.future.result(PATIENCE) for job in jobs]
    assert session.batches == [1, 8, 8, 8, 2]
    for job, answer in zip(jobs, answers, strict=True):
        assert answer.arrays["logits"] == pytest.approx(session.session.run(job.images)["logits"], abs=1e-5)
        assert answer.ran > 0


def test_a_deadline_and_a_client_that_goes_are_seen_before_the_run(scheduler, gate):
    first = submitted(scheduler, images(1), ["logits"], later())
    until(lambda: not scheduler._queue)
    late, abandoned = (
        submitted(scheduler, images(4), ["logits"], later(-1)),
        submitted(scheduler, images(5), ["logits"], later()),
    )
    abandoned.abandoned = True
    last = submitted(scheduler, images(2), ["logits"], later())
    gate.set()
    assert len(last.future.result(PATIENCE).arrays["logits"]) == 2
    assert first.future.done()
    with pytest.raises(ProtocolError) as caught:
        late.future.result(PATIENCE)
    assert caught.value.status == 504
    assert scheduler.session.batches == [1, 2]


def test_the_queue_is_bounded_in_images(scheduler):
    with scheduler.admitted(30), scheduler.admitted(10):
        assert scheduler.held == 40
        with pytest.raises(ProtocolError) as caught, scheduler.admitted(1):
            pass
        assert (caught.value.status, caught.value.retry_after) == (503, 1)
    with scheduler.admitted(41):  # nothing else is there
        assert scheduler.held == 41
    assert scheduler.held == 0


def test_an_error_of_the_session_is_that_of_its_requests_alone(scheduler, gate):
    gate.set()
    with pytest.raises(Exception, match="ONNX Runtime fails"):
        submitted(scheduler, images(1)[:, :9], ["logits"], later()).future.result(PATIENCE)
    assert submitted(scheduler, images(1), ["logits"], later()).future.result(PATIENCE)


def test_closing_answers_what_is_queued(tiny_run, gate):
    scheduler = Scheduler(Slow(open_graph(tiny_run, "model").session, gate), 40)
    jobs = [submitted(scheduler, images(3), ["logits"], later()) for _ in range(3)]
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    gate.set()
    closing.join(PATIENCE)
    assert all(job.future.result(0) for job in jobs)
    late = submitted(scheduler, images(1), ["logits"], later())
    with pytest.raises(ProtocolError, match="stopping"):
        late.future.result(0)
