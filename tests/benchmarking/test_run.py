"""Speeds by a clock that only the sessions and the decoder move, so that every figure is known beforehand."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from tests.kit.tiny import elsewhere, write_images
from tlkit import cli, resolve
from tlkit.benchmarking import timing
from tlkit.benchmarking.timing import BenchmarkPolicy, image_contents, measure
from tlkit.data.decoding import UnreadableImage
from tlkit.errors import DataError, ResourceError, UsageError
from tlkit.model import reference_images
from tlkit.model.bundle import open_bundle
from tlkit.plugin.contract import FEATURES, IMAGES, Session
from tlkit.runtime.engine import IncompatibleEngine

POLICY = BenchmarkPolicy()
LONG, SHORT = (BenchmarkPolicy(seconds=seconds) for seconds in (0.19, 0))  # POLICY but for the seconds


class Time:
    """A clock that stands still unless it is moved."""

    now = 0.0

    def __call__(self):
        return self.now


class Steady(Session):
    """Takes so many seconds per call; every tenth one takes ten times as long."""

    input, outputs, metadata = IMAGES, (FEATURES,), {}

    def __init__(self, clock, seconds):
        self.clock, self.seconds, self.batches, self.measured = clock, seconds, [], 0

    def run(self, array, outputs=None):
        self.batches.append(len(array))
        if len(self.batches) > POLICY.warm_up:
            self.measured += 1
        self.clock.now += self.seconds * (10 if self.measured % 10 == 9 else 1)
        return {FEATURES: np.zeros((len(array), 1), np.float32)}


@pytest.fixture
def clock(monkeypatch):
    made = Time()

    def load(_content, preprocessing):
        made.now += 0.002
        return np.zeros((preprocessing.size, preprocessing.size, 3), np.uint8)

    def decoded(_content, preprocessing):
        made.now += 0.0015
        return preprocessing.size, preprocessing.size

    monkeypatch.setattr(timing, "load", load)
    monkeypatch.setattr(timing, "decoded_size", decoded)
    return made


def test_percentiles_rates_and_calls(tiny_run, clock):
    session = Steady(clock, 0.01)
    cpu = lambda: 2 * clock()  # noqa: E731 - two cores at work
    stages, (speed,) = measure(
        open_bundle(tiny_run),
        {"it": lambda: session},
        [4],
        policy=LONG,
        clock=clock,
        cpu_clock=cpu,
    )
    assert session.batches == [4] * (POLICY.warm_up + speed.calls)
    assert (speed.name, speed.batch_size, speed.calls) == ("it", 4, POLICY.rounds * 10)
    assert speed.latency["p50"] == pytest.approx(10)
    assert speed.latency["p99"] == pytest.approx(100)
    assert speed.throughputs == pytest.approx([4 * 10 / 0.19] * POLICY.rounds)
    assert speed.cpu == pytest.approx(2 * 19)
    assert speed.gpu is None
    decode, resize = stages
    assert (decode.name, resize.name) == ("decode", "crop and resize")
    assert decode.latency["p50"] == pytest.approx(1.5)
    assert resize.latency["p50"] == pytest.approx(0.5)
    assert resize.throughputs == pytest.approx([2000] * POLICY.rounds)


def test_the_time_of_the_gpu_is_told_apart(tiny_run, clock):
    class Gpu(Steady):
        def run(self, array, outputs=None):
            self.gpu_seconds = 0.004
            return super().run(array, outputs)

    (speed,) = measure(open_bundle(tiny_run), {"it": lambda: Gpu(clock, 0.01)}, [4], policy=LONG, clock=clock)[1]
    assert speed.gpu == pytest.approx(4)


def test_each_side_is_opened_once_and_one_that_is_missing_is_told_of(tiny_run, clock):
    opened, told = [], {}

    def opener(name, error=None):
        def open_():
            opened.append(name)
            if error:
                raise error
            return Steady(clock, 1.0)

        return open_

    openers = {
        "no": opener("no", ResourceError("no GPU")),
        "yes": opener("yes"),
        "not": opener("not", IncompatibleEngine("x")),
    }
    bundle = open_bundle(tiny_run)
    result = measure(
        bundle,
        openers,
        [1],
        policy=SHORT,
        clock=clock,
        skipped=told,
    )
    assert opened == ["no", "yes", "not"]
    assert told == {"no": "no GPU", "not": "x"}
    assert [speed.name for speed in result[1]] == ["yes"]
    with pytest.raises(ResourceError, match="no GPU"):
        measure(bundle, openers, [1], policy=SHORT, clock=clock)
    with pytest.raises(ResourceError, match="no GPU"):
        measure(bundle, {"no": openers["no"]}, [1], clock=clock, skipped={})


def test_sides_take_turns_and_a_slow_one_is_called_at_least_once_a_round(tiny_run, clock):
    order = []

    class Noted(Steady):
        def run(self, array, outputs=None):
            order.append(self.seconds)
            return super().run(array, outputs)

    openers = {"slow": lambda: Noted(clock, 3.0), "fast": lambda: Noted(clock, 1.0)}
    result = measure(open_bundle(tiny_run), openers, [1], policy=SHORT, clock=clock)
    assert [speed.calls for speed in result[1]] == [POLICY.rounds, POLICY.rounds]
    assert order == [3.0] * POLICY.warm_up + [1.0] * POLICY.warm_up + [3.0, 1.0] * POLICY.rounds


def test_the_golden_images_serve_where_the_others_are_gone(tiny_run):
    bundle = open_bundle(tiny_run)
    gone = elsewhere(bundle)
    assert image_contents(gone, 16) == bundle.golden_bytes()
    with pytest.raises(UsageError, match=r"no images to run: those it was trained on are not on this machine"):
        image_contents(replace(gone, record=replace(gone.record, golden=())), 16)


def test_an_image_that_is_empty_is_left_out_and_named_where_no_other_is_there(tiny_run, tmp_path, monkeypatch):
    bundle = open_bundle(tiny_run)
    good, *others = reference_images.dataset(bundle)[1].of("val")
    empty = [replace(each, path=tmp_path / f"{number}.png") for number, each in enumerate(others)]
    for each in empty:
        each.path.touch()
    monkeypatch.setattr(reference_images, "spread", lambda *_: [*empty, good])
    assert image_contents(bundle, 16) == [good.path.read_bytes()]
    monkeypatch.setattr(reference_images, "spread", lambda *_: empty)
    with pytest.raises(UnreadableImage, match="is an empty file") as caught:
        image_contents(bundle, 16)
    assert caught.value.file == str(empty[0].path)


class TestCommand:
    @pytest.fixture
    def run(self, tiny_run, monkeypatch, capsys):
        monkeypatch.setattr(timing, "BenchmarkPolicy", lambda: SHORT)

        def run(*args):
            code = cli.run(["bench", str(tiny_run), *map(str, args)])
            return code, *capsys.readouterr()

        return run

    def test_a_line_for_each_side_and_batch(self, run):
        code, out, err = run("--batch-size", "1", "--batch-size", "3")
        assert code == 0, err
        lines = out.splitlines()
        assert [line.split()[:2] for line in lines[1:3]] == [["onnx/fp32", "1"], ["onnx/fp32", "3"]]
        assert re.match(r"decode, 1 thread, \d+ images: p50 ", lines[-2])
        assert re.match(r"crop and resize, 1 thread, \d+ images: p50 ", lines[-1])
        assert "CPU ms" in lines[0]
        assert "GPU ms" not in lines[0]
        assert err.splitlines()[0] == "wrote nothing"

    def test_json(self, run, tiny_run):
        code, out, _ = run("--target", "onnx", "--precision", "fp32", "--batch-size", "2", "--json")
        facts = json.loads(out)
        assert code == 0
        (speed,) = facts["inference"]
        assert (speed["name"], speed["batch_size"]) == ("onnx/fp32", 2)
        assert 0 < speed["latency"]["p50"] <= speed["latency"]["p90"] <= speed["latency"]["p99"]
        assert min(speed["throughputs"]) <= speed["throughput"] <= max(speed["throughputs"])
        assert facts["next"] == f"tlkit predict {tiny_run}/onnx/fp32 IMAGE..."

    def test_sides_by_threads_and_the_trained_modules(self, run, tiny_run, monkeypatch):
        from tests.kit.tiny import Line, Tiny

        monkeypatch.setattr(resolve, "_made_with", lambda _bundle: (Tiny(), Line()))
        code, out, err = run(
            *("--target", "onnx", "--target", "torch", "--threads", "1", "--threads", "2"),
            "--batch-size",
            "2",
            "--json",
        )
        assert code == 0, err
        facts = json.loads(out)
        names = [speed["name"] for speed in facts["inference"]]
        assert names == ["torch/fp32", "onnx/fp32, 1 thread", "onnx/fp32, 2 threads"]
        assert facts["next"] == f"tlkit predict {tiny_run}/onnx/fp32 IMAGE..."
        code, out, err = run("--target", "torch", "--batch-size", "1", "--json")
        assert json.loads(out)["next"] == f"tlkit export {tiny_run} --onnx"

    def test_a_picture(self, run, tmp_path):
        assert run("--batch-size", "1", "--batch-size", "2", "--plot", tmp_path / "speed.svg")[0] == 0
        text = (tmp_path / "speed.svg").read_text()
        assert "<svg" in text

    @pytest.mark.parametrize(
        ("args", "code", "says"),
        [
            (("--batch-size", "0"), 2, "--batch-size"),
            (("--batch-size", "x"), 2, "--batch-size"),
            (("--target", "nonsense"), 2, "there is no target 'nonsense'; installed: "),
            (
                ("--target", "tensorrt"),
                4,
                "nothing was exported from it for tensorrt yet; run: tlkit export {run} --tensorrt",
            ),
            (("--target", "torch", "--tune"), 2, "--tune is for ONNX graphs"),
            (("--target", "onnx", "--device", "cuda"), 5, "ExecutionProvider"),
            (("--precision", "fp7"), 4, "nothing was exported from it for fp7 yet"),
            (("--plot", "speed.txt"), 2, "not a format of plots"),
        ],
    )
    def test_what_cannot_be_measured_is_refused(self, run, tiny_run, args, code, says):
        got, out, err = run(*args)
        assert (got, out) == (code, "")
        assert says.format(run=tiny_run) in err
        assert err.count("\n") == 1


def test_an_unreadable_image_is_left_out_and_named_where_all_are(tiny_run, tmp_path, monkeypatch):
    bundle = open_bundle(tiny_run)
    write_images(tmp_path / "photos", 6)
    monkeypatch.setattr(timing.reference_images, "source", lambda _: tmp_path / "photos")
    val = timing.reference_images.dataset(bundle)[1].of("val")
    val[0].path.write_bytes(b"")
    assert image_contents(bundle, 16) == [sample.path.read_bytes() for sample in val[1:]]
    for sample in val:
        sample.path.write_bytes(b"")
    with pytest.raises(DataError, match=rf"{val[0].path}: is an empty file"):
        image_contents(bundle, 16)
