"""torchvision's networks as backbones: listed without importing it, taken apart, and given weights."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from tlkit_torchvision import tlkit_backbones
from tlkit_torchvision.backbone import PREFIX, Torchvision
from tlkit_torchvision.conformance import TorchvisionReference
from tlkit_torchvision.names import architectures
from torch import nn
from torchvision import models

from tlkit.conformance import checks
from tlkit.data.preprocessing import load
from tlkit.errors import ArtifactError, ResourceError, UsageError
from tlkit.model.trunk import build

SMALL = {"mobilenet_v3_small": 32, "shufflenet_v2_x0_5": 32}
LARGER = {"vit_b_32": 32, "swin_t": 32, "resnet18": 32, "convnext_tiny": 32, "maxvit_t": 224}
NAME = "mobilenet_v3_small"


def backbone(name: str = NAME, **options: object) -> Torchvision:
    return Torchvision(PREFIX + name, **{"size": (SMALL | LARGER)[name]} | options)  # type: ignore[arg-type]


def test_the_names_are_those_of_torchvision() -> None:
    names = architectures()
    assert set(names) < set(models.list_models(module=models))
    assert len(names) > 60
    assert {component.name for component in tlkit_backbones()} == {PREFIX + name for name in names}


def test_listing_imports_neither_torchvision_nor_torch() -> None:
    code = (
        "import sys, tlkit_torchvision as t; list(t.tlkit_backbones());"
        "sys.exit(bool({'torchvision', 'torch'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_weight_of_torchvision_has_a_preprocessing_and_a_license() -> None:
    count = 0
    for name in architectures():
        for weights in models.get_model_weights(name):
            found = Torchvision(PREFIX + name, tag=weights.name)
            its = weights.transforms()
            size = its.crop_size[0]
            assert found.preprocessing.size == size
            assert round(size / found.preprocessing.crop_pct) == its.resize_size[0]
            assert (found.weights.license == "CC-BY-NC-4.0") == ("SWAG" in weights.name)
            count += 1
    assert count > 80


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGER)])
def test_the_stages_are_those_of_the_network(name: str) -> None:
    trunk = build(backbone(name), pretrained=False)
    assert trunk.names[:2] == ("stem", "stage1")
    assert ("last" in trunk.names) == name.startswith(("mobilenet_v3", "maxvit"))
    assert len(trunk.names) >= 5


QUICK = (
    "features-equal-the-library",
    "pools",
    "share-no-tensors",
    "state-is-complete",
    "gradient-reaches-every-parameter",
)


@pytest.mark.parametrize(
    ("name", "check"),
    [
        pytest.param(*each, marks=() if each.name in QUICK else pytest.mark.slow)
        for each in checks(backbone(), reference=TorchvisionReference())
    ],
)
def test_it_keeps_the_contract(name: str, check: Callable[[], None]) -> None:
    check()


def test_features_are_those_of_torchvision_and_its_preprocessing(tmp_path: Path) -> None:
    component = Torchvision(PREFIX + "mnasnet0_5")
    reference = TorchvisionReference()
    torch.manual_seed(0)
    trunk = build(component, pretrained=False)
    torch.manual_seed(0)
    network, preprocess = reference.features(component, pretrained=False), reference.preprocess(component)
    assert network is not None
    assert preprocess is not None
    for factor, image in enumerate(load_sample_images().images, start=1):
        size = (288 * factor, 256 * factor)  # torchvision rounds to whole pixels before it crops, tlkit does not
        picture = Image.fromarray(image).resize(size)
        picture.save(tmp_path / "picture.png")
        pixels = torch.from_numpy(load(tmp_path / "picture.png", component.preprocessing))
        with torch.inference_mode():
            expected, got = network(torch.from_numpy(preprocess(picture))[None]), trunk(pixels[None])
        assert torch.cosine_similarity(expected, got).item() >= 0.9999


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("classes", [1000, 7, 0])
def test_a_file_gives_the_logits_that_torchvision_gives(tmp_path: Path, suffix: str, classes: int) -> None:
    file = tmp_path / f"w{suffix}"
    model = models.get_model(NAME, weights=None, num_classes=classes or 5).eval()
    state = model.state_dict()
    if not classes:
        model.classifier[-1] = nn.Identity()
        state = model.state_dict()
    save_file(state, file) if suffix == ".safetensors" else torch.save({"model": state}, file)
    component = backbone(checkpoint=file)
    trunk, classifier = build(component), component.classifier()
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    with torch.inference_mode():
        expected, features = model(trunk.normalize(images)), trunk(images)
        got = features if classifier is None else classifier(features)
    assert (classifier is None) == (classes == 0)
    assert torch.allclose(got, expected, atol=1e-5)


@pytest.mark.slow
def test_another_size_interpolates_the_positions(tmp_path: Path) -> None:
    from torchvision.models import VisionTransformer
    from torchvision.models.vision_transformer import interpolate_embeddings

    small = VisionTransformer(64, 32, 1, 2, 8, 16).state_dict()
    assert interpolate_embeddings(32, 32, small)["encoder.pos_embedding"].shape == (1, 2, 8)
    save_file(models.get_model("vit_b_32", image_size=64).state_dict(), tmp_path / "w.safetensors")
    trunk = build(backbone("vit_b_32", checkpoint=tmp_path / "w.safetensors"))
    assert trunk(torch.zeros(1, 32, 32, 3, dtype=torch.uint8)).shape == (1, 768)


def test_what_does_not_fit_is_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no weights 'IMAGENET1K_V9'.*choose one of IMAGENET1K_V1"):
        _ = Torchvision(PREFIX + NAME, tag="IMAGENET1K_V9").preprocessing
    with pytest.raises(UsageError, match="takes no images of 33 pixels"):
        Torchvision(PREFIX + "vit_b_32", size=33).stages(pretrained=False)
    with pytest.raises(UsageError, match="no such weights file"):
        backbone(checkpoint=tmp_path / "none.pth").stages(pretrained=True)
    save_file({"conv1.weight": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(ArtifactError, match=r"not the weights of torchvision/mobilenet_v3_small: .* is missing"):
        backbone(checkpoint=tmp_path / "w.safetensors").stages(pretrained=True)


def test_without_the_network_both_ways_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", _offline)
    monkeypatch.setattr("torch.hub.urlopen", _offline)
    with pytest.raises(ResourceError, match=r"connect to the internet, or .*--set backbone\.checkpoint=FILE"):
        backbone().stages(pretrained=True)


def _offline(*_: object, **__: object) -> None:
    raise OSError("no network")
