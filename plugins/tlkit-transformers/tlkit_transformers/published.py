"""Networks that are published on the Hugging Face hub: configuration, image processor and license.

A bundle is opened without the hub, so what decides the structure of a network stands here. What the hub or a folder
says is compared with it before weights are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
OPENAI = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
BILINEAR, BICUBIC = 2, 3  # as Pillow numbers them


@dataclass(frozen=True, slots=True)
class HubEntry:
    """Network on the hub: changes to the defaults of its type, its image processor, and the license of its weights."""

    model_type: str
    config: dict[str, Any]
    processor: dict[str, Any]
    license: str = "Apache-2.0"
    license_class: str | None = field(default=None)


def _square(kind: str, size: int, resample: int, scale: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return a processor that resizes to a square, whatever the shape of an image."""
    sides = {"height": size, "width": size}
    return {"image_processor_type": kind, "size": sides, "resample": resample, **scale, **more}


def _center(kind: str, shorter: int, size: int, scale: dict[str, Any]) -> dict[str, Any]:
    """Return a processor that resizes the shorter side and crops the center."""
    crop = {"do_center_crop": True, "crop_size": {"height": size, "width": size}}
    return {"image_processor_type": kind, "size": {"shortest_edge": shorter}, "resample": BICUBIC, **crop, **scale}


