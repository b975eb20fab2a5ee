"""Chained stages are what timm computes, and what does not chain is refused with the reason."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from tlkit_timm.backbone import Timm

from tlkit.conformance import checks
from tlkit.errors import UsageError
from tlkit.model.trunk import build

# Of each family, as small as timm has them; a size where images would be large.
MEMBERS = {
    "test_resnet": None,
    "regnetx_002": 64,
    "test_efficientnet": None,
    "mobilenetv3_small_050": 64,
    "mobilenetv4_conv_small_050": 64,
    "test_convnext": None,
    "test_convnext2": None,
    "test_vit": None,
    "test_vit2": None,
    "test_vit3": None,
    "test_vit4": None,
    "vit_tiny_patch16_dinov3_qkvb": 64,
    "eva02_tiny_patch14_224": 56,
    "test_coatnet": None,
    "test_maxvit": None,
    "test_byobnet": None,
    "test_nfnet": None,
    "test_mambaout": None,
}
LARGER = {
    "resnext26ts": 64,
    "res2net50_48w_2s": 64,
    "densenet121": 64,
    "deit_tiny_distilled_patch16_224": 64,
    "swin_tiny_patch4_window7_224": 56,
    "repvgg_a0": 64,
    "mobileone_s0": 64,
    "vgg11": 64,
}
KIT = ("test_efficientnet", "test_vit", "test_mambaout")  # convolutions, tokens, channels last


def member(name: str) -> Timm:
    return Timm(f"timm/{name}", size=(MEMBERS | LARGER)[name])


@pytest.mark.parametrize("name", [*MEMBERS, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGER)])
def test_the_chained_stages_are_the_network(name: str) -> None:
    kit = dict(checks(member(name)))
    for check in ("stages-equal-the-network", "pools", "share-no-tensors", "state-is-complete"):
        kit[check]()


@pytest.mark.parametrize(("name", "check"), [each for name in KIT for each in checks(member(name))])
def test_it_keeps_the_contract(name: str, check: Callable[[], None]) -> None:
    check()


def test_a_layer_after_the_last_stage_is_a_stage_but_a_norm_is_not() -> None:
    assert tuple(member("mobilenetv3_small_050").stages(pretrained=False))[-2:] == ("stage6", "last")
    assert tuple(member("test_convnext").stages(pretrained=False))[-1] == "stage4"


@pytest.mark.slow
def test_what_has_no_weights_belongs_to_the_stage_before() -> None:
    stages = member("vgg11").stages(pretrained=False)
    assert tuple(stages) == (*(f"stage{number}" for number in range(1, 9)), "last")
    assert all(any(True for _ in stage.parameters()) for stage in stages.values())


@pytest.mark.parametrize(
    ("name", "tokens"), [("test_vit", lambda x: x[:, 0]), ("vit_tiny_patch16_dinov3_qkvb", lambda x: x[:, 5:].mean(1))]
)
def test_tokens_are_pooled_at_every_cut_as_at_the_deepest(
    name: str, tokens: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    trunk = build(member(name), pretrained=False)
    size = trunk.preprocessing.size
    images = torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8)
    with torch.inference_mode():
        shallow = trunk.maps(images)[2]
        assert torch.equal(trunk.upto("stage2")(images), tokens(shallow))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cait_xxs24_224", "doesn't know how to take a Cait apart"),
        ("vit_small_patch16_rope_mixed_224", "stages have weights in common (rope)"),
    ],
)
def test_what_does_not_chain_is_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(UsageError, match=f"'timm/{name}' has no stages: .*{re.escape(reason)}"):
        Timm(f"timm/{name}").stages(pretrained=False)


def test_a_size_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="timm/test_vit"):
        Timm("timm/test_vit", size=50).stages(pretrained=False)


def test_stages_that_give_something_else_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from tlkit_timm.families import FAMILIES, Family

    monkeypatch.setitem(FAMILIES, "ResNet", Family((("layer1",), ("layer2",), ("layer3",))))
    with pytest.raises(UsageError, match=r"don't give what timm computes|is neither"):
        member("test_resnet").stages(pretrained=False)
