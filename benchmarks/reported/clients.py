"""Clients: the script without tlkit, a browser, Triton's format, the library, and what decides on caches."""

from __future__ import annotations

import dataclasses
import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
from _bench import PYTHON, ROOT

from reported.workbench import Verdict, Workbench, judged, trial

sys.path.insert(0, str(ROOT))
from tests.kit import browser
from tests.kit.modes import pictures_of_every_mode
from tests.project.documents import blocks

PIXELS = """
const found = {};
for (const name of JSON.parse(new TextDecoder().decode(await fetched("names.json")))) {
  try { found[name] = [...await tlkit.pixels(new Blob([await fetched(name)]), PREPROCESSING)]; }
  catch (error) { found[name] = error.message; }
}
return found;
"""
LABELS = """
const found = {};
for (const precision of ["fp32", "fp16", "int8"]) {
  const model = await tlkit.open(ort, await fetched(`${precision}.onnx`));
  found[precision] = [];
  for (const name of JSON.parse(new TextDecoder().decode(await fetched("names.json")))) {
    found[precision].push((await tlkit.predict(ort, model, new Blob([await fetched(name)]))).probabilities);
  }
}
return found;
"""
LIBRARY = """
import sys
from tlkit import load
from tlkit.errors import TlkitError
bundle, picture = sys.argv[1:]
model = load(bundle)
found = {"one path is a list of one": len(model.predict(picture)) == 1}
found["nothing has a width"] = model.embed([]).shape == (0, model.embed([picture]).shape[1])
for name, call in {
    "topk=-1 is refused": lambda: model.predict([picture], topk=-1),
    "an unknown device is refused": lambda: load(bundle, device="gpu"),
}.items():
    try:
        call()
        found[name] = False
    except TlkitError as error:
        found[name] = error.exit_code == 2
print(__import__("json").dumps(found))
"""
LIMITS = {"turned": 24, ".jpeg": 6, "": 2}  # levels by parts of names: see tests/project/test_browser.py


def _modes(bench: Workbench) -> dict[str, Path]:
    folder = bench.place("modes")
    folder.mkdir()
    return {file.name: file for file in pictures_of_every_mode(folder)}


@trial(
    "the script without tlkit", "what `predict` sees, or a refusal", "5 of 64 transparent, 25 of 64 16-bit labels flip"
)
def script(bench: Workbench) -> Verdict:
    """The script of the README on pictures of every mode."""
    from tlkit.data.preprocessing import load
    from tlkit.runtime.model import Model

    file, graph = bench.work / "script.py", bench.good / "onnx/fp32/model.onnx"
    (text,) = (block.text for block in blocks(ROOT / "README.md") if "sys.argv" in block.text)
    file.write_text(text)
    preprocessing, apart, refused, before = Model.open(graph).preprocessing, [], 0, sys.argv
    for picture in _modes(bench).values():
        sys.argv = ["script.py", str(graph), str(picture)]
        try:
            square = np.asarray(runpy.run_path(str(file))["square"]).astype(int)
        except SystemExit:
            refused += 1
            continue
        finally:
            sys.argv = before
        apart.append(int(np.abs(square - load(picture, preprocessing)).max()))
    text = f"{len(apart)} pictures at most {max(apart)} levels apart, {refused} refused"
    return Verdict(max(apart) <= 1 and len(apart) >= 20, text)


