"""A report on a real run: its page needs nothing else, and no name in it is markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html import unescape

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

import tlkit
from tests.advice.test_html import BROWSER
from tests.reporting.planted import images
from tlkit.data.decoding import Header
from tlkit.errors import DataError, UsageError

NASTY = "<script><img src=x onerror=alert(1)>\x1b[31m.png"
LOOK = """{
const faults = [], seen = {}, one = id => document.getElementById(id), shown = () => one("count").textContent;
addEventListener("error", event => faults.push(event.message));
addEventListener("securitypolicyviolation", event => faults.push(event.violatedDirective + event.blockedURI));
console.error = (...words) => faults.push(words.join(" "));
addEventListener("load", () => {
  const change = (id, value) => { one(id).value = value; one(id).dispatchEvent(new Event("change")); };
  seen.loaded = performance.now(); seen.all = shown();
  const dots = [...document.querySelectorAll("#map circle")];
  dots[0].dispatchEvent(new PointerEvent("pointerenter"));
  seen.tip = one("tip").textContent; seen.picture = one("tip").querySelector("img")?.src.slice(0, 15);
  dots[0].dispatchEvent(new PointerEvent("pointerleave")); seen.gone = one("tip").hidden;
  change("class", "0"); seen.one = shown(); change("which", "wrong"); seen.wrong = shown();
  change("which", ""); change("class", ""); const before = dots[0].getAttribute("cx");
  change("method", "1"); seen.moved = dots[0].getAttribute("cx") !== before;
  seen.findings = [...document.querySelectorAll(".findings li")].map(each =>
    [each.className, each.getBoundingClientRect().bottom]);
  seen.wide = document.documentElement.scrollWidth - innerWidth; seen.images = document.images.length;
  seen.broken = [...document.images].filter(each => !each.naturalWidth && !each.closest("#tip")).length;
  seen.paper = getComputedStyle(document.body).backgroundColor;
  seen.requests = performance.getEntriesByType("resource").filter(each => !each.name.startsWith("data:")).length;
  seen.faults = faults;
  const said = document.createElement("pre"); said.id = "seen"; said.textContent = JSON.stringify(seen);
  document.body.append(said);
});
}"""


@pytest.fixture(scope="module")
def reported(tiny_run, pictures, tmp_path_factory):
    """A report against the same model, on the pictures with a nasty name among them; the place of its page."""
    root = tmp_path_factory.mktemp("report")
    shutil.copytree(pictures, root / "photos")
    file = root / "photos/dark" / NASTY
    (root / "photos/dark/00.png").rename(file)
    for number in range(4):  # wrong labels, and so mistakes
        shutil.move(root / f"photos/light/{number:02}.png", root / f"photos/dark/light{number}.png")
    return tlkit.report(tiny_run, root / "photos", root / "report.html", against=tiny_run), root


def test_its_page_needs_no_other_file_and_its_policy_admits_one_script(reported):
    text = (reported[1] / "report.html").read_text()
    assert not re.search(r"https?://|<link|@import|url\(", text.replace("http://www.w3.org/2000/svg", ""))
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    assert "default-src 'none'" in text
    assert all(source.startswith("data:image/jpeg;base64,") for source in re.findall(r'(?:src|href)="([^"]+)"', text))


def test_no_name_is_markup_and_no_place_is_told(reported):
    result, root = reported
    text = (root / "report.html").read_text()
    assert "<img src=x" not in text
    assert "\x1b" not in text
    assert text.count("<script") == text.count("</script>") == 2  # those of the data and of the script
    assert str(root) not in text
    assert "\x1b" not in repr(result)
    assert "onerror" in text  # the name is there, as text


def test_it_says_what_is_wrong_and_shows_it(reported):
    result, root = reported
    text = unescape((root / "report.html").read_text())
    assert result.metrics.images == 36
    assert result.metrics.accuracy == pytest.approx(32 / 36)
    assert f"Accuracy {result.metrics.accuracy:.1%}" in text
    assert "trained on" in result.findings[0].what
    assert "dark predicted as light" in text
    assert "each position left out of the mean" in text
    assert text.count('alt="evidence: dark') == len(result.mistakes) == 4
    assert "nearest training images: " in text
    assert "Sets of labels" in text
    assert [each.coverage for each in result.coverage] == [0.8, 0.9, 0.95]
    assert "fixes 0 and breaks 0 of 36 images" in result.comparison.summary()
    facts = json.loads(json.dumps(result.to_json()))
    assert facts["against"]["p"] == 1.0
    assert {each["predicted"] for each in facts["mistakes"]} == {"light"}


def test_predictions_are_a_table_of_every_image(reported):
    result, root = reported
    table = parquet.read_table(root / "predictions.parquet")
    assert table.column_names == ["path", "label", "predicted", "probabilities"]
    assert len(table) == 36
    probabilities = np.array(table["probabilities"].to_pylist(), np.float32)
    assert np.array_equal(probabilities, result.images.probabilities)
    assert [result.labels[i] for i in probabilities.argmax(1)] == table["predicted"].to_pylist()
    assert json.loads(table.schema.metadata[b"tlkit.labels"]) == list(result.labels)


def test_a_notebook_shows_the_page_in_a_frame_of_its_own(reported):
    shown = reported[0]._repr_html_()
    assert shown.startswith('<iframe sandbox="allow-scripts"')
    assert unescape(re.search(r'srcdoc="(.*)"', shown, re.DOTALL)[1]) == reported[0].page


def test_without_pictures_there_is_none(tiny_run, pictures, tmp_path):
    result = tlkit.report(tiny_run, pictures, pictures=False)
    assert "data:image" not in result.page
    assert not list(tmp_path.iterdir())


def test_another_file_and_another_model_are_refused(reported, tiny_run, tmp_path, own_run):
    root = reported[1]
    with pytest.raises(UsageError, match=r"\.html"):
        tlkit.report(tiny_run, root / "photos", tmp_path / "page.pdf")
    (tmp_path / "predictions.parquet").write_bytes(b"mine")
    with pytest.raises(UsageError, match="did not write"):
        tlkit.report(tiny_run, root / "photos", tmp_path / "page.html")
    assert (tmp_path / "predictions.parquet").read_bytes() == b"mine"
    graph = tlkit.load(own_run)
    graph.labels = ("dark", "light", "other")
    with pytest.raises(DataError, match="other classes: 'middle', 'other'"):
        tlkit.report(tiny_run, root / "photos", against=graph)


def looked_at(page, tmp_path, *options):
    """Measurements of a page in a real browser, which clicks through it."""
    if BROWSER is None:
        pytest.skip("needs chromium (Debian: apt-get install chromium)")
    allowed = base64.b64encode(hashlib.sha256(LOOK.encode()).digest()).decode()
    text = page.read_text().replace("script-src ", f"script-src 'sha256-{allowed}' ")
    looked = tmp_path / "looked.html"
    looked.write_text(text.replace("</body>", f"<script>{LOOK}</script></body>"))
    browser = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [*browser, *options, "--dump-dom", looked.as_uri()]
    dumped = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    shot = [*browser, *options, f"--screenshot={tmp_path / 'shot.png'}", page.as_uri()]
    subprocess.run(shot, capture_output=True, check=True, timeout=120)
    return json.loads(unescape(re.search(r'<pre id="seen">(.*?)</pre>', dumped.stdout, re.DOTALL)[1]))


@pytest.mark.slow
@pytest.mark.parametrize("width", [1100, 500])
def test_a_real_browser_shows_it(reported, tmp_path, width):
    seen = looked_at(reported[1] / "report.html", tmp_path, f"--window-size={width},900")
    assert seen["faults"] == []
    assert seen["requests"] == seen["broken"] == 0
    assert seen["wide"] <= 0
    assert seen["images"] > 10
    assert seen["all"].startswith("36 of 36 images")
    assert seen["one"].startswith("16 of 36")
    assert seen["wrong"].startswith("4 of 36")
    assert seen["picture"] == "data:image/jpeg"
    assert seen["gone"]
    assert seen["moved"]
    assert "right: " in seen["tip"] or "wrong: " in seen["tip"]
    assert seen["findings"]
    assert all(bottom < 900 for _, bottom in seen["findings"])  # on the first screen


@pytest.fixture(scope="module")
def faulty(tiny_run, pictures, tmp_path_factory):
    """A report on images with three faults: 5 % wrong labels, mistakes in the dark, and a file format for one class."""
    content, rows = np.arange(300) % 3, np.arange(300)
    brightness = np.random.default_rng(1).uniform(0.4, 0.8, 300)
    dark = rows % 10 == 5
    brightness[dark] = 0.05 + rows[dark] / 10_000
    seen = images(
        labels=np.where(rows % 20 == 0, (content + 1) % 3, content),
        predicted=np.where(rows % 20 == 5, (content + 1) % 3, content),
        brightness=brightness,
        headers=[Header("PNG" if each == 0 else "JPEG", 64, 48, "RGB", "none") for each in content],
        confidence=0.9,
    )
    root = tmp_path_factory.mktemp("faulty")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tlkit.reporting.run.pass_over", lambda *_: seen)
        patch.setattr("tlkit.reporting.run.training_images", lambda *_: None)
        return tlkit.report(tiny_run, pictures, root / "report.html"), root


PLANTED = {"labels": "labels look wrong", "slice": "brightness", "shortcut": "file format"}


def test_planted_faults_are_named_at_the_top_of_the_page(faulty):
    result, root = faulty
    kinds = {each.kind: each.what for each in result.findings}
    assert set(PLANTED) <= set(kinds)
    top = unescape((root / "report.html").read_text()).split("<h2>")[0]
    for kind, words in PLANTED.items():
        assert words in kinds[kind]
        assert kinds[kind] in top


@pytest.mark.slow
def test_planted_faults_are_on_the_first_screen(faulty, tmp_path):
    seen = looked_at(faulty[1] / "report.html", tmp_path, "--window-size=1280,800")
    bottoms = dict(seen["findings"])
    assert set(PLANTED) <= set(bottoms)
    assert max(bottoms[kind] for kind in PLANTED) < 800
    assert seen["faults"] == []


@pytest.mark.slow
def test_it_is_dark_if_the_system_is(reported, tmp_path):
    dark = looked_at(reported[1] / "report.html", tmp_path, "--force-dark-mode")
    assert all(int(part) < 60 for part in re.findall(r"\d+", dark["paper"]))
    with Image.open(tmp_path / "shot.png") as picture:
        assert picture.convert("L").resize((1, 1)).getpixel((0, 0)) < 100
