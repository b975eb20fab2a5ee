"""From a folder of images to a recommendation, or to the word that nothing can be told."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from tlkit_standard.heads import HEADS
from tlkit_standard.strategies import STRATEGIES

from tests.advice.asking import ask
from tests.kit.tiny import Tiny, write_images
from tlkit.advice.page import lines
from tlkit.advice.recommendation import SURE, UNSURE
from tlkit.advice.run import advise
from tlkit.errors import DataError


def noise(root, counts):
    """Class folders of pictures of noise, each another."""
    random = np.random.default_rng(0)
    for label, count in counts.items():
        (root / label).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(random.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(root / label / f"{number}.png")
    return root


def test_it_says_what_fits_with_the_evidence_of_every_stage(pictures):
    advice = advise(pictures, ask())
    assert advice.recommendation.verdict == SURE
    assert advice.recommendation.strategy == "probe-then-tune"  # few, but nothing like those of the pretraining
    assert [stage.name for stage in advice.sight.stages] == ["first", "second", "third"]
    assert advice.recommendation.cut in ("first", "second", "third")
    assert advice.recommendation.head in {head.name for head in HEADS}
    low, high = advice.recommendation.accuracy
    assert 0.5 < low <= high <= 1.0
    assert advice.recommendation.seconds > 0
    assert advice.facts.images == len(advice.dataset.of("train"))
    assert {each.head for each in advice.heads} >= {"logistic", "svm", "knn"}


def test_it_looks_at_no_image_of_val(pictures):
    advice = advise(pictures, ask())
    assert len(advice.sight.features.array) == len(advice.dataset.of("train")) < 36


def test_the_same_data_and_seed_give_the_same_advice(pictures):
    def seen(advice):
        facts = advice.to_json()
        for part in facts["heads"]:
            del part["seconds"]
        del facts["recommendation"]["seconds"]
        return facts

    assert seen(advise(pictures, ask())) == seen(advise(pictures, ask()))


def test_it_is_json(pictures):
    facts = json.loads(json.dumps(advise(pictures, ask()).to_json()))
    assert {"facts", "backbones", "heads", "recommendation"} <= facts.keys()
    assert len(facts["backbones"][0]["stages"]) == 3


@pytest.mark.parametrize(
    ("counts", "lacking"),
    [
        ({"a": 5, "b": 5}, "fewer than 20"),
        ({"a": 40, "b": 1}, "single image"),
        ({f"class{number}": 2 for number in range(40)}, "half of the classes"),
        ({"a": 40}, "only one class"),
    ],
)
def test_where_there_is_not_enough_to_tell_it_says_so(tmp_path, counts, lacking):
    advice = advise(noise(tmp_path / "photos", counts), ask())
    recommendation = advice.recommendation
    assert (recommendation.verdict, recommendation.strategy) == (UNSURE, "frozen")
    assert recommendation.accuracy is None
    assert lacking in "; ".join(recommendation.reasons)
    page = "\n".join(lines(advice))
    assert "NOT ENOUGH TO TELL" in page
    assert "RECOMMENDED" not in page


def test_the_same_picture_over_and_over_is_not_enough(tmp_path):
    noise(tmp_path / "photos", {"a": 1, "b": 1})
    for label in ("a", "b"):
        for number in range(1, 30):
            shutil.copy(tmp_path / "photos/a/0.png", tmp_path / f"photos/{label}/{number}.png")
    advice = advise(tmp_path / "photos", ask())
    assert advice.facts.distinct <= 2
    assert not advice.recommendation.sure
    assert "distinct" in "; ".join(advice.recommendation.reasons)


def test_labels_by_chance_give_no_confident_promise(tmp_path):
    advice = advise(noise(tmp_path / "photos", {"a": 40, "b": 40}), ask())
    low, high = advice.recommendation.accuracy
    assert low < 0.5 < high


def test_images_that_cannot_be_used_are_named(tmp_path):
    root = write_images(tmp_path / "photos")
    (root / "dark/00.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="1 of"):
        advise(root, ask())
    advice = advise(root, ask(max_bad=0.5))
    assert list(advice.rejected) == ["dark/00.png"]


def test_of_two_backbones_the_first_is_kept_unless_the_other_is_ahead(pictures):
    advice = advise(pictures, ask(backbones=[Tiny(), Blind()]))
    assert advice.recommendation.backbone == "tiny"
    assert [sight.backbone.name for sight in advice.sights] == ["tiny", "blind"]
    assert advise(pictures, ask(backbones=[Blind(), Tiny()])).recommendation.backbone == "tiny"


class Blind(Tiny):
    """A backbone that sees nothing."""

    name = "blind"

    def stages(self, *, pretrained):
        import torch

        stages = super().stages(pretrained=pretrained)
        for stage in stages.values():
            torch.nn.init.zeros_(stage[0].weight)
        return stages


def test_only_installed_components_are_recommended(pictures):
    advice = advise(pictures, ask(heads=[head for head in HEADS if head.name == "knn"], strategies=STRATEGIES[:1]))
    assert (advice.recommendation.head, advice.recommendation.strategy) == ("knn", "frozen")


@pytest.mark.parametrize("spoilt", ["logme", "h_score"])
def test_the_scores_that_order_badly_decide_nothing(pictures, monkeypatch, spoilt):
    before = advise(pictures, ask()).recommendation
    worth = iter(range(100, 0, -1))
    monkeypatch.setattr(f"tlkit.advice.analysis.{spoilt}", lambda *_: float(next(worth)))
    monkeypatch.setattr("tlkit.advice.confidence.Confidence.leep", lambda *_: pytest.fail("asked"))
    monkeypatch.setattr("tlkit.advice.confidence.Confidence.nce", lambda *_: pytest.fail("asked"))
    advice = advise(pictures, ask())
    assert getattr(advice.sight.stages[0], spoilt) > 90
    assert advice.recommendation.arguments() == before.arguments()
