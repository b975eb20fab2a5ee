"""Chained stages are what timm computes, and what does not chain is refused with the reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tlkit_timm.backbone import Timm
from tlkit_timm.conformance import TimmReference
from tlkit_timm.loading import configuration, outline
from tlkit_timm.stages import stages

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


CHECKS = [each for name in KIT for each in checks(member(name), reference=TimmReference())]


@pytest.mark.parametrize("name", [*MEMBERS, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGER)])
def test_the_chained_stages_are_the_network(name: str) -> None:
    kit = dict(checks(member(name), reference=TimmReference()))
    for check in ("features-equal-the-library", "pools", "share-no-tensors", "state-is-complete"):
        kit[check]()


@pytest.mark.parametrize(("name", "check"), CHECKS)
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


def test_what_does_not_chain_is_refused_with_the_reason() -> None:
    with pytest.raises(UsageError, match=r"'timm/crossvit_tiny_240' has no stages .*more than one tensor passes"):
        stages(outline(configuration("crossvit_tiny_240", None), None), 240)
    with pytest.raises(UsageError, match=r"has no stages .*no features"):
        stages(outline(configuration("qwen3_vit_88m_enc", None), None), 224)


def test_a_size_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="timm/test_vit"):
        Timm("timm/test_vit", size=50).stages(pretrained=False)


def test_what_has_no_stages_is_refused_before_its_weights_are_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Timm, "model", lambda *_, **__: pytest.fail("it looked for weights"))
    with pytest.raises(UsageError, match="has no stages"):
        Timm("timm/crossvit_tiny_240").stages(pretrained=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cait_xxs24_224", "convit_tiny", "visformer_tiny", "xcit_nano_12_p16_224"])
def test_calls_between_the_stages_are_recorded(name: str) -> None:
    assert len(Timm(f"timm/{name}").stages(pretrained=False)) >= 4
