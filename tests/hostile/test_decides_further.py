"""As `test_decides`, for what lies beyond graphs and features: auto, domain shifts, tuning, sources and jobs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from importlib import metadata
from types import SimpleNamespace

import onnxruntime
import pytest
from tlkit_standard.detectors import NearestNeighbor
from tlkit_standard.heads import HEADS
from tlkit_standard.strategies import STRATEGIES

from tests.advice.asking import ask, eager
from tests.kit.tiny import Seeded, Tiny
from tlkit.advice import auto, backbone_analysis
from tlkit.advice.domain_shift import ShiftPolicy
from tlkit.advice.run import AdviceRequest
from tlkit.data import dataset
from tlkit.embedding.job import JobRecord, Place, Settings
from tlkit.embedding.manifest import Opened
from tlkit.embedding.unpacked import unpacked
from tlkit.errors import DataError
from tlkit.model import trunk as trunks
from tlkit.plugin import sources
from tlkit.plugin.contract import Reader, Record, Source, option
from tlkit.runtime import config
from tlkit.training.config import RunOptions
from tlkit.training.device import DeviceOptions

# Of auto: what decides, and what only says where a component comes from.
REQUESTED = {
    "backbones": [Seeded()],
    "heads": HEADS[:1],
    "strategies": STRATEGIES[:1],
    "detectors": {NearestNeighbor(): ("tlkit", "0.1.0")},
    "val": 0.4,
    "group": r"(\d+)\.png",
    "max_bad": 0.5,
    "seed": 1,
    "cut": "first",
    "options": {"views": 2},
    "policy": eager(3),
}


def test_every_field_of_a_request_is_known():
    assert {field.name for field in fields(AdviceRequest)} == {"origin", *REQUESTED}


def test_what_decides_on_auto_decides_whether_it_is_resumed(pictures, monkeypatch):
    found = dataset.read(pictures)
    hashes = [f"{number:03}{0:061}" for number in range(len(found.of("train")))]

    def conditions(device=None, read=tuple(hashes), **changes):
        advice = SimpleNamespace(dataset=found, analysis=SimpleNamespace(features=SimpleNamespace(sha256=read)))
        options = RunOptions(device=device or DeviceOptions("cpu", "fp32"))
        return json.dumps(auto._conditions(advice, ask(**changes), options), sort_keys=True)

    before = conditions()
    assert conditions() == before
    for name, value in REQUESTED.items():
        assert conditions(**{name: value}) != before, name
    for other in (
        conditions(DeviceOptions("cpu", "bf16")),
        conditions(DeviceOptions("cpu", "fp32", compile=True)),
        conditions(read=(hashes[1], *hashes[1:])),
        conditions(detectors={NearestNeighbor(k=2): ("tlkit", "0.1.0")}),
    ):
        assert other != before
    for name in ("torch", "scikit-learn"):
        with monkeypatch.context() as patch:
            version = metadata.version
            patch.setattr(metadata, "version", lambda asked, name=name, of=version: "9" if asked == name else of(asked))
            assert conditions() != before, name


def test_what_decides_on_a_domain_shift(monkeypatch, tmp_path):
    trunk, records = trunks.build(Tiny()), []
    monkeypatch.setattr(backbone_analysis, "once", lambda record, _measure: records.append(record) or (SHIFT, False))

    def record(graph="a.onnx", size=32, seed=0, hashes=("a", "b")):
        trunk.preprocessing = replace(trunk.preprocessing, size=size)
        monkeypatch.setattr(backbone_analysis.trace, "stage_graph", lambda _trunk: tmp_path / graph)
        analysis = SimpleNamespace(trunk=trunk, features=SimpleNamespace(sha256=hashes))
        backbone_analysis.measure_shift(analysis, [SimpleNamespace(path=tmp_path)] * 2, seed, ShiftPolicy())
        return records.pop()

    before = record()
    assert record() == before
    others = [record(graph="b.onnx"), record(size=64), record(seed=1), record(hashes=("a", "c"))]
    for module, name, value in (
        (onnxruntime, "__version__", "9.9"),
        (backbone_analysis, "processor_kind", lambda: "another"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            others.append(record())
    assert before not in others
    assert len(set(others)) == len(others)


SHIFT = {"overall": None, "interval": None, "stages": {}, "images": 2, "domain": "unclear", "reason": "few"}


def test_what_decides_on_a_tuned_config(tmp_path, monkeypatch):
    best = config.RuntimeConfig(1, 4, "basic")
    manifest = {config.TUNING: {"machine": config.machine(), "best": asdict(best)}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert config.read(tmp_path / "model.onnx") == best
    for module, name, value in (
        (config, "cores", lambda: 99),
        (config, "processor_info", lambda _name: "another"),
        (onnxruntime, "__version__", "9.9"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            assert config.read(tmp_path / "model.onnx") is None, name


@dataclass
class Reads(Reader):
    content: bytes
    broken: list[str]

    def read(self, record):
        if record.key in self.broken:
            raise DataError("the network is down")
        return self.content

    def close(self):
        pass


@dataclass(frozen=True)
class Painted(Source):
    """Three images of a color that is an option."""

    name = "painted"
    color: int = option(0, "grey level")

    def accepts(self, place):
        return True

    def records(self, place):
        return [Record(f"{number}.png", "", 1, place) for number in range(3)]

    def open(self, place):
        return Reads(bytes([self.color]), [])


def test_what_decides_on_the_images_of_a_source(monkeypatch):
    def folder(place="v1", **options):
        source = Painted(**options)
        return unpacked([Opened(source, place, source.open(place))], pytest.fail)

    before = folder()
    assert folder() == before
    others = [folder(color=1), folder("v2")]
    monkeypatch.setattr(sources, "sources", lambda _module: "edited")
    others.append(folder())
    assert len({before, *others}) == 4
    assert (others[0] / "0.png").read_bytes() == b"\1"


def test_an_image_that_a_source_could_not_read_is_read_again():
    source, said = Painted(color=2), []
    reader = source.open("flaky")
    reader.broken.append("1.png")
    folder = unpacked([Opened(source, "flaky", reader)], said.append)
    assert (folder / "1.png").read_bytes() == b""
    assert unpacked([Opened(source, "flaky", reader)], said.append) == folder
    assert said == ["1 image can't be read: 1.png (the network is down)"] * 2
    reader.broken.clear()
    assert unpacked([Opened(source, "flaky", reader)], pytest.fail) == folder
    assert (folder / "1.png").read_bytes() == b"\2"
    assert len(list(folder.iterdir())) == 3


def test_an_image_without_a_version_is_read_every_time():
    source = Painted(color=3)
    reader = source.open("")
    folder = unpacked([Opened(source, "", reader)], pytest.fail)
    reader.content = b"\4"
    assert unpacked([Opened(source, "", reader)], pytest.fail) == folder
    assert {file.read_bytes() for file in folder.iterdir()} == {b"\4"}


JOB = JobRecord(
    {"tlkit.graph": "a"}, 8, (Place("p", "folder", "tlkit", "1", {}, "p"),), 9, {}, "m", Settings(4, 2), "1", "g"
)
PARTS = {"model": {"tlkit.graph": "b"}, "width": 9, "rows": 8, "manifest": "n", "format": 99} | {
    "settings": Settings(4, 2, "float16")
}
BESIDE = {
    "places",
    "skipped",
    "tlkit",
    "graph",
    "identity",
    "device",
}  # compared by themselves, or where it lies or runs


def test_what_decides_on_the_parts_of_a_job():
    assert {field.name for field in fields(JobRecord)} == BESIDE | set(PARTS)
    found = [replace(JOB, **{name: value}).digest() for name, value in PARTS.items()]
    assert len({JOB.digest(), *found}) == 1 + len(found)
    assert replace(JOB, tlkit="2", graph="elsewhere").digest() == JOB.digest()
