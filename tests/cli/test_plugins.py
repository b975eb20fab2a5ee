"""Plugins that misbehave: named with an exit code of their own, and nothing of what they print is a result."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from tests.kit.distribution import install
from tests.kit.tiny import write_images
from tlkit import cli
from tlkit.errors import PluginError

MISBEHAVING = """
import os, subprocess, sys, threading, time
from dataclasses import dataclass
from tlkit import Backbone, Preprocessing, Weights, hookimpl

print("printed at import")
os.write(1, b"written to file descriptor 1\\n")
subprocess.run(["echo", "printed by a child"])
threading.Thread(target=time.sleep, args=(60,), name="endless").start()

@dataclass(frozen=True)
class Net(Backbone):
    name: str
    preprocessing = Preprocessing(64, (0.5,) * 3, (0.5,) * 3)

    @property
    def weights(self):
        print("printed in a property")
        sys.exit(0)

    def stages(self, *, pretrained):
        raise ValueError("no network")

@dataclass(frozen=True)
class Chain(Net):
    weights = Weights("computed", "Apache-2.0")

    def stages(self, *, pretrained):
        from torch import nn
        return {"first": nn.Conv2d(3, 4, 3).eval(), "second": nn.Conv2d(8, 4, 3).eval()}

@hookimpl
def tlkit_backbones():
    print("printed in a hook")
    return [Net("bad-net"), Chain("bad-chain")]
"""


def test_stdout_has_results_alone_and_the_plugin_is_named(tlkit, tmp_path):
    install(tmp_path, "tlkit-bad", MISBEHAVING)
    env = {"PYTHONPATH": str(tmp_path)}
    listed = tlkit("plugins", "--json", env=env)
    assert listed.code == 0, listed.err
    assert "bad-net" in json.dumps(json.loads(listed.out))
    for printed in ("printed at import", "written to file descriptor 1", "printed by a child", "printed in a hook"):
        assert printed in listed.err
    last = listed.err.splitlines()[-1]
    assert last == "tlkit: warning: plugin 'tlkit-bad' (tlkit-bad 1.0) left its thread 'endless' running; it was ended"

    shown = tlkit("plugins", "show", "bad-net", env=env)
    assert (shown.code, shown.out) == (PluginError.exit_code, "")
    assert "tlkit: backbone 'bad-net' (tlkit-bad 1.0) failed in weights: SystemExit: 0; report it" in shown.err

    write_images(tmp_path / "photos", 2)
    trained = tlkit(
        "train", tmp_path / "photos", "-o", tmp_path / "run", "--backbone", "bad-chain", "--strategy", "frozen", env=env
    )
    assert (trained.code, trained.out, (tmp_path / "run").exists()) == (PluginError.exit_code, "", False)
    assert "tlkit: backbone 'bad-chain' (tlkit-bad 1.0) failed in forward() of Conv2d: RuntimeError:" in trained.err


def test_a_verb_prints_its_results_alone(capsys):
    def verb():
        print("a plugin prints")  # noqa: T201
        cli.result("the result")

    cli._printing_results(verb)()
    assert capsys.readouterr() == ("the result\n", "a plugin prints\n")


@pytest.mark.parametrize("package", ["tests", "elsewhere"])
def test_what_a_plugin_raises_elsewhere_is_its_fault(package, monkeypatch, capsys):
    monkeypatch.setattr("tlkit.plugin.blame._origins", {package: ("tlkit-toy", "1.2")})
    monkeypatch.setattr(cli, "_dispatch", lambda args: args[9])
    code = cli.run([])
    said = capsys.readouterr().err
    if package == "tests":
        assert code == PluginError.exit_code
        assert said.startswith("tlkit: plugin tlkit-toy 1.2 (test_plugins.py, line ")
        assert "IndexError: list index out of range; report it to the plugin's author" in said
    else:
        assert code == 1
        assert said.startswith("tlkit: a bug in tlkit: IndexError")


ENDLESS = """
import ctypes, sys, threading, time, traceback
from dataclasses import dataclass
from tlkit import Backbone, Preprocessing, Weights, hookimpl

def wait():
    print("begun", flush=True)
    while True:
        time.sleep(0.01)

def catch():
    while True:
        try:
            wait()
        except BaseException:
            pass

def native():
    lock = ctypes.create_string_buffer(1000)
    ctypes.CDLL(None).pthread_mutex_lock(lock)
    while True:
        try:
            print("begun", flush=True)
            ctypes.CDLL(None).pthread_mutex_lock(lock)
        except KeyboardInterrupt:  # that came before
            pass

class Stuck:
    workers = batch_size = 1

    def run(self, array, outputs):
        while not waits_for_result(sys._current_frames()[threading.main_thread().ident]):
            time.sleep(0.01)
        native()

def waits_for_result(frame):
    return "result" in [each.f_code.co_name for each, _ in traceback.walk_stack(frame)]

def worker():
    import numpy
    from tlkit.runtime.pipeline import stream
    list(stream(Stuck(), Net.preprocessing, [numpy.zeros((8, 8, 3), numpy.uint8)]))

@dataclass(frozen=True)
class Net(Backbone):
    name = "endless-net"
    preprocessing = Preprocessing(64, (0.5,) * 3, (0.5,) * 3)

    @property
    def weights(self):
        return WAY()

    def stages(self, *, pretrained):
        return {}

@hookimpl
def tlkit_backbones():
    return HOOK
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a lock that waits for itself")
@pytest.mark.parametrize(
    ("way", "hook", "number", "says"),
    [
        ("wait", "[Net()]", signal.SIGINT, r"interrupted in wait\(\) of {plugin}"),
        ("catch", "[Net()]", signal.SIGTERM, r"terminated in \w+\(\) of {plugin}, which did not end"),
        ("native", "[Net()]", signal.SIGTERM, r"terminated in native\(\) of {plugin}, which did not end"),
        ("worker", "[Net()]", signal.SIGINT, r"interrupted in native\(\) of {plugin}, which did not end"),
        ("wait", "wait()", signal.SIGHUP, r"terminated in wait\(\) of {plugin}"),
    ],
)
def test_what_never_returns_is_named_when_it_is_ended(tmp_path, way, hook, number, says):
    install(tmp_path, "tlkit-bad", ENDLESS.replace("WAY", way).replace("HOOK", hook))
    script = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # ignored in the background
    script += "; signal.signal(signal.SIGHUP, signal.SIG_DFL)"  # which `nohup` ignores
    script += "; from tlkit import cli; from tlkit.util import ending as end; end.PATIENCE = end.WORKER_PATIENCE = 0.1"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{script}; cli.main()", "plugins", "show", "endless-net"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert process.stderr.readline() == "begun\n"
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number, said
    line = "tlkit: " + says.format(plugin=r"plugin tlkit-bad 1\.0 \(tlkit_bad\.py, line \d+\)") + "\n"
    assert re.fullmatch(line, said.replace("begun\n", ""))


def test_the_verb_runs_after_its_subcommands_in_one_process(capsys):
    for line in ("plugins show svm", "plugins"):
        assert cli.run(line.split()) == 0
    assert "efficientnet-lite0" in capsys.readouterr().out
