"""Moving the trunk: what is frozen stays to the bit, what moves is what is deployed, and the seed decides."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from tlkit_standard.heads import HEADS
from tlkit_standard.strategies import STRATEGIES
from torch import nn

from tests.kit.exporting import exported, replayed
from tests.kit.tiny import WIDTHS, Line, Seeded, Tiny
from tlkit.data.preprocessing import load
from tlkit.errors import DataError, GateError, UsageError
from tlkit.model import trunk as trunks
from tlkit.model.bundle import open_bundle
from tlkit.model.modules import run_modules
from tlkit.plugin.contract import FEATURES, LOGITS, DatasetStatistics, Phase, Strategy
from tlkit.runtime.model import Model
from tlkit.training import steps
from tlkit.training import trainer as loop
from tlkit.training.device import Device
from tlkit.training.freezing import Network, Originals
from tlkit.training.history import Watch
from tlkit.training.inputs import AugmentedViews, Decoded, Examples, Images
from tlkit.training.phases import check_phases, provenance
from tlkit.training.run import train
from tlkit.training.steps import rate, split
from tlkit.training.trainer import Setting, fit_head

BY_NAME = {strategy.name: strategy for strategy in STRATEGIES}
STAGES = tuple(WIDTHS)


@dataclass(frozen=True)
class Given(Strategy):
    """The phases that a test wants."""

    name = "given"
    given: tuple[Phase, ...] = ()

    def phases(self, stages, facts):
        return self.given


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


def tuned(*phases, **others):
    return {"strategy": Given(phases), "cut": "third", **others}


@pytest.fixture
def recipe(tiny_recipe):
    """Two stages of three learn."""
    return replace(tiny_recipe, **tuned(Phase(3, 0.05, trunk_lr=0.02, trainable=2, batch_size=8, augment=True)))


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


@pytest.mark.parametrize("moving", [1, 2, 3])
def test_the_deepest_stages_move_and_the_others_stay_to_the_bit(pictures, recipe, original, tmp_path, moving):
    phase = Phase(2, 0.05, trunk_lr=0.02, trainable=moving, batch_size=8)
    trained = train(pictures, tmp_path / "run", replace(recipe, **tuned(phase)))
    bundle = open_bundle(tmp_path / "run")
    assert changed_stages(bundle, original) == set(STAGES[-moving:])
    expected = {stage: "fine-tuned" if stage in STAGES[-moving:] else "original" for stage in STAGES}
    assert bundle.record.provenance == trained.provenance == expected


def test_batch_statistics_of_moving_stages_learn_and_those_of_frozen_ones_do_not(
    pictures, tiny_recipe, original, tmp_path
):
    follow = Phase(3, 0.05, trunk_lr=0.02, trainable=2, batch_size=8, augment=True, batchnorm="update")
    train(pictures, tmp_path / "run", replace(tiny_recipe, **tuned(follow)))
    before, after = trunks.tensors(original), open_bundle(tmp_path / "run").trunk
    still = {stage_of(name) for name in after if "running_mean" in name and np.array_equal(before[name], after[name])}
    assert still == {"first"}
    steps = {stage_of(name): int(tensor) for name, tensor in after.items() if "num_batches" in name}
    assert steps["first"] == 0 < steps["second"] == steps["third"]


@pytest.mark.parametrize("restart", [0, 1, 2])
def test_batch_statistics_of_the_pretraining_are_kept_and_those_of_new_stages_learn(
    pictures, tiny_recipe, original, tmp_path, restart
):
    phases = [Phase(2, 0.05, trunk_lr=0.02, trainable=3, reinit=again, batch_size=8) for again in (restart, 0)]
    train(pictures, tmp_path / "run", replace(tiny_recipe, **tuned(*phases)))
    before, after = trunks.tensors(original), open_bundle(tmp_path / "run").trunk
    kept = {stage_of(name) for name in after if "running_mean" in name and np.array_equal(before[name], after[name])}
    assert kept == set(STAGES[: 3 - restart])


def test_what_was_trained_is_what_is_deployed(pictures, recipe, tmp_path):
    train(pictures, tmp_path / "run", recipe)
    bundle = open_bundle(tmp_path / "run")
    published = exported(bundle.root, recipe.backbone, recipe.head)
    assert all(verdict.passed for verdict in published.verdicts.values())
    assert replayed(bundle.root).passed
    expected, model = bundle.expected(), Model.open(tmp_path / "run")
    images = np.stack([load(content, bundle.record.preprocessing) for content in bundle.golden_bytes()])
    got = model.session.run(images)
    for name in (FEATURES, LOGITS):
        assert np.allclose(got[name], expected[name], atol=1e-4)
    original = run_modules(trunks.build(Tiny()), nn.Identity(), images)[FEATURES]
    assert not np.allclose(expected[FEATURES], original, atol=1e-2)


def test_the_scores_are_those_of_the_deployed_graph(pictures, recipe, tmp_path):
    trained = train(pictures, tmp_path / "run", recipe)
    bundle = open_bundle(tmp_path / "run")
    exported(bundle.root, recipe.backbone, recipe.head)
    best = min(line["val_loss"] for line in history(tmp_path / "run"))
    assert trained.metrics.log_loss == pytest.approx(best, rel=1e-3)
    assert bundle.record.metrics["val"]["log_loss"] == trained.metrics.log_loss


@pytest.mark.parametrize("name", [name for name in BY_NAME if name != "frozen"])
def test_every_strategy_learns(pictures, tiny_recipe, tmp_path, name):
    fast = {"epochs": 3, "head_lr": 0.05, "trunk_lr": 0.01, "batch_size": 8}
    strategy = replace(BY_NAME[name], **fast)
    trained = train(pictures, tmp_path / "run", replace(tiny_recipe, strategy=strategy, cut="third"))
    losses = [line["train_loss"] for line in history(tmp_path / "run")]
    assert losses[-1] < losses[0]
    assert trained.metrics.log_loss < np.log(3)
    exported(tmp_path / "run", tiny_recipe.backbone, tiny_recipe.head)


@pytest.mark.parametrize("restart", [0, 2])
def test_the_same_seed_gives_the_same_bundle(pictures, recipe, tmp_path, restart):
    phases = (Phase(2, 0.05), Phase(2, 0.05, trunk_lr=0.02, trainable=2, batch_size=8, augment=True, reinit=restart))
    recipe, digests = replace(recipe, backbone=Seeded()), []
    for number, seed in enumerate((0, 0, 1)):
        torch.rand(number)  # what happened before is no part of it
        digests.append(train(pictures, tmp_path / str(number), replace(recipe, **tuned(*phases, seed=seed))).digest)
    assert digests[0] == digests[1] != digests[2]


def test_restarted_stages_owe_nothing_to_the_original(pictures, recipe, original, tmp_path):
    """A rate of next to nothing, so that what is there afterwards is what it began with."""
    phase = Phase(1, 0.05, trunk_lr=1e-12, trainable=2, reinit=1, batch_size=8)
    train(pictures, tmp_path / "run", replace(recipe, **tuned(phase)))
    bundle, before = open_bundle(tmp_path / "run"), trunks.tensors(original)
    assert bundle.record.provenance == {"first": "original", "second": "fine-tuned", "third": "reinitialized"}
    for stage, near in (("second", True), ("third", False)):
        weight = f"stages.{stage}.0.weight"
        assert np.allclose(bundle.trunk[weight], before[weight], atol=1e-6) is near


def test_a_phase_with_nothing_moving_leaves_a_moved_trunk_as_it_is(pictures, recipe, tmp_path):
    moves = Phase(2, 0.05, trunk_lr=0.02, trainable=2, batch_size=8)
    train(pictures, tmp_path / "one", replace(recipe, **tuned(moves)))
    train(pictures, tmp_path / "two", replace(recipe, **tuned(moves, Phase(5, 0.01))))
    one, two = (open_bundle(tmp_path / name) for name in ("one", "two"))
    assert all(np.array_equal(one.trunk[name], two.trunk[name]) for name in one.trunk)
    assert not np.array_equal(one.head["weight"], two.head["weight"])


def test_a_frozen_stage_that_changes_fails_the_run(pictures, recipe, tmp_path):
    with pytest.raises(GateError, match="were to stay changed in training: first"):
        train(pictures, tmp_path / "run", replace(recipe, backbone=Drifting(), cache=False))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["stages.first.0.bias", "stages.first.1.running_var"])
def test_a_single_bit_is_noticed(original, name):
    proof = Originals(original)
    proof.prove(3)
    with torch.no_grad():
        original.state_dict()[name][0].nextafter_(torch.tensor(9.0))
    assert proof.changed() == ("first",)
    with pytest.raises(GateError, match="first"):
        proof.prove(1)


class TestRefit:
    @pytest.fixture
    def logistic(self, recipe):
        head = next(head for head in HEADS if head.name == "logistic")
        return replace(recipe, head=replace(head, calibrate=False))

    def test_a_head_that_can_be_solved_is_solved_again_unless_that_loses(self, pictures, logistic, tmp_path):
        trained = train(pictures, tmp_path / "run", logistic)
        line = history(tmp_path / "run")[-1]
        assert line["solved"] == "logistic"
        loses = line["val_loss"] > line["trained_val_loss"] or line["val_accuracy"] < line["trained_val_accuracy"]
        assert line["kept"] is not loses
        kept = "val_loss" if line["kept"] else "trained_val_loss"
        assert trained.metrics.log_loss == pytest.approx(line[kept], rel=1e-6)

    def test_it_can_be_left_out(self, pictures, logistic, tmp_path):
        train(pictures, tmp_path / "run", replace(logistic, refit=False))
        assert not any("solved" in line for line in history(tmp_path / "run"))

    @pytest.mark.parametrize("better", [True, False])
    def test_it_is_kept_only_where_it_is_no_worse(self, better):
        from tlkit.training.heads import refit

        def linear(scale):
            module = nn.Linear(2, 2, bias=False)
            module.weight.data = scale * torch.eye(2)
            return module

        class Solved(Line):
            def solve(self, features, labels, classes, seed):
                return linear(3.0 if better else -3.0)

        labels = np.array([0, 1, 0, 1])
        examples = Examples(np.eye(2, dtype=np.float32)[labels], labels)
        trained = linear(1.0)
        head, (line,) = refit(Solved(), trained, examples, examples, 2, 0)
        assert (head is not trained) is better is line["kept"]


class TestInputs:
    def test_each_epoch_sees_another_view_and_validation_the_deployed_pixels(self, pictures, original):
        files = sorted(pictures.rglob("*.png"))[:4]
        images = Images(files, np.zeros(4, np.int64), Tiny.preprocessing)
        rows = [np.array([2, 0]), np.array([1, 3])]
        varied, plain = (Decoded(images, original.normalize, AugmentedViews(0, crop)) for crop in (True, False))
        first, again, second = (torch.cat(list(varied.batches(rows, epoch))) for epoch in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, second)
        deployed = torch.from_numpy(np.stack([load(files[row], Tiny.preprocessing) for row in (2, 0, 1, 3)]))
        for epoch in (1, 2):
            assert torch.equal(torch.cat(list(plain.batches(rows, epoch))), original.normalize(deployed))

    def test_an_image_that_is_gone_is_named(self, pictures, original, tmp_path):
        images = Images([tmp_path / "gone.png"], np.zeros(1, np.int64), Tiny.preprocessing)
        with pytest.raises(DataError, match=r"gone\.png: no such file"):
            list(Decoded(images, original.normalize, AugmentedViews(0)).batches([np.array([0])], 1))

    def test_a_last_image_alone_joins_those_before_it(self):
        assert [len(part) for part in split(np.arange(9), 4)] == [4, 5]
        assert [len(part) for part in split(np.arange(10), 4)] == [4, 4, 2]
        assert [len(part) for part in split(np.arange(1), 4)] == [1]


class TestNetwork:
    def test_rates_fall_from_stage_to_stage(self, original):
        head = Line().module(12, 3)
        groups = Network(original, head).rates(Phase(1, 0.1, trunk_lr=0.01, trainable=3, lr_decay=0.5))
        assert [group["lr"] for group in groups] == [0.1, 0.01, 0.005, 0.0025]
        owners = [head, *[original.stages[name] for name in reversed(STAGES)]]
        for group, owner in zip(groups, owners, strict=True):
            assert {id(p) for p in group["params"]} == {id(p) for p in owner.parameters()}

    @pytest.mark.parametrize("moving", [0, 1, 2, 3])
    def test_frozen_stages_have_neither_gradients_nor_statistics_nor_a_place_in_the_optimiser(self, original, moving):
        network = Network(original, Line().module(12, 3))
        frozen, learning = network.part(moving)
        learning.train()
        modes = [stage.training for stage in original.stages.values()]
        assert modes == [False] * (3 - moving) + [True] * moving
        needs = [all(p.requires_grad for p in stage.parameters()) for stage in original.stages.values()]
        assert needs == modes
        optimised = {
            id(p) for group in network.rates(Phase(1, 1, trunk_lr=1, trainable=moving)) for p in group["params"]
        }
        assert not optimised & {id(parameter) for parameter in frozen.parameters()}
        assert optimised == {id(parameter) for parameter in learning.parameters()}

    def test_both_parts_are_the_whole(self, original):
        head = Line().module(12, 3).eval()
        images = torch.randint(256, (3, 32, 32, 3), dtype=torch.uint8)
        with torch.inference_mode():
            expected = head(original(images))
            for moving in range(4):
                frozen, learning = Network(original, head).part(moving)
                assert torch.allclose(learning.eval()(frozen(images)), expected, atol=1e-5)


class TestLoop:
    @pytest.fixture
    def examples(self):
        random = np.random.default_rng(0)
        features = random.normal(size=(200, 5)).astype(np.float32)
        labels = (features[:, 0] + features[:, 1] > 0).astype(np.int64)
        return Examples(features[:150], labels[:150]), Examples(features[150:], labels[150:])

    def fitted(self, examples, *phases, ticks=None):
        torch.manual_seed(0)
        ticks = [] if ticks is None else ticks
        watch = Watch(lambda _what, _total: lambda more, _said="": ticks.append(more))
        return fit_head(Line().module(5, 2), phases, *examples, Setting(0, watch))

    def test_the_rate_rises_and_then_falls_along_a_cosine(self):
        shares = [rate(step, 20, 0.2) for step in range(20)]
        assert shares[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
        assert all(after < before for before, after in pairwise(shares[4:]))
        assert 0 < shares[-1] < 0.02

    def test_a_warm_up_begins_gently(self, examples):
        _, fitted = self.fitted(examples, Phase(4, 1.0, warmup=0.5))
        assert [line["lr"] for line in fitted.history] == pytest.approx([1 / 7, 4 / 7, 1.0, 0.5])

    def test_sgd_learns_as_well(self, examples):
        _, fitted = self.fitted(examples, Phase(20, 0.5, optimizer="sgd"))
        assert fitted.history[-1]["val_accuracy"] > 0.9
        _, other = self.fitted(examples, Phase(20, 0.5))
        assert other.history[-1]["val_loss"] != fitted.history[-1]["val_loss"]

    def test_patience_ends_a_phase_and_every_epoch_still_ticks(self, examples):
        ticks = []
        _, fitted = self.fitted(examples, Phase(50, 50.0, patience=2), Phase(3, 1e-3), ticks=ticks)
        first = [line["val_loss"] for line in fitted.history if line["phase"] == 1]
        assert 3 <= len(first) < 50
        assert min(first) == first[-3]
        assert sum(ticks) == 53 * 150  # images
        assert [line["phase"] for line in fitted.history][-3:] == [2, 2, 2]

    def test_a_phase_begins_with_the_best_weights_so_far(self, examples):
        _, fitted = self.fitted(examples, Phase(10, 0.05), Phase(5, 500.0), Phase(1, 1e-9))
        losses = [line["val_loss"] for line in fitted.history]
        assert losses[14] > 2 * losses[9]
        assert losses[15] == pytest.approx(min(losses[:15]), rel=1e-4)

    def test_clipped_gradients_take_short_steps(self, examples):
        def moved(clip):
            start = Line().module(5, 2)
            before = {name: tensor.clone() for name, tensor in start.state_dict().items()}
            head, _ = fit_head(
                start, [Phase(1, 1.0, optimizer="sgd", gradient_clipping=clip, batch_size=150)], *examples, Setting(0)
            )
            return sum(((head.state_dict()[name] - old) ** 2).sum() for name, old in before.items()) ** 0.5

        assert moved(1e-6) < 1e-3 < moved(0.0)

    def test_smoothing_keeps_the_loss_from_nought_and_is_no_part_of_validation(self, examples):
        (_, plain), (_, smooth) = (self.fitted(examples, Phase(60, 0.1, label_smoothing=share)) for share in (0.0, 0.3))
        assert plain.history[-1]["train_loss"] < 0.15
        assert smooth.history[-1]["train_loss"] > 0.4
        assert smooth.history[-1]["val_loss"] < smooth.history[-1]["train_loss"]

    def test_a_loss_that_becomes_nan_later_keeps_the_best_weights_and_says_where(self, examples, monkeypatch):
        taken, losses = [], steps.Learner._losses

        def spoiled(self, logits, target):
            taken.append(1)
            return losses(self, logits, target) * (torch.nan if len(taken) == 8 else 1)

        monkeypatch.setattr(steps.Learner, "_losses", spoiled)
        head, fitted = self.fitted(examples, Phase(5, 0.05))
        assert fitted.diverged.startswith("the loss is nan at step 2 of phase 1, epoch 3, at rate 0.0")
        assert len(fitted.history) == 2
        assert steps.evaluate(head, examples[1], Device())["val_loss"] == min(
            line["val_loss"] for line in fitted.history
        )


def test_a_rate_that_ruins_the_trunk_is_named(pictures, recipe, tmp_path):
    ruinous = Phase(2, 0.05, trunk_lr=1e30, trainable=2, batch_size=8)
    with pytest.raises(
        DataError, match=r"the loss is \S+ at step 2 of phase 2, epoch 1, at rate .* of the head and \S+e"
    ):
        train(pictures, tmp_path / "run", replace(recipe, **tuned(Phase(2, 0.05), ruinous)))
    assert set(open_bundle(tmp_path / "run").record.provenance.values()) == {"original"}


def test_after_a_loss_that_is_no_number_the_bundle_holds_what_was_good(pictures, recipe, tmp_path, monkeypatch):
    good, evaluate = [], loop.evaluate

    def spoiled(*given):
        good.append(evaluate(*given))
        return good[-1] if len(good) < 3 else good[-1] | {"val_loss": float("nan")}

    monkeypatch.setattr(loop, "evaluate", spoiled)
    with pytest.raises(DataError, match=r"run: the loss on the validation images is nan .* epoch 3; the bundle holds"):
        train(pictures, tmp_path / "run", recipe)
    bundle = open_bundle(tmp_path / "run")
    least = min(good[:2], key=lambda line: line["val_loss"])
    assert bundle.record.metrics["val"]["log_loss"] == pytest.approx(least["val_loss"], rel=1e-3)


class TestBadInput:
    @pytest.mark.parametrize("head", ["knn", "rbf-svm"])
    def test_a_head_that_can_not_learn_is_refused_before_any_work(self, pictures, recipe, tmp_path, head):
        chosen = next(each for each in HEADS if each.name == head)
        watched = []

        def progress(*what):
            watched.append(what)
            return lambda _more: None

        with pytest.raises(UsageError, match=f"the head '{head}' is solved and can't be trained by gradient; take"):
            train(pictures, tmp_path / "run", replace(recipe, head=chosen), progress)
        assert watched == []

    @pytest.mark.parametrize("name", ["partial", "probe-then-tune"])
    def test_more_moving_stages_than_there_are(self, pictures, tiny_recipe, tmp_path, name):
        strategy = replace(BY_NAME[name], trainable=3)
        with pytest.raises(UsageError, match=r"phase \d moves 3 stages of 2"):
            train(pictures, tmp_path / "run", replace(tiny_recipe, strategy=strategy))

    @pytest.mark.parametrize("name", BY_NAME)
    def test_no_epochs(self, pictures, tiny_recipe, tmp_path, name):
        with pytest.raises(UsageError, match=r"phase \d has 0 epochs"):
            train(pictures, tmp_path / "run", replace(tiny_recipe, strategy=replace(BY_NAME[name], epochs=0)))

    @pytest.mark.parametrize(
        ("wrong", "problem"),
        [
            ({"reinit": 2}, "restarts 2 stages and moves 1"),
            ({"trainable": -1}, "moves -1 stages of 3"),
            ({"trunk_lr": 0.0}, "has a learning rate of 0"),
            ({"head_lr": float("nan")}, "has a learning rate of nan"),
            ({"lr_decay": 1.5}, "has a decay of 1.5"),
            ({"batch_size": 0}, "has 0 images a step"),
            ({"optimizer": "adam"}, "has the optimizer 'adam', not adamw or sgd"),
            ({"warmup": 1.0}, "has a warmup of 1"),
            ({"label_smoothing": -0.1}, "has a smoothing of -0.1"),
            ({"gradient_clipping": -1.0}, "clips gradients to -1"),
            ({"patience": -1}, "has a patience of -1 epochs"),
            ({"randaugment": 31}, "has a randaugment of 31, not from 0 to 30"),
            ({"mixup": -0.1}, "has a mixup of -0.1"),
            ({"cutmix": float("nan")}, "has a cutmix of nan"),
            ({"balance": "fair"}, "has the balance 'fair', not none or weights or sampling"),
            ({"batchnorm": "keep"}, "has the batchnorm 'keep', not freeze or update"),
            ({"ema": 1.0}, "has an ema of 1"),
        ],
    )
    def test_a_phase_that_makes_no_sense(self, wrong, problem):
        good = Phase(1, 0.1, trunk_lr=0.1, trainable=1)
        check_phases([good], STAGES)
        with pytest.raises(UsageError, match=f"phase 1 {problem}"):
            check_phases([replace(good, **wrong)], STAGES)


def test_what_becomes_of_stages():
    phases = [Phase(1, 1), Phase(1, 1, trunk_lr=1, trainable=1, reinit=1), Phase(1, 1, trunk_lr=1, trainable=2)]
    changed = ("second", "third")
    assert provenance(STAGES, phases, changed) == {
        "first": "original",
        "second": "fine-tuned",
        "third": "reinitialized",
    }
    assert set(provenance(STAGES, phases, ()).values()) == {"original"}


def test_a_trunk_that_was_better_before_it_moved_is_said_to_be_the_original(pictures, recipe, original, tmp_path):
    ruinous = Phase(1, 10.0, trunk_lr=10.0, trainable=2, batch_size=8)
    trained = train(pictures, tmp_path / "run", replace(recipe, **tuned(Phase(100, 0.05), ruinous)))
    assert set(trained.provenance.values()) == {"original"}
    assert changed_stages(open_bundle(tmp_path / "run"), original) == set()


@pytest.mark.parametrize(
    ("name", "moving", "restart"),
    [
        ("full", [3], 0),
        ("partial", [2], 0),
        ("probe-then-tune", [0, 3], 0),
        ("gradual", [0, 1, 2, 3], 0),
        ("replace", [1], 1),
        ("scratch", [3], 3),
    ],
)
def test_strategies_ask_for_what_they_are_named_for(name, moving, restart):
    phases = BY_NAME[name].phases(STAGES, DatasetStatistics(100, 2, 50, 50))
    assert [phase.trainable for phase in phases] == moving
    assert {phase.reinit for phase in phases} == {restart}
    if not restart:
        assert all(phase.trunk_lr < phase.head_lr for phase in phases)
