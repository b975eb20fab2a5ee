"""Weights files are read without running code in them, and what doesn't fit is named."""

from __future__ import annotations

import pickle  # noqa: TID251 - one is planted to see that it is refused

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tlkit.errors import ArtifactError, UsageError
from tlkit.model.weights import load_weights, read_weights


class Hostile:
    def __reduce__(self):
        return print, ("code of a weights file was run",)


def saved(file, state):
    save_file(state, file) if file.suffix == ".safetensors" else torch.save(state, file)
    return file


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_tensors_are_read(tmp_path, name):
    state = nn.Linear(2, 3).state_dict()
    found = read_weights(saved(tmp_path / name, state))
    assert found.keys() == state.keys()
    assert torch.equal(found["weight"], state["weight"])


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_what_a_training_script_saves_is_unwrapped(tmp_path, wrapper):
    state = {f"module.{name}": tensor for name, tensor in nn.Linear(2, 3).state_dict().items()}
    assert {*read_weights(saved(tmp_path / "w.pth", {wrapper: state}))} == {"weight", "bias"}


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize(
    "content", [b"", b"nonsense", pickle.dumps({"w": Hostile()}, 2)], ids=["empty", "text", "code"]
)
def test_what_is_no_weights_file_is_refused_and_never_run(tmp_path, name, content, capsys):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtifactError, match="without running code"):
        read_weights(tmp_path / name)
    assert "was run" not in capsys.readouterr().out


def test_other_content_and_no_file_are_named(tmp_path):
    with pytest.raises(ArtifactError, match="something else than named tensors"):
        read_weights(saved(tmp_path / "w.pth", {"epoch": 3, "weights": [1]}))
    with pytest.raises(UsageError, match=r"none\.pth: no such weights file"):
        read_weights(tmp_path / "none.pth")


def test_tensors_that_do_not_fit_are_named(tmp_path):
    layer, given = nn.Linear(2, 3), {"weight": torch.zeros(3, 4), "scale": torch.zeros(1)}
    with pytest.raises(ArtifactError, match=r"not the weights of it: bias is missing; scale is unknown; weight has sh"):
        load_weights(layer, given, file=tmp_path / "w.pth", what="it")
    load_weights(layer, {"weight": torch.ones(3, 2), "bias": torch.zeros(3)}, file=tmp_path / "w.pth", what="it")
    assert layer.weight.sum() == 6
