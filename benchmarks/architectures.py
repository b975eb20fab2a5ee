"""Networks of timm, torchvision and transformers as backbones: taken apart, checked, and compared with their library.

`timm` draws architectures at random; `torchvision` and `transformers` take one network of each family. Weights are
random. Each is compared with the library's own forward pass behind its own preprocessing on twenty pictures: as they
are, and with sides that the library needs not round to whole pixels before it crops, as tlkit does not. Then the checks
of `tlkit.conformance` run on small images: at the smallest of 96, 128 and 160 pixels where the network has the
stages that it has at its own size, else at its own.

Each comparison and each set of checks runs in a process of its own with a limit of CPU time, and is a file in `--rows`:
what was interrupted is continued, and what is there is not made again. Remove a file, or the folder, to make it again.
"""

from __future__ import annotations

import functools
import json
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module, metadata
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from _bench import ROOT, SETTINGS, Bar, Report, limited, parsed, parser

sys.path.insert(0, str(ROOT))

from tests.kit.forks import PRELOADED

LIBRARIES = ("torchvision", "transformers", "timm")
SEED = 13
LARGEST = 5e6, 256  # parameters and pixels of what is drawn
LEGACY = r"legacy_|test_"  # as timm calls them, and the tiny ones of its tests
SMALL = (96, 128, 160)  # pixels
LIMIT = 600  # seconds of CPU time of a comparison, and of a set of checks
SMALLEST = ("chains", "features-equal-the-library")  # checks at the smallest setting

# One network of each family, at the smallest size of images that shows all of its layers.
TORCHVISION = {
    "ResNet": ("resnet18", 64),
    "ResNeXt": ("resnext50_32x4d", 64),
    "RegNet": ("regnet_y_400mf", 64),
    "ConvNeXt": ("convnext_tiny", 64),
    "EfficientNet": ("efficientnet_b0", 64),
    "EfficientNet V2": ("efficientnet_v2_s", 128),
    "MobileNetV3": ("mobilenet_v3_small", 64),
    "Swin": ("swin_t", 64),
    "Swin V2": ("swin_v2_t", 64),
    "ViT": ("vit_b_32", 64),
    "MaxViT": ("maxvit_t", 224),
}

Row = dict[str, Any]


class Architecture(NamedTuple):
    """Network to examine: the component at its own size, and the one whose checks run."""

    family: str
    name: str
    own: Callable[[], Any]
    small: Callable[[], Any]


def main() -> int:
    options = parser(__doc__, repeat=1)
    options.add_argument("libraries", nargs="*", metavar="LIBRARY", help=f"of {', '.join(LIBRARIES)} (default: all)")
    options.add_argument("--count", type=int, default=60, help="architectures of timm to draw")
    options.add_argument("--rows", type=Path, help="folder of what was found so far (default: build/architectures)")
    options.add_argument("--most", type=int, metavar="N", help="make at most so many records (default: all)")
    args = parsed(options, count=1)
    code = 0
    for library in (name for name in LIBRARIES if name in (args.libraries or LIBRARIES)):
        sys.path.insert(0, str(ROOT / "plugins" / f"tlkit-{library}"))
        folder = args.rows or (args.results / "rows" if SETTINGS.smallest else ROOT / "build/architectures")
        place = folder / f"{library}-{metadata.version(library)}"
        cases = list(drawn(args.count, place) if library == "timm" else families(library))
        rows = examined(library, cases, place, args.most)
        code |= report(library, rows, args.count).save()
    return code


def examined(library: str, cases: list[Architecture], folder: Path, most: int | None) -> list[Row]:
    """Return a row per architecture, of the records in `folder`; `most` are made that are not there: comparisons first.

    Without `most`, all of them are made.
    """
    left = most
    rows: dict[str, Row] = {case.name: {"name": case.name, "family": case.family} for case in cases}
    for step in (compared, checked):
        for case in cases:
            row = rows[case.name]
            if "reason" not in row:
                record = folder / f"{case.name.replace('/', '--')}.{step.__name__}.json"
                if not record.exists():
                    if left == 0:
                        row |= {"state": "unfinished", "reason": f"not {step.__name__} yet"}
                        continue
                    left = None if left is None else left - 1
                    preload(library)
                row |= kept(record, lambda case=case, step=step: attempted(library, case, step))
    for row in rows.values():
        right = "reason" not in row and row["difference"] <= 1e-4 and row["cosine"] >= 0.9999 and not row["failed"]
        row.setdefault("state", "pass" if right else "failed")
        row["seconds"] = sum(value for key, value in row.items() if key.endswith(" seconds"))
    return list(rows.values())


