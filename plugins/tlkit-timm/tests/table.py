"""Take architectures of every family apart, examine them, and keep the table: `python table.py --out FILE.md [NAMES]`.

With random weights, `vary`ed so that no layer is without effect. What was found before is kept beside the table and
completed, so that it can be made in several runs; `--check` runs all checks of `tlkit.conformance`, export among them.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from tlkit_timm.backbone import PREFIX, Timm
from tlkit_timm.conformance import TimmReference

from tlkit.conformance import run
from tlkit.conformance.backbone.vary import vary
from tlkit.model.trunk import build

# By family; an architecture may be followed by the size of the images where its own is large.
ARCHITECTURES = {
    "ResNet": "resnet18 resnet26d resnet50 seresnet18 skresnet18 resnest14d",
    "ResNeXt": "resnext50_32x4d",
    "Res2Net": "res2net50_48w_2s res2next50",
    "ResNetV2": "resnetv2_18 resnetv2_50x1_bit",
    "RegNet": "regnetx_002 regnety_002 regnety_004",
    "EfficientNet": "efficientnet_b0 tf_efficientnet_lite0 tf_efficientnetv2_b0 mobilenetv2_050 mnasnet_small",
    "MobileNetV3": "mobilenetv3_small_050 mobilenetv3_large_100 lcnet_050",
    "MobileNetV4": "mobilenetv4_conv_small_050 mobilenetv4_conv_small mobilenetv4_hybrid_medium",
    "ConvNeXt": "convnext_atto convnext_pico",
    "ConvNeXt V2": "convnextv2_atto",
    "DenseNet": "densenet121",
    "ViT": "vit_tiny_patch16_224 vit_small_patch32_224",
    "DeiT": "deit_tiny_patch16_224 deit_tiny_distilled_patch16_224 deit3_small_patch16_224",
    "DINOv2": "vit_small_patch14_dinov2:224 vit_small_patch14_reg4_dinov2:224",
    "DINOv3": "vit_small_patch16_dinov3",
    "SigLIP": "vit_base_patch16_siglip_224",
    "EVA-02": "eva02_tiny_patch14_224",
    "Swin": "swin_tiny_patch4_window7_224 swinv2_tiny_window8_256",
    "MaxViT": "maxvit_rmlp_pico_rw_256",
    "CoAtNet": "coatnet_nano_rw_224",
    "GENet": "gernet_s",
    "RepVGG": "repvgg_a0",
    "MobileOne": "mobileone_s0",
    "NFNet": "nf_regnet_b0",
    "CSPNet": "cs3darknet_focus_s",
    "others": "fastvit_t8 poolformerv2_s12 hgnetv2_b0 rexnet_100 repvit_m1 ghostnet_050 edgenext_xx_small pvt_v2_b0 "
    "levit_128s tiny_vit_5m_224 efficientvit_b0 starnet_s050 mobilevit_xxs",
    "refused": "cait_xxs24_224 vit_base_patch16_rope_mixed_224 crossvit_tiny_240 pit_ti_224",
}


def component(entry: str) -> Timm:
    """The backbone of an entry of the list above."""
    name, _, size = entry.partition(":")
    return Timm(PREFIX + name, size=int(size) if size else None)


def chained(backbone: Timm) -> dict[str, Any]:
    """Return the stages, and how far they are from what timm computes, as a share of the largest value."""
    torch.manual_seed(0)
    network = TimmReference().features(backbone, pretrained=False)
    torch.manual_seed(0)
    trunk = build(backbone, pretrained=False)
    size = backbone.preprocessing.size
    images = torch.randint(0, 256, (2, size, size, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    with torch.inference_mode():
        inputs = trunk.normalize(images)
        vary(network, lambda: network(inputs))
        vary(trunk, lambda: trunk(images))
        expected, got = network(inputs), trunk(images)
    return {
        "pixels": size,
        "stages": len(trunk.names),
        "last": trunk.names[-1],
        "parameters": sum(parameter.numel() for parameter in trunk.parameters()),
        "width": trunk(images).shape[1],
        "difference": float((got - expected).abs().max() / expected.abs().max()),
    }


def examined(backbone: Timm) -> dict[str, Any]:
    """The checks by their state, with the reasons of those that don't simply pass."""
    results = run(backbone)
    graph = {result.name: result.state for result in results if result.name in {"traces", "batch-is-dynamic"}}
    return {
        "passed": sum(result.state == "pass" for result in results),
        "reasons": {r.name: f"{r.state}: {r.reason}" for r in results if r.state in {"fail", "exempt"}},
        "exports": set(graph.values()) == {"pass"},
    }


