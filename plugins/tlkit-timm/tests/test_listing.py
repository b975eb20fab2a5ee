"""All of timm is listed without importing it, and what timm knows of its weights becomes preprocessing."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import timm
from timm.models import get_pretrained_cfg
from tlkit_timm import loading, tlkit_backbones
from tlkit_timm.backbone import Timm
from tlkit_timm.names import REFUSED, architectures

from tlkit.errors import ResourceError, UsageError
from tlkit.plugin.licenses import license_class, license_fault


def test_the_names_are_those_of_timms_registry() -> None:
    assert set(architectures()) < set(timm.list_models())
    assert 1200 < len(architectures()) < len(timm.list_models())


@pytest.mark.slow
@pytest.mark.parametrize("pattern", REFUSED)
def test_what_is_not_listed_has_no_stages(pattern: str) -> None:
    refused = [name for name in timm.list_models() if re.match(pattern, name)]
    assert 0 < len(refused) < 40
    component = Timm(f"timm/{min(refused, key=len)}")
    with pytest.raises(UsageError, match=r"has no stages|a border around images"):
        component.stages(pretrained=True)


def test_listing_imports_neither_timm_nor_torch() -> None:
    code = (
        "import sys, tlkit_timm; list(tlkit_timm.tlkit_backbones()); sys.exit(bool({'timm', 'torch'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_architecture_is_a_backbone_under_its_name() -> None:
    assert {component.name for component in tlkit_backbones()} == {f"timm/{name}" for name in architectures()}


def test_a_timm_without_its_sources_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ResourceError, match="pip install"):
        architectures()


def test_every_configuration_becomes_a_preprocessing_or_is_refused() -> None:
    refused = set()
    names = timm.list_models(include_tags=True)
    for name in names:
        known = get_pretrained_cfg(name)
        try:
            preprocessing = loading.preprocessing(known, None)
        except UsageError as problem:
            refused.add(str(problem))
        else:
            assert (preprocessing.size, preprocessing.mean) == (known.input_size[1], known.mean)
    assert len(names) > 1500
    assert len(refused) < 20


def test_the_preprocessing_is_that_of_the_tag() -> None:
    inception = Timm("timm/tf_efficientnet_b0", tag="ap_in1k").preprocessing
    imagenet = Timm("timm/tf_efficientnet_b0", tag="aa_in1k").preprocessing
    assert (inception.mean, imagenet.mean) == ((0.5, 0.5, 0.5), (0.485, 0.456, 0.406))
    assert Timm("timm/resnet18", size=160).preprocessing.size == 160


def test_every_license_has_a_name_of_spdx_or_its_own() -> None:
    found = {loading.source(get_pretrained_cfg(name), None) for name in timm.list_models(include_tags=True)}
    assert [fault for weights in found if (fault := license_fault(weights))] == []
    own = {weights.license: license_class(weights) for weights in found if weights.license.startswith("LicenseRef-")}
    assert own["LicenseRef-apple-amlr"] == "non-commercial"
    assert own["LicenseRef-cvnets-license"] == "custom"
    assert own[loading.UNKNOWN_LICENSE] == "unknown"


def test_license_and_origin_are_those_of_the_tag() -> None:
    source = Timm("timm/convnextv2_atto", tag="fcmae_ft_in1k").weights
    assert (source.origin, source.license) == ("hf-hub:timm/convnextv2_atto.fcmae_ft_in1k", "CC-BY-NC-4.0")


def test_a_tag_that_timm_does_not_have_names_those_it_has() -> None:
    with pytest.raises(UsageError, match=r"no weights 'a1_in1kk' .*did you mean 'a1_in1k'.*choose one of .*tv_in1k"):
        _ = Timm("timm/resnet50", tag="a1_in1kk").preprocessing


def test_what_is_listed_has_a_preprocessing() -> None:
    wide = [name for name in architectures() if len(set(get_pretrained_cfg(name).input_size[1:])) > 1]
    assert len(wide) < 10
    for name in wide:
        with pytest.raises(UsageError, match=r"name a side: --set backbone.size=\d+"):
            _ = Timm(f"timm/{name}").preprocessing
    for name in architectures():
        size = get_pretrained_cfg(name).input_size[2]
        assert Timm(f"timm/{name}", size=size if name in wide else None).preprocessing.size == size


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"input_size": (3, 224, 192)}, "made for images of 3 x 224 x 192"),
        ({"input_size": (1, 224, 224)}, "made for images of 1 x 224 x 224"),
        ({"crop_pct": 1.15}, "puts a border around images"),
    ],
)
def test_what_is_not_square_or_has_a_border_is_refused(more: dict[str, Any], problem: str) -> None:
    known = replace(get_pretrained_cfg("resnet18"), **more)
    with pytest.raises(UsageError, match=f"backbone 'timm/resnet18': .*{problem}"):
        loading.preprocessing(known, None)
