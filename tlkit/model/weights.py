"""Read weights files of PyTorch without running code in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tlkit.errors import ArtifactError, ResourceError, UsageError
from tlkit.model.trunk import misfits
from tlkit.util.text import listed

_WRAPPERS = ("state_dict", "model_state_dict", "model", "model_ema")  # keys that training scripts put a state under


def read_weights(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a `.safetensors` file, or of a `.pth` file that holds nothing but tensors.

    Raises UsageError without the file, ResourceError if it can't be read, and ArtifactError for other content.
    """
    with reading_weights(file):
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    for wrapper in _WRAPPERS:
        content = content[wrapper] if isinstance(content, Mapping) and wrapper in content else content
    if not isinstance(content, Mapping) or not all(isinstance(each, Tensor) for each in content.values()):
        raise ArtifactError("it holds something else than named tensors", file=file, do="save the model's state_dict()")
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}


@contextmanager
def reading_weights(file: Path) -> Iterator[None]:
    """Raise what a library raises on reading a weights file as the errors of `read_weights`."""
    if not file.is_file():
        raise UsageError("no such weights file", file=file)
    try:
        yield
    except OSError as error:
        raise ResourceError(f"can't be read: {error.strerror or error}", file=file) from error
    except Exception as error:  # safetensors, zipfile and pickle have their own
        raise ArtifactError(
            f"not weights that can be read without running code: {error}", file=file, do="save them as .safetensors"
        ) from error


def load_weights(module: nn.Module, given: Mapping[str, Tensor], *, file: Path, what: str) -> None:
    """Set the state of a module from the tensors of a file. Raises ArtifactError that names those that don't fit."""
    problems = misfits({name: tuple(tensor.shape) for name, tensor in given.items()}, module)
    if problems:
        do = "give weights of this architecture, or name another with --backbone"
        raise ArtifactError(f"not the weights of {what}: {listed(problems, separator='; ')}", file=file, do=do)
    module.load_state_dict(given)
