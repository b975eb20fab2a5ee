"""Shards as tasks of a Ray cluster: the record alone comes back, and what ends the job is the error of a worker."""

from __future__ import annotations

import shutil
import socket
from importlib.util import find_spec

import pytest

import tlkit
from tests.embedding.test_job import parts
from tlkit import places, worker
from tlkit.embedding import cluster
from tlkit.embedding.local import error_of
from tlkit.embedding.shard import versions
from tlkit.errors import ResourceError, UsageError
from tlkit.features import _start


@pytest.fixture(scope="module")
def clean(tiny_trunk, pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("cluster") / "features"
    tlkit.embed(tiny_trunk, pictures, out, settings={"shard_rows": 10})
    return out


@pytest.fixture
def start(tiny_trunk, pictures, clean, tmp_path):
    job = shutil.copytree(clean, tmp_path / "features")
    found = places.find_places(pictures, None, {})
    yield {**_start(tiny_trunk, str(job), 1, found), "versions": versions()}
    worker._open.cache_clear()


def test_a_task_writes_a_shard_and_returns_its_record(clean, start):
    job = clean.parent / start["job"]
    for file in job.rglob("*part-00002*"):
        file.unlink()
    said = worker.run_shard(start, 2)
    assert (said["shard"], said["rows"], said["rejects"]) == (2, 10, 0)
    assert worker.run_shard(start, 2)["files"] == said["files"]
    assert parts(job) == parts(clean)


def test_what_ends_the_job_comes_back_as_it_was(start):
    other = {**start, "versions": start["versions"] | {"pillow": "1.0"}}
    error = error_of(worker.run_shard(other, 0)["error"])
    assert isinstance(error, ResourceError)
    assert "has pillow" in str(error)
    assert str(error).endswith("not 1.0; install the same versions on all nodes")
    gone = error_of(worker.run_shard({**start, "job": start["job"] + "2"}, 0)["error"])
    assert isinstance(gone, UsageError)
    assert "there is no embedding job" in str(gone)


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_the_error_names_the_package(tiny_trunk, pictures, tmp_path):
    with pytest.raises(ResourceError, match=r'--ray needs the package ray; run: pip install "tlkit\[ray\]"'):
        tlkit.embed(tiny_trunk, pictures, tmp_path / "f", ray=True)


def test_an_address_where_nothing_listens_is_known_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        for each in (address, f"ray://{address}"):
            with pytest.raises(ConnectionRefusedError):
                cluster._knock(each)
        free.listen()
        cluster._knock(address)
    cluster._knock(None)
    cluster._knock("auto")


@pytest.mark.slow
def test_a_cluster_that_loses_a_node_gives_the_same_bytes(tiny_trunk, pictures, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed")
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    lost = nodes.add_node(num_cpus=1, node_ip_address="127.0.0.2")  # so that this process stays with the first
    address, ticks = nodes.address, []

    def progress(what, _total):
        def tick(more, *_):
            ticks.append((what, more))
            if what == "embedding" and more and lost in nodes.list_all_nodes():
                nodes.remove_node(lost, allow_graceful=False)

        return tick

    try:
        given = {"settings": {"shard_rows": 4}, "progress": progress}
        tlkit.embed(tiny_trunk, pictures, tmp_path / "f", ray=address, **given)
        with monkeypatch.context() as patched:
            patched.setattr("ray._private.utils.compute_version_info", lambda: ("0.1", "3.0"))
            with pytest.raises(ResourceError, match="install the cluster's versions of Ray and Python here"):
                tlkit.embed(tiny_trunk, pictures, tmp_path / "g", ray=address)
    finally:
        nodes.shutdown()
    assert sum(more for what, more in ticks if what == "embedding") == 36
    tlkit.embed(tiny_trunk, pictures, tmp_path / "whole", settings={"shard_rows": 4})
    assert parts(tmp_path / "f") == parts(tmp_path / "whole")
    with pytest.raises(ResourceError, match="the Ray cluster can't be used"):
        tlkit.embed(tiny_trunk, pictures, tmp_path / "g", ray=address)
