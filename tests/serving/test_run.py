"""A server as a whole: hot reload without a lost request, and a process that ends well."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from http.client import HTTPConnection

import numpy as np
import onnx
import pytest

from tests.kit.exporting import exported
from tests.kit.serving import PATIENCE, serving, until
from tests.kit.tiny import resign


def call(port, method, path, body=None):
    connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request(method, path, body)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content


@pytest.fixture
def picture(tiny_run):
    return min((tiny_run / "golden").glob("*.png")).read_bytes()


@pytest.fixture(scope="module")
def other_run(pictures, tiny_config, tmp_path_factory):
    """Another bundle of the tiny backbone."""
    from dataclasses import replace

    from tlkit.training.run import train

    config = replace(tiny_config, seed=7, strategy=replace(tiny_config.strategy, epochs=20))
    run = tmp_path_factory.mktemp("other") / "run"
    train(pictures, run, config)
    exported(run, config.backbone, config.head)
    return run


def test_a_new_version_takes_the_place_of_the_old_one_without_a_lost_request(tiny_run, other_run, tmp_path, picture):
    models, told = tmp_path / "models", []
    shutil.copytree(tiny_run, models / "pets/1")
    with serving([models], watch=True, said=told.append) as server:
        statuses, going = [], threading.Event()

        def ask():
            while not going.is_set():
                statuses.append(call(server.port, "POST", "/predict?topk=3", picture)[0])

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        served = []
        for version in range(2, 6):
            source = other_run if version % 2 == 0 else tiny_run
            shutil.copytree(source, tmp_path / "beside")
            (tmp_path / "beside").rename(models / f"pets/{version}")
            until(lambda version=version: server.repository.get("pets").source.version == str(version))
            served.append(json.loads(call(server.port, "POST", "/predict?topk=3", picture)[1])["predictions"])
        going.set()
        for thread in threads:
            thread.join(PATIENCE)
        assert set(statuses) == {200}
        assert len(statuses) > 10
        assert served[0] == served[2] != served[1] == served[3]
        assert len([line for line in told if line.startswith("ready: pets")]) == 5
        workers = [each for each in threading.enumerate() if each.name.startswith("serve-")]
        until(lambda: sum(each.is_alive() for each in workers) <= 2)  # those of the old ones have ended


def test_the_old_one_stays_if_the_new_one_fails(tiny_run, tmp_path, picture):
    models, told = tmp_path / "models", []
    shutil.copytree(tiny_run, models / "pets/1")
    with serving([models], watch=True, said=told.append) as server:
        place = tmp_path / "beside"
        shutil.copytree(tiny_run, place)
        graph = onnx.load_model(place / "onnx/fp32/model.onnx")
        weight = graph.graph.initializer[0]
        weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) + np.float32(1), weight.name))
        onnx.save_model(graph, place / "onnx/fp32/model.onnx")
        resign(place, "model.onnx")
        place.rename(models / "pets/2")
        until(lambda: "pets" in server.repository.failures)
        assert call(server.port, "GET", "/v2/health/ready")[0] == 200
        assert call(server.port, "POST", "/predict", picture)[0] == 200
        listed = json.loads(call(server.port, "POST", "/v2/repository/index")[1])
        assert [(each["version"], each["state"]) for each in listed] == [("1", "READY")]
        assert "does not give what was trained" in listed[0]["reason"]
        assert any(line.startswith("not served: pets:") for line in told)
        assert b'tlkit_loads_total{model="pets",verdict="failed"} 1.0' in call(server.port, "GET", "/metrics")[1]
        shutil.rmtree(models / "pets/2")
        shutil.copytree(tiny_run, models / "birds")  # on the same trunk
        until(lambda: {each.source.name for each in server.repository.all()} == {"pets", "birds"})
        assert call(server.port, "POST", "/predict?model=birds", picture)[0] == 200
        shutil.rmtree(models / "birds")
        until(lambda: [each.source.name for each in server.repository.all()] == ["pets"])


def test_a_folder_that_is_empty_at_first_is_not_ready(tiny_run, tmp_path):
    (tmp_path / "models").mkdir()
    with serving([tmp_path / "models"], watch=True, wait=False) as server:
        assert call(server.port, "GET", "/v2/health/live")[0] == 200
        assert call(server.port, "GET", "/v2/health/ready")[0] == 503
        shutil.copytree(tiny_run, tmp_path / "pets")
        (tmp_path / "pets").rename(tmp_path / "models/pets")
        until(lambda: call(server.port, "GET", "/v2/health/ready")[0] == 200)


def test_the_process_answers_what_is_under_way_and_ends(tiny_run, picture):
    """The command itself: ready, one request with each signal, and its exit code."""
    pytest.importorskip("uvicorn", reason="needs tlkit[serve]")
    command = [sys.executable, "-m", "tlkit", "serve", tiny_run, "--port", "0", "--access-log"]
    for number, code in ((signal.SIGTERM, 0), (signal.SIGINT, 130)):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "RANK": "0"})
        try:
            port = int(re.search(r"listening on http://127.0.0.1:(\d+)", process.stderr.readline())[1])
            assert process.stderr.readline().startswith("ready: run 1 (fp32): 4 golden images replayed")
            assert call(port, "POST", "/predict", picture)[0] == 200
            assert json.loads(process.stderr.readline())["status"] == 200
            process.send_signal(number)
            said = process.communicate(timeout=PATIENCE)[1]
        finally:
            process.kill()
        assert process.returncode == code, said
        assert said == ("" if code == 0 else "tlkit: interrupted\n")
