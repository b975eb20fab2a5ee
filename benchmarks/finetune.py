"""Fine-tuning: the activation cache, tlkit against fastai and plain timm, strategies compared.

    boundary   time of an epoch with the deepest 1 to 4 stages trainable, with and without the cache, and with all,
               against a plain loop with timm
    rivals     `tlkit train` against fastai's `fine_tune` and a plain loop with timm, same weights, images and epochs;
               and what plain `tlkit train` makes in a tenth of fastai's time
    probe      `probe-then-tune` against `full`
    scratch    `scratch` against `full` with few and with more images of another kind

Each writes a result of its own. Without a section: the first two.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from _bench import (
    DATA,
    PYTHON,
    RIVALS,
    SETTINGS,
    SIZES,
    TLKIT,
    Bar,
    Report,
    Run,
    existing,
    interleave,
    missing,
    parsed,
    parser,
    ratios,
    run,
    seconds,
    shown,
    spread,
    weights,
    workspace,
)

LIMITS = {1: 100, 2: 40, 3: 12, 4: 8}  # times as fast as the plain loop, by the number of trainable stages
LIMIT_FULL = 2  # with all trainable
PLAIN = "timm, channels last"
CPU = ("--device", "cpu")
SUBSETS: dict[str, tuple[int | None, int | None]] = {
    "ants_bees": (None, None),
    "sign_digits": (1000, 500),
    "cifar10": (2000, 500),
}  # images to train, to validate on
NATIVE = 224
TENTH, SHARE = "tlkit in a tenth of the time", 10  # of fastai's
MARGIN = 4.0  # seconds of it for what its budget does not count: imports, and the end of what is being tried


def main() -> int:
    options = parser(__doc__, repeat=3)
    options.add_argument("section", nargs="*", default=["boundary", "rivals"], help="what to measure")
    options.add_argument("--data", type=Path, default=DATA, help="the folder that the sets of images are in")
    options.add_argument("--sets", nargs="+", default=list(SUBSETS), help="those to use, for rivals and probe")
    options.add_argument("--epochs", type=int, default=4, help="epochs of fine-tuning (default: 4)")
    options.add_argument("--views", type=int, default=4, help="views of each image, for boundary (default: 4)")
    options.add_argument("--images", type=int, default=300, help="to train and to validate on, for boundary")
    options.add_argument("--counts", type=int, nargs="+", default=[500, 6000], help="images to train on, for scratch")
    options.add_argument("--size", type=int, help="pixels a side, but for boundary (default: by the set of images)")
    options.add_argument("--strategy", default="probe-then-tune", help="for rivals")
    args = parsed(options, epochs=1, views=1, images=24, counts=[24], sets=["ants_bees"])
    for trainable in [each for each in LIMITS if each > SETTINGS.stages]:
        del LIMITS[trainable]
    if args.smallest:
        SUBSETS["ants_bees"] = (24, 12)
    existing(args.data, "--data")
    sections: dict[str, Callable[[Any, Path], int]] = {
        "boundary": boundary,
        "rivals": rivals,
        "probe": probe,
        "scratch": scratch,
    }
    codes = []
    for name in args.section:
        with workspace() as work:
            codes.append(sections[name](args, work))
    return max(codes)


class Trainer:
    """`tlkit train`, one bundle after the other."""

    def __init__(self, work: Path) -> None:
        self.bundle = work / "run"

    def __call__(self, data: Path, *more: object) -> Run:
        shutil.rmtree(self.bundle, ignore_errors=True)
        head = ["--head", "line"] if SETTINGS.smallest else []  # the tiny head that learns by gradient
        chosen = ["--backbone", SETTINGS.backbone, *head, *map(str, more)]
        return run([TLKIT, "train", str(data), "-o", str(self.bundle), "--json", *chosen])


def boundary(args: Any, work: Path) -> int:
    data, train = subset(args.data / "sign_digits", work / "data", args.images, args.images), Trainer(work)
    epochs = 2 if args.smallest else max(3, args.epochs)

    def strategy(trainable: int | None, *more: str) -> Callable[[], Run]:
        options = ["--strategy", "full", *chosen(epochs=2)]
        if trainable is not None:
            options = ["--strategy", "partial", *chosen(trainable=trainable, epochs=epochs), "--views", str(args.views)]
        return lambda: train(data, *options, *more, *CPU, "--seed", next(seeds[trainable, more]))

    def plain() -> Run:
        options = ["--epochs", "1", "--channels-last", "--seed", str(next(plain_seeds))]
        return run([PYTHON, str(RIVALS / "timm_finetune.py"), str(data), str(file), *options])

    lacking, plain_seeds = missing("timm", "torchvision"), iter(range(args.repeat))
    file = None if lacking else weights(work)
    cases: list[tuple[int | None, tuple[str, ...]]] = [(None, ())]
    cases += [(trainable, more) for trainable in LIMITS for more in ((), ("--no-cache",))]
    seeds = {case: iter(range(args.repeat)) for case in cases}
    names = {case: _case(*case) for case in cases}
    sides = {names[case]: strategy(case[0], *case[1]) for case in cases}
    runs = interleave(sides if lacking else {PLAIN: plain, **sides}, args.repeat)
    report = Report(
        "finetune-boundary",
        "The time of an epoch, validation included, from the second on, with the deepest stages of EfficientNet-Lite0 "
        "trainable: with the activations of the frozen stages cached, without the cache, and with all trainable; and "
        "that of a plain loop with timm (`rivals/timm_finetune.py`), which trains all, with the channels last.",
        {"data": shown(args.data / "sign_digits"), "images": f"{args.images} + {args.images}", "views": args.views}
        | {"epochs": epochs, "turns": args.repeat},
    )
    times = {names[case]: [_later_epochs(each) for each in runs[names[case]]] for case in cases}
    firsts = {name: [json.loads(each.output)["epochs"][0]["seconds"] for each in runs[name]] for name in times}
    right = {name: [100 * _accuracy(each) for each in runs[name]] for name in times}
    if not lacking:
        lines = [json.loads(each.output) for each in runs[PLAIN]]
        times[PLAIN], firsts[PLAIN], right[PLAIN] = (
            [each[1]["seconds"] for each in lines],
            [each[0]["seconds"] for each in lines],
            [100 * each[1]["accuracy"] for each in lines],
        )
    for name in runs:
        report.figures[name] = {"epoch": times[name], "first epoch": firsts[name], "accuracy": right[name]}
        row = {"": name, "seconds per epoch": spread(times[name]), "first epoch": spread(firsts[name], 1)}
        row["times as fast as full"] = spread(ratios(times[names[None, ()]], times[name]), 1)
        row["as timm"] = "" if lacking else spread(ratios(times[PLAIN], times[name]), 1)
        report.rows.append(row | {"accuracy on val": spread(right[name], 1, " %")})
    for trainable, limit in {**LIMITS, None: LIMIT_FULL}.items() if not lacking else ():
        name = names[trainable, ()]
        report.bars.append(Bar(f"{name}, against {PLAIN}", ratios(times[PLAIN], times[name]), "≥", limit, "x", 1))
    for trainable in LIMITS:
        lost = _mean(right[names[trainable, ("--no-cache",)]]) - _mean(right[names[trainable, ()]])
        report.bars.append(Bar(f"{trainable} trainable: mean accuracy lost by the cache", [lost], "≤", 0.5, " points"))
    report.notes += [f"timm: {lacking}"] if lacking else []
    report.notes.append("With the cache, the first epoch computes all views; `full` and timm have two epochs.")
    return report.save()


def _case(trainable: int | None, more: Sequence[str]) -> str:
    return "full" if trainable is None else f"{trainable} trainable, {'no cache' if more else 'cache'}"


def _later_epochs(done: Run) -> float:
    """The mean seconds of an epoch from the second on."""
    return _mean([line["seconds"] for line in json.loads(done.output)["epochs"][1:]])


def rivals(args: Any, work: Path) -> int:
    report = Report(
        "finetune-rivals",
        f"`tlkit train --strategy {args.strategy}` against fastai's `fine_tune` and a plain loop with timm "
        "(`rivals/`), whole processes, the same weights of EfficientNet-Lite0, images and number of epochs.",
        {"epochs": args.epochs, "strategy": args.strategy, "seeds": args.repeat},
    )
    lacking = {side: why for side in ("fastai", "timm") if (why := missing(side, "torchvision"))}
    others = [side for side in ("fastai", "timm") if side not in lacking]
    file, train = weights(work) if others else None, Trainer(work)
    if "fastai" in others:
        run([PYTHON, "-c", "import fastai.vision.all"])  # so that no run reads packages from a cold disk
    for name in args.sets:
        data = subset(args.data / name, work / name, *SUBSETS[name])
        size = args.size or SIZES.get(name, NATIVE)
        seeds = {side: iter(range(args.repeat)) for side in ("tlkit", "fastai", "timm")}
        soon = Soon(data, size, work / f"soon-{name}")

        def rival(
            side: str, script: str, data: Path = data, seeds: Any = seeds, size: int = size, soon: Soon = soon
        ) -> Run:
            command = [PYTHON, str(RIVALS / script), str(data), str(file), "--epochs", str(args.epochs)]
            done = run([*command, "--size", str(size), "--seed", str(next(seeds[side]))])
            soon.limit = done.seconds / SHARE if side == "fastai" else soon.limit
            return done

        def ours(data: Path = data, seeds: Any = seeds, size: int = size) -> Run:
            chose = ("--strategy", args.strategy, *chosen(epochs=args.epochs))
            return train(data, *chose, *of_size(size), *CPU, "--seed", next(seeds["tlkit"]))

        sides = {
            "tlkit": ours,
            "fastai": lambda rival=rival: rival("fastai", "fastai_train.py"),
            "timm": lambda rival=rival: rival("timm", "timm_finetune.py"),
            TENTH: soon,
        }
        runs = interleave({side: sides[side] for side in ("tlkit", *others, TENTH)}, args.repeat)
        right = {"tlkit": [100 * _accuracy(each) for each in runs["tlkit"]], TENTH: soon.accuracies}
        for side in others:
            lasts = [json.loads(each.output)[-1] for each in runs[side]]
            right[side] = [100 * (last["accuracy"] if side == "timm" else last) for last in lasts]
        for side, done in runs.items():
            report.figures[f"{name}, {side}"] = {"seconds": seconds(done), "accuracy": right[side]}
            means = f"{_mean(right[side]):.1f} %"
            row = {
                "": f"{name} at {size} pixels, {side}",
                "accuracy, mean": means,
                "accuracy": spread(right[side], 1, " %"),
            }
            report.rows.append(row | {"seconds": spread(seconds(done), 1)})
        for side in others:
            gain = _mean(right["tlkit"]) - _mean(right[side])
            report.bars.append(Bar(f"{name}: mean accuracy above {side}", [gain], "≥", 0, " points"))
            faster = ratios(seconds(runs[side]), seconds(runs["tlkit"]))
            report.bars.append(Bar(f"{name}: times as fast as {side}", faster, "≥", 1, "x"))
            gain = _mean(right[TENTH]) - _mean(right[side])
            report.bars.append(Bar(f"{name}: mean accuracy above {side}, {TENTH}", [gain], "≥", 0, " points"))
        if "fastai" in others:
            faster = ratios(seconds(runs["fastai"]), seconds(runs[TENTH]))
            report.bars.append(Bar(f"{name}: times as fast as fastai, {TENTH}", faster, "≥", SHARE, "x"))
    report.notes += [f"{side}: {why}" for side, why in lacking.items()]
    report.notes.append(
        f"fastai: `fine_tune({args.epochs})`, that is one epoch of the head and {args.epochs} of all; timm: "
        f"{args.epochs + 1} epochs of all. Accuracy is that after the last epoch; tlkit's that of the exported graph."
    )
    report.notes.append(
        f"{TENTH}: `tlkit train` as it is, with an empty cache and a budget {MARGIN:g} s shorter than a tenth of the "
        "time of fastai in the same turn. It takes images to validate on from those to train on, and never sees those "
        "that the accuracy of the exported graph is measured on afterwards."
    )
    return report.save()


class Soon:
    """Plain `tlkit train` that ends within `limit` seconds, with an empty cache, one bundle after the other.

    It sees only the images to train on; on those to validate on, the exported graph has `accuracies`, in percent.
    """

    def __init__(self, data: Path, size: int, work: Path) -> None:
        self.data, self.size, self.work, self.limit, self.accuracies = data, size, work, 0.0, list[float]()

    def __call__(self) -> Run:
        seed = len(self.accuracies)
        bundle = self.work / str(seed)
        budget = f"{max(0.1, self.limit - MARGIN):.1f}"
        self.work.mkdir(exist_ok=True)
        options = ["--backbone", SETTINGS.backbone, "--budget", budget, "--seed", str(seed), *CPU]
        cache = {} if SETTINGS.smallest else {"TLKIT_CACHE": str(self.work / f"cache-{seed}")}
        with mock.patch.dict(os.environ, cache):
            done = run([TLKIT, "train", str(self.data / "train"), "-o", str(bundle), *options, *of_size(self.size)])
            run([TLKIT, "export", str(bundle), "--onnx"])
            judged = run([TLKIT, "eval", str(bundle / "onnx/fp32/model.onnx"), str(self.data / "val"), "--json"])
        self.accuracies.append(100 * float(json.loads(judged.output)["accuracy"]))
        return done


def probe(args: Any, work: Path) -> int:
    sides = {each: ("--strategy", each, *chosen(epochs=args.epochs)) for each in ("full", "probe-then-tune")}
    data = {name: subset(args.data / name, work / name, *SUBSETS[name]) for name in args.sets if name != "cifar10"}
    what = "`probe-then-tune` against `full`: the accuracy of EfficientNet-Lite0 on images it was not trained on."
    return strategies("finetune-probe", what, sides, data, args, work)


def scratch(args: Any, work: Path) -> int:
    sides = {each: ("--strategy", each, *chosen(epochs=args.epochs)) for each in ("full", "scratch")}
    source = args.data / "fashion_mnist"
    data = {f"{count} of fashion_mnist": subset(source, work / str(count), count, 500) for count in args.counts}
    what = "`scratch` against `full` on fashion_mnist: what the pretraining is worth with few and with more images."
    return strategies("finetune-scratch", what, sides, data, args, work)


def strategies(
    name: str, what: str, sides: dict[str, tuple[str, ...]], data: dict[str, Path], args: Any, work: Path
) -> int:
    """One against the other, reported as it is."""
    report, train = Report(name, what, {"epochs": args.epochs, "seeds": args.repeat}), Trainer(work)
    for title, folder in data.items():
        size = args.size or next((size for name, size in SIZES.items() if name in title), NATIVE)
        seeds = {side: iter(range(args.repeat)) for side in sides}
        runs = interleave(
            {
                side: lambda side=side, folder=folder, seeds=seeds, size=size: train(
                    folder, *sides[side], *of_size(size), *CPU, "--seed", next(seeds[side])
                )
                for side in sides
            },
            args.repeat,
        )
        for side, done in runs.items():
            right = [100 * _accuracy(each) for each in done]
            report.figures[f"{title}, {side}"] = {"seconds": seconds(done), "accuracy": right}
            row = {"": f"{title} at {size} pixels, {side}", "accuracy, mean": f"{_mean(right):.1f} %"}
            report.rows.append(row | {"accuracy": spread(right, 1, " %"), "seconds": spread(seconds(done), 1)})
    return report.save()


def of_size(pixels: int) -> list[str]:
    """The option for another input size than the pretrained one."""
    return [] if pixels == NATIVE else ["--size", str(pixels)]


def chosen(**options: object) -> list[str]:
    """Options of the strategy on a command line."""
    return [word for name, value in options.items() for word in ("--set", f"strategy.{name}={value}")]


def subset(source: Path, target: Path, train: int | None, val: int | None) -> Path:
    """A folder with so many images to train and to validate on, each class equally, the same in every run; links."""
    existing(source, "--data")
    split = (source / "train").is_dir()
    classes = sorted(each.name for each in (source / "train" if split else source).iterdir() if each.is_dir())
    for label in classes:
        shuffled = random.Random(0)
        parts: dict[str, list[Path]] = {}
        for part in ("train", "val") if split else ("",):
            parts[part] = sorted((source / part / label).iterdir())
            shuffled.shuffle(parts[part])
        counts = [None if number is None else number // len(classes) for number in (train, val)]
        if not split:
            taken = counts[0] or 4 * len(parts[""]) // 5
            parts = {"train": parts[""][:taken], "val": parts[""][taken:]}
        for part, count in zip(("train", "val"), counts, strict=True):
            folder = target / part / label
            folder.mkdir(parents=True)
            for file in parts[part][:count]:
                os.symlink(file, folder / file.name)
    return target


def _accuracy(done: Run) -> float:
    accuracy: float = json.loads(done.output)["metrics"]["accuracy"]
    return accuracy


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    sys.exit(main())
