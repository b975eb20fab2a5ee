"""Paths of the stages in timm's models. A model of these classes is also run before its stages are used."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Family:
    """Paths of submodules.

    `body` is the container whose children are the stages, or the stages one by one, each the modules that follow each
    other in it; `back` is what `forward_features` runs after the deepest of them.
    """

    body: str | tuple[tuple[str, ...], ...]
    back: tuple[str, ...] = ()

    @property
    def top(self) -> str:
        """The child of the model that the first stage is, or lies in."""
        first = self.body if isinstance(self.body, str) else self.body[0][0]
        return first.partition(".")[0]


def _each(*paths: str) -> tuple[tuple[str, ...], ...]:
    return tuple((path,) for path in paths)


_DENSE = (
    ("features.denseblock1",),
    ("features.transition1", "features.denseblock2"),
    ("features.transition2", "features.denseblock3"),
    ("features.transition3", "features.denseblock4"),
)
_LAYERS = Family(_each("layer1", "layer2", "layer3", "layer4"))
_STAGES = Family("stages")
_STAGES_NORM = Family("stages", ("norm",))
_TOKENS = Family("blocks", ("norm",))

# By the name of the model's class.
FAMILIES = {
    "Beit": _TOKENS,
    "ByobNet": Family("stages", ("final_conv",)),  # GENet, RepVGG, MobileOne, MobileViT, CLIP's ResNets, ...
    "CPUBone": _STAGES,
    "CSATv2": _STAGES,
    "ConvMixer": Family("blocks"),
    "ConvNeXt": Family("stages", ("norm_pre",)),  # V1 and V2
    "CspNet": _STAGES,
    "CspNext": _STAGES,
    "DLA": Family(_each("level2", "level3", "level4", "level5")),
    "DPN": Family("features"),
    "DaVit": Family("stages", ("norm_pre",)),
    "DenseNet": Family(_DENSE, ("features.norm5",)),
    "EdgeNeXt": Family("stages", ("norm_pre",)),
    "EfficientFormer": _STAGES_NORM,
    "EfficientFormerV2": _STAGES_NORM,
    "EfficientNet": Family("blocks", ("conv_head", "bn2")),  # V1, V2, Lite, MobileNetV2, MnasNet, MixNet, TinyNet, ...
    "EfficientVit": _STAGES,
    "EfficientVitLarge": _STAGES,
    "EfficientVitMsra": _STAGES,
    "Eva": _TOKENS,  # EVA, EVA-02, DINOv3, Perception Encoder, ...
    "FastVit": Family("stages", ("final_conv",)),
    "FasterNet": _STAGES,
    "FocalNet": Family("layers", ("norm",)),
    "GhostNet": Family("blocks"),
    "GlobalContextVit": _STAGES,
    "Hiera": Family("blocks"),
    "HieraDet": Family("blocks"),
    "HighPerfGpuNet": _STAGES,
    "IFormer": _STAGES,
    "InceptionV4": Family("features"),
    "LCNetV2": _STAGES,
    "Levit": _STAGES,
    "LevitDistilled": _STAGES,
    "LowFormer": _STAGES,
    "MambaOut": _STAGES,
    "MaxxVit": _STAGES_NORM,  # MaxViT, CoAtNet and their relatives
    "MetaFormer": _STAGES,
    "MetaNeXt": _STAGES,
    "MlpMixer": _TOKENS,
    "MobileNetV3": Family("blocks"),  # V3, V4, LCNet, FBNetV3, HardCoRe-NAS
    "NextViT": _STAGES_NORM,
    "NormFreeNet": Family("stages", ("final_conv", "final_act")),
    "PyramidVisionTransformerV2": _STAGES,
    "RDNet": Family("dense_stages"),
    "RegNet": Family(_each("s1", "s2", "s3", "s4"), ("final_conv",)),
    "RepGhostNet": Family("blocks"),
    "RepVit": _STAGES,
    "ResNet": _LAYERS,  # ResNet, ResNeXt, Res2Net, ResNeSt, SK and SE variants, ...
    "ResNetV2": _STAGES_NORM,  # BiT among them
    "RexNet": Family("features"),
    "SENet": _LAYERS,
    "SHViT": _STAGES,
    "Sequencer2d": _STAGES_NORM,
    "StarNet": _STAGES_NORM,
    "SwiftFormer": _STAGES_NORM,
    "SwinTransformer": Family("layers", ("norm",)),
    "SwinTransformerV2": Family("layers", ("norm",)),
    "SwinTransformerV2Cr": _STAGES,
    "TResNet": Family("body"),
    "TinyVit": _STAGES,
    "VGG": Family("features"),
    "VisionTransformer": _TOKENS,  # ViT, DeiT III, DINOv2, SigLIP, CLIP, ...
    "VisionTransformerDistilled": _TOKENS,
    "VisionTransformerRelPos": _TOKENS,
    "VovNet": _STAGES,
    "XceptionAligned": Family("blocks", ("act",)),
}
