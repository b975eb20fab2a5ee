"""Adapters: `lora` and `bias-norm` against `full` on a network of the size of ViT-S: memory, time, and the merge.

Each strategy trains in a process of its own, without a probe, on the same random images. The weights are random: time
and memory do not depend on them, and accuracy is not measured here.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _bench import PYTHON, SETTINGS, Bar, Report, parsed, parser, ratios, run, spread, workspace
from PIL import Image
from tlkit_standard.strategies import STRATEGIES
from torch import Tensor, nn

from tlkit.model import trunk as trunks
from tlkit.plugin.contract import Backbone, DatasetStatistics, Preprocessing, Weights
from tlkit.plugin.options import configure
from tlkit.training.freezing import Network, Prepare
from tlkit.training.history import Monitor
from tlkit.training.inputs import Examples
from tlkit.training.trainer import Trainer

NAMES = ("full", "bias-norm", "lora")
MERGED = 1e-5  # greatest error of merged outputs, relative to the largest


def main() -> int:
    options = parser(__doc__, repeat=2)
    options.add_argument("--images", type=int, default=32, help="to train on (default: 32)")
    options.add_argument("--batch-size", type=int, default=8)
    options.add_argument("--epochs", type=int, default=2, help="the first of which is not timed (default: 2)")
    options.add_argument("--size", type=int, default=224, help="pixels a side (default: 224)")
    options.add_argument("--width", type=int, default=384)
    options.add_argument("--depth", type=int, default=12, help="blocks, in four stages (default: 12)")
    options.add_argument("--one", choices=NAMES, help="measure one strategy in this process, and print JSON")
    args = parsed(options, images=8, size=32, width=32, depth=4)
    if args.one:
        print(json.dumps(measured(args.one, args)))
        return 0
    report = Report(
        "adapters",
        f"A vision transformer of {args.depth} blocks of width {args.width} at {args.size} pixels (by default the size "
        "of ViT-S), with random weights, trained on a CPU in fp32 by each strategy with its default options. Memory is "
        "the greatest resident memory of the process, less that before training. The first epoch is not counted. "
        "Changes and errors are the largest difference as a share of the largest feature.",
        {"images": args.images, "batch size": args.batch_size, "epochs": args.epochs, "turns": args.repeat},
    )
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in NAMES}
    for _ in range(args.repeat):
        for name in NAMES:
            found[name].append(measured(name, args) if SETTINGS.smallest else in_a_process(name, args))
    for name, runs in found.items():
        figures = {key: [each[key] for each in runs] for key in runs[0]}
        report.figures[name] = figures
        report.rows.append(
            {
                "strategy": name,
                "trainable parameters": f"{figures['parameters'][0]:,}",
                "MiB for training": spread(figures["peak MiB"], 0),
                "seconds per epoch": spread(figures["seconds"]),
                "CPU seconds per epoch": spread(figures["cpu"]),
                "change of the features": spread(figures["change"], 4),
                "error of the merge": spread(figures["error"], 9),
            }
        )
        if name != "full":
            full = report.figures["full"]["peak MiB"]
            report.bars.append(Bar(f"memory, {name} / full", ratios(figures["peak MiB"], full), "<", 1, "x"))
    changes = [each["change"] for each in found["lora"]]
    report.bars.append(Bar("what training changes of the features, lora", changes, "≥", MERGED, digits=4))
    errors = [each["error"] for each in found["lora"]]
    report.bars.append(Bar("merged against unmerged features, lora", errors, "≤", MERGED, digits=9))
    report.notes.append("The weights are random: time, memory and the merge don't depend on the pretraining.")
    report.notes.append("Updates are merged as whole weights that training used, so that nothing is rounded again.")
    report.notes.append("Updates of low rank are computed as whole weights, which takes memory and time of its own.")
    return report.save()


def in_a_process(name: str, args: Any) -> dict[str, Any]:
    numbers = ("images", "batch_size", "epochs", "size", "width", "depth")
    words = [word for each in numbers for word in (f"--{each.replace('_', '-')}", str(getattr(args, each)))]
    result: dict[str, Any] = json.loads(run([PYTHON, __file__, "--one", name, *words]).output)
    print(f"{name}: {result}", file=sys.stderr)
    return result


@dataclass(frozen=True)
class Transformer(Backbone):
    """A vision transformer as timm builds it, without a class token."""

    name = "transformer"
    preprocessing = Preprocessing(224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    weights = Weights("random", "Apache-2.0")
    width: int = 384
    depth: int = 12

    def stages(self, *, pretrained: bool) -> Mapping[str, nn.Module]:
        torch.manual_seed(0)
        blocks = [Block(self.width) for _ in range(self.depth)]
        share = self.depth // 4
        parts = {f"blocks{n + 1}": nn.Sequential(*blocks[n * share : (n + 1) * share]) for n in range(4)}
        return {"patches": Patches(self.width, self.preprocessing.size), **parts, "norm": nn.LayerNorm(self.width)}


class Patches(nn.Module):
    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(3, width, 16, stride=16)
        self.position = nn.Parameter(0.02 * torch.randn(1, (size // 16) ** 2, width))

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.project(x).flatten(2).transpose(1, 2)
        return tokens + self.position


class Block(nn.Module):
    def __init__(self, width: int, head: int = 64) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.heads = max(1, width // head)

    def forward(self, x: Tensor) -> Tensor:
        count, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(count, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        x = x + self.proj(attended.transpose(1, 2).reshape(count, tokens, width))
        added: Tensor = x + self.mlp(self.norm2(x))
        return added


class Timed(Monitor):
    """Seconds, and CPU seconds, at the end of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[tuple[float, float]] = []

    def end_epoch(self, line: Mapping[str, Any]) -> None:
        super().end_epoch(line)
        self.ends.append((time.perf_counter(), time.process_time()))


