"""The page is one file that needs no other, and looks as it should in a real browser."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from html import unescape
from io import BytesIO

import pytest
from PIL import Image

from tests.learn.advise.asking import ask
from tlkit.errors import UsageError
from tlkit.learn.advise import html
from tlkit.learn.advise.advice import advise
from tlkit.learn.audit.audit import audit

pytest.importorskip("matplotlib", reason="pictures need matplotlib")

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LOOK = """<pre id="seen"></pre><script>
addEventListener("load", () => {
  const images = [...document.images].map(i => [i.naturalWidth, i.getBoundingClientRect().width, i.alt]);
  const seen = {images, wide: document.documentElement.scrollWidth - innerWidth, title: document.title,
    rows: document.querySelectorAll("tr.chosen").length,
    heads: [...document.querySelectorAll("h2")].map(h => h.innerText)};
  document.getElementById("seen").textContent = JSON.stringify(seen);
});
</script>"""


@pytest.fixture(scope="module")
def page(pictures, tmp_path_factory):
    advice = advise(pictures, ask())
    file = tmp_path_factory.mktemp("page") / "advice.html"
    html.write(file, advice, audit(advice), "tlkit train photos/ -o run/")
    return file


def test_it_needs_no_other_file(page):
    text = page.read_text()
    assert not re.search(r"https?:|<script|<link|@import|url\(", text)
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]+)"', text))


def test_its_pictures_are_pictures(page):
    found = re.findall(r"data:image/png;base64,([^\"]+)", page.read_text())
    sizes = [Image.open(BytesIO(base64.b64decode(each))).size for each in found]
    assert len(sizes) >= 2
    assert min(sizes[0]) > 300


def test_it_says_what_the_terminal_says(page):
    text = unescape(page.read_text())
    assert "RECOMMENDED" in text
    assert "tlkit train photos/ -o run/" in text
    assert 'class="chosen"' in text


def test_names_are_no_markup(tmp_path, pictures):
    nasty = tmp_path / "<b>&photos"
    shutil.copytree(pictures, nasty)
    (nasty / "dark").rename(nasty / "<img src=x>")
    html.write(tmp_path / "page.html", advise(nasty, ask()), None, "next")
    text = (tmp_path / "page.html").read_text()
    assert "<img src=x>" not in text
    assert "<b>" not in text


def test_where_there_is_not_enough_to_tell_the_page_says_so(tmp_path, pictures):
    for label in ("dark", "light"):
        (tmp_path / "few" / label).mkdir(parents=True)
        for number in range(4):
            shutil.copy(pictures / label / f"{number:02}.png", tmp_path / "few" / label)
    html.write(tmp_path / "page.html", advise(tmp_path / "few", ask()), None, "next")
    assert "NOT ENOUGH TO TELL" in (tmp_path / "page.html").read_text()


def test_another_suffix_is_refused_before_any_work(tmp_path):
    with pytest.raises(UsageError, match=r"\.html"):
        html.check(tmp_path / "page.pdf")


@pytest.mark.slow
def test_a_real_browser_shows_it(page, tmp_path):
    if BROWSER is None:
        pytest.skip("needs chromium (Debian: apt-get install chromium)")
    looked = tmp_path / "looked.html"
    looked.write_text(page.read_text().replace("</body>", LOOK + "</body>"))
    browser = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    browser += ["--window-size=1100,1600"]
    dumped = subprocess.run([*browser, "--dump-dom", looked.as_uri()], capture_output=True, text=True, check=True)
    seen = json.loads(unescape(re.search(r'<pre id="seen">(.*?)</pre>', dumped.stdout, re.DOTALL)[1]))
    assert seen["title"].startswith("Advice for")
    assert len(seen["images"]) >= 2
    assert all(natural > 0 and shown > 0 for natural, shown, _ in seen["images"])
    assert seen["rows"] == 1
    assert seen["wide"] <= 0  # nothing sticks out at the side
    assert "Accuracy and shift against depth" in seen["heads"]

    shot = tmp_path / "shot.png"
    subprocess.run([*browser, f"--screenshot={shot}", page.as_uri()], capture_output=True, check=True)
    with Image.open(shot) as picture:
        colours = picture.convert("RGB").getcolors(1 << 24)
    assert len(colours) > 50  # a page without its pictures has a handful
