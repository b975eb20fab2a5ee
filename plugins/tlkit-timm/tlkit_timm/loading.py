"""Models and metadata of timm; every failure is reported in one line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg, load_state_dict
from torch import Tensor, nn

from tlkit.plugin.contract import Preprocessing, Weights
from tlkit.plugin.support import (
    ArtifactError,
    ResourceError,
    UsageError,
    did_you_mean,
    load_tensors,
    reading_weights,
    sha256,
)

UNKNOWN_LICENSE = "LicenseRef-unknown"
# Licenses that SPDX doesn't list, as timm names them, that permit no commercial use; others are custom.
NON_COMMERCIAL = ("apple-amlr", "fair-noncommercial-research-license", "seer-license")


def configuration(architecture: str, tag: str | None) -> Any:
    """Return timm's metadata of an architecture's weights; without a tag, of its default weights."""
    if tag is None:
        return get_pretrained_cfg(architecture)
    known = {name.partition(".")[2]: each for name, each in get_arch_pretrained_cfgs(architecture).items()}
    if tag not in known:
        raise UsageError(
            f"backbone 'timm/{architecture}': timm has no weights {tag!r} for it{did_you_mean(tag, known)}",
            do=f"choose one of {', '.join(filter(None, known))}" if any(known) else "leave out the tag",
        )
    return known[tag]


def preprocessing(known: Any, size: int | None) -> Preprocessing:
    """Return the preprocessing of a configuration, with another `size` if given. Raises UsageError."""
    channels, height, width = known.input_size
    do = None
    if channels != 3 or (height != width and size is None):
        why = f"it is made for images of {channels} x {height} x {width}, and tlkit's have 3 channels and are square"
        do = f"name a side: --set backbone.size={min(height, width)}" if channels == 3 else None
    elif known.crop_pct > 1.0:
        why = "its preprocessing puts a border around images, which tlkit does not support"
    else:
        size, mean, std = size or height, tuple(known.mean), tuple(known.std)
        crop_pct = size / math.floor(size / known.crop_pct)  # timm resizes to whole pixels before it crops
        return Preprocessing(size, mean, std, crop_pct, known.crop_mode, known.interpolation)
    raise UsageError(f"backbone 'timm/{known.architecture}': {why}", do=do)


def source(known: Any, weights: Path | None) -> Weights:
    """Return the weights file, or else the origin that timm downloads from; it knows the license, but no hash."""
    if weights is not None:
        with reading_weights(weights):
            return Weights(f"the local file {weights.name}", UNKNOWN_LICENSE, sha256(weights))
    origin = f"hf-hub:{known.hf_hub_id}" if known.hf_hub_id else known.url or "none published"
    if known.license in {None, "unknown", "other"}:
        return Weights(origin, UNKNOWN_LICENSE)
    try:
        return Weights(origin, canonicalize_license_expression(known.license))
    except InvalidLicenseExpression:
        kind = "non-commercial" if known.license in NON_COMMERCIAL else "custom"
        return Weights(origin, f"LicenseRef-{known.license}", license_class=kind)


def model(known: Any, size: int | None, weights: Path | None, *, pretrained: bool) -> nn.Module:
    """Return a model in eval mode: with random weights, those of a file, or those that timm downloads."""
    arguments = _arguments(known, size)
    if not pretrained:
        return _create(**arguments)
    if weights is not None:
        return _from_file(known, weights, arguments).eval()
    try:
        return _create(**arguments, pretrained=True)
    except Exception as error:  # each of the libraries below timm has its own
        raise ResourceError(
            f"the pretrained weights of timm/{known.architecture} can't be downloaded: {error}",
            do="connect to the internet, or give them as a file: --set backbone.checkpoint=FILE.safetensors",
        ) from error


def outline(known: Any, size: int | None, **arguments: object) -> nn.Module:
    """Return a model without values: its structure, and the shapes of its weights."""
    with torch.device("meta"):
        return _create(**_arguments(known, size), **arguments)


def _create(**arguments: Any) -> nn.Module:
    """Return a model of timm in eval mode."""
    created: nn.Module = timm.create_model(**arguments)
    return created.eval()


def _arguments(known: Any, size: int | None) -> dict[str, Any]:
    name = f"{known.architecture}.{known.tag}" if known.tag else known.architecture
    # Others take images of any size as they are.
    return {"model_name": name} | ({"img_size": size} if size is not None and known.fixed_input_size else {})


def _from_file(known: Any, file: Path, arguments: Mapping[str, Any]) -> nn.Module:
    """A model with the weights of a file. timm translates them where they are in the layout of their authors."""
    with reading_weights(file):
        given = load_state_dict(str(file))  # safetensors, or a pickle of tensors alone
    overlay = {"file": str(file), "custom_load": False, "num_classes": _classes(known, given)}
    try:
        loaded: nn.Module = timm.create_model(**arguments, pretrained=True, pretrained_cfg_overlay=overlay)
    except Exception as error:  # what weights of another architecture lead to, timm's translations included
        raise _misfit(known, given, file, error) from error
    return loaded


def _classes(known: Any, given: Mapping[str, Tensor]) -> int:
    """Return the number of classes of the weights in a file; 0 without a classifier."""
    names = known.classifier if isinstance(known.classifier, tuple) else (known.classifier,)
    weight = given.get(f"{names[0]}.weight")
    if weight is not None:
        return len(weight) - (known.label_offset or 0)
    without = outline(known, None, num_classes=0).state_dict()
    return 0 if without.keys() <= given.keys() else int(known.num_classes)


def _misfit(known: Any, given: Mapping[str, Tensor], file: Path, error: Exception) -> ArtifactError:
    """Return the error for the weights of a file, by the names and shapes of the tensors."""
    shapes = {name: np.broadcast_to(np.float32(0), tuple(tensor.shape)) for name, tensor in given.items()}
    try:
        load_tensors(outline(known, None), shapes, what=f"file for timm/{known.architecture}")
        why = f"timm can't load it as {known.architecture}: {error}"
    except ArtifactError as problem:
        why = problem.what
    return ArtifactError(why, file=file, do="give weights of this architecture, or name another with --backbone")
