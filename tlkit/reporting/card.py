"""A model card in the format of Hugging Face: data, license, metrics with intervals, limits, and a report's pictures.

Mitchell et al., "Model Cards for Model Reporting", FAT* 2019. Nothing is sent anywhere.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from tlkit.errors import one_line, require
from tlkit.evaluation.metrics import Metrics
from tlkit.model.bundle import Bundle
from tlkit.pages.html import asset
from tlkit.reporting import figures
from tlkit.reporting.confusions import ordered
from tlkit.reporting.run import Report
from tlkit.util.files import atomic_file, check_own
from tlkit.util.text import counted, listed, span

FILE, PICTURES = "README.md", "card"
MARK = re.compile(r"\n<!-- tlkit card ([0-9a-f]{64}) -->\n")
FEW, SHOWN = 30, 40  # images of a class that its recall says little with; classes that are listed
# What Hugging Face lists: https://huggingface.co/docs/hub/repositories-licenses
LICENSES = re.compile(
    r"afl-3\.0|[al]?gpl-[23](\.[01])?|apache-2\.0|artistic-2\.0|bsd-[23]-clause|bsl-1\.0|cc0-1\.0"
    r"|cc-by(-nc)?(-sa|-nd)?-[234]\.0|cdla-(sharing|permissive)-[12]\.0|ecl-2\.0|epl-[12]\.0|eupl-1\.[12]|isc|mit"
    r"|mpl-2\.0|ms-pl|ncsa|ofl-1\.1|osl-3\.0|postgresql|unlicense|wtfpl|zlib"
)
SVG = 'xmlns="http://www.w3.org/2000/svg"'


@dataclass(frozen=True)
class Card:
    """A model card: its text, Markdown with metadata in YAML, and pictures as SVG by their names."""

    text: str
    pictures: Mapping[str, str] = field(repr=False)

    def __repr__(self) -> str:
        return self.text

    def _repr_markdown_(self) -> str:
        return self.text.split("---\n", 2)[2]

    def to_json(self) -> dict[str, Any]:
        """Return the text and the names of the pictures."""
        return {"text": self.text, "pictures": sorted(self.pictures)}

    def save(self, folder: Path) -> Path:
        """Write README.md into a folder, with the pictures in the folder card beside it; return its place."""
        for name, drawing in self.pictures.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(folder / name) as temporary:
                temporary.write_text(drawing, "utf-8")
        with atomic_file(folder / FILE, check=_check) as temporary:
            digest = hashlib.sha256(self.text.encode()).hexdigest()
            temporary.write_text(f"{self.text}\n<!-- tlkit card {digest} -->\n", "utf-8")
        return folder / FILE


def check(folder: Path | None) -> None:
    """Refuse, before any work, to make a card without the package, or to replace one that somebody edited."""
    require("huggingface_hub", "a model card")
    if folder is not None:
        _check(folder / FILE)


def _check(file: Path) -> None:
    check_own(file, _is_unchanged)


def _is_unchanged(file: Path) -> bool:
    text = file.read_text("utf-8", errors="replace")
    mark = MARK.search(text)
    return mark is not None and hashlib.sha256(text[: mark.start()].encode()).hexdigest() == mark[1]


def card(bundle: Bundle, report: Report | None = None) -> Card:
    """Return the card of a bundle, with the metrics of its validation images and those of a report on others."""
    metrics = {"validation": Metrics.from_json(bundle.record.metrics["val"])}
    if report is not None:
        metrics[f"{report.source} ({report.split})"] = report.metrics
    pictures = _pictures(bundle, list(metrics.values())[-1], report)
    name = bundle.root.absolute().name
    parts = [
        f"# {_text(name)}",
        *_summary(bundle),
        *_use(bundle),
        *_data(bundle, metrics["validation"], report),
        *_results(metrics, report),
        *(f"![{title}]({file})" for file, title in _titles(pictures)),
        *_limits(bundle, metrics, report),
        *_origin(bundle),
    ]
    content = "\n\n".join(parts) + "\n"
    return Card(f"---\n{_metadata(bundle, name, metrics)}\n---\n\n{content}", pictures)


def _metadata(bundle: Bundle, name: str, metrics: Mapping[str, Metrics]) -> str:
    """Return the metadata of the card as YAML."""
    from huggingface_hub import EvalResult, ModelCardData

    results = []
    for place, found in metrics.items():
        low, high = found.interval
        values: dict[str, tuple[float, dict[str, Any]]] = {
            "accuracy": (found.accuracy, {"interval_95": [round(low, 4), round(high, 4)], "images": found.images}),
            "f1": (found.macro_f1, {"average": "macro"}),
        }
        for kind, (value, arguments) in values.items():
            each = EvalResult(
                task_type="image-classification",
                dataset_type="imagefolder",
                dataset_name=one_line(place),
                dataset_config=one_line(place),
                metric_type=kind,
                metric_value=round(value, 4),
                metric_args=arguments,
            )
            results.append(each)
    data = ModelCardData(
        library_name="tlkit",
        pipeline_tag="image-classification",
        tags=["image-classification", "onnx", "transfer-learning"],
        metrics=["accuracy", "f1"],
        model_name=one_line(name),
        eval_results=results,
        **_license(bundle.record.weights),
    )
    return data.to_yaml().strip()


def _license(weights: Mapping[str, Any]) -> dict[str, Any]:
    spdx = str(weights.get("license", ""))
    if LICENSES.fullmatch(own := spdx.lower()):
        return {"license": own}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", spdx.lower()).strip("-") or "unknown"}


def _summary(bundle: Bundle) -> Iterator[str]:
    record = bundle.record
    labels = listed((_text(label) for label in record.labels), SHOWN)
    backbone, head = (_text(each.name) for each in (record.backbone, record.head))
    made = f"Backbone {backbone} up to its stage {record.cut}, head {head}, strategy {_text(record.strategy.name)}"
    classes = counted(len(record.labels), "class", "classes")
    yield f"An image classifier of {classes}: {labels}. {made}, by [tlkit](https://pypi.org/project/tlkit/)."


def _use(bundle: Bundle) -> Iterator[str]:
    yield "## Use"
    yield "```console\n$ pip install tlkit\n$ tlkit predict onnx/fp32/model.onnx a.jpg\n```"
    size = bundle.record.preprocessing.size
    yield (
        f"`model.onnx` takes images, uint8 `(N, {size}, {size}, 3)`, normalizes them itself, and gives `features`, "
        "`logits` and `probabilities`; labels and preprocessing are in its metadata. `tlkit verify .` replays the "
        "golden images, and compares it with the trained model."
    )


def _data(bundle: Bundle, val: Metrics, report: Report | None) -> Iterator[str]:
    record, sizes = bundle.record, val.confusion.sum(1).tolist()
    images = record.data["images"]
    yield "## Data"
    chosen = "given with the data" if record.data.get("given_split") else "drawn at random"
    yield (
        f"{images['train']:,} images to train on and {images['val']:,} to validate on, a split that was {chosen}; "
        f"{counted(len(record.data.get('rejected', ())), 'image')} could not be read."
    )
    if report is not None:
        yield f"{report.metrics.images:,} further images of {_text(report.source)} ({report.split}) to report on."
    rows = [[_text(label), f"{size:,}"] for label, size in zip(record.labels, sizes, strict=True)][:SHOWN]
    yield _table(["class", "validation images"], rows)


def _results(metrics: Mapping[str, Metrics], report: Report | None) -> Iterator[str]:
    yield "## Results"
    rows = []
    for place, each in metrics.items():
        accuracy = f"{each.accuracy:.1%} ({span(each.interval)})"
        balanced = f"{each.balanced_accuracy:.1%} ({span(each.balanced_interval)})"
        others = [f"{each.macro_f1:.3f}", f"{each.ece:.3f}", f"{each.majority:.1%}"]
        rows.append([_text(place), f"{each.images:,}", accuracy, balanced, *others])
    columns = ["images of", "number", "accuracy (95 %)", "balanced accuracy (95 %)", "macro-F1"]
    yield _table([*columns, "calibration error", "most frequent class"], rows)
    if report is not None and report.coverage:
        sets = [
            [f"{e.coverage:.0%}", f"{e.achieved:.1%} ({span(e.interval)})", f"{e.set_size:.2f}"]
            for e in report.coverage
        ]
        yield "Sets of labels (split conformal prediction):"
        yield _table(["coverage", "achieved (95 %)", "labels in a set"], sets)


def _limits(bundle: Bundle, metrics: Mapping[str, Metrics], report: Report | None) -> Iterator[str]:
    record, latest = bundle.record, list(metrics.values())[-1]
    yield "## Limits"
    limits = [_text(str(each)) for each in report.findings] if report is not None else []
    if report is None:
        limits.append("The metrics are of validation images, which may have decided on options: expect less on others.")
    sizes = latest.confusion.sum(1).tolist()
    few = [_text(label) for label, size in zip(record.labels, sizes, strict=True) if size < FEW]
    if few:
        limits.append(f"Classes with fewer than {FEW} images to judge them by: {listed(few, SHOWN)}.")
    if record.novelty:
        limits.append("Images of no known class get a label too; `tlkit predict --unknown` tells most of them.")
    else:
        limits.append("Images of no known class get a label too, and nothing tells them.")
    limits.append("It was not examined for bias towards people or places beyond what stands here.")
    if record.golden:
        copies = counted(len(record.golden), "validation image")
        limits.append(f"`golden/` holds copies of {copies}: publish them only if you may.")
    yield "\n".join(f"- {each}" for each in limits)


def _origin(bundle: Bundle) -> Iterator[str]:
    record, weights = bundle.record, bundle.record.weights
    yield "## License and origin"
    named = f"{weights['license']} ({weights.get('license_class', 'unknown')})"
    yield (
        f"The pretrained weights are those of {_text(weights['origin'])}, license {_text(named)}. "
        "The license of the training images is not known to tlkit: name it here."
    )
    plugins = {f"{each.distribution} {each.version}" for each in (record.backbone, record.head, record.strategy)}
    yield f"Bundle `{bundle.digest[:16]}`, made with {_text(', '.join(sorted(plugins)))}, seed {record.seed}."


def _pictures(bundle: Bundle, metrics: Metrics, report: Report | None) -> dict[str, str]:
    """Return the drawings of a report, each as a file of its own."""
    found = {
        "confusion": figures.matrix(metrics.confusion, ordered(metrics.confusion), bundle.record.labels),
        "reliability": figures.reliability(metrics),
    }
    if report is not None:
        found["coverage"] = figures.coverage(report.selective)
    style = f"><style>{asset('card.css')}</style>"
    return {
        f"{PICTURES}/{name}.svg": drawing.replace("<svg", f"<svg {SVG}", 1).replace(">", style, 1)
        for name, drawing in found.items()
    }


def _titles(pictures: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    titles = {"confusion": "Confusion matrix", "reliability": "Reliability", "coverage": "Accuracy against coverage"}
    yield from ((file, titles[Path(file).stem]) for file in pictures)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: object) -> str:
    """Return text on one line in which nothing is Markdown or HTML."""
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", escape(one_line(str(value)), quote=False))
