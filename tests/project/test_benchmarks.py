"""Every script of benchmarks/ runs at its smallest setting and writes its results."""

from __future__ import annotations

import importlib
import json

import pytest
from PIL import Image

from tests.kit.tiny import write_images

# Script and arguments → the results that it writes.
RESULTS = {
    "adapters": ("adapters",),
    "anytime": ("anytime",),
    "architectures": ("architectures-timm", "architectures-torchvision", "architectures-transformers"),
    "authoring": ("authoring",),
    "advise": (
        "advise-audit",
        "advise-cost",
        "advise-joined",
        "advise-regret",
        "advise-rules",
        "advise-scores",
        "advise-shift",
        "advise-shift-images",
        "advise-soup",
        "advise-ways",
    ),
    "embed": ("embed",),
    "faults": ("faults-alarms", "faults-planted"),
    "finetune boundary rivals probe scratch": (
        "finetune-boundary",
        "finetune-probe",
        "finetune-rivals",
        "finetune-scratch",
    ),
    "gpu": ("gpu",),
    "heads": ("heads",),
    "hostile": ("hostile",),
    "int8": ("int8",),
    "int8 --speed": ("int8-speed",),
    "integrity": ("integrity",),
    "jobs": ("jobs-index", "jobs-kills", "jobs-manifest", "jobs-search", "jobs-speed"),
    "matrix": ("matrix",),
    "memory": ("memory",),
    "precision": ("precision",),
    "reference": ("reference",),
    "report": ("report-evidence", "report-page"),
    "serve": ("serve", "serve-clients", "serve-hostile"),
    "shared": ("shared",),
    "startup": ("startup",),
    "strangers": ("strangers",),
    "suggest": ("suggest",),
    "train": ("train",),
    "unknown": ("coverage", "unknown"),
    "trust": ("trust",),
    "volume": ("volume-memory", "volume-ray", "volume-rivals", "volume-storage", "volume-train"),
}
BY_OTHER_TESTS = {"house": "test_house.py", "__main__": "it runs the others"}


def test_every_script_is_run(checkout):
    scripts = {file.stem for file in checkout.glob("benchmarks/*.py") if file.stem != "_bench"}
    assert {line.split()[0] for line in RESULTS} | set(BY_OTHER_TESTS) == scripts


@pytest.mark.parametrize("line", RESULTS)
def test_it_writes_a_result(line, checkout, forks, tmp_path):
    name, *arguments = line.split()
    command = [checkout / f"benchmarks/{name}.py", *arguments, "--smallest", "--results", tmp_path / "results"]
    done = forks.run(command, cwd=checkout, env={"TMPDIR": str(tmp_path)})
    assert done.code == 0, done.err
    written = {file.stem: json.loads(file.read_text()) for file in (tmp_path / "results").glob("*.json")}
    assert set(written) == set(RESULTS[line])
    for result, content in written.items():
        assert content["figures"] or any("not measured" in note for note in content["notes"]), result
        assert content["notes"]
        text = (tmp_path / "results" / f"{result}.md").read_text()
        assert text.startswith(f"# {result}\n")
        assert "**failed**" not in text  # a cell of a matrix


@pytest.fixture
def sets(checkout, monkeypatch):
    """The module that loads data sets for `advise.py`."""
    monkeypatch.syspath_prepend(checkout / "benchmarks")
    return importlib.import_module("advising.sets")


def test_advice_is_measured_on_each_subfolder(checkout, forks, tmp_path):
    for name in ("birds", "cats"):
        write_images(tmp_path / "data" / name)
    command = [checkout / "benchmarks/advise.py", "rules", "--smallest", "--data", tmp_path / "data"]
    done = forks.run([*command, "--results", tmp_path / "results"], cwd=checkout, env={"TMPDIR": str(tmp_path)})
    assert done.code == 0, done.err
    written = json.loads((tmp_path / "results" / "advise-rules.json").read_text())
    assert set(written["figures"]["last, logistic"]) == {"birds", "cats"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("rules", "--sets", "dogs"), "there is no folder"), (("shift",), "shift is measured on ants_bees")],
)
def test_advice_refuses_what_it_cannot_measure(arguments, said, checkout, forks, tmp_path):
    write_images(tmp_path / "data" / "cats")
    done = forks.run([checkout / "benchmarks/advise.py", *arguments, "--data", tmp_path / "data"], cwd=checkout)
    assert done.code == 1
    assert said in done.err


def test_a_quarter_of_a_set_is_held_out_or_what_is_in_val(sets, tmp_path):
    write_images(tmp_path / "plain", 40)
    plain = sets.load(tmp_path, "plain")
    assert sorted([*plain.pool, *plain.test]) == list(range(120))
    assert 15 <= len(plain.test) <= 45
    for split, count in (("train", 8), ("val", 5)):
        write_images(tmp_path / "parted" / split, count)
    parted = sets.load(tmp_path, "parted")
    assert parted.classes == plain.classes == ["dark", "light", "middle"]
    assert {parted.files[row].parts[-3] for row in parted.pool} == {"train"}
    assert {parted.files[row].parts[-3] for row in parted.test} == {"val"}


@pytest.mark.parametrize(("name", "side", "size"), [("new", 159, 96), ("new", 160, None), ("fashion_mnist", 300, 64)])
def test_small_images_are_shown_at_96_pixels(name, side, size, sets, tmp_path):
    for number, shorter in enumerate((10, side, 500)):  # the median counts
        file = tmp_path / name / "one" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (600, shorter)).save(file)
    assert sets.load(tmp_path, name).size == size