def measured(name: str, args: Any) -> dict[str, Any]:
    """Train by one strategy, in this process, and return its figures."""
    backbone = Transformer(width=args.width, depth=args.depth)
    preprocessing = replace(backbone.preprocessing, size=args.size)
    object.__setattr__(backbone, "preprocessing", preprocessing)
    trunk = trunks.build(backbone)
    strategy = next(each for each in STRATEGIES if each.name == name)
    options = {"epochs": args.epochs, "batch_size": args.batch_size, "augment": False}
    strategy = configure(strategy, options)
    phase = strategy.phases(trunk.names, DatasetStatistics(args.images, 2, 1, args.images))[-1]
    merge = Merge(trunk, strategy.prepare)
    with workspace() as work:
        train, val = (examples(work / split, count, args) for split, count in (("train", args.images), ("val", 8)))
        network = Network(nn.Linear(args.width, 2), trunk)
        images = torch.randint(256, (4, args.size, args.size, 3), dtype=torch.uint8)
        features = features_of(trunk, images)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        monitor = Timed()
        Trainer(network, [phase], train, val, monitor=monitor, prepare=merge.prepare).fit()
    (first, first_cpu), (last, last_cpu) = monitor.ends[0], monitor.ends[-1]
    counted = max(len(monitor.ends) - 1, 1)
    trainable = sum(p.numel() for found in network.parameters(phase).values() for p in found.values())
    return {
        "parameters": trainable or merge.parameters,  # those of an adapter are gone after the merge
        "peak MiB": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10,
        "seconds": (last - first) / counted,
        "cpu": (last_cpu - first_cpu) / counted,
        "change": difference(features_of(trunk, images), features),
        "error": merge.error,
    }


def features_of(trunk: trunks.Trunk, images: Tensor) -> Tensor:
    with torch.inference_mode():
        features: Tensor = trunk.eval()(images)
    return features


def difference(one: Tensor, other: Tensor) -> float:
    """Return the largest difference as a share of the largest value."""
    return float((one - other).abs().max() / other.abs().max())


@dataclass
class Merge:
    """Preparation by a strategy: the number of parameters that it adds, and the error of merging them."""

    trunk: trunks.Trunk
    wrapped: Prepare
    parameters: int = 0
    error: float = 0.0

    def prepare(self, stages: Mapping[str, nn.Module]) -> Callable[[], None] | None:
        before = sum(p.numel() for p in self.trunk.parameters())
        merge = self.wrapped(stages)
        self.parameters = sum(p.numel() for p in self.trunk.parameters()) - before
        return None if merge is None else lambda: self.compare(merge)

    def compare(self, merge: Callable[[], None]) -> None:
        size = self.trunk.preprocessing.size
        images = torch.randint(256, (4, size, size, 3), dtype=torch.uint8)
        expected = features_of(self.trunk, images)
        merge()
        self.error = difference(features_of(self.trunk, images), expected)


def examples(folder: Path, count: int, args: Any) -> Examples:
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(count)]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (args.size, args.size, 3), np.uint8)).save(path)
    return Examples(np.zeros((count, args.width), np.float32), np.arange(count) % 2, paths)


if __name__ == "__main__":
    sys.exit(main())
