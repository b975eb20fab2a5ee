"""Executor on a Ray cluster: each shard is a task that runs on any node, and only its record comes back.

The nodes need tlkit in the same version, and see the graph, the images and the folder of the job under the same names.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

from tlkit.embedding.job import Job
from tlkit.embedding.local import TRIES, Executor, Tick, error_of
from tlkit.embedding.shard import note_failure
from tlkit.errors import ResourceError

PATIENCE = 10  # seconds to wait for a cluster to answer
AHEAD = 2  # tasks that are submitted for each that can run, so that no node waits for the next one

RunShard = Callable[[Mapping[str, Any], int], dict[str, Any]]  # its record, or {"error": …}


def in_cluster(address: str | None, workers: int | None, start: Mapping[str, Any], run_shard: RunShard) -> Executor:
    """Return the executor on the cluster at an address; None: the one that Ray finds, or else one on this machine.

    `start` is what each process opens; `workers` tasks run at once, by default one on each processor. Ray gives the
    task of a worker or node that is lost to another, three times in all; then its shard counts as failed.
    """

    def run(job: Job, shards: Sequence[int], tick: Tick) -> None:
        with _connected(address) as ray:
            processors = max(1, int(ray.cluster_resources().get("CPU", 1)))
            tasks = min(workers or processors, processors)
            facts = {**start, "threads": processors // tasks}
            gpus = 0 if start["device"] == "cpu" else 1
            task = ray.remote(num_cpus=facts["threads"], num_gpus=gpus, max_retries=TRIES - 1)(run_shard)
            left, running = iter(shards), dict[Any, int]()
            while True:
                for shard in islice(left, AHEAD * tasks - len(running)):
                    running[task.remote(facts, shard)] = shard
                if not running:
                    return
                for done in ray.wait(list(running))[0]:
                    tick(_images(ray, done, job, running.pop(done)))

    return run


def _images(ray: Any, task: Any, job: Job, shard: int) -> int:
    """Return the number of images of a task that has ended; 0 and a note of the reason if its workers were lost."""
    try:
        said = ray.get(task)
    except ray.exceptions.RayTaskError:
        raise  # a bug, not a loss
    except ray.exceptions.RayError as error:
        reason = str(error).strip().partition("\n")[0]
        note_failure(job, shard, f"its worker was lost {TRIES} times, last because: {reason}")
        return 0
    if "error" in said:
        raise error_of(said["error"])
    return int(said["rows"]) + int(said["rejects"])


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Yield Ray, connected to a cluster. Raises ResourceError where there is none, or one of another version."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ResourceError("--ray needs the package ray", do='run: pip install "tlkit[ray]"') from error
    if ray.is_initialized():  # by a notebook, which goes on with it
        yield ray
        return
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        _knock(address)
        ray.init(
            address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=None if address else False
        )
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        ray.shutdown()  # half connected, it would refuse the next one
        reason = " ".join(str(error).split())
        do = "start one with: ray start --head, or leave the address out"
        if "ersion mismatch" in reason:
            do = "install the cluster's versions of Ray and Python here"
        raise ResourceError(f"the Ray cluster can't be used: {reason}", file=address, do=do) from error
    finally:
        if main:
            signal.signal(signal.SIGTERM, handler)  # Ray sets its own
    try:
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str | None) -> None:
    """Raise OSError if nothing listens at the address of a cluster, which Ray would wait for for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), PATIENCE).close()
