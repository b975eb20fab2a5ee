"""Processes that decode: the same pixels in the same order, whatever happens to the processes."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.kit.tiny import Tiny
from tlkit.data import decoders as decoders_module
from tlkit.data.decoders import Decoders, Waits
from tlkit.data.preprocessing import load
from tlkit.errors import ResourceError
from tlkit.plugin.contract import IMAGES, Session
from tlkit.runtime import pipeline
from tlkit.runtime.pipeline import stream

PREPROCESSING = Tiny.preprocessing

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs memory without a name, as Linux has it")


class Means(Session):
    """Gives the mean of each image."""

    input, outputs, metadata, workers, batch_size = IMAGES, ("mean",), {}, 2, 4

    def run(self, array, outputs=None):
        return {"mean": array.mean((1, 2, 3), dtype=np.float32)[:, None]}


@pytest.fixture(scope="module")
def files(pictures, tmp_path_factory):
    """Eight pictures, among them one that is no image, and one that is missing."""
    broken = tmp_path_factory.mktemp("broken") / "no image \udcff.png"
    broken.write_bytes(b"text")
    found = sorted(pictures.rglob("*.png"))[:8]
    return [*found[:2], broken, *found[2:], broken.with_name("gone.png")]


@pytest.fixture(scope="module")
def decoders():
    with closing(Decoders(PREPROCESSING, 6, 3, 1)) as made:
        yield made


def named(files):
    return [(str(file), None) for file in files]


@pytest.mark.parametrize("read", ["there", "here", "some here"])
def test_pixels_hashes_and_reasons_are_those_of_this_process(decoders, files, read):
    for chunk in (files[:6], files[6:], files[2:3]):
        here = [read != "there" and file.exists() and (read == "here" or n % 2) for n, file in enumerate(chunk)]
        given = [(str(file), file.read_bytes() if own else None) for file, own in zip(chunk, here, strict=True)]
        with decoders.decoded(given, hashed=True) as (found, array):
            good = [file for file, (_, reason) in zip(chunk, found, strict=True) if reason is None]
            assert len(array) == len(good) == len(chunk) - sum("broken" in str(file) for file in chunk)
            for file, pixels in zip(good, array, strict=True):
                assert np.array_equal(pixels, load(file, PREPROCESSING))
            for file, (digest, reason) in zip(chunk, found, strict=True):
                assert digest == (hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else "")
                assert reason in (None, "no such file") or reason.startswith("is not an image")


@pytest.mark.parametrize("size", [0, 2**22], ids=["files", "more than a pipe holds"])
def test_a_process_that_was_killed_is_replaced_and_its_task_done_again(decoders, files, size):
    os.kill(decoders.all[-1].pid, signal.SIGKILL)
    given = [(str(file), file.read_bytes() + bytes(size) if size else None) for file in files[:2]]
    with decoders.decoded(given, hashed=False) as (found, array):
        assert found == [("", None)] * 2
        assert np.array_equal(array[1], load(files[1], PREPROCESSING))


def test_one_that_dies_again_is_an_error_that_names_the_file(files, monkeypatch):
    monkeypatch.setattr(decoders_module.sys, "executable", "/bin/false")
    with closing(Decoders(PREPROCESSING, 2, 1, 1)) as made, pytest.raises(ResourceError) as caught:
        made._run("{}", named(files[:2]))
    assert "ended 2 times with exit code 1" in caught.value.what
    assert caught.value.file == str(files[0])


def test_ctrl_c_is_for_the_parent_alone_and_a_killed_parent_leaves_none(decoders, checkout):
    assert os.getpgid(decoders.all[-1].pid) != os.getpgid(0)
    code = "import os, signal; from tests.data.test_decoders import *; made = Decoders(PREPROCESSING, 2, 1, 1); "
    code += "print(made.all[0].pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=checkout, check=False)
    assert done.returncode == -signal.SIGKILL
    ended = time.monotonic() + 30
    while _runs(int(done.stdout)):
        assert time.monotonic() < ended
        time.sleep(0.02)


def _runs(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def few(monkeypatch, own_cache):
    """Two threads, whose waits the first eight images tell."""
    monkeypatch.setattr(pipeline, "PROBED", 8)
    monkeypatch.setattr(pipeline, "cores", lambda: 1)
    return own_cache


def run(files):
    batches = list(stream(Means(), PREPROCESSING, files, hashed=True))
    images = [image for batch in batches for image in batch.images]
    return images, np.concatenate([batch.arrays["mean"] for batch in batches if batch.arrays]).tolist()


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("refused", [False, True], ids=["processes", "no memory for them"])
def test_a_stream_through_them_is_that_of_threads(files, monkeypatch, refused):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    expected = run(files)
    monkeypatch.setattr(Waits, "seconds", lambda _: 1e3)
    if refused:
        monkeypatch.setattr(os, "posix_fallocate", full)
    else:
        monkeypatch.setattr(pipeline, "load", None)  # nothing is decoded here
    assert run(files) == expected


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("start", [-1.0, 1e9], ids=["soon", "late"])
def test_the_first_are_decoded_by_threads_and_tell_who_decodes_the_rest(files, monkeypatch, start):
    expected, started, measured, measure = run(files[:8]), [], [], Waits.load
    monkeypatch.setattr(decoders_module, "START", start)
    monkeypatch.setattr(decoders_module, "_delayed", lambda: 0.0)
    monkeypatch.setattr(Decoders, "_open", lambda made, opens=Decoders._open: started.append(made) or opens(made))
    monkeypatch.setattr(Waits, "load", lambda *given: measured.append(given) or measure(*given))
    for turn in (1, 2):
        images, means = run(files)
        assert (images[:8], means[: len(expected[1])]) == expected
        assert len(measured) == (8 * turn if start > 0 else 8)  # what is kept may be enough
        assert len(started) == (turn if start < 0 else 0)


def test_a_wait_is_neither_work_nor_for_a_processor(own_cache, monkeypatch, files):
    ticks = {"perf_counter": iter([5.0, 6.0]), "thread_time": iter([1.0, 1.6]), "_delayed": iter([2.0, 2.3])}
    clock = SimpleNamespace(**{name: ticks[name].__next__ for name in ("perf_counter", "thread_time")})
    monkeypatch.setattr(decoders_module, "time", clock)
    monkeypatch.setattr(decoders_module, "_delayed", ticks["_delayed"].__next__)
    waits = Waits(4)
    assert waits.seconds() is None
    assert np.array_equal(waits.load(files[0], PREPROCESSING), load(files[0], PREPROCESSING))
    waits.keep()
    assert Waits(4).seconds() == pytest.approx(0.1)
    assert Waits(5).seconds() is None
    for content in ("", "[]", "-1", "NaN", "{"):
        waits._record.write_text(content)
        assert waits.seconds() is None
    assert own_cache in waits._record.parents


def test_processes_are_for_many_images_whose_threads_wait(monkeypatch):
    """With the waits that the table of the module implies: 9.7 ms of 16 threads per image, of which 3.7 are work."""
    monkeypatch.setattr(Waits, "seconds", lambda waits: {1: 0.0, 2: 1e-5, 16: 0.006}[waits._threads])
    assert [Waits(threads).outlast(images) for threads in (1, 2, 16) for images in (1000, 6000)] == [
        *(False, False, False, False),
        *(False, True),
    ]