def lines(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The table."""
    head = "architecture | family | pixels | stages | parameters (M) | width | difference | checks | exported"
    rows = [head, " | ".join(["---"] * (head.count("|") + 1))]
    refused = []
    for family, entries in ARCHITECTURES.items():
        for entry in entries.split():
            row = found.get(entry, {})
            if "refused" in row:
                refused.append(f"- `timm/{entry}`: {row['refused']}")
            elif row:
                rows.append(_row(entry, family, row))
    return [*(f"| {row} |" for row in rows), "", "Refused, with what is said then:", "", *refused]


def _row(entry: str, family: str, row: Mapping[str, Any]) -> str:
    checks = f"{row['passed']} passed" if "passed" in row else ""
    failed = [name for name, reason in row.get("reasons", {}).items() if reason.startswith("fail")]
    checks += f", not {', '.join(failed)}" if failed else ""
    exported = {True: "yes", False: "no", None: ""}[row.get("exports")]
    name, million = f"`timm/{entry.partition(':')[0]}`", f"{row['parameters'] / 1e6:.1f}"
    cells = (
        name,
        family,
        row["preprocessing"],
        row["stages"],
        million,
        row["width"],
        f"{row['difference']:.1g}",
        checks,
    )
    return " | ".join(map(str, (*cells, exported)))


def main() -> None:
    """Examine what is named, or everything that was not yet, and write the table after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    kept = given.out.with_suffix(".json")
    found: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else {}
    known = [entry for entries in ARCHITECTURES.values() for entry in entries.split()]
    lacking = "passed" if given.check else "difference"
    left = [entry for entry in known if not {"refused", lacking} & found.get(entry, {}).keys()]
    for entry in given.names or left:
        try:
            if "difference" not in found.setdefault(entry, {}):
                found[entry].update(chained(component(entry)))
            if given.check:
                found[entry].update(examined(component(entry)))
        except Exception as refusal:  # noqa: BLE001 - whatever it is, it belongs in the table
            found[entry] = {"refused": f"{type(refusal).__name__}: {refusal}"}
        gc.collect()
        kept.write_text(json.dumps(found, indent=1) + "\n")
        given.out.write_text("\n".join([*INTRODUCTION, *lines(found), "", *provenance()]) + "\n")
        print(entry, found[entry])


INTRODUCTION = (
    "# timm's architectures as backbones",
    "",
    (
        "Taken apart by tlkit-timm, with random weights. *difference* is the largest between what the chained stages "
        "give and what timm's own forward pass gives, as a share of the largest value; *checks* are those of "
        "`tlkit.conformance`; *exported* says that all stages trace to one graph with a dynamic batch. Cells are empty "
        "where an architecture was only compared with timm: where it is large, and where PyTorch itself crashes "
        "(RepVGG, GENet, MobileOne and FastViT with PyTorch 2.15 on the CPU: a backward pass of timm's own model on "
        "images with channels last ends in corrupted memory)."
    ),
    "",
)


def provenance() -> list[str]:
    """Return the versions that made the table."""
    return [
        "- command: `python plugins/tlkit-timm/tests/table.py --out benchmarks/results/timm-architectures.md`",
        "- and again with `--check` and names",
        f"- versions: timm {timm.__version__}, torch {torch.__version__}",
    ]


if __name__ == "__main__":
    main()
