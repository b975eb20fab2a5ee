"""From a folder of images to a recommendation, or to an inconclusive one."""

from __future__ import annotations

import json
import shutil
import threading

import numpy as np
import pytest
import scipy.linalg  # noqa: F401 - so that its BLAS is loaded, and limited, in any order of the tests
from PIL import Image
from threadpoolctl import threadpool_info, threadpool_limits
from tlkit_standard.heads import HEADS
from tlkit_standard.strategies import STRATEGIES

from tests.advice.asking import ask
from tests.kit.tiny import Tiny, write_images
from tlkit.advice import run
from tlkit.advice.recommendation import INCONCLUSIVE, RECOMMENDED
from tlkit.advice.run import advise
from tlkit.audit.run import Audit
from tlkit.audit.shortcuts import Shortcut
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
    assert advice.recommendation.verdict == RECOMMENDED
    assert advice.recommendation.strategy == "probe-then-tune"  # small, but different
    assert [stage.name for stage in advice.analysis.stages] == ["first", "second", "third"]
    assert advice.recommendation.cut in ("first", "second", "third")
    assert advice.recommendation.head in {head.name for head in HEADS}
    low, high = advice.recommendation.accuracy
    assert 0.5 < low <= high <= 1.0
    assert 0 < advice.recommendation.seconds[0] <= advice.recommendation.seconds[1]
    assert advice.statistics.images == len(advice.dataset.of("train"))
    assert {each.head for each in advice.heads} >= {"logistic", "svm", "knn"}


def test_it_looks_at_no_image_of_val(pictures):
    advice = advise(pictures, ask())
    assert len(advice.analysis.features.array) == len(advice.dataset.of("train")) < 36


def test_the_same_data_and_seed_give_the_same_advice(pictures):
    def timeless(advice):
        content = advice.to_json()
        for part in content["heads"]:
            del part["seconds"]
        del content["recommendation"]["seconds"], content["recommendation"]["frozen_seconds"]
        return content

    assert timeless(advise(pictures, ask())) == timeless(advise(pictures, ask()))


def test_the_domain_shift_is_measured_beside_the_heads_with_one_thread_for_each_product(pictures, monkeypatch):
    measure, compare, begun, seen = run.measure_shift, run.compare_heads, threading.Event(), []

    def products():
        return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

    def measured(*args):
        begun.set()
        seen.append(products())
        return measure(*args)

    def compared(*args, **options):
        assert begun.wait(60)
        seen.append(products())
        return compare(*args, **options)

    monkeypatch.setattr(run, "measure_shift", measured)
    monkeypatch.setattr(run, "compare_heads", compared)
    with threadpool_limits(3, user_api="blas"):
        advice = advise(pictures, ask())
        assert products() == {3}
    assert seen == [{1}, {1}]
    assert advice.analysis.shift.overall is not None


def test_it_is_json(pictures):
    content = json.loads(json.dumps(advise(pictures, ask()).to_json()))
    assert {"dataset", "backbones", "heads", "recommendation"} <= content.keys()
    assert len(content["backbones"][0]["stages"]) == 3


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ({"a": 5, "b": 5}, "8 training images, at least 20 are needed"),
        ({"a": 40, "b": 1}, "at most one training image: b"),
        ({f"class{number}": 2 for number in range(40)}, "half of the classes"),
        ({"a": 40}, "only one class"),
    ],
)
def test_a_dataset_that_is_too_small_is_inconclusive(tmp_path, counts, reason):
    advice = advise(noise(tmp_path / "photos", counts), ask())
    recommendation = advice.recommendation
    assert (recommendation.verdict, recommendation.strategy) == (INCONCLUSIVE, "frozen")
    assert recommendation.accuracy is None
    assert reason in "; ".join(recommendation.reasons)
    assert "INCONCLUSIVE" in str(advice)
    assert "RECOMMENDED" not in str(advice)


def test_the_same_picture_over_and_over_is_not_enough(tmp_path):
    noise(tmp_path / "photos", {"a": 1, "b": 1})
    for label in ("a", "b"):
        for number in range(1, 30):
            shutil.copy(tmp_path / "photos/a/0.png", tmp_path / f"photos/{label}/{number}.png")
    advice = advise(tmp_path / "photos", ask())
    assert advice.statistics.distinct <= 2
    assert advice.recommendation.inconclusive
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
    assert [each.backbone.name for each in advice.analyses] == ["tiny", "blind"]
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
    monkeypatch.setattr(f"tlkit.advice.backbone_analysis.{spoilt}", lambda *_: float(next(worth)))
    advice = advise(pictures, ask())
    assert getattr(advice.analysis.stages[0], spoilt) > 90
    assert advice.recommendation.arguments() == before.arguments()


def test_it_prints_a_page_and_shows_itself_in_a_notebook(pictures):
    advice = advise(pictures, ask(), audit=True)
    assert repr(advice) == str(advice)
    assert "RECOMMENDED: probe-then-tune, tiny up to" in str(advice)
    assert str(advice).endswith(str(advice.audit))
    shown = advice._repr_html_()
    assert shown.startswith("<style>")
    assert shown.endswith("</main></div>")
    assert "RECOMMENDED" in shown
    assert "<h2>Audit</h2>" in shown


def test_the_command_follows_the_recommendation(pictures, tmp_path):
    advice = advise(pictures, ask())
    assert advice.command == f"tlkit train {pictures} -o run/ " + " ".join(advice.recommendation.arguments())
    assert advise(pictures, ask(options={"size": 48})).command.endswith(" --size 48")
    one_class = noise(tmp_path / "photos", {"a": 40})
    assert advise(one_class, ask()).command == f"tlkit advise {one_class}"


def test_a_shortcut_that_the_audit_finds_reaches_the_recommendation(pictures, monkeypatch):
    shortcut = Shortcut("file format", 0.5, 0.8)
    found = Audit(30, [], [], {}, [shortcut], enough_images=True)
    monkeypatch.setattr(run, "audit_dataset", lambda *_: found)
    assert shortcut.warning() in advise(pictures, ask(), audit=True).recommendation.reasons
    assert shortcut.warning() not in advise(pictures, ask()).recommendation.reasons
