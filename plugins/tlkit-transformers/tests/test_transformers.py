"""Networks of transformers as backbones: listed without importing it, taken apart, and given weights from a folder."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from small import FAMILIES, small
from tlkit_transformers import networks, processors, tlkit_backbones
from tlkit_transformers.backbone import PREFIX, Transformers
from tlkit_transformers.conformance import TransformersReference, image_processor
from tlkit_transformers.published import ENTRIES

from tlkit.conformance import checks
from tlkit.conformance.pictures import pictures
from tlkit.data.preprocessing import load
from tlkit.errors import ArtifactError, ResourceError, UsageError
from tlkit.model.trunk import build

STAGES = {
    "SigLIP": ["stem", "stage1", "stage2", "last"],
    "ConvNeXt": ["stem", "stage1", "stage2", "stage3", "stage4"],
    "ConvNeXt V2": ["stem", "stage1", "stage2", "stage3", "stage4"],
    "ResNet": ["stem", "stage1", "stage2", "stage3", "stage4"],
    "DINOv3 ConvNeXt": ["stem", "stage1", "stage2", "stage3"],
}
QUICK = (
    "features-equal-the-library",
    "pools",
    "share-no-tensors",
    "state-is-complete",
    "gradient-reaches-every-parameter",
)
FULL = ("ViT", "SigLIP", "Swin V2")
CHECKS = [(family, check) for family in FULL for check in checks(small(family), reference=TransformersReference())]


def test_listing_imports_neither_transformers_nor_torch() -> None:
    code = (
        "import sys, tlkit_transformers as t; list(t.tlkit_backbones());"
        "sys.exit(bool({'transformers', 'torch'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_published_network_has_a_preprocessing_and_a_license() -> None:
    components = list(tlkit_backbones())
    assert len(components) >= 60
    assert {entry.model_type for entry in ENTRIES.values()} == set(networks.FAMILIES)
    for component in components:
        assert component.preprocessing.size >= 224
        assert component.weights.origin.startswith("hf-hub:")
        assert component.weights.license in {"Apache-2.0", "MIT", "LicenseRef-DINOv3"}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stages_are_the_network(family: str) -> None:
    backbone = small(family)
    assert list(backbone.stages(pretrained=False)) == STAGES.get(family, ["stem", "stage1", "stage2"])
    kit = dict(checks(backbone, reference=TransformersReference()))
    for name in QUICK:
        kit[name]()


@pytest.mark.slow
@pytest.mark.parametrize(("family", "check"), CHECKS)
def test_it_keeps_the_contract(family: str, check: Callable[..., None]) -> None:
    check.call()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", sorted({json.dumps(entry.processor) for entry in ENTRIES.values()}))
def test_preprocessing_is_that_of_the_processor(name: str) -> None:
    config = json.loads(name)
    preprocessing = processors.preprocessing(config, "it")
    processor = image_processor(config)
    mean, std = (np.array(each)[:, None, None] for each in (preprocessing.mean, preprocessing.std))
    for picture in pictures()[:3]:
        expected = np.asarray(processor(picture, return_tensors="np")["pixel_values"][0])
        got = (load(picture, preprocessing).transpose(2, 0, 1) / 255.0 - mean) / std
        assert got.shape == expected.shape
        assert float((np.abs(got - expected) * 255 * std).mean()) < 4  # gray levels: it crops at whole pixels


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image_processor_type": "Siglip2ImageProcessorFast"}, "NaFlex"),
        ({"do_resize": False}, "does not resize"),
        ({"do_pad": True}, "pads images"),
        ({"size": {"longest_edge": 224}}, "resizes by longest_edge"),
        ({"size": None}, "says nothing of the size"),
        ({"size": {"height": 224, "width": 112}}, "tlkit's are square"),
        ({"size": {"shortest_edge": 224}}, "crops no square"),
        ({"rescale_factor": 1.0}, "does not scale values"),
        ({"do_center_crop": True, "crop_size": 256}, "pads images of 224 to 256"),
    ],
)
def test_a_processor_that_can_not_be_expressed_is_refused(change: Mapping[str, Any], reason: str) -> None:
    given = {**ENTRIES["google/vit-base-patch16-224"].processor, **change}
    with pytest.raises(UsageError, match=reason):
        processors.preprocessing(given, "it")


def test_features_are_pooled_as_asked() -> None:
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    for family, prefix in (("ViT", 1), ("DINOv2 with registers", 5)):
        trunk = build(small(family, pooling="mean"), pretrained=False)
        with torch.inference_mode():
            tokens = trunk.maps(images)[-1]
            assert torch.allclose(trunk(images), tokens[:, prefix:].mean(1), atol=1e-6)
    assert "last" not in small("SigLIP", pooling="mean").stages(pretrained=False)
    with pytest.raises(UsageError, match="no class token"):
        small("SigLIP", pooling="class").stages(pretrained=False)
    with pytest.raises(UsageError, match="no tokens to pool"):
        small("ResNet", pooling="mean").stages(pretrained=False)


def test_another_size_interpolates_the_positions() -> None:
    trunk = build(small("ViT", size=48), pretrained=False)
    with torch.inference_mode():
        assert trunk(torch.zeros(1, 48, 48, 3, dtype=torch.uint8)).shape == (1, 32)


def folder(place: Path, **changes: object) -> Path:
    """A folder as `save_pretrained` writes it, of a ViT as classifier with random weights."""
    backbone = small("ViT")
    config = networks.configuration(backbone)
    config.num_labels = 7
    transformers.ViTForImageClassification(config).eval().save_pretrained(place)
    (place / "preprocessor_config.json").write_text(json.dumps({**backbone.published.processor, **changes}))
    return place


def test_a_folder_gives_the_logits_that_transformers_gives(tmp_path: Path) -> None:
    backbone = small("ViT", checkpoint=folder(tmp_path, size={"height": 32, "width": 32}), size=None)
    assert backbone.preprocessing.size == 32
    trunk, classifier = build(backbone), backbone.classifier()
    assert classifier is not None
    model = transformers.ViTForImageClassification.from_pretrained(tmp_path).eval()
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    with torch.inference_mode():
        expected = model(trunk.normalize(images)).logits
        assert torch.allclose(classifier(trunk(images)), expected, atol=1e-5)
    assert backbone.weights.origin == f"the local folder {tmp_path.name}"


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_read_from_a_folder_as_save_pretrained_writes_it(family: str, tmp_path: Path) -> None:
    network = networks.built(small(family))
    network.save_pretrained(tmp_path)  # under other names than those of the modules, in some families
    backbone = small(family, checkpoint=tmp_path)
    trunk, images = build(backbone), torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    assert trunk.state_dict().keys() == build(backbone, pretrained=False).state_dict().keys()
    kind = networks.family(backbone)
    prefix = kind.prefix(networks.configuration(backbone)) if kind.prefix else 0
    images = images[:, : backbone.preprocessing.size, : backbone.preprocessing.size]
    with torch.inference_mode():
        expected = networks.Features(network, kind.own, prefix, {})(trunk.normalize(images))
        assert torch.allclose(trunk(images), expected, atol=1e-5)
    assert backbone.classifier() is None


def test_what_does_not_fit_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    place = folder(tmp_path)
    (place / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(UsageError, match=r"beside the weights differs: .*\"hidden_size\": 32.*backbone\.config="):
        Transformers(PREFIX + "google/vit-base-patch16-224", checkpoint=place, size=32).stages(pretrained=True)
    with pytest.raises(UsageError, match="those of a vit, not swin"):
        small("Swin", checkpoint=place).stages(pretrained=True)
    (place / "config.json").write_text(json.dumps({"model_type": "vit", "auto_map": {"AutoModel": "own.Model"}}))
    with pytest.raises(UsageError, match="code of the repository, which tlkit never runs"):
        small("ViT", checkpoint=place).stages(pretrained=True)


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no config\.json"):
        small("ViT", checkpoint=tmp_path).stages(pretrained=True)
    place = folder(tmp_path)
    (place / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ArtifactError, match="without running code"):
        small("ViT", checkpoint=place).stages(pretrained=True)
    for config, reason in (
        ("{", "not JSON"),
        ("[]", "no JSON object|not a JSON object"),
        ('{"num_channels": 4}', "4 chan"),
    ):
        with pytest.raises(UsageError, match=reason):
            small("ViT", config=config).stages(pretrained=False)
    with pytest.raises(UsageError, match="configuration is refused"):
        small("ViT", config='{"hidden_size": "wide"}').stages(pretrained=False)


def test_without_the_hub_both_ways_are_named() -> None:
    with pytest.raises(ResourceError, match=r"connect to the internet, or .*backbone\.checkpoint=FOLDER"):
        small("ViT").stages(pretrained=True)
