"""A backbone, a head and images small enough to train, trace and run in a moment."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from tlkit.model import bundle as bundles
from tlkit.model.bundle import Bundle
from tlkit.plugin.contract import Backbone, Head, Preprocessing, Weights
from tlkit.util import files

if TYPE_CHECKING:
    from torch import nn

WIDTHS = {"first": 6, "second": 8, "third": 12}


@dataclass(frozen=True)
class Tiny(Backbone):
    """Three convolutions of different widths."""

    name = "tiny"
    preprocessing = Preprocessing(32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), crop_pct=0.9, interpolation="bilinear")
    weights = Weights("nowhere: random weights", "Apache-2.0")

    def stages(self, *, pretrained: bool) -> Mapping[str, nn.Module]:
        import torch
        from torch import nn

        with torch.random.fork_rng():
            torch.manual_seed(1 if pretrained else torch.seed() % 2**31)
            built, inputs = {}, 3
            for name, outputs in WIDTHS.items():
                convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
                built[name] = nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU()).eval()
                inputs = outputs
        return built


@dataclass(frozen=True)
class Seeded(Tiny):
    """Its random weights come from PyTorch's seed, as those of other backbones do."""

    def stages(self, *, pretrained: bool) -> Mapping[str, nn.Module]:
        stages = super().stages(pretrained=pretrained)
        for stage in stages.values() if not pretrained else ():
            stage[0].reset_parameters()
        return stages


@dataclass(frozen=True)
class Line(Head):
    """A linear head that learns by gradient."""

    name = "line"

    def module(self, width: int, classes: int) -> nn.Module:
        from torch import nn

        return nn.Linear(width, classes)


@dataclass(frozen=True)
class Scored(Line):
    """A linear head with two scores beside its logits, whose probabilities are sigmoids."""

    name = "scored"
    scores = ("energy", "margin")
    activation = "sigmoid"

    def module(self, width: int, classes: int) -> nn.Module:
        import torch
        from torch import Tensor, nn

        class Layer(nn.Linear):
            def scores(self, features: Tensor) -> tuple[Tensor, Tensor]:
                logits = self(features)
                top = torch.topk(logits, 2).values
                return -logits.logsumexp(1), top[:, 0] - top[:, 1]

        return Layer(width, classes)


ORIGINS = {"backbone": ("tiny", "1.0"), "strategy": ("tlkit", "0.1.0"), "head": ("tiny", "1.0")}


def write_images(root: Path, per_class: int = 12, classes: Sequence[str] = ("dark", "light", "middle")) -> Path:
    """Class folders of noise that differ in brightness, learnable by any network."""
    random = np.random.default_rng(0)
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        level = {"dark": 40, "light": 210, "middle": 125}.get(name, 60 * label)
        for number in range(per_class):
            noise = np.clip(random.normal(level, 25, (40 + number, 48, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(noise).save(root / name / f"{number:02}.png")
    return root


def write_odd_images(root: Path) -> list[Path]:
    """Images turned by their EXIF, gray, transparent, narrow; large JPEGs, a huge PNG."""
    root.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (30, 47, 3), dtype=np.uint8)
    pixels = Image.fromarray(noise).resize((145, 90))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        pixels.save(root / f"turned {orientation}.jpg", exif=exif)
    pixels.convert("L").save(root / "gray.png")
    pixels.convert("LA").save(root / "transparent.png")
    pixels.resize((400, 300)).save(root / "large.jpg")
    pixels.resize((640, 640)).save(root / "huge.png")
    pixels.crop((0, 0, 9, 300)).save(root / "narrow.png")
    return sorted(root.iterdir())


def resign(run: Path, name: str, precision: str = "fp32") -> None:
    """Record a changed graph of a bundle as if it had been exported so."""
    place = run / "onnx" / precision
    record = place / "manifest.json"
    content = json.loads(record.read_text())
    content["files"][name] = files.sha256(place / name)
    record.write_text(json.dumps(content))


def resign_bundle(run: Path) -> None:
    """Enter the files of a bundle as they are now into its record, so that no hash betrays them."""
    record = run / "bundle.json"
    content = json.loads(record.read_text())
    content["files"] = {name: files.sha256(run / name) for name in content["files"]}
    content["digest"] = bundles._digest({key: value for key, value in content.items() if key != "digest"})
    record.write_text(json.dumps(content))


def forget_source(run: Path) -> None:
    """Make of a bundle, exported, another one whose images this machine does not know."""
    record, built = run / "bundle.json", run / "onnx/fp32/manifest.json"
    content = json.loads(record.read_text())
    content["seed"] += 1  # another digest, of which the cache knows no folder
    record.write_text(json.dumps(content))
    resign_bundle(run)
    digest = json.loads(record.read_text())["digest"]
    built.write_text(json.dumps(json.loads(built.read_text()) | {"bundle": digest}))


def elsewhere(bundle: Bundle) -> Bundle:
    """Return a bundle as it is on a machine that does not know its images."""
    return replace(bundle, digest="0" * 64)