@functools.cache
def preload(library: str) -> None:
    """Import what most steps need, once, in the process that they are forked from."""
    for name in PRELOADED:
        import_module(name)
    if library in LIBRARIES:
        import_module(f"tlkit_{library}.conformance")


def kept(record: Path, make: Callable[[], Row]) -> Row:
    """Return what a record holds; without one, make it in a process of its own and keep it."""
    if not record.exists():
        record.parent.mkdir(parents=True, exist_ok=True)
        row = limited(make, LIMIT)
        partial = record.with_suffix(".partial")
        partial.write_text(json.dumps(row))
        os.replace(partial, record)
        print(record.stem, row, file=sys.stderr, flush=True)
    found: Row = json.loads(record.read_text())
    return found


def attempted(library: str, case: Architecture, step: Callable[[Architecture, Any], Row]) -> Row:
    """Return what a step finds, with the seconds of CPU time that it took, or the reason why it finds nothing."""
    from tlkit.errors import UsageError

    module = import_module(f"tlkit_{library}.conformance")
    reference = next(value for name, value in vars(module).items() if name.lower() == f"{library}reference")()
    started = time.process_time()
    try:
        row = step(case, reference)
    except UsageError as refusal:
        row = {"state": "refused", "reason": str(refusal)}
    except Exception as error:  # noqa: BLE001 - whatever it is, it belongs in the table
        row = {"state": "failed", "reason": f"{type(error).__name__}: {error}"}
    return row | {f"{step.__name__} seconds": time.process_time() - started}


def drawn(count: int, folder: Path) -> Iterator[Architecture]:
    """Yield `count` architectures of timm that are not legacy and not too large, drawn at random."""
    import timm
    from tlkit_timm.backbone import PREFIX, Timm

    for name in kept(folder / f"drawn-{count}-{LARGEST[0]:.0f}.json", lambda: {"names": draw(count)})["names"]:
        family = timm.model_entrypoint(name).__module__.rpartition(".")[2]
        make = lambda name=name: Timm(PREFIX + name)  # noqa: E731
        yield Architecture(family, PREFIX + name, make, lambda make=make: smaller(make()))


def draw(count: int) -> list[str]:
    import timm
    from timm.models import get_pretrained_cfg

    names = ["test_vit"] if SETTINGS.smallest else [name for name in timm.list_models() if not re.match(LEGACY, name)]
    random.Random(SEED).shuffle(names)
    fitting = (
        name
        for name in names
        if max(get_pretrained_cfg(name).input_size[1:]) <= LARGEST[1] and parameters(name) <= LARGEST[0]
    )
    return list(islice(fitting, count))


def smaller(component: Any) -> Any:
    """Return the component for the smallest images at which it has the stages that it has at its own size."""
    return at_first_size(component, [size for size in SMALL if size < component.preprocessing.size])


