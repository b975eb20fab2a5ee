"""Features are computed once for each image and never for the wrong one."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest

from tests.kit.tiny import WIDTHS, Tiny
from tlkit.data.preprocessing import load
from tlkit.errors import ResourceError
from tlkit.graph import trace
from tlkit.graph.compose import stage_output
from tlkit.model import trunk as trunks
from tlkit.runtime.feature_cache import RECENT_NS, FeatureCache
from tlkit.runtime.features import extract
from tlkit.runtime.session import OnnxSession
from tlkit.util.files import cache_dir

STAGES = tuple(WIDTHS)


@pytest.fixture
def graph(own_cache):
    assert not (own_cache / "features").exists()
    return trace.stage_graph(trunks.build(Tiny()))


@pytest.fixture
def files(pictures, tmp_path):
    """Copies, old enough to be trusted not to change unnoticed."""
    shutil.copytree(pictures, tmp_path / "photos")
    time.sleep(2 * RECENT_NS / 1e9)
    return sorted((tmp_path / "photos").rglob("*.png"))


def run(files, graph, cut="third", tick=lambda _: None):
    return extract(files, graph, Tiny.preprocessing, STAGES, cut, tick)


def direct(files, graph, cut):
    session = OnnxSession(graph)
    images = np.stack([load(file, Tiny.preprocessing) for file in files])
    return session.run(images)[stage_output(cut)]


def test_the_same_relative_name_in_two_folders_is_two_files(files, graph, tmp_path, monkeypatch):
    folders = [tmp_path, tmp_path / "other"]
    shutil.copytree(tmp_path / "photos", folders[1] / "photos")
    time.sleep(2 * RECENT_NS / 1e9)
    relative = [file.relative_to(tmp_path) for file in files]
    decoded = []
    for folder in (*folders, *folders):
        monkeypatch.chdir(folder)
        decoded.append(run(relative, graph).decoded)
    assert decoded == [len(files), len(files), 0, 0]
    assert run(files, graph).decoded == 0


@pytest.mark.parametrize("cut", STAGES)
def test_rows_are_the_features_of_their_files(files, graph, cut):
    result = run(files, graph, cut)
    assert np.allclose(result.array, direct(files, graph, cut), atol=1e-5)
    assert result.usable.all()
    assert result.decoded == len(files)


def test_another_cut_decodes_no_image(files, graph):
    run(files, graph, "third")
    for cut in STAGES:
        again = run(files, graph, cut)
        assert again.decoded == 0
        assert np.allclose(again.array, direct(files, graph, cut), atol=1e-5)


def test_another_order_or_a_part_decodes_no_image(files, graph):
    run(files, graph)
    shuffled = random.Random(0).sample(files, len(files) - 3)
    again = run(shuffled, graph)
    assert again.decoded == 0
    assert np.allclose(again.array, direct(shuffled, graph, "third"), atol=1e-5)


def test_only_new_images_are_decoded(files, graph):
    run(files[:20], graph)
    assert run(files, graph).decoded == len(files) - 20


def test_a_changed_image_is_decoded_again(files, graph):
    before = run(files, graph)
    shutil.copyfile(files[-1], files[0])
    after = run(files, graph)
    assert after.decoded == 1
    assert np.array_equal(after.array[0], before.array[-1])


def test_an_image_changed_without_a_new_time_is_decoded_again(files, graph):
    run(files, graph)
    stat, content = files[0].stat(), bytearray(files[0].read_bytes())
    files[0].write_bytes(content)
    os.utime(files[0], ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the time of the last status change still tells
    assert run(files, graph).decoded == 1


def test_a_file_that_was_just_written_is_not_trusted_to_stay(files, graph):
    shutil.copyfile(files[1], files[0])
    run(files, graph)
    assert run(files, graph).decoded == 1


def test_another_preprocessing_or_graph_shares_nothing(files, graph):
    from dataclasses import replace

    run(files, graph)
    other = extract(files, graph, replace(Tiny.preprocessing, crop_pct=0.5), STAGES, "third", lambda _: None)
    assert other.decoded == len(files)
    assert not np.allclose(other.array, run(files, graph).array)


def test_rejects_are_told_and_not_kept(files, graph, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(files[0].read_bytes()[:200])
    mixed = [files[0], broken, *files[1:]]
    for decoded in (len(files), 0):
        result = run(mixed, graph)
        assert list(result.rejected) == [1]
        assert result.usable.tolist() == [index != 1 for index in range(len(mixed))]
        assert not result.array[1].any()
        assert result.decoded == decoded
        assert np.allclose(result.array[result.usable], direct(files, graph, "third"), atol=1e-5)


def test_every_image_ticks_once(files, graph):
    for _ in range(2):
        ticks: list[int] = []
        run(files, graph, tick=ticks.append)
        assert sum(ticks) == len(files)


def test_an_interrupted_run_continues_where_it_stopped(files, graph, tmp_path):
    """`kill -9` in the middle: what was saved is used, the rest is computed, and the result is the same."""
    code = f"""
import os, signal, sys
from pathlib import Path
from tests.kit.tiny import Tiny
from tlkit.runtime import features
features.SAVE_EVERY = 1
seen = 0
def tick(n):
    global seen
    seen += n
    if seen >= 16:
        os.kill(os.getpid(), signal.SIGKILL)
files = sorted(Path({str(tmp_path / "photos")!r}).rglob("*.png"))
features.extract(files, Path({str(graph)!r}), Tiny.preprocessing, {STAGES!r}, "third", tick)
"""
    killed = subprocess.run([sys.executable, "-c", code], check=False)
    assert killed.returncode == -9
    result = run(files, graph)
    assert 0 < result.decoded < len(files)
    assert np.allclose(result.array, direct(files, graph, "third"), atol=1e-5)


def test_a_cache_that_can_not_be_opened_is_named(files, graph):
    run(files, graph)
    cache = next(cache_dir("features").glob("*.sqlite"))
    for file in cache.parent.glob("*.sqlite*"):
        file.unlink()
    cache.mkdir()
    with pytest.raises(ResourceError, match="delete this file"):
        run(files, graph)


def test_two_runs_at_once_share_the_cache(files, graph):
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: run(files, graph), range(2))
    assert np.allclose(first.array, second.array, atol=1e-5)
    assert run(files, graph).decoded == 0


def test_a_new_cache_can_be_opened_twice_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TLKIT_CACHE", str(tmp_path))
    for number in range(40):  # in one of 25 openings, SQLite found the database locked
        together = Barrier(2)

        def open_cache(_, number=number, together=together):
            together.wait()
            with FeatureCache(Path(f"graph-{number}.onnx"), Tiny.preprocessing) as cache:
                cache.widths = [1]

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(open_cache, range(2)))


def test_the_cache_is_one_row_an_image_whatever_the_paths(files, graph, tmp_path):
    run(files, graph)
    copies = [shutil.copyfile(file, tmp_path / f"copy{number}.png") for number, file in enumerate(files)]
    run([tmp_path / copy.name for copy in copies], graph)
    with sqlite3.connect(next(cache_dir("features").glob("*.sqlite"))) as db:
        assert db.execute("SELECT count(*) FROM features").fetchone() == (len(files),)
