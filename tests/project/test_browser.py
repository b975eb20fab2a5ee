"""`docs/browser.js` in a real browser with onnxruntime-web: pixels and probabilities of `predict`, or a refusal."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest

from tests.kit import browser
from tests.kit.modes import pictures_of_every_mode
from tlkit.data.preprocessing import load
from tlkit.runtime.model import Model

pytestmark = pytest.mark.slow
ROUNDING = 2  # levels: a canvas keeps colors multiplied by their opacity
DECODING = 6  # levels: browsers' decoders of JPEG scale colors up in other arithmetic
TURNING = 24  # levels, at edges: pictures that are turned first have their rows resampled first, and cut off at 255
PIXELS = """
const given = JSON.parse(new TextDecoder().decode(await fetched("given.json")));
const found = {};
for (const name of given.names) {
  try {
    found[name] = [...await tlkit.pixels(new Blob([await fetched(name)]), given.preprocessing)];
  } catch (error) {
    found[name] = error.message;
  }
}
return found;
"""
LABELS = """
const found = {};
for (const precision of ["fp32", "int8"]) {
  const model = await tlkit.open(ort, await fetched(`${precision}.onnx`));
  found[precision] = [];
  for (const name of JSON.parse(new TextDecoder().decode(await fetched("names.json")))) {
    found[precision].push(await tlkit.predict(ort, model, new Blob([await fetched(name)])));
  }
}
return found;
"""


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    files = browser.installed(tmp_path_factory.mktemp("web"))
    if isinstance(files, str):
        pytest.skip(files)
    return files


@pytest.mark.parametrize(
    "change",
    [{}, {"crop_mode": "squash", "interpolation": "bilinear"}, {"crop_mode": "border", "interpolation": "lanczos"}],
    ids=["center", "squash", "border"],
)
def test_it_sees_what_predict_sees_or_refuses(runtime, tiny_run, tmp_path, change):
    preprocessing = dataclasses.replace(Model.open(tiny_run).preprocessing, **change)
    files = {file.name: file.read_bytes() for file in pictures_of_every_mode(tmp_path)}
    jpeg, png = files["RGB.JPEG"], files["RGB.PNG"]
    files |= {"cut.JPEG": jpeg[: len(jpeg) // 2], "cut.PNG": png[: len(png) // 2]}
    given = {"names": sorted(files), "preprocessing": dataclasses.asdict(preprocessing)}
    found = browser.seen(runtime, {**files, "given.json": json.dumps(given).encode()}, PIXELS)
    assert "error" not in found, found
    pixels = {name: np.array(value) for name, value in found.items() if isinstance(value, list)}
    for name, value in pixels.items():
        expected = load(files[name], preprocessing)
        difference = np.abs(value.reshape(expected.shape) - expected)
        kinds = {"turned": TURNING, ".jpeg": DECODING, ".jpg": DECODING}
        limit = next((limit for kind, limit in kinds.items() if kind in name.lower()), ROUNDING)
        assert difference.max() <= limit, name
        assert difference.mean() < 0.5, name
    assert {"L.JPEG", "RGBA.PNG", "RGBA.WEBP", "LA.PNG", "P.GIF", "index.png", "gray.png", "turned.jpg"} <= set(pixels)
    assert {"I-16.PNG", "CMYK.JPEG", "F.TIFF", "RGBA.BMP", "cut.JPEG", "cut.PNG"} <= set(found) - set(pixels)


def test_every_precision_labels_as_predict_does(runtime, story, tlkit, tmp_path):
    run = shutil.copytree(story.run, tmp_path / "run")
    assert tlkit("export", run, "--onnx", "--precision", "int8", env=story.env).code == 0
    photos = sorted((story.root / "photos").rglob("*.png"))[:3]
    files = {f"{precision}.onnx": (run / f"onnx/{precision}/model.onnx").read_bytes() for precision in ("fp32", "int8")}
    files |= {file.name: file.read_bytes() for file in photos}
    names = json.dumps([file.name for file in photos]).encode()
    found = browser.seen(runtime, {**files, "names.json": names}, LABELS)
    for precision in ("fp32", "int8"):
        expected = Model.open(run / f"onnx/{precision}/model.onnx").predict(photos)
        for ours, theirs in zip(expected, found[precision], strict=True):
            assert theirs["label"] == ours.label
            assert theirs["probability"] == pytest.approx(ours.probability, abs=1e-3)
