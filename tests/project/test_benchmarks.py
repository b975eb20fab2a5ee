"""Every script of benchmarks/ runs at its smallest setting and writes its results."""

from __future__ import annotations

import json

import pytest

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
    "int8": ("int8", "int8-speed"),
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
