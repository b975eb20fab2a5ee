"""The page is one file that needs no other, and looks as it should in a real browser."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from html import unescape
from io import BytesIO
from xml.dom import minidom

import pytest
from PIL import Image

from tests.advice.asking import ask
from tlkit.advice import html
from tlkit.advice.run import advise
from tlkit.errors import UsageError
from tlkit.pages.html import check

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LOOK = """<pre id="seen"></pre><script>
addEventListener("load", () => {
  const shown = [...document.querySelectorAll("img, svg, svg image")].map(each => each.getBoundingClientRect());
  const seen = {title: document.title, wide: document.documentElement.scrollWidth - innerWidth, room: innerWidth,
    images: [...document.images].map(each => [each.naturalWidth, each.alt]),
    said: [...document.querySelectorAll("svg")].map(each => each.getAttribute("aria-label")),
    small: shown.filter(each => each.width < 8 || each.height < 8).length, shown: shown.length,
    texts: [...document.querySelectorAll("svg text")].map(each => each.textContent),
    rows: document.querySelectorAll("tr.chosen").length,
    paper: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color,
    heads: [...document.querySelectorAll("h2, h3")].map(each => each.innerText)};
  document.getElementById("seen").textContent = JSON.stringify(seen);
});
</script>"""


@pytest.fixture(scope="module")
def page(pictures, tmp_path_factory):
    photos = tmp_path_factory.mktemp("page") / "photos"
    shutil.copytree(pictures, photos)
    shutil.copy(photos / "dark/00.png", photos / "light/copy.png")
    file = photos.with_name("advice.html")
    html.write(file, advise(photos, ask(), audit=True))
    return file


def test_it_needs_no_other_file(page):
    text = page.read_text()
    assert not re.search(r"https?:|<script|<link|@import|url\(", text)
    assert all(source.startswith("data:image/jpeg;base64,") for source in re.findall(r'(?:src|href)="([^"]+)"', text))


def test_its_pictures_are_pictures(page):
    found = re.findall(r"data:image/jpeg;base64,([^\"]+)", page.read_text())
    assert len(found) >= 30
    assert all(min(Image.open(BytesIO(base64.b64decode(each))).size) >= 60 for each in found)


def test_a_map_has_every_image_with_its_name_and_class(page):
    drawn = re.findall(r"<svg.*?</svg>", page.read_text(), re.DOTALL)
    assert len(drawn) == 3
    for each in drawn:
        minidom.parseString(  # noqa: S318 - our own
            f'<svg xmlns="http://www.w3.org/2000/svg"{each[4:]}'
        )
    maps = [set(re.findall(r"<title>(\S+) \((\w+)\)</title>", each)) for each in drawn[1:]]
    assert maps[0] == maps[1]
    assert ("dark/00.png", "dark") in maps[0] or ("light/copy.png", "light") in maps[0]
    assert {label for _, label in maps[0]} == {"dark", "light", "middle"}


def test_the_same_advice_gives_the_same_page(page, tmp_path):
    advice = advise(page.with_name("photos"), ask())
    for name in ("one.html", "other.html"):
        html.write(tmp_path / name, advice)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "other.html").read_bytes()


def test_duplicates_are_shown_beside_each_other(page):
    text = unescape(page.read_text())
    assert "dark/00.png = light/copy.png (exact" in text
    assert "across classes)" in text
    assert text.count('alt="dark/00.png"') == text.count('alt="light/copy.png"') == 1


def test_without_variance_there_is_no_map(tmp_path, pictures):
    for label in ("dark", "light"):
        (tmp_path / "same" / label).mkdir(parents=True)
        for number in range(15):
            shutil.copy(pictures / "dark/00.png", tmp_path / f"same/{label}/{number}.png")
    html.write(tmp_path / "page.html", advise(tmp_path / "same", ask()))
    text = (tmp_path / "page.html").read_text()
    assert "INCONCLUSIVE" in text
    assert "<svg" not in text


def test_it_says_what_the_terminal_says(page):
    text = unescape(page.read_text())
    assert "RECOMMENDED" in text
    assert "tlkit train photos -o run/ --backbone tiny" in text
    assert str(page.parent) not in text
    assert 'class="chosen"' in text


def test_names_are_no_markup(tmp_path, pictures):
    nasty = tmp_path / "<b>&photos"
    shutil.copytree(pictures, nasty)
    (nasty / "dark").rename(nasty / "<img src=x>")
    html.write(tmp_path / "page.html", advise(nasty, ask()))
    text = (tmp_path / "page.html").read_text()
    assert "<img src=x>" not in text
    assert "<b>" not in text


def test_an_inconclusive_page_says_so(tmp_path, pictures):
    for label in ("dark", "light"):
        (tmp_path / "few" / label).mkdir(parents=True)
        for number in range(4):
            shutil.copy(pictures / label / f"{number:02}.png", tmp_path / "few" / label)
    html.write(tmp_path / "page.html", advise(tmp_path / "few", ask()))
    assert "INCONCLUSIVE" in (tmp_path / "page.html").read_text()


def test_another_suffix_is_refused_before_any_work(tmp_path):
    with pytest.raises(UsageError, match=r"\.html"):
        check(tmp_path / "page.pdf")


def seen_in_browser(page, tmp_path, *options):
    """Measurements of the page in a real browser, and the number of colors on a screenshot."""
    if BROWSER is None:
        pytest.skip("needs chromium (Debian: apt-get install chromium)")
    looked = tmp_path / "looked.html"
    free = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text())  # of the policy, which admits no script
    looked.write_text(free.replace("</body>", LOOK + "</body>"))
    browser = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    dumped = subprocess.run(
        [*browser, *options, "--dump-dom", looked.as_uri()], capture_output=True, text=True, check=True
    )
    shot = tmp_path / "shot.png"
    subprocess.run([*browser, *options, f"--screenshot={shot}", page.as_uri()], capture_output=True, check=True)
    with Image.open(shot) as picture:
        colors = picture.convert("RGB").getcolors(1 << 24)
    return json.loads(unescape(re.search(r'<pre id="seen">(.*?)</pre>', dumped.stdout, re.DOTALL)[1])), len(colors)


@pytest.mark.slow
@pytest.mark.parametrize("width", [1100, 500])  # no browser of this kind is narrower
def test_a_real_browser_shows_it(page, tmp_path, width):
    seen, colors = seen_in_browser(page, tmp_path, f"--window-size={width},2400")
    assert seen["title"].startswith("Advice for")
    assert seen["room"] <= width
    assert seen["wide"] <= 0  # nothing sticks out at the side
    assert all(size > 0 and alt for size, alt in seen["images"])
    assert len(seen["said"]) == 3
    assert all(seen["said"])
    assert seen["shown"] > 60
    assert seen["small"] == 0
    assert {"leave-one-out balanced accuracy", "100%", "shift, nats", "first", "second", "third"} <= set(seen["texts"])
    assert seen["rows"] == 2
    assert {"Accuracy and domain shift over depth", "Principal components", "t-SNE", "Audit"} <= set(seen["heads"])
    assert colors > 500  # a page without its pictures has a handful


@pytest.mark.slow
def test_it_is_dark_if_the_system_is(page, tmp_path):
    light, _ = seen_in_browser(page, tmp_path, "--window-size=1100,1600")
    dark, _ = seen_in_browser(page, tmp_path, "--window-size=1100,1600", "--force-dark-mode")
    assert light["paper"] == "rgb(255, 255, 255)"
    assert all(int(part) < 60 for part in re.findall(r"\d+", dark["paper"]))
    assert all(int(part) > 180 for part in re.findall(r"\d+", dark["ink"]))
