"""A model card: metadata that huggingface_hub reads, numbers of the bundle and of a report, and nothing lost."""

from __future__ import annotations

import shutil
from xml.dom import minidom

import pytest

import tlkit
from tlkit.errors import UsageError
from tlkit.model.bundle import read_record
from tlkit.reporting.card import _license, _text

hub = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub (the extra card)")


@pytest.fixture(scope="module")
def carded(novel_run, pictures, tmp_path_factory):
    """The card of a bundle with a report, in a folder; and the images that it is on."""
    root = tmp_path_factory.mktemp("card")
    shutil.copytree(pictures, root / "photos")
    for number in range(4):  # wrong labels
        shutil.move(root / f"photos/light/{number:02}.png", root / f"photos/dark/light{number}.png")
    return tlkit.card(novel_run, root / "card", data=root / "photos"), root


def test_its_metadata_is_that_of_hugging_face(carded, novel_run):
    card = hub.ModelCard.load(carded[1] / "card/README.md")
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "tlkit")
    assert card.data.pipeline_tag == "image-classification"
    metrics = read_record(novel_run)["metrics"]["val"]
    results = {(each.dataset_name, each.metric_type): each for each in card.data.eval_results}
    own = results["validation", "accuracy"]
    assert own.metric_value == pytest.approx(metrics["accuracy"], abs=1e-4)
    assert own.metric_args == {
        "interval_95": [round(each, 4) for each in metrics["interval"]],
        "images": metrics["images"],
    }
    assert results["photos (all)", "accuracy"].metric_value == pytest.approx(32 / 36, abs=1e-4)


def test_it_says_what_the_report_found_and_shows_its_pictures(carded, novel_run):
    made, root = carded
    text = made.text
    assert "88.9% (" in text
    assert "trained on" in text  # the first finding
    assert "Sets of labels" in text
    assert "copies of 4 validation images" in text
    assert f"Bundle `{read_record(novel_run)['digest'][:16]}`" in text
    assert "| dark |" in text
    for name, drawing in made.pictures.items():
        file = root / "card" / name
        assert file.read_text() == drawing
        assert f"]({name})" in text
        svg = minidom.parseString(drawing).documentElement  # noqa: S318 - our own
        assert svg.getAttribute("xmlns") == "http://www.w3.org/2000/svg"
    assert sorted(made.pictures) == ["card/confusion.svg", "card/coverage.svg", "card/reliability.svg"]
    assert str(root) not in text


def test_a_bundle_alone_has_a_card_and_stays_the_same(own_run):
    digest = read_record(own_run)["digest"]
    made = tlkit.card(own_run, own_run)
    assert "validation images, which may have decided" in made.text
    assert "nothing tells them" in made.text
    assert (own_run / "card/confusion.svg").exists()
    assert tlkit.verify(own_run).passed
    assert read_record(own_run)["digest"] == digest
    tlkit.card(own_run, own_run)  # unchanged, it is replaced
    file = own_run / "README.md"
    file.write_text(file.read_text().replace("# run", "# my model"))
    with pytest.raises(UsageError, match="did not write this file"):
        tlkit.card(own_run, own_run)
    assert "# my model" in file.read_text()


def test_a_license_that_hugging_face_does_not_list_is_named():
    assert _license({"license": "CC-BY-NC-4.0"}) == {"license": "cc-by-nc-4.0"}
    assert _license({"license": "LicenseRef-DINOv3"}) == {"license": "other", "license_name": "licenseref-dinov3"}
    assert _license({"license": "MIT OR Apache-2.0"})["license_name"] == "mit-or-apache-2.0"


def test_no_name_is_markup():
    assert _text("<b>|*[a](b)\n`c`") == r"&lt;b&gt;\|\*\[a\](b)\n\`c\`".replace(r"\n", r"\\n")