@trial("a browser: pictures of every mode", "what `predict` sees, or a refusal", "prose alone: transparency is black")
def browser_pixels(bench: Workbench) -> Verdict:
    """`docs/browser.js` in headless Chromium."""
    from tlkit.data.preprocessing import load
    from tlkit.runtime.model import Model

    runtime = browser.installed(bench.work / "web")
    if isinstance(runtime, str):
        return Verdict(None, f"not measured: {runtime}")
    files = {name: file.read_bytes() for name, file in _modes(bench).items()}
    preprocessing = Model.open(bench.good / "onnx/fp32/model.onnx").preprocessing
    given = PIXELS.replace("PREPROCESSING", json.dumps(dataclasses.asdict(preprocessing)))
    found = browser.seen(runtime, {**files, "names.json": json.dumps(sorted(files)).encode()}, given)
    worst = dict.fromkeys(LIMITS, 0)
    for name, value in found.items():
        if isinstance(value, list):
            expected = load(files[name], preprocessing)
            kind = next(kind for kind in LIMITS if kind in name.lower())
            worst[kind] = max(worst[kind], int(np.abs(np.reshape(value, expected.shape) - expected).max()))
    seen = sum(isinstance(value, list) for value in found.values())
    levels = f"{worst['']} levels apart, of JPEGs {worst['.jpeg']}, turned by EXIF {worst['turned']}"
    right = seen >= 20 and all(worst[kind] <= limit for kind, limit in LIMITS.items())
    return Verdict(right, f"{seen} pictures at most {levels}; {len(found) - seen} refused")


@trial("a browser: fp32, fp16 and int8", "the probabilities of `predict`", "not tried")
def browser_labels(bench: Workbench) -> Verdict:
    """Photographs by onnxruntime-web; its kernels are those of WebAssembly."""
    from tlkit.runtime.model import Model

    runtime = browser.installed(bench.work / "web")
    if isinstance(runtime, str):
        return Verdict(None, f"not measured: {runtime}")
    bench.done("export {good} --onnx --precision fp16")
    graphs = {precision: bench.good / f"onnx/{precision}/model.onnx" for precision in ("fp32", "fp16", "int8")}
    photos = [file for label in ("ants", "bees") for file in sorted((bench.test / label).iterdir())[:4]]
    files = {f"{precision}.onnx": graph.read_bytes() for precision, graph in graphs.items()}
    files |= {file.name: file.read_bytes() for file in photos}
    files["names.json"] = json.dumps([file.name for file in photos]).encode()
    found = browser.seen(runtime, files, LABELS)
    if "error" in found:
        return Verdict(False, found["error"])
    apart, flipped = {}, 0
    for precision, graph in graphs.items():
        model = Model.open(graph)
        expected = [model.predict(photo, topk=2)[0] for photo in photos]
        labels = list(json.loads(model.session.metadata["tlkit.labels"]))
        ours = np.array(
            [[dict(zip(each.labels, each.probabilities, strict=True))[label] for label in labels] for each in expected]
        )
        apart[precision] = round(float(np.abs(ours - found[precision]).max()), 4)
        flipped += int((ours.argmax(1) != np.argmax(found[precision], 1)).sum())
    return Verdict(
        not flipped and max(apart.values()) < 0.05, f"greatest difference of probabilities: {apart}; {flipped} flipped"
    )


@trial("a client of Triton", "labels, preprocessing and probabilities of `predict`", "labels in the locale's encoding")
def triton(bench: Workbench) -> Verdict:
    """The repository's own configuration tells a client all it needs; its ensembles are run step by step."""
    return _tests(bench, "tests/exporting/test_triton.py")


@trial(
    "one path, no path, wrong arguments", "a list of one; a width; usage errors", "five predictions; (0, 0); KeyError"
)
def library(bench: Workbench) -> Verdict:
    """The Python API."""
    done = bench.python(LIBRARY, bench.cut, next((bench.test / "ants").iterdir()))
    return judged(**json.loads(done.out)) if done.code == 0 else Verdict(False, done.last)


@trial(
    "what decides: options, files, weights, settings", "every cache misses or hits as it should", "old results, exit 0"
)
def decides(bench: Workbench) -> Verdict:
    """Graphs, features, frozen views, interrupted runs, sources, jobs and tunings, each with one thing changed."""
    return _tests(bench, "tests/hostile/test_decides.py", "tests/hostile/test_decides_further.py")


def _tests(bench: Workbench, *files: str) -> Verdict:
    """Run tests of the suite, which tell each case."""
    options = ["-q", "-n", "0", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    done = bench.run([PYTHON, "-m", "pytest", *options, *(str(ROOT / file) for file in files)])
    passed = re.findall(r"\d+ (?:passed|failed|error)", done.out)
    return Verdict(done.code == 0, f"{', '.join(files)}: {', '.join(passed)}")
