"""Backbones with one thing wrong each, by the check that has to find it. All of them are the tiny one but for that."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tests.conformance.broken import heavy
from tests.conformance.broken.registry import Registry
from tests.kit.tiny import Tiny
from tlkit.conformance import Reference
from tlkit.data.preprocessing import load
from tlkit.plugin.contract import Backbone, Weights, option

BROKEN = Registry()
THREADS = torch.get_num_threads()
breaks = BROKEN.breaks


class Layer(nn.Module):
    """A layer made of a function."""

    def __init__(self, function: Callable[[Any], Any], parts: nn.Module | None = None) -> None:
        super().__init__()
        self.function, self.parts = function, parts

    def forward(self, x: Any) -> Any:
        return self.function(x)


class Changed(Tiny):
    """The tiny backbone with its last stage changed, or extended by a function."""

    def stages(self, *, pretrained):
        stages = dict(super().stages(pretrained=pretrained))
        self.change(stages, pretrained)
        return stages

    def change(self, stages, pretrained):
        stages["third"].append(Layer(self.function))
        stages["third"].eval()

    def function(self, x):
        return x


@breaks("named", "its name isn't lower-case words")
class Shouting(Tiny):
    name = "Tiny Net"


@breaks("frozen-dataclass", r"Plain is not a frozen dataclass; declare: @dataclass\(frozen=True\) class ...\(Backbone")
class Plain(Backbone):
    name, preprocessing, weights = "plain", Tiny.preprocessing, Tiny.weights

    def stages(self, *, pretrained):
        return Tiny().stages(pretrained=pretrained)


@breaks("options-are-settable", "options without help: depth")
@dataclass(frozen=True)
class Silent(Tiny):
    depth: int = option(3, "")


@breaks("options-survive-a-bundle", "it becomes another")
@dataclass(frozen=True)
class Doubling(Tiny):
    depth: int = option(3, "how deep")

    def __post_init__(self):
        object.__setattr__(self, "depth", 2 * self.depth)


@breaks("copies-are-equal", "its repr tells of this process or machine")
@dataclass(frozen=True)
class Holding(Tiny):
    held: object = field(default_factory=object)


BROKEN["declared-cheaply"] = (heavy.Heavy(), "declaring it imports .*torch", None)


@breaks("preprocessing", "not on the scale 0..1; divide values on the scale 0..255 by 255")
class OtherScale(Tiny):
    preprocessing = replace(Tiny.preprocessing, mean=(124.0, 117.0, 104.0))


@breaks("origin-of-the-weights", "is a path on one machine")
class AtHome(Tiny):
    weights = Weights("/elsewhere/weights.pth", "MIT")


@breaks("license-of-the-weights", "the license 'unknown' is no SPDX expression")
class Unlicensed(Tiny):
    weights = Weights("pypi:x==1", "unknown")


@breaks("hash-of-the-weights", "weights are read from somewhere.safetensors")
class Unhashed(Tiny):
    def stages(self, *, pretrained):
        if pretrained:
            look_for_weights()
        return super().stages(pretrained=pretrained)


def look_for_weights() -> None:
    from safetensors import safe_open

    with suppress(OSError):
        safe_open("somewhere.safetensors", "pt")


@breaks("builds", "returned list")
class Listed(Tiny):
    def stages(self, *, pretrained):
        return list(super().stages(pretrained=pretrained).items())


@breaks("stage-names", "'Stage.1', 'keys'")
class Misnamed(Changed):
    def change(self, stages, pretrained):
        stages |= {"Stage.1": nn.Identity(), "keys": nn.Identity()}


@breaks("same-every-time", "one build has the stages .*, the next has")
class Shuffled(Tiny):
    def stages(self, *, pretrained):
        Shuffled.flip = not getattr(Shuffled, "flip", False)
        stages = super().stages(pretrained=pretrained)
        return dict(reversed(stages.items())) if Shuffled.flip else stages


@dataclass(frozen=True)
class Localized(Tiny):
    wide: bool = option(False, "one more layer", local=True)

    def stages(self, *, pretrained):
        stages = dict(super().stages(pretrained=pretrained))
        if self.wide:
            stages["third"].append(nn.Conv2d(12, 12, 1).eval())
        return stages


BROKEN["local-options-keep-the-structure"] = (Localized(wide=True), "tensors differ elsewhere: stages.third.3", None)


@breaks("in-eval-mode", r"in training mode: third.1;")
class Training(Changed):
    def change(self, stages, pretrained):
        stages["third"][1].train()


@breaks("in-single-precision", "third.0.weight is torch.float64")
class Double(Changed):
    def change(self, stages, pretrained):
        stages["third"].double()


@breaks("can-be-trained", r"parameters are frozen: stages.first.0.weight, .* and 1 more")
class Frozen(Changed):
    def change(self, stages, pretrained):
        stages["first"].requires_grad_(False)


@breaks("tensors-are-registered", "plain attributes: third.scale")
class Unregistered(Changed):
    def change(self, stages, pretrained):
        stages["third"].scale = torch.ones(1)


@breaks("share-no-tensors", "third.1.weight is also in second")
class Tied(Changed):
    def change(self, stages, pretrained):
        stages["third"] = nn.Sequential(nn.Conv2d(8, 8, 3), stages["second"][1])


@breaks("builds-share-no-tensors", "two builds share tensors: stages.third.1.weight")
class Cached(Changed):
    norm = nn.BatchNorm2d(12).eval()

    def change(self, stages, pretrained):
        stages["third"][1] = self.norm


class Clinging(nn.Conv2d):
    def __deepcopy__(self, memo):
        return self


@breaks("can-be-copied", "a deep copy shares tensors: stages.third.3.weight")
class Uncopied(Changed):
    def change(self, stages, pretrained):
        stages["third"].append(Clinging(12, 12, 1).eval())


class Holder(nn.Module):
    """Passes its input on, and holds a buffer."""

    def __init__(self, value, *, persistent=True):
        super().__init__()
        self.register_buffer("value", value, persistent=persistent)

    def forward(self, x):
        return x


@breaks("state-is-finite", "values are not finite: stages.third.3.value; register constants such as masks")
class Masked(Changed):
    def change(self, stages, pretrained):
        stages["third"].append(Holder(torch.tensor([0.0, float("-inf")])).eval())


@breaks("state-survives-safetensors", "it raised TypeError")
class Brain(Changed):
    def change(self, stages, pretrained):
        stages["third"].append(Holder(torch.ones(3, dtype=torch.bfloat16)).eval())


class Noisy(Holder):
    def forward(self, x):
        return x + self.value


@breaks("state-is-complete", "two builds with the same state compute different features")
class Forgetful(Changed):
    def change(self, stages, pretrained):
        stages["third"].append(Noisy(torch.rand(1), persistent=False).eval())


class Telling(nn.Identity):
    def extra_repr(self):
        return f"<at {id(self):#x}>"


@breaks("fingerprint-is-stable", "differs from build to build as it is shown: ...at 0x")
class Talkative(Changed):
    def change(self, stages, pretrained):
        stages["third"].append(Telling().eval())


@breaks("random-weights-are-random", "only 0% of the weights of two builds differ")
class NeverRandom(Tiny):
    def stages(self, *, pretrained):
        return super().stages(pretrained=True)


@breaks("touches-no-network", "it tried to reach .*127.0.0.1")
class Calling(Tiny):
    def stages(self, *, pretrained):
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", 9))
        return super().stages(pretrained=pretrained)


@breaks("touches-no-weights", "it opened somewhere.safetensors")
class Looking(Tiny):
    def stages(self, *, pretrained):
        look_for_weights()
        return super().stages(pretrained=pretrained)


@breaks("pretrained-has-the-same-structure", "tensors differ: stages.third.3.value")
class Pruned(Changed):
    def change(self, stages, pretrained):
        if not pretrained:
            stages["third"].append(Holder(torch.ones(3)).eval())


@breaks("pretrained-is-always-the-same", "two builds with pretrained weights differ")
class AlwaysRandom(Tiny):
    def stages(self, *, pretrained):
        return super().stages(pretrained=False)


@breaks("pretrained-is-not-random", "tensors have random weights: stages.third.3.weight;")
class HalfLoaded(Changed):
    def change(self, stages, pretrained):
        stages["third"].append(nn.Conv2d(12, 12, 1).eval())


@breaks("classifier-fits", r"it gives logits of shape \(5, 1\)")
class OneLogit(Tiny):
    def classifier(self):
        return nn.Linear(12, 1).eval()


@breaks("chains", "it raised RuntimeError: .*expected input.*channels")
class Unchained(Changed):
    def change(self, stages, pretrained):
        stages["third"][0] = nn.Conv2d(9, 12, 3).eval()


@breaks("pools", r"third is pooled to float32 \(5, 1, 12, 4, 4\)")
class Deeper(Changed):
    def function(self, x):
        return x[:, None]


@breaks("width-is-constant", r"the widths .*\(12,\).* may become .*\(11,\)")
class Narrowing(Changed):
    def function(self, x):
        return x[:, : 11 if len(x) == 1 else 12]


@breaks("features-are-finite", "third gives values that are not finite")
class Infinite(Changed):
    def function(self, x):
        return x / 0.0


@breaks("tells-images-apart", "test images have the same features: 1 and 0, 2 and 0, 2 and 1 and 7 more")
class Blind(Changed):
    def function(self, x):
        return 0.0 * x + 1.0


@breaks("rows-are-independent", "third depends on the other images of the batch")
class Centring(Changed):
    def function(self, x):
        return x - x.mean(0)


@breaks("deterministic", "a second run differs from third on")
class Dropping(Changed):
    def function(self, x):
        return F.dropout(x)


@breaks("draws-nothing-at-random", "it draws random numbers in eval mode")
class Drawing(Changed):
    def function(self, x):
        torch.rand(1)
        return x


class Counting(Holder):
    def forward(self, x):
        self.value += 1
        return x


@breaks("leaves-its-state-alone", "running it changes stages.third.3.value")
class Remembering(Changed):
    def change(self, stages, pretrained):
        stages["third"].append(Counting(torch.zeros(1)).eval())


@breaks("leaves-its-input-alone", "third changes its input")
class InPlace(Changed):
    def change(self, stages, pretrained):
        stages["third"].insert(0, nn.Hardtanh(0, 0.1, inplace=True).eval())


class Library(Reference):
    """The library of the stages that `built` makes; its classifier adds to every logit."""

    def features(self, backbone, *, pretrained):
        return nn.Sequential(*built().values(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()

    def preprocess(self, backbone):
        return lambda picture: normalized(load(picture, replace(backbone.preprocessing, interpolation="bicubic")))

    def logits(self, backbone):
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            return nn.Sequential(*built().values(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Softplus()).eval()


def normalized(image):
    """Return what a network gets, `(3, S, S)`."""
    mean, std = np.array(Tiny.preprocessing.mean), np.array(Tiny.preprocessing.std)
    return ((image / 255.0 - mean) / std).transpose(2, 0, 1)


@breaks("preprocessing-equals-the-library", r"the library interpolates bicubic .*, not bilinear", reference=Library())
class WrongFilter(Tiny):
    pass


@breaks("quantizes-to-int8", "in int8, the cosine to its features is")
class Hairline(Changed):
    def function(self, x):
        return (x * 1e-5 + 1000.0 - 1000.0).sin() * 1e5 + torch.sin(x * 3e4)


@breaks("threads-agree", "with another number of threads, first differs by")
class Counted(Tiny):
    def stages(self, *, pretrained):
        stages = dict(super().stages(pretrained=pretrained))
        stages["first"].append(Layer(lambda x: x * (1.0 + (torch.get_num_threads() != THREADS))))
        return stages


@breaks("features-equal-the-library", "the pooled features differ from the library's by", reference=Library())
class WrongPool(Tiny):
    def stages(self, *, pretrained):
        return built()

    def pool(self):
        return nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten())


@breaks("logits-equal-the-library", "the logits differ from the library's by", reference=Library())
class WrongClassifier(Tiny):
    def stages(self, *, pretrained):
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            return built()

    def classifier(self):
        return nn.ReLU().eval()


def built() -> dict[str, nn.Module]:
    """Stages that follow from PyTorch's seed."""
    return {"one": nn.Conv2d(3, 4, 3).eval(), "two": nn.Conv2d(4, 6, 3).eval()}