def _convnext(size: int, crop_pct: float = 0.875) -> dict[str, Any]:
    kind = {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": size}, "crop_pct": crop_pct}
    return {**kind, "resample": BICUBIC, **IMAGENET}


def _width(width: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    given = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {**given, "intermediate_size": 4 * width, **more}


def _pyramid(widths: list[int] | None, depths: list[int], **more: Any) -> dict[str, Any]:
    return {**({"hidden_sizes": widths} if widths else {}), "depths": depths, **more}


TINY, SMALL, BASE, LARGE = _width(192, 12, 3), _width(384, 12, 6), _width(768, 12, 12), _width(1024, 24, 16)
GIANT = {"hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 24, "use_swiglu_ffn": True}
DINOV3 = {"license": "LicenseRef-DINOv3", "license_class": "custom"}


def _vits() -> Iterator[tuple[str, HubEntry]]:
    processor = _square("ViTImageProcessor", 224, BILINEAR, HALF)
    for name, sizes in (("base", BASE), ("large", LARGE)):
        for suffix in ("-in21k", ""):
            yield f"google/vit-{name}-patch16-224{suffix}", HubEntry("vit", dict(sizes), processor)
    deit = _square("DeiTImageProcessor", 256, BICUBIC, IMAGENET, do_center_crop=True)
    deit |= {"crop_size": {"height": 224, "width": 224}}
    for name, sizes in (("tiny", TINY), ("small", SMALL), ("base", BASE)):
        yield f"facebook/deit-{name}-patch16-224", HubEntry("vit", dict(sizes), deit)
        yield f"facebook/deit-{name}-distilled-patch16-224", HubEntry("deit", dict(sizes), deit)


def _dinos() -> Iterator[tuple[str, HubEntry]]:
    processor = _center("BitImageProcessor", 256, 224, IMAGENET)
    for name, sizes in (("small", SMALL), ("base", BASE), ("large", LARGE), ("giant", GIANT)):
        config = {key: value for key, value in sizes.items() if key != "intermediate_size"}
        config |= {"image_size": 518, "patch_size": 14}
        yield f"facebook/dinov2-{name}", HubEntry("dinov2", config, processor)
        yield f"facebook/dinov2-with-registers-{name}", HubEntry("dinov2_with_registers", config, processor)
    third = _square("DINOv3ViTImageProcessor", 224, BILINEAR, IMAGENET)
    registers = {"num_register_tokens": 4}
    gated = {**SMALL, "use_gated_mlp": True, "hidden_act": "silu"} | {"intermediate_size": 1536}
    for name, sizes in (("vits16", SMALL), ("vits16plus", gated), ("vitb16", BASE), ("vitl16", LARGE)):
        config = {**sizes, **registers}
        yield f"facebook/dinov3-{name}-pretrain-lvd1689m", HubEntry("dinov3_vit", config, third, **DINOV3)
    for name, widths, depths in CONVNEXT:
        config = _pyramid(widths, depths)
        yield (
            f"facebook/dinov3-convnext-{name}-pretrain-lvd1689m",
            HubEntry("dinov3_convnext", config, third, **DINOV3),
        )


CONVNEXT = (
    ("tiny", [96, 192, 384, 768], [3, 3, 9, 3]),
    ("small", [96, 192, 384, 768], [3, 3, 27, 3]),
    ("base", [128, 256, 512, 1024], [3, 3, 27, 3]),
    ("large", [192, 384, 768, 1536], [3, 3, 27, 3]),
)
CONVNEXT_V2 = (
    ("atto", [40, 80, 160, 320], [2, 2, 6, 2]),
    ("femto", [48, 96, 192, 384], [2, 2, 6, 2]),
    ("pico", [64, 128, 256, 512], [2, 2, 6, 2]),
    ("nano", [80, 160, 320, 640], [2, 2, 8, 2]),
    *CONVNEXT[:1],
    *CONVNEXT[2:],
)
SWIN = (
    ("tiny", 96, [2, 2, 6, 2], [3, 6, 12, 24]),
    ("small", 96, [2, 2, 18, 2], [3, 6, 12, 24]),
    ("base", 128, [2, 2, 18, 2], [4, 8, 16, 32]),
)
RESNET = (
    (18, "basic", [64, 128, 256, 512], [2, 2, 2, 2]),
    (34, "basic", [64, 128, 256, 512], [3, 4, 6, 3]),
    (50, "bottleneck", [256, 512, 1024, 2048], [3, 4, 6, 3]),
    (101, "bottleneck", [256, 512, 1024, 2048], [3, 4, 23, 3]),
    (152, "bottleneck", [256, 512, 1024, 2048], [3, 8, 36, 3]),
)


def _towers() -> Iterator[tuple[str, HubEntry]]:
    for version in ("siglip", "siglip2"):
        for name, sizes, patch, size in (
            ("base", BASE, 16, 224),
            ("base", BASE, 16, 256),
            ("base", BASE, 16, 384),
            ("large", LARGE, 16, 256),
            ("large", LARGE, 16, 384),
            ("so400m", _width(1152, 27, 16) | {"intermediate_size": 4304}, 14, 384),
        ):
            config = {**sizes, "patch_size": patch, "image_size": size}
            processor = _square("SiglipImageProcessor", size, BICUBIC, HALF)
            yield f"google/{version}-{name}-patch{patch}-{size}", HubEntry("siglip_vision_model", config, processor)
    for name, sizes, patch, size in (
        ("base-patch32", BASE, 32, 224),
        ("base-patch16", BASE, 16, 224),
        ("large-patch14", LARGE, 14, 224),
        ("large-patch14-336", LARGE, 14, 336),
    ):
        config = {**sizes, "patch_size": patch, "image_size": size}
        processor = _center("CLIPImageProcessor", size, size, OPENAI)
        yield f"openai/clip-vit-{name}", HubEntry("clip_vision_model", config, processor, "MIT")


def _maps() -> Iterator[tuple[str, HubEntry]]:
    for name, sizes, depths in CONVNEXT:
        config = _pyramid(sizes, depths)
        yield f"facebook/convnext-{name}-224", HubEntry("convnext", config, _convnext(224))
    for name, sizes, depths in CONVNEXT_V2:
        config = _pyramid(sizes, depths)
        yield f"facebook/convnextv2-{name}-1k-224", HubEntry("convnextv2", config, _convnext(224))
    processor = _square("ViTImageProcessor", 224, BICUBIC, IMAGENET)
    larger = _square("ViTImageProcessor", 256, BICUBIC, IMAGENET)
    for name, width, depths, heads in SWIN:
        config = _pyramid(None, depths, embed_dim=width, num_heads=heads)
        yield f"microsoft/swin-{name}-patch4-window7-224", HubEntry("swin", config, processor)
        second = {**config, "image_size": 256, "window_size": 8}
        yield f"microsoft/swinv2-{name}-patch4-window8-256", HubEntry("swinv2", second, larger)
    for number, kind, sizes, depths in RESNET:
        config = _pyramid(sizes, depths, layer_type=kind)
        yield f"microsoft/resnet-{number}", HubEntry("resnet", config, _convnext(224))


ENTRIES: dict[str, HubEntry] = dict([*_vits(), *_dinos(), *_towers(), *_maps()])
