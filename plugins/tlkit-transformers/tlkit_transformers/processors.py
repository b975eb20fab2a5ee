"""Configuration of an image processor as preprocessing; the processor itself never runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tlkit.plugin.contract import INTERPOLATIONS, Preprocessing
from tlkit.plugin.support import UsageError

FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by Pillow's numbers
SHORTEST = ("CLIP", "Bit", "ConvNext", "Siglip")  # processors for which a single number is the shorter side
WARPED = 384  # from this size on, ConvNext's processor resizes to a square instead of cropping


def preprocessing(given: Mapping[str, Any], what: str) -> Preprocessing:
    """Return the preprocessing that a processor's configuration describes. Raises UsageError if none does."""
    kind = str(given.get("image_processor_type") or given.get("feature_extractor_type") or "")
    problem = _problem(given, kind)
    if problem:
        raise UsageError(f"{what}: its image processor {problem}", do="choose another network")
    size, crop_pct, mode = _crop(given, kind, what)
    normalized = given.get("do_normalize", True)
    mean, std = (given["image_mean"], given["image_std"]) if normalized else ([0.0] * 3, [1.0] * 3)
    resample = given.get("resample", FILTERS.index("bicubic"))
    name = FILTERS[resample] if isinstance(resample, int) else str(resample).lower()
    return Preprocessing(size, _rgb(mean), _rgb(std), crop_pct, mode, name)


def _problem(given: Mapping[str, Any], kind: str) -> str | None:
    """Return what can't be expressed, or None."""
    size = given.get("size")
    named = set(size) if isinstance(size, Mapping) else set()
    resample = given.get("resample", 0)
    problems = {
        "keeps the shape of each image (NaFlex)": kind.startswith("Siglip2") or "max_num_patches" in given,
        "does not resize": given.get("do_resize") is False,
        "pads images": bool(given.get("do_pad")),
        "says nothing of the size": size is None,
        f"resizes by {', '.join(sorted(named))}": bool(named - {"height", "width", "shortest_edge"}),
        "does not scale values to 0..1": given.get("do_rescale") is False
        or abs(given.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-3,
        "says nothing of mean and standard deviation": given.get("do_normalize", True)
        and not {"image_mean", "image_std"} <= set(given),
        f"has the filter {resample}": isinstance(resample, str) and resample.lower() not in INTERPOLATIONS,
    }
    return next((problem for problem, found in problems.items() if found), None)


def _crop(given: Mapping[str, Any], kind: str, what: str) -> tuple[int, float, str]:
    """Return size, share that is cropped, and mode."""
    size, crop = given["size"], given.get("crop_size") if given.get("do_center_crop") else None
    if not isinstance(size, Mapping):
        size = {"shortest_edge": size} if kind.startswith(SHORTEST) else {"height": size, "width": size}
    if crop is not None and not isinstance(crop, Mapping):
        crop = {"height": crop, "width": crop}
    for sides in filter(None, (size, crop)):
        if sides.get("height") != sides.get("width"):
            raise UsageError(f"{what}: its images are {sides['height']} x {sides['width']} pixels, tlkit's are square")
    shorter = size.get("shortest_edge")
    resized = shorter or size["height"]
    if kind.startswith("ConvNext") and shorter:
        if shorter >= WARPED:
            return shorter, 1.0, "squash"
        return shorter, shorter / int(shorter / given.get("crop_pct", 0.875)), "center"
    if crop is None and shorter:
        raise UsageError(f"{what}: its image processor crops no square", do="choose another network")
    side = crop["height"] if crop else resized
    if side > resized:
        raise UsageError(f"{what}: its image processor pads images of {resized} to {side} pixels")
    return side, side / resized, "center" if shorter else "squash"


def _rgb(values: Any) -> tuple[float, float, float]:
    red, green, blue = values if isinstance(values, list | tuple) else [values] * 3
    return float(red), float(green), float(blue)
