"""Checks of a backbone's forward pass in eval mode."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor, nn

from tlkit.conformance.backbone.subject import ALL, BATCHES, BackboneSubject
from tlkit.conformance.backbone.vary import vary
from tlkit.conformance.subject import Skipped, expect, expect_none
from tlkit.util.text import listed
from tlkit.verification.parity import cosines, relative_error

SAME = 1e-4  # relative; sums in another order differ by less, faults by more
HALF_COSINE = 0.99  # of features in half precision to those in single


def chains(subject: BackboneSubject) -> None:
    """Stages chain: each takes the output of the one before, a float32 tensor with one row per image.

    The default pooling takes `(N, C, H, W)`, `(N, T, C)` or `(N, C)`.
    """
    for name, x in zip(subject.trunk.names, subject.maps, strict=True):
        fits = x.dtype == torch.float32 and len(x) == len(subject.images)
        shape = f"{name} gives {x.dtype} {tuple(x.shape)} for {len(subject.images)} images"
        expect(fits, shape, do="keep float32, and the first axis for the images")


def pools(subject: BackboneSubject) -> None:
    """The output of every stage is pooled to float32 features `(N, width)`, so that any stage can be the cut."""
    for name, features in zip(subject.trunk.names, subject.features, strict=True):
        right = features.ndim == 2 and len(features) == len(subject.images) and features.dtype == np.float32
        wrong = f"{name} is pooled to {features.dtype} {features.shape}"
        expect(right, wrong, do="give maps as `(N, C, H, W)`, tokens as `(N, T, C)`, or override `pool`")


def width_is_constant(subject: BackboneSubject) -> None:
    """The width of the features depends on the cut only: not on the batch, and not on the build."""
    widths = [features.shape[1:] for features in subject.features]
    for features in (*(part for _, part in subject.parts), subject.run(subject.builds[1], BATCHES[0])):
        got = [stage.shape[1:] for stage in features]
        expect(got == widths, f"the widths {widths} may become {got}", do="fix the shapes of every stage")


def features_are_finite(subject: BackboneSubject) -> None:
    """Features are finite at every cut for batches of 1, 2 and 5, black and white images among them."""
    for part in (*(part for _, part in subject.parts), subject.features):
        for name, features in zip(subject.trunk.names, part, strict=True):
            do = "look for a division by zero, a logarithm or an overflow"
            expect(bool(np.isfinite(features).all()), f"{name} gives values that are not finite", do=do)


def tells_images_apart(subject: BackboneSubject) -> None:
    """Different images have different features at the deepest stage."""
    features = subject.features[-1]
    equal = [
        f"{i} and {j}"
        for i in range(len(features))
        for j in range(i)
        if relative_error(features[i : i + 1], features[j : j + 1]) < 1e-6
    ]
    expect_none(equal, "test images have the same features", do="check preprocessing and initial weights")


def rows_are_independent(subject: BackboneSubject) -> None:
    """The features of an image are the same alone and among others."""
    for rows, apart in subject.parts:
        for name, one, all_ in zip(subject.trunk.names, apart, subject.features, strict=True):
            error = relative_error(all_[rows], one)
            do = "use no statistics of the batch in eval mode, and no reshape that mixes rows"
            expect(error <= SAME, f"{name} depends on the other images of the batch (error {error:.2g})", do=do)


def deterministic(subject: BackboneSubject) -> None:
    """The same images give bit-identical features."""
    again = subject.run(subject.trunk)
    pairs = zip(subject.trunk.names, again, subject.features, strict=True)
    differing = [name for name, one, other in pairs if not np.array_equal(one, other)]
    expect(not differing, f"a second run differs from {listed(differing)} on", do="leave dropout to training mode")


def threads_agree(subject: BackboneSubject) -> None:
    """Two threads that run it at once, and one or two threads within it, give the same features."""
    with ThreadPoolExecutor(2) as pool:
        at_once = list(pool.map(lambda rows: subject.run(subject.trunk, rows), [ALL, ALL]))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if before > 1 else 2)
        others = [*at_once, subject.run(subject.trunk)]
    finally:
        torch.set_num_threads(before)
    for features in others:
        for name, one, other in zip(subject.trunk.names, features, subject.features, strict=True):
            error = relative_error(other, one)
            do = "keep nothing from one call to the next: compute everything from the arguments"
            expect(error <= SAME, f"with another number of threads, {name} differs by {error:.2g}", do=do)


def draws_nothing_at_random(subject: BackboneSubject) -> None:
    """Running it draws no random number in eval mode."""
    before = torch.get_rng_state()
    subject.run(subject.trunk, BATCHES[0])
    drawn = not torch.equal(before, torch.get_rng_state())
    expect(not drawn, "it draws random numbers in eval mode", do="guard dropout and noise with `self.training`")


def leaves_its_state_alone(subject: BackboneSubject) -> None:
    """Running it changes no parameter and no buffer in eval mode."""
    trunk = subject.fresh()
    before = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
    subject.run(trunk, BATCHES[0])
    changed = [name for name, tensor in trunk.state_dict().items() if not torch.equal(tensor, before[name])]
    expect(not changed, f"running it changes {listed(changed)}", do="update statistics in training mode only")


def leaves_its_input_alone(subject: BackboneSubject) -> None:
    """No stage writes into its input, which is the output of the stage before and may be the cut."""
    with torch.inference_mode():
        inputs = [subject.trunk.normalize(subject.images), *subject.maps]
        for (name, stage), given in zip(subject.trunk.stages.items(), inputs, strict=False):
            x = given.clone()
            stage(x)
            expect(torch.equal(x, given), f"{name} changes its input", do="let no stage begin with `inplace=True`")


def features_equal_the_library(subject: BackboneSubject) -> None:
    """The pooled features of the chained stages are those of the library's own network, if its reference has one."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        network = subject.reference.features(subject.component, pretrained=subject.pretrained)
        if network is None:
            raise Skipped("its reference has no `features` to compare with")
        network.eval()
        torch.manual_seed(0)  # for the same weights
        trunk = subject.trunk if subject.pretrained else subject.random_trunk()
    inputs = trunk.normalize(subject.images)
    if not subject.pretrained:
        vary(network, lambda: network(trunk.normalize(subject.fitting)))
        subject.vary(trunk)
    with torch.inference_mode():
        expected, got = network(inputs.clone()), trunk(subject.images)
    do = "check order and content of the stages, and `pool`; without pretrained weights, build both with the same code"
    expect(expected.shape == got.shape, f"the library gives {expected.shape}, the stages {got.shape}", do=do)
    error = relative_error(expected.numpy(), got.numpy())
    expect(error <= SAME, f"the pooled features differ from the library's by {error:.2g}", do=do)


