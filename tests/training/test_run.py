"""Training from images to a bundle: frozen stages stay, what is trained is what is deployed, errors come first."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from tlkit_standard.heads import HEADS
from tlkit_standard.heads.memory import Knn
from tlkit_standard.strategies import STRATEGIES
from torch import nn

from tests.kit.course import STAGES, fine_tuning
from tests.kit.exporting import exported, replayed
from tests.kit.tiny import Line, Seeded, Tiny, write_images
from tlkit.data import dataset
from tlkit.data.preprocessing import load
from tlkit.errors import DataError, GateError, UsageError
from tlkit.model import reference_images
from tlkit.model import trunk as trunks
from tlkit.model.bundle import HASH_BYTES, TRAINED_ON, count_trained_on, open_bundle
from tlkit.model.modules import run_modules
from tlkit.plugin.contract import FEATURES, LOGITS, Augmentation, DatasetStatistics, Phase, Strategy
from tlkit.runtime import feature_cache
from tlkit.runtime.model import Model
from tlkit.training import heads
from tlkit.training.config import RunOptions
from tlkit.training.run import train
from tlkit.training.run_directory import folder_of, is_unfinished
from tlkit.util.files import sha256

CROP = Augmentation(crop=True)
BY_NAME = {strategy.name: strategy for strategy in STRATEGIES}


@dataclass(frozen=True)
class Drifting(Tiny):
    """Its first stage counts how often it runs, in eval mode as well."""

    def stages(self, *, pretrained):
        class Counter(nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("runs", torch.zeros(()), persistent=False)

            def forward(self, x):
                if not torch.compiler.is_exporting():
                    self.runs += 1
                return x

        stages = dict(super().stages(pretrained=pretrained))
        stages["first"].append(Counter())
        return stages


class ThirdIsNaN(Line):
    """A head whose third evaluation gives NaN."""

    def module(self, width, classes):
        class Module(nn.Linear):
            evaluations = 0

            def forward(self, x):
                counts = not self.training and len(x) > 2  # two rows only show that it is a head
                self.evaluations += counts
                return super().forward(x) * (torch.nan if counts and self.evaluations == 3 else 1)

        return Module(width, classes)


@pytest.fixture
def config(tiny_config):
    """Two stages of three are fine-tuned."""
    phase = Phase(3, 0.05, trunk_lr=0.02, trainable=2, batch_size=8, augmentation=CROP)
    return replace(tiny_config, **fine_tuning(phase))


@pytest.fixture
def original():
    return trunks.build(Tiny())


def stage_of(name):
    return name.split(".")[1]


def history(root):
    return [json.loads(line) for line in (root / "history.jsonl").read_text().splitlines()]


def changed_stages(bundle, original):
    before = trunks.tensors(original)
    return {stage_of(name) for name, tensor in bundle.trunk.items() if not np.array_equal(tensor, before[name])}


def test_a_second_head_decodes_no_image(pictures, tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "RECENT_NS", 0)  # the pictures were written just now
    train(pictures, tmp_path / "first", tiny_config)
    assert train(pictures, tmp_path / "run", replace(tiny_config, cut="third")).decoded == 0


def test_weights_that_fit_are_used_at_another_size(pictures, tiny_config, tmp_path):
    train(pictures, tmp_path / "run", replace(tiny_config, size=48))
    bundle = open_bundle(tmp_path / "run")
    assert bundle.record.preprocessing == replace(Tiny.preprocessing, size=48)
    exported(bundle.root, tiny_config.backbone, tiny_config.head)
    assert replayed(bundle.root).passed


@pytest.fixture
def uncalibrated(monkeypatch):
    """The temperature of a head stays 1."""
    monkeypatch.setattr(heads, "PRIOR", 1e-6)


class TestFineTuning:
    @pytest.mark.parametrize("trainable", [1, 2, 3])
    def test_the_deepest_stages_train_and_the_others_stay_bit_identical(
        self, pictures, config, original, tmp_path, trainable
    ):
        phase = Phase(2, 0.05, trunk_lr=0.02, trainable=trainable, batch_size=8)
        trained = train(pictures, tmp_path / "run", replace(config, **fine_tuning(phase)))
        bundle = open_bundle(tmp_path / "run")
        assert changed_stages(bundle, original) == set(STAGES[-trainable:])
        expected = {stage: "fine-tuned" if stage in STAGES[-trainable:] else "original" for stage in STAGES}
        assert bundle.record.provenance == trained.provenance == expected

    def test_running_statistics_of_trainable_stages_update_and_those_of_frozen_ones_do_not(
        self, pictures, tiny_config, original, tmp_path
    ):
        update = Phase(3, 0.05, trunk_lr=0.02, trainable=2, batch_size=8, augmentation=CROP, batchnorm="update")
        train(pictures, tmp_path / "run", replace(tiny_config, **fine_tuning(update)))
        before, after = trunks.tensors(original), open_bundle(tmp_path / "run").trunk
        same = {
            stage_of(name) for name in after if "running_mean" in name and np.array_equal(before[name], after[name])
        }
        assert same == {"first"}
        steps = {stage_of(name): int(tensor) for name, tensor in after.items() if "num_batches" in name}
        assert steps["first"] == 0 < steps["second"] == steps["third"]

    def test_a_head_that_is_solved_learns_by_its_stand_in(self, pictures, config, tmp_path):
        trained = train(pictures, tmp_path / "run", replace(config, head=Knn(k=3), refit=False))
        assert (trained.head, trained.report["k"]) == ("knn", 3)
        assert history(tmp_path / "run")[-1] == {
            "solved": "knn",
            "trained": "logistic",
            **trained.report,
            "val_temperature": 1.0,
        }
        assert trained.provenance["third"] == "fine-tuned"
        assert trained.metrics.accuracy > 0.8

    @pytest.mark.parametrize("reinit", [0, 1, 2])
    def test_statistics_of_the_pretraining_are_frozen_and_those_of_reinitialized_stages_update(
        self, pictures, tiny_config, original, tmp_path, reinit
    ):
        phases = [Phase(2, 0.05, trunk_lr=0.02, trainable=3, reinit=count, batch_size=8) for count in (reinit, 0)]
        train(pictures, tmp_path / "run", replace(tiny_config, **fine_tuning(*phases)))
        before, after = trunks.tensors(original), open_bundle(tmp_path / "run").trunk
        same = {
            stage_of(name) for name in after if "running_mean" in name and np.array_equal(before[name], after[name])
        }
        assert same == set(STAGES[: 3 - reinit])

    def test_what_was_trained_is_what_is_deployed(self, pictures, config, tmp_path):
        train(pictures, tmp_path / "run", config)
        bundle = open_bundle(tmp_path / "run")
        (published,) = exported(bundle.root, config.backbone, config.head).exports
        assert all(verdict.passed for verdict in published.verdicts.values())
        assert replayed(bundle.root).passed
        expected, model = bundle.expected(), Model.open(tmp_path / "run")
        images = np.stack([load(content, bundle.record.preprocessing) for content in bundle.golden_bytes()])
        got = model.session.run(images)
        for name in (FEATURES, LOGITS):
            assert np.allclose(got[name], expected[name], atol=1e-4)
        original = run_modules(trunks.build(Tiny()), nn.Identity(), images)[FEATURES]
        assert not np.allclose(expected[FEATURES], original, atol=1e-2)

    @pytest.mark.usefixtures("uncalibrated")
    def test_the_metrics_are_those_of_the_deployed_graph(self, pictures, config, tmp_path):
        trained = train(pictures, tmp_path / "run", config)
        bundle = open_bundle(tmp_path / "run")
        exported(bundle.root, config.backbone, config.head)
        best = min(line["val_loss"] for line in history(tmp_path / "run") if "val_loss" in line)
        assert trained.metrics.log_loss == pytest.approx(best, rel=1e-3)
        assert bundle.record.metrics["val"]["log_loss"] == trained.metrics.log_loss

    @pytest.mark.parametrize("name", [name for name in BY_NAME if name != "frozen"])
    def test_every_strategy_learns(self, pictures, tiny_config, tmp_path, name):
        strategy = replace(BY_NAME[name], epochs=4, head_lr=0.05, trunk_lr=0.01, batch_size=8)
        config = replace(tiny_config, backbone=Seeded(), strategy=strategy, cut="third")
        trained = train(pictures, tmp_path / "run", config)
        losses = [line["train_loss"] for line in history(tmp_path / "run") if "train_loss" in line]
        assert losses[-1] < losses[0]
        assert trained.metrics.log_loss < np.log(3)
        exported(tmp_path / "run", tiny_config.backbone, tiny_config.head)

    def test_reinitialized_stages_owe_nothing_to_the_original(self, pictures, config, original, tmp_path):
        """With a negligible learning rate, so that stages end where they began."""
        phase = Phase(1, 0.05, trunk_lr=1e-12, trainable=2, reinit=1, batch_size=8)
        train(pictures, tmp_path / "run", replace(config, **fine_tuning(phase)))
        bundle, before = open_bundle(tmp_path / "run"), trunks.tensors(original)
        assert bundle.record.provenance == {"first": "original", "second": "fine-tuned", "third": "reinitialized"}
        for stage, near in (("second", True), ("third", False)):
            weight = f"stages.{stage}.0.weight"
            assert np.allclose(bundle.trunk[weight], before[weight], atol=1e-6) is near

    def test_a_phase_without_trainable_stages_leaves_a_fine_tuned_trunk_as_it_is(self, pictures, config, tmp_path):
        phase = Phase(2, 0.05, trunk_lr=0.02, trainable=2, batch_size=8)
        train(pictures, tmp_path / "one", replace(config, **fine_tuning(phase)))
        train(pictures, tmp_path / "two", replace(config, **fine_tuning(phase, Phase(5, 0.01))))
        one, two = (open_bundle(tmp_path / name) for name in ("one", "two"))
        assert all(np.array_equal(one.trunk[name], two.trunk[name]) for name in one.trunk)
        assert not np.array_equal(one.head["weight"], two.head["weight"])

    def test_a_trunk_that_was_better_before_is_said_to_be_the_original(self, pictures, config, original, tmp_path):
        ruinous = Phase(1, 10.0, trunk_lr=10.0, trainable=2, batch_size=8)
        with pytest.raises(DataError, match="the bundle holds the best weights before that"):
            train(pictures, tmp_path / "run", replace(config, **fine_tuning(Phase(100, 0.05), ruinous)))
        assert changed_stages(open_bundle(tmp_path / "run"), original) == set()

    def test_a_frozen_stage_that_changes_fails_the_run(self, pictures, config, tmp_path):
        with pytest.raises(GateError, match=r"frozen tensors changed during training: stages\.first\.3\.runs"):
            train(pictures, tmp_path / "run", replace(config, backbone=Drifting(), cache=False))
        assert not (tmp_path / "run").exists()


class TestRefit:
    @pytest.fixture
    def logistic(self, config):
        head = next(head for head in HEADS if head.name == "logistic")
        return replace(config, head=replace(head, calibrate=False))

    @pytest.mark.usefixtures("uncalibrated")
    def test_a_head_that_can_be_solved_is_solved_again_unless_it_is_significantly_worse(
        self, pictures, logistic, tmp_path
    ):
        trained = train(pictures, tmp_path / "run", logistic)
        line = history(tmp_path / "run")[-1]
        assert line["solved"] == "logistic"
        loses = line["val_loss"] > line["trained_val_loss"] or line["val_accuracy"] < line["trained_val_accuracy"]
        assert line["kept"] or loses
        kept = "val_loss" if line["kept"] else "trained_val_loss"
        assert trained.metrics.log_loss == pytest.approx(line[kept], rel=1e-4)

    def test_it_can_be_left_out(self, pictures, logistic, tmp_path):
        train(pictures, tmp_path / "run", replace(logistic, refit=False))
        assert not any("solved" in line for line in history(tmp_path / "run"))


def test_an_interrupted_run_resumes_and_gives_the_same_bundle(pictures, tiny_config, tmp_path):
    phases = (
        Phase(2, 0.05),
        Phase(2, 0.05, trunk_lr=0.02, trainable=2, batch_size=8, augmentation=CROP),
    )
    config, options = replace(tiny_config, **fine_tuning(*phases)), RunOptions(checkpoint_seconds=0)
    out, resumed = tmp_path / "run", replace(options, resume=True)
    expected = train(pictures, tmp_path / "expected", config, options=options).digest

    def interrupt(what, total):
        left = [total * 3 // 4 if what == "phase 2 of 2" else float("inf")]  # images

        def tick(more, _said=""):
            left[0] -= more
            if left[0] <= 0:
                raise KeyboardInterrupt

        return tick

    with pytest.raises(KeyboardInterrupt):
        train(pictures, out, config, interrupt, options)
    assert not out.exists()
    assert is_unfinished(out)
    with pytest.raises(UsageError, match="a training of it was interrupted; resume it with its options and --resume"):
        train(pictures, out, config)
    for named in (RunOptions(), resumed):  # it trains the head alone, and would leave the checkpoints behind
        with pytest.raises(UsageError, match="a training of it was interrupted"):
            train(pictures, out, tiny_config, options=named)
    assert is_unfinished(out)
    with pytest.raises(UsageError, match=r"the interrupted run differs: seed was 0, is 1; use the options and"):
        train(pictures, out, replace(config, seed=1), options=resumed)
    assert train(pictures, out, config, options=resumed).digest == expected
    assert not folder_of(out).exists()
    assert history(out)[0]["phase"] == 1


class TestDivergence:
    def test_a_learning_rate_that_ruins_the_trunk_is_named(self, pictures, config, tmp_path):
        ruinous = Phase(2, 0.05, trunk_lr=1e30, trainable=2, batch_size=8)
        where = r"the loss is \S+ at step 2 of phase 2, epoch 1, with lr \S+ and trunk_lr \S+e"
        with pytest.raises(DataError, match=where):
            train(pictures, tmp_path / "run", replace(config, **fine_tuning(Phase(2, 0.05), ruinous)))
        assert set(open_bundle(tmp_path / "run").record.provenance.values()) == {"original"}

    @pytest.mark.usefixtures("uncalibrated")
    def test_the_bundle_holds_the_best_weights_before_it(self, pictures, config, tmp_path):
        with pytest.raises(DataError, match=r"run: the validation loss is nan .* epoch 3; the bundle holds"):
            train(pictures, tmp_path / "run", replace(config, head=ThirdIsNaN()))
        lines = [line for line in history(tmp_path / "run") if "val_loss" in line]
        assert len(lines) == 2
        log_loss = open_bundle(tmp_path / "run").record.metrics["val"]["log_loss"]
        assert log_loss == pytest.approx(min(line["val_loss"] for line in lines), rel=1e-3)


class TestBadImages:
    @pytest.fixture
    def photos(self, tmp_path):
        return write_images(tmp_path / "photos", per_class=20)

    def test_a_few_are_listed_and_the_run_continues(self, photos, tiny_config, tmp_path):
        (photos / "dark" / "00.png").write_bytes(b"no image")
        trained = train(photos, tmp_path / "run", replace(tiny_config, max_bad=0.05))
        assert list(trained.rejected) == ["dark/00.png"]
        assert open_bundle(tmp_path / "run").record.data["rejected"] == dict(trained.rejected)

    def test_too_many_stop_it_and_nothing_is_written(self, photos, tiny_config, tmp_path):
        (photos / "dark" / "00.png").write_bytes(b"no image")
        with pytest.raises(DataError, match=r"dark/00\.png: 1 of 60 images are unreadable.*--max-bad"):
            train(photos, tmp_path / "run", tiny_config)
        assert not (tmp_path / "run").exists()

    def test_a_class_that_loses_all_is_named(self, photos, tiny_config, tmp_path):
        for file in (photos / "dark").iterdir():
            file.write_bytes(b"no image")
        with pytest.raises(DataError, match=r"no readable image to train on is left of dark; .*, such as .*dark/"):
            train(photos, tmp_path / "run", replace(tiny_config, max_bad=1.0))

    def test_the_only_validation_image_of_a_class_is_replaced_by_a_readable_one(self, tiny_config, tmp_path):
        photos = write_images(tmp_path / "photos", per_class=20)
        for file in sorted((photos / "dark").iterdir())[4:]:
            file.unlink()
        config = replace(tiny_config, max_bad=0.05)
        (only,) = [each for each in dataset.read(photos).of("val") if each.label == 0]
        only.path.write_bytes(only.path.read_bytes()[:100])
        trained = train(photos, tmp_path / "run", config)
        assert list(trained.rejected) == [only.name]
        assert (trained.counts["train"]["dark"], trained.counts["val"]["dark"]) == (2, 1)
        assert trained.images == {split: sum(trained.counts[split].values()) for split in ("train", "val", "test")}
        assert trained.files.read == 43
        _, found = reference_images.dataset(open_bundle(tmp_path / "run"))
        assert found.counts("val") == trained.counts["val"]

    def test_groups_stay_together_and_are_found_again(self, pictures, tiny_config, tmp_path):
        group = r"\w+/\d"  # all images of a class whose numbers begin with the same digit
        trained = train(pictures, tmp_path / "run", replace(tiny_config, group=group))
        bundle = open_bundle(tmp_path / "run")
        assert bundle.record.data["group"] == group
        _, found = reference_images.dataset(bundle)
        assert found.counts("val") == trained.counts["val"]

    def test_how_many_of_some_images_it_was_trained_on_is_known(self, pictures, tiny_config, tmp_path):
        out = tmp_path / "run"
        trained = train(pictures, out, tiny_config)
        hashes = {split: [sha256(each.path) for each in dataset.read(pictures).of(split)] for split in ("train", "val")}
        assert count_trained_on(out, hashes["train"]) == trained.images["train"]
        assert count_trained_on(out, hashes["val"]) == 0
        size = (out / TRAINED_ON).stat().st_size
        assert size == HASH_BYTES * trained.images["train"]
        (out / TRAINED_ON).unlink()
        assert count_trained_on(out, hashes["train"]) is None


class TestBadOptions:
    def test_an_unknown_cut_is_refused(self, pictures, tiny_config, tmp_path):
        with pytest.raises(UsageError, match="first, second, third"):
            train(pictures, tmp_path / "run", replace(tiny_config, cut="nowhere"))

    def test_an_existing_output_is_refused_before_any_work(self, tiny_config, tmp_path):
        (tmp_path / "run").write_text("mine")
        with pytest.raises(UsageError, match="exists already"):
            train(tmp_path / "no photos", tmp_path / "run", tiny_config)
        assert (tmp_path / "run").read_text() == "mine"

    def test_a_head_without_gradients_or_stand_in_is_refused_before_any_work(self, pictures, config, tmp_path):
        class Alone(Knn):
            def stand_in(self):
                return None

        watched = []

        def progress(*what):
            watched.append(what)
            return lambda _more: None

        with pytest.raises(UsageError, match="the head 'knn' is solved and can't be trained by gradient; "):
            train(pictures, tmp_path / "run", replace(config, head=Alone()), progress)
        assert [what for what, total in watched if total] == []

    def test_parameters_that_do_not_exist_are_refused_before_any_work(self, pictures, tiny_config, tmp_path):
        phase = Phase(1, 0.05, trunk_lr=0.02, trainable=2, parameters=("*adapter*",))
        watched = []
        with pytest.raises(UsageError, match=r"no parameter of second, third matches '\*adapter\*'; choose .*0.weight"):
            train(
                pictures, tmp_path / "run", replace(tiny_config, **fine_tuning(phase)), lambda *it: watched.append(it)
            )
        assert [what for what, total in watched if total] == []

    @pytest.mark.parametrize("name", ["partial", "probe-then-tune"])
    def test_more_trainable_stages_than_there_are(self, pictures, tiny_config, tmp_path, name):
        strategy = replace(BY_NAME[name], trainable=3)
        with pytest.raises(UsageError, match=r"phase \d trains 3 stages of 2"):
            train(pictures, tmp_path / "run", replace(tiny_config, strategy=strategy))

    @pytest.mark.parametrize("name", BY_NAME)
    def test_no_epochs(self, pictures, tiny_config, tmp_path, name):
        with pytest.raises(UsageError, match=r"phase \d has 0 epochs"):
            train(pictures, tmp_path / "run", replace(tiny_config, strategy=replace(BY_NAME[name], epochs=0)))

    @pytest.mark.parametrize(
        ("phases", "problem"),
        [
            ((), "no phases"),
            ((Phase(0, 1e-3),), "phase 1 has 0 epochs"),
            ((Phase(1, 1e-3), Phase(1, 1e-3, trainable=3)), "phase 2 trains 3 stages of 2"),
        ],
    )
    def test_phases_that_can_not_be_run_are_refused(self, pictures, tiny_config, tmp_path, phases, problem):
        @dataclass(frozen=True)
        class Odd(Strategy):
            name = "odd"

            def phases(self, stages, facts):
                assert facts == DatasetStatistics(
                    images=facts.images,
                    classes=3,
                    smallest_class=facts.smallest_class,
                    largest_class=facts.largest_class,
                )
                assert 0 < facts.smallest_class <= facts.largest_class < facts.images
                return phases

        with pytest.raises(UsageError, match=problem):
            train(pictures, tmp_path / "run", replace(tiny_config, strategy=Odd()))
