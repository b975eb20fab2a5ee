"""The fastest runtime config is found, kept, and used on machines like this one."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from tests.kit.exporting import export_of
from tlkit import cli
from tlkit.benchmarking import timing, tuning
from tlkit.benchmarking.timing import BenchmarkPolicy
from tlkit.benchmarking.tuning import TuningPolicy, tune
from tlkit.model.bundle import open_bundle
from tlkit.runtime import config
from tlkit.runtime.config import RuntimeConfig, default_config, read
from tlkit.runtime.model import Model
from tlkit.runtime.session import LEVELS, OnnxSession
from tlkit.util.resources import cores


@pytest.fixture
def file(own_run):
    return own_run / "onnx/fp32/model.onnx"


@pytest.fixture
def speeds(monkeypatch):
    """Have configs reach the throughput that a function of them and of their turn gives; return those tried."""

    def fake(rate):
        tried = []

        def measure(_session, _images, each, _seconds, _clock):
            tried.append(each)
            return rate(each, tried.count(each))

        monkeypatch.setattr(tuning, "_throughput", measure)
        return tried

    return fake


def test_the_fastest_setting_is_kept_and_used(own_run, file, speeds):
    tried = speeds(lambda each, turn: 100 + 50 * (each.level == "basic") + each.batch_size + turn / 10)
    tuned = tune(open_bundle(own_run), export_of(own_run))
    assert tuned.best == RuntimeConfig(cores(), 16, "basic")
    assert tuned.throughputs == pytest.approx((166.1, 166.2, 166.3))
    assert tuned.default_throughputs == pytest.approx((102.4, 102.5, 102.6))
    assert tuned.gain == pytest.approx(166.2 / 102.5)
    assert {tried.count(each) for each in tried} == {TuningPolicy().rounds, 2 * TuningPolicy().rounds}
    assert json.loads((file.parent / "manifest.json").read_text())["tuning"]["best"]["batch_size"] == 16
    assert read(file) == tuned.best
    session = Model.open(own_run).session
    assert (session.workers, session.batch_size) == (cores(), 16)
    assert (
        Model.open(own_run, workers=1).session.batch_size == OnnxSession.batch_size
    )  # one image at once is another matter


def test_what_is_no_faster_beyond_the_spread_leaves_all_as_it_was(own_run, speeds):
    speeds(lambda each, turn: 100 + 10 * turn + (each.batch_size == 8))
    assert tune(open_bundle(own_run), export_of(own_run)).best == default_config()
    assert Model.open(own_run).session.batch_size == OnnxSession.batch_size


def test_a_setting_that_gives_other_results_is_left_out(own_run, speeds, monkeypatch):
    tried = speeds(lambda each, _turn: 1000 if each.level == "basic" else 100)
    real = RuntimeConfig.open

    def opened(self, file):
        session = real(self, file)
        session.level = self.level
        return session

    def compare(_expected, session, *_, **__):
        return SimpleNamespace(passed=session.level != "basic")

    monkeypatch.setattr(RuntimeConfig, "open", opened)
    monkeypatch.setattr(tuning, "compare", compare)
    assert tune(open_bundle(own_run), export_of(own_run)).best == default_config()
    assert {each.level for each in tried} == {"all", "extended"}


def test_another_machine_passes_it_over(own_run, file, speeds, monkeypatch):
    speeds(lambda each, _turn: each.batch_size)
    tune(open_bundle(own_run), export_of(own_run))
    assert read(file) is not None
    monkeypatch.setattr(config, "machine", lambda: "another")
    assert read(file) is None
    assert Model.open(own_run).session.batch_size == OnnxSession.batch_size


@pytest.mark.parametrize(
    "best",
    [
        None,
        {},
        {"workers": 10**6, "batch_size": 2, "level": "all"},
        {"workers": "1", "batch_size": 2, "level": "all"},
        {"workers": 1, "batch_size": 2, "level": "wild"},
    ],
)
def test_a_record_that_makes_no_sense_is_passed_over(own_run, file, best):
    record = json.loads((file.parent / "manifest.json").read_text())
    tuned = {"machine": config.machine(), "best": best}
    (file.parent / "manifest.json").write_text(json.dumps({**record, "tuning": tuned}))
    assert read(file) is None
    assert read(own_run / "nowhere/model.onnx") is None


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_opens(file, level):
    assert RuntimeConfig(1, 2, level).open(file).outputs == OnnxSession(file).outputs


def test_the_verb_tunes_for_real(own_run, capsys, monkeypatch):
    monkeypatch.setattr(timing, "BenchmarkPolicy", lambda: BenchmarkPolicy(seconds=0))
    monkeypatch.setattr(tuning, "TuningPolicy", lambda: TuningPolicy(seconds=0.001))
    assert cli.run(["bench", str(own_run), "--batch-size", "1", "--tune"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("onnx/fp32: tuned to ")
    record = json.loads((own_run / "onnx/fp32/manifest.json").read_text())["tuning"]
    assert record["machine"] == config.machine()
    assert len(record["throughputs"]) == len(record["default_throughputs"]) == TuningPolicy().rounds
    assert min(record["throughputs"]) > 0
    assert cli.run(["verify", str(own_run)]) == 0  # the record may say more; the graphs are as they were