def runs_on_another_device(subject: BackboneSubject) -> None:
    """On another device it runs there: no tensor stays behind, and none is created on the CPU."""
    moved = copy.deepcopy(subject.trunk).to("meta")  # where tensors have a shape and a device, but no values
    with torch.inference_mode():
        features = moved(subject.images[:1].to("meta"))
    expect(features.device.type == "meta", "its features come from the CPU", do="make tensors with `device=x.device`")


def keeps_half_precision(subject: BackboneSubject) -> None:
    """In half precision, every module returns half precision: none creates float32."""
    stages = copy.deepcopy(subject.trunk.stages).to("meta", torch.float16)
    turned: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and output.is_floating_point() and output.dtype != torch.float16:
                turned.append(f"{name} gives {output.dtype}")

        return hook

    for name, module in stages.named_modules():
        module.register_forward_hook(look(name))
    with torch.inference_mode():
        x = subject.trunk.normalize(subject.images[:1]).to("meta", torch.float16)
        for stage in stages.values():
            x = stage(x)
    expect_none(turned, "it leaves half precision", do="make tensors with `dtype=x.dtype`")


def fits_half_precision(subject: BackboneSubject) -> None:
    """Weights and activations fit float16: rounded to it, features keep a cosine of at least 0.99."""

    def round_(_module: nn.Module, _inputs: object, output: object) -> object:
        return output.half().float() if isinstance(output, Tensor) and output.is_floating_point() else output

    trunk = subject.fresh().half().float()
    for module in trunk.stages.modules():
        if next(module.children(), None) is None:
            module.register_forward_hook(round_)
    features = subject.run(trunk, BATCHES[0])[-1]
    do = "exempt it with the reason if values beyond 65504 are intended; such a network is deployed as fp32"
    expect(bool(np.isfinite(features).all()), "it leaves the range of float16", do=do)
    cosine = float(cosines(subject.features[-1][BATCHES[0]], features).min())
    expect(cosine >= HALF_COSINE, f"in float16, the cosine to its features is {cosine:.4f}", do=do)
