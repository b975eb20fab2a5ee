"""One network of each family, with two layers and a width of 32: built in milliseconds."""

from __future__ import annotations

import json

from tlkit_transformers.backbone import PREFIX, Transformers

TOKENS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
WIDE = {**TOKENS, "intermediate_size": 64}
MAPS = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
WINDOWS = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
FAMILIES = {
    "ViT": ("google/vit-base-patch16-224", WIDE),
    "DeiT": ("facebook/deit-tiny-distilled-patch16-224", WIDE),
    "DINOv2": ("facebook/dinov2-small", TOKENS),
    "DINOv2 with registers": ("facebook/dinov2-with-registers-small", TOKENS),
    "DINOv3": ("facebook/dinov3-vits16-pretrain-lvd1689m", WIDE),
    "DINOv3 ConvNeXt": ("facebook/dinov3-convnext-tiny-pretrain-lvd1689m", MAPS),
    "SigLIP": ("google/siglip-base-patch16-224", WIDE),
    "CLIP": ("openai/clip-vit-base-patch32", WIDE),
    "ConvNeXt": ("facebook/convnext-tiny-224", MAPS),
    "ConvNeXt V2": ("facebook/convnextv2-atto-1k-224", MAPS),
    "Swin": ("microsoft/swin-tiny-patch4-window7-224", WINDOWS),
    "Swin V2": ("microsoft/swinv2-tiny-patch4-window8-256", WINDOWS),
    "ResNet": ("microsoft/resnet-18", {**MAPS, "embedding_size": 8}),
}
SIZES = {"DINOv3 ConvNeXt": 64, "ConvNeXt": 64, "ConvNeXt V2": 64, "ResNet": 64}  # the others: 32


def small(family: str, **options: object) -> Transformers:
    """Return the small network of a family; `options` replace those that make it small."""
    name, config = FAMILIES[family]
    given = {"config": json.dumps(config), "size": SIZES.get(family, 32), **options}
    return Transformers(PREFIX + name, **given)  # type: ignore[arg-type]