def without_half_a_pixel(component: Any) -> Any:
    """Return a component of timm at the nearest size at which its crop begins at a whole pixel of the resized image.

    timm rounds where a crop begins, and half a pixel is rounded whatever the size of a picture; tlkit does not round.
    """
    if not component.name.startswith("timm/") or component.known.crop_mode != "center":
        return component
    own, share = component.preprocessing.size, component.known.crop_pct
    nearest = sorted(range(own - own // 4, own + own // 4), key=lambda size: abs(size - own))
    return at_first_size(component, [size for size in nearest if (int(size / share) - size) % 2 == 0])


def at_first_size(component: Any, sizes: list[int]) -> Any:
    """Return the component at the first of the sizes at which it has the stages of its own size; as it is, if none."""
    from dataclasses import replace

    from tlkit_timm import loading, stages

    from tlkit.errors import UsageError

    own = component.preprocessing.size
    names: list[str] = []
    for size in sizes:
        if size == own:
            return component
        names = names or list(stages.stages(loading.outline(component.known, None), own))
        try:
            if list(stages.stages(loading.outline(component.known, size), size)) == names:
                return replace(component, size=size)
        except (UsageError, AssertionError, RuntimeError, ValueError):  # how timm refuses a size
            continue
    return component


def parameters(name: str) -> int:
    import timm
    import torch

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in timm.create_model(name).parameters())


def families(library: str) -> Iterator[Architecture]:
    """Yield one network of each family of a library, and the same for small images."""
    if library == "torchvision":
        from tlkit_torchvision.backbone import PREFIX, Torchvision

        known = {"MobileNetV3": TORCHVISION["MobileNetV3"]} if SETTINGS.smallest else TORCHVISION
        for family, (name, size) in known.items():
            sizes = size if SETTINGS.smallest else None, size
            own, small = (lambda n=PREFIX + name, size=size: Torchvision(n, size=size) for size in sizes)
            yield Architecture(family, PREFIX + name, own, small)
        return
    sys.path.insert(0, str(ROOT / "plugins/tlkit-transformers/tests"))
    from small import FAMILIES, small
    from tlkit_transformers.backbone import PREFIX, Transformers

    for family, (name, _) in list(FAMILIES.items())[: 1 if SETTINGS.smallest else None]:
        own = lambda name=name: Transformers(PREFIX + name)  # noqa: E731
        few = lambda family=family: small(family)  # noqa: E731
        yield Architecture(family, PREFIX + name, few if SETTINGS.smallest else own, few)


def compared(case: Architecture, reference: Any) -> Row:
    """Return how far features are from the library's: of the same images, and behind its own preprocessing."""
    import torch

    from tlkit.conformance.backbone.vary import vary
    from tlkit.conformance.pictures import preprocessed
    from tlkit.model.trunk import build

    component = without_half_a_pixel(case.own())
    torch.manual_seed(0)
    network = reference.features(component, pretrained=False)
    torch.manual_seed(0)
    trunk = build(component, pretrained=False)
    size = trunk.preprocessing.size
    images = torch.randint(0, 256, (2, size, size, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    images = torch.cat([images, torch.as_tensor(preprocessed(trunk.preprocessing))])
    with torch.inference_mode():
        vary(network, lambda: network(trunk.normalize(images)))
        vary(trunk, lambda: trunk(images))
        expected, got = network(trunk.normalize(images)), trunk(images)
    return {
        "pixels": size,
        "stages": len(trunk.names),
        "last": trunk.names[-1],
        "parameters": sum(parameter.numel() for parameter in trunk.parameters()),
        "difference": float((got - expected).abs().max() / expected.abs().max()),
        **cosines(component, reference, trunk, network),
    }


def cosines(component: Any, reference: Any, trunk: Any, network: Any) -> Row:
    """Return the smallest cosine between features, of pictures with sides to crop at whole pixels, and as they are."""
    import torch

    from tlkit.conformance.pictures import pictures
    from tlkit.data.preprocessing import load

    found: dict[str, float] = {}
    preprocess = reference.preprocess(component)
    given = trunk.preprocessing
    shorter = round(given.size / given.crop_pct)
    whole = [(2 * shorter, 2 * (shorter + 2 * step)) for step in (0, 8, 31)]
    few = 2 if SETTINGS.smallest else 20
    for kind, count in (("cosine", few), ("cosine of any size", few // 4 + 1)):
        shown = list(pictures()[:count])
        if kind == "cosine":
            sides = whole if given.crop_mode == "center" else [(2 * shorter, 2 * shorter)]
            turned = [sides[number % len(sides)][:: 1 if number % 2 else -1] for number in range(count)]
            shown = [picture.resize(size) for picture, size in zip(shown, turned, strict=True)]
        theirs = torch.stack([torch.as_tensor(preprocess(picture)) for picture in shown])
        ours = torch.stack([torch.as_tensor(load(picture, given)) for picture in shown])
        with torch.inference_mode():
            expected, got = network(theirs).double(), trunk(ours).double()
        found[kind] = float(torch.cosine_similarity(expected, got).min())
    return found


def checked(case: Architecture, reference: Any) -> Row:
    """Return how many checks of `tlkit.conformance` passed, and the reasons of those that did not.

    Preprocessing, and what fails on small images, is checked at the size of the weights: where the last maps have a few
    pixels, random weights magnify the rounding of float16 and int8.
    """
    import torch

    from tlkit.conformance import run

    torch.manual_seed(0)
    preprocessing = "preprocessing-equals-the-library"
    small = case.small()
    results = run(small, reference=reference, only=SMALLEST if SETTINGS.smallest else ())
    again = [result.name for result in results if result.state == "fail" and result.name != preprocessing]
    results = [result for result in results if result.name not in (preprocessing, *again)]
    torch.manual_seed(0)
    results += run(case.own(), reference=reference, only=[preprocessing, *again])
    count = {state: sum(result.state == state for result in results) for state in ("pass", "exempt", "skip")}
    failed = {result.name: result.reason for result in results if result.state == "fail"}
    return {"checked pixels": small.preprocessing.size, "checks": count, "failed": failed, "again": again}


def report(library: str, rows: list[Row], count: int) -> Report:
    what = {
        "timm": f"{len(rows)} architectures of timm, drawn at random (seed {SEED}) from those that are not legacy, "
        f"have at most {LARGEST[0] / 1e6:.0f} million parameters and take images of at most {LARGEST[1]} pixels.",
        "torchvision": "One network of each family of torchvision.",
        "transformers": "One network of each family of transformers, as published, and for the checks with two layers.",
    }[library]
    made = Report(
        f"architectures-{library}",
        f"{what} Random weights, varied so that every layer has an effect. *difference*: the largest between pooled "
        "features of the chained stages and of the library's own forward pass, as a share of the largest value. "
        "*cosine*: the smallest between features behind tlkit's and behind the library's own preprocessing, of twenty "
        "pictures with sides that leave nothing to round; *any size*: of six pictures of other sizes, where the "
        "library rounds to whole pixels. *checks*: those of conformance that passed, at that many pixels.",
        {"count": count, "seed": SEED} if library == "timm" else {"count": len(rows)},
    )
    made.figures["rows"] = rows
    made.rows = [cells(row) for row in rows] or [cells({"name": "none", "family": "", "state": "failed"})]
    passed = 100 * sum(row["state"] == "pass" for row in rows) / max(len(rows), 1)
    made.bars.append(Bar("taken apart and passing", [passed], "≥", 90 if library == "timm" else 95, " %", 1))
    made.notes += [f"{row['name']} {row['state']}: {why(row)}" for row in rows if row["state"] != "pass"]
    measured = [row for row in rows if "difference" in row]
    equal, close = (
        sum(row["difference"] <= 1e-4 for row in measured),
        sum(row["cosine"] >= 0.9999 for row in measured),
    )
    made.notes.append(
        f"{len(measured)} of {len(rows)} compared: {equal} with equal features of the same images, {close} with a "
        f"cosine of at least 0.9999 behind its own preprocessing; {sum('checks' in row for row in rows)} checked"
    )
    larger = [f"{row['name']} ({', '.join(row['again'])})" for row in rows if row.get("again")]
    if larger:
        made.notes.append(f"Failed on small images, and checked again at the size of the weights: {'; '.join(larger)}")
    made.notes.append(f"{sum(row['seconds'] for row in rows):.0f} s of CPU time in all, {LIMIT} s at most for a step")
    return made


def why(row: Row) -> str:
    if "reason" in row:
        return str(row["reason"])
    failed: Mapping[str, str] = row.get("failed", {})
    return "; ".join(f"{name}: {reason}" for name, reason in failed.items()) or "features differ from the library's"


def cells(row: Row) -> dict[str, str]:
    checks = row.get("checks", {})
    return {
        "architecture": row["name"],
        "family": row["family"],
        "state": row["state"],
        "pixels": str(row.get("pixels", "")),
        "stages": str(row.get("stages", "")),
        "parameters (M)": f"{row['parameters'] / 1e6:.2f}" if "parameters" in row else "",
        "difference": f"{row['difference']:.0e}" if "difference" in row else "",
        "cosine": f"{row['cosine']:.6f}" if "cosine" in row else "",
        "any size": f"{row['cosine of any size']:.4f}" if "cosine" in row else "",
        "checks": f"{checks['pass']} of {checks['pass'] + len(row['failed'])} at {row['checked pixels']}"
        if checks
        else "",
    }


if __name__ == "__main__":
    sys.exit(main())