@breaks("runs-on-another-device", "it raised RuntimeError: .*device")
class StayingBehind(Changed):
    def function(self, x):
        return x + torch.ones(x.shape)


@breaks("keeps-half-precision", "it leaves half precision: third.*gives torch.float32")
class Widening(Changed):
    def function(self, x):
        return x.float()


@breaks("fits-half-precision", "it leaves the range of float16")
class Huge(Changed):
    def function(self, x):
        return x * 1e9


@breaks("gradient-reaches-every-parameter", "parameters without a gradient: stages.third.3.parts.weight, ")
class Idle(Changed):
    def change(self, stages, pretrained):
        stages["third"].append(Layer(lambda x: x, nn.Linear(3, 3)).eval())


@breaks("trains", "a training step does not change first, second")
class Detached(Changed):
    def change(self, stages, pretrained):
        stages["third"].insert(0, Layer(lambda x: x.detach()).eval())


class Learning(Holder):
    def forward(self, x):
        if torch.is_grad_enabled():
            self.value += 1
        return x


@breaks("frozen-stages-stay", "training changed frozen tensors: stages.first.3.value")
class Unfrozen(Changed):
    def change(self, stages, pretrained):
        stages["first"].append(Learning(torch.zeros(1)).eval())


@breaks("traces", r"it raised \w+: .*data-dependent expression.*\(in backbones.py, line \d+\)")
class Branching(Changed):
    def function(self, x):
        return x if x.sum() > 0 else -x


@breaks("batch-is-dynamic", r"features.third has the shape \['batch', 'batch'\]")
class Pairing(Changed):
    def function(self, x):
        rows = x.mean((2, 3))
        return rows @ rows.T


@breaks("core-operators-only", "it needs operators that are not ONNX's: com.microsoft::Gelu")
class Foreign(Changed):
    def function(self, x):
        return torch.onnx.ops.symbolic("com.microsoft::Gelu", (x,), dtype=x.dtype, shape=x.shape)


@breaks("every-cut-agrees", "for 1 images, third differs in the graph")
class TwoFaced(Changed):
    def function(self, x):
        return x * 1.1 if torch.compiler.is_exporting() else x
