"""Two runs on one output: the second ends before any work, whichever verb it is, and takes nothing from the first."""

from __future__ import annotations

import os

import pytest

from tlkit import cli
from tlkit.runtime import embedding
from tlkit.util import temporaries
from tlkit.util.locks import claim

pytestmark = pytest.mark.skipif(temporaries.fcntl is None, reason="the system has no flock")

VERBS = {
    "train photos -o out": "out",
    "train photos -o out --strategy frozen": "out",
    "train photos -o out --strategy partial --resume": "out",
    "embed run photos -o features.parquet": "features.parquet",
    "embed run photos -o features.npy": "features.npy",
    "embed run photos -o features": "features",
    "export run --onnx --shared-trunk -o out": "out",
    "export run --triton out": "out",
    "advise photos --html advice.html": "advice.html",
    "eval run photos --plot metrics.png": "metrics.png",
    "report run photos -o report.html": "report.html",
    "bench run --plot speed.png": "speed.png",
}


def snapshot(root):
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in root.rglob("*") if path != root / "run"}


@pytest.fixture
def place(own_run, pictures, monkeypatch):
    monkeypatch.chdir(own_run.parent)
    (own_run.parent / "photos").symlink_to(pictures)
    return own_run.parent


@pytest.mark.parametrize("line", VERBS)
def test_the_second_of_two_is_told_of_the_first(place, capsys, line):
    with claim(place / VERBS[line]):
        before = snapshot(place)
        assert cli.run(line.split()) == 5
        said = capsys.readouterr()
        assert said.err.startswith(f"tlkit: {VERBS[line]}: another run writes it: process {os.getpid()} on ")
        assert said.err.count("\n") == 1
        assert snapshot(place) == before


@pytest.mark.parametrize("line", ["export run --onnx", "bench run --tune"])
def test_one_bundle_is_exported_once_at_a_time(place, capsys, monkeypatch, line):
    monkeypatch.setattr("tlkit.resolve._made_with", None)
    with claim(place / "run", inside=True):
        before = snapshot(place)
        assert cli.run(line.split()) == 5
        assert "run: another run writes it: process" in capsys.readouterr().err
        assert snapshot(place) == before


class TestFilesOfOthers:
    """Nothing is replaced that tlkit did not write itself; what it wrote is replaced."""

    @pytest.mark.parametrize(
        ("line", "name", "content"),
        [
            ("embed run photos -o f.parquet", "f.parquet", b"PAR1 of somebody else PAR1"),
            ("embed run photos -o f.parquet", "f.parquet.rejects.csv", b"name,why\n"),
            ("embed run photos -o f.npy", "f.npy", b"\x93NUMPY of somebody else"),
            ("embed run photos -o f.npy", "f.npy.csv", b"id;name\n1;a\n"),
            ("embed run photos -o f.npy", "f.npy.rejects.csv", b"path"),
            ("advise photos --html a.html", "a.html", b"<html><body>mine</body></html>"),
            ("report run photos -o a.html", "a.html", b"<html><body>mine</body></html>"),
            ("report run photos -o a.html", "predictions.parquet", b"PAR1 of somebody else PAR1"),
            ("eval run photos --plot a.png", "a.png", b"\x89PNG of a holiday"),
            ("bench run --plot a.svg", "a.svg", b"<svg></svg>"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_are_not_lost_and_refused_before_the_work(self, place, capsys, line, name, content):
        (place / name).write_bytes(content)
        before = snapshot(place)
        assert cli.run(line.split()) == 2
        says = f"tlkit: {name}: tlkit did not write this file, and does not replace it; choose another name, or move it"
        assert capsys.readouterr().err == f"{says} away\n"
        assert snapshot(place) == before
        assert (place / name).read_bytes() == content

    @pytest.mark.parametrize("line", ["embed run photos -o f.parquet", "embed run photos -o f.npy"])
    def test_features_of_tlkit_are_replaced(self, place, capsys, line):
        (place / line.split()[-1]).touch()  # as mktemp leaves it
        for _ in range(2):
            assert cli.run(line.split()) == 0
        assert not list(place.glob(".*"))
        capsys.readouterr()

    @pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
    def test_plots_of_tlkit_are_replaced(self, place, capsys, suffix):
        pytest.importorskip("matplotlib")
        for _ in range(2):
            assert cli.run(["eval", "run", "photos", "--plot", f"a.{suffix}"]) == 0
        capsys.readouterr()

    def test_what_appears_during_the_work_is_not_lost(self, place, monkeypatch, capsys):
        check = embedding.check_parquet

        def check_and_be_late(path, key):
            check(path, key)
            path.write_bytes(b"mine")

        monkeypatch.setattr(embedding, "check_parquet", check_and_be_late)
        assert cli.run(["embed", "run", "photos", "-o", "f.parquet"]) == 2
        assert (place / "f.parquet").read_bytes() == b"mine"
        capsys.readouterr()
