"""Refusals of the system end with exit code 5 and one line; pipes, links and escapes do no harm."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.kit import components, network
from tests.kit.distribution import at_start
from tests.kit.tiny import write_images
from tlkit import cli
from tlkit.cli import output
from tlkit.errors import ArtifactError, DataError, ResourceError
from tlkit.model.bundle import open_bundle
from tlkit.model.exports import Exports
from tlkit.runtime import session
from tlkit.runtime.session import OnnxSession, read_graph
from tlkit.util import files
from tlkit.util.resources import is_refused

CAPTURED = {"capture_output": True, "text": True, "check": False}
SCRIPT = [sys.executable, "-c", "from tlkit.cli import main; main()"]


def run(line, **options):
    process = subprocess.run([*SCRIPT, *line.split()], stderr=subprocess.PIPE, text=True, check=False, **options)
    return process.returncode, process.stderr


class TestOutput:
    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
    @pytest.mark.parametrize("line", ["--help", "--version", "plugins", "inspect {run}", "inspect {run} --json"])
    def test_a_full_stdout_is_told(self, tiny_run, line):
        with open("/dev/full", "w") as full:
            code, err = run(line.format(run=tiny_run), stdout=full)
        assert (code, err) == (
            5,
            "tlkit: can't write: no space left on device; free some space and run the command again\n",
        )

    def test_a_closed_stdout_is_told_before_any_work(self, tiny_run, tmp_path):
        code, err = run(f"train nowhere -o {tmp_path}/out", preexec_fn=lambda: os.close(1))
        assert (code, err) == (5, "tlkit: stdout is closed; redirect it to a file or to /dev/null\n")

    def test_closed_descriptors_are_not_taken_by_the_next_file(self, tiny_run):
        done = subprocess.run(
            [*SCRIPT, "inspect", tiny_run], stdout=subprocess.PIPE, check=False, preexec_fn=lambda: os.close(2)
        )
        assert done.returncode == 0
        assert b"Bundle" in done.stdout

    def test_names_and_labels_do_not_reach_the_terminal_as_commands(self, capsys):
        output.show({}, "a \x1b]0;title\x07 label\x9b31m\nsecond line\u2028\r", as_json=False)
        assert capsys.readouterr().out == "a \\x1b]0;title\\x07 label\\u009b31m\nsecond line\\u2028\\r\n"


class TestPlaces:
    def test_no_temporary_folder(self, monkeypatch, capsys):
        def none():
            raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

        monkeypatch.setattr(tempfile, "gettempdir", none)
        monkeypatch.setattr(cli, "_dispatch", lambda _: none())
        assert cli.run([]) == 5
        says = "tlkit: no usable temporary directory found in ['/tmp']; set TMPDIR to a folder that can be written\n"
        assert capsys.readouterr().err == says

    def test_no_home(self, monkeypatch):
        monkeypatch.delenv("TLKIT_CACHE", raising=False)
        monkeypatch.setattr(files.platformdirs, "user_cache_dir", lambda *_, **__: "~nobody-of-this-name/.cache")
        with pytest.raises(ResourceError, match="there is no home directory for the cache; set TLKIT_CACHE"):
            files.cache_dir("graphs")

    def test_a_tilde_in_the_variable_is_the_home(self, monkeypatch, tmp_path):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("TLKIT_CACHE", "~/kept")
        assert files.cache_dir("graphs") == tmp_path / "kept/graphs"


class TestRefused:
    @pytest.mark.parametrize(
        "error",
        [
            MemoryError(),
            RuntimeError("can't start new thread"),
            RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
            OSError(12, "Cannot allocate memory"),
        ],
        ids=str,
    )
    def test_memory_or_threads_are_no_bug(self, monkeypatch, capsys, error):
        def fail(_):
            raise error

        monkeypatch.setattr(cli, "_dispatch", fail)
        assert cli.run([]) == 5
        assert "bug" not in capsys.readouterr().err

    def test_a_session_that_gets_no_memory_says_so(self, monkeypatch, own_run):
        model = Exports.of(open_bundle(own_run)).get().file()

        def fail(*_, **__):
            raise RuntimeError("Failed to allocate memory for requested buffer of size 9")

        opened = OnnxSession(model)
        monkeypatch.setattr(opened, "_session", type("Session", (), {"run": fail}))
        monkeypatch.setattr(session.onnxruntime, "InferenceSession", fail)
        for call in (lambda: opened.run(None), lambda: OnnxSession(model)):
            with pytest.raises(ResourceError, match=r"Failed to allocate .*; free some memory"):
                call()
        assert not is_refused(RuntimeError("Unexpected input data type"))


class TestSpecialFiles:
    """Only regular files inside the folder are opened; a pipe, to which nobody writes, would hang."""

    @pytest.mark.parametrize(
        "name", ["bundle.json", "trunk.safetensors", "golden/0.png", "onnx/fp32/manifest.json", "onnx/fp32/model.onnx"]
    )
    @pytest.mark.parametrize("kind", ["pipe", "link", "folder"])
    def test_in_a_bundle(self, own_run, tmp_path, name, kind):
        file = own_run / name
        content = file.read_bytes()
        file.unlink()
        if kind == "pipe":
            os.mkfifo(file)
        elif kind == "folder":
            file.mkdir()
        else:
            (tmp_path / "outside").write_bytes(content)
            file.symlink_to(tmp_path / "outside")
        with pytest.raises(ArtifactError):
            Exports.of(open_bundle(own_run)).get().file()

    def test_as_a_graph(self, tmp_path):
        os.mkfifo(tmp_path / "model.onnx")
        with pytest.raises(DataError, match="not a regular file"):
            read_graph(tmp_path / "model.onnx")

    def test_a_linked_bundle_is_one(self, own_run, tmp_path):
        (tmp_path / "link").symlink_to(own_run)
        assert Exports.of(open_bundle(tmp_path / "link")).get().file().is_file()


class TestTelemetry:
    def test_it_is_off_before_anything_else_unless_the_user_has_set_it(self):
        code = "import os; {}; import tlkit; print(os.environ['ORT_DISABLE_TELEMETRY'])"
        for before, after in (("0", "1"), ("os.environ['ORT_DISABLE_TELEMETRY'] = 'mine'", "mine")):
            done = subprocess.run(
                [sys.executable, "-c", code.format(before)], capture_output=True, text=True, check=False
            )
            assert done.stdout.strip() == after

    def test_a_fresh_home_holds_the_cache_of_tlkit_alone_and_no_result_says_whose_it_is(self, tmp_path):
        """After every verb, in one process; no name is looked up, and no temporary file is left."""
        home, site, work, temporary = (
            tmp_path / name for name in ("home of jane", "site", "work of jane", "temporary")
        )
        for folder in (home, work, temporary):
            folder.mkdir()
        photos, run = write_images(work / "photos", 6), work / "run"
        watched = network.environment(tmp_path)
        env = {**components.environment(site), **watched, "HOME": str(home), "USER": "jane", "LOGNAME": "jane"}
        env = {name: value for name, value in env.items() if not name.startswith(("XDG_", "TLKIT_CACHE", "ORT_"))}
        env["TMPDIR"] = str(temporary)
        at_start(site, network.PYTHON)
        lines = [
            ["train", photos, "-o", run, "--backbone", "tiny"],
            ["advise", photos, "--backbone", "tiny", "--html", work / "advice.html"],
            ["export", run, "--onnx"],
            ["export", run, "--triton", work / "models"],
            ["verify", run],
            ["predict", run, photos],
            ["embed", run, photos, "-o", work / "f.npy"],
            ["embed", run, photos, "-o", work / "f.parquet"],
            ["search", work / "f.parquet", photos / "dark/00.png", "--model", run, "--html", work / "hits.html"],
            ["eval", run, photos],
            ["report", run, photos, "-o", work / "report.html"],
            ["look", run, photos / "dark/00.png", "-o", work / "look.html"],
            ["suggest", run, photos, "-n", "3", "-o", work / "next.csv", "--html", work / "next.html"],
            ["bench", run, "--batch-size", "1"],
            ["inspect", run],
            ["plugins"],
            ["doctor"],
            ["completion", "bash"],
        ]
        if find_spec("usearch"):
            lines.append(["index", work / "f.parquet"])
        if find_spec("uvicorn"):
            lines.append(["serve", run])
        if find_spec("huggingface_hub"):
            lines.append(["card", run, "-o", work / "card"])
        assert {line[0] for line in lines} | {"card", "index", "serve"} == set(cli.VERBS)
        done = subprocess.run(
            [sys.executable, "-c", EVERY_VERB, json.dumps([[str(word) for word in line] for line in lines])],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert not network.phoned(watched)
        assert not [path for path in temporary.rglob("*") if not path.is_dir()]  # PyTorch makes an empty folder
        found = {path.relative_to(home).as_posix() for path in home.rglob("*") if not path.is_dir()}
        assert found
        assert all(name.startswith((".cache/tlkit/", "Library/Caches/tlkit/")) for name in found), found
        results = [file for file in work.rglob("*") if file.is_file() and photos not in file.parents]
        assert len(results) >= 16
        telling = [file for file in results if re.search(rb"jane|" + os.fsencode(tmp_path), file.read_bytes())]
        assert telling == []

    @pytest.mark.parametrize("code", ["socket.gethostbyname('a.invalid')", "socket.getaddrinfo('a.invalid', 80)"])
    def test_a_name_that_is_looked_up_is_found(self, tmp_path, code):
        watched = network.environment(tmp_path)
        script = f"import socket\n{network.PYTHON if len(watched) == 1 else ''}\n{code}"
        subprocess.run([sys.executable, "-c", script], env={**os.environ, **watched}, capture_output=True, check=False)
        assert any(line.endswith(" a.invalid") for line in network.phoned(watched))


EVERY_VERB = """
import json, os, signal, socket, sys, threading, time
from tlkit import cli

def ask(port, request):
    with socket.socket() as client:
        client.connect(("127.0.0.1", port))
        client.sendall(request + b"\\r\\nHost: here\\r\\nConnection: close\\r\\n\\r\\n")
        return client.recv(12)

def use(port):
    while True:
        try:
            if ask(port, b"GET /v2/health/ready HTTP/1.1") == b"HTTP/1.1 200":
                break
        except OSError:
            pass
        time.sleep(0.02)
    assert ask(port, b"GET /v2/models/run HTTP/1.1") == b"HTTP/1.1 200"
    os.kill(os.getpid(), signal.SIGTERM)

codes = []
for line in json.loads(sys.argv[1]):
    if line[0] == "serve":
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        threading.Thread(target=use, args=(port,), daemon=True).start()
        line += ["--port", str(port)]
    codes.append(cli.run(line))
sys.exit(max(codes))
"""
