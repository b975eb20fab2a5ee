"""Unknown images, and sets of labels: detectors against maximum softmax and energy, and the coverage that is achieved.

Each class of a set is left out of the training in turn, and is what a detector has to tell, with images of the other
sets, from test images of the other classes. The head is logistic, on the deepest features.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from _bench import DATA, SETS, SETTINGS, Bar, Report, existing, parsed, parser, workspace
from advising.sets import Set, backbone, load, quiet
from tlkit_standard.detectors import DETECTORS
from tlkit_standard.heads import HEADS

from tlkit.evaluation import conformal
from tlkit.graph import compose, trace
from tlkit.model import trunk as trunks
from tlkit.model.modules import head_logits
from tlkit.model.novelty import NovelHead, choose, evenly, fit, raw_scores
from tlkit.model.reference_images import spread
from tlkit.plugin.detection import NOVELTY
from tlkit.runtime.features import extract
from tlkit.runtime.session import OnnxSession, on_disk
from tlkit.training.inputs import Examples
from tlkit.util.statistics import roc_area, softmax

SOFTMAX, CHOSEN = "maximum softmax", "chosen"
MAX_CLASSES = 5  # left out of a set
STRANGERS = 200  # images of the other sets
RUNS = 50  # timed, of each graph
ALONE = "head without a detector"
ORIGIN = ("tlkit", "")


def main() -> int:
    options = parser(__doc__, repeat=1)
    options.add_argument("--data", type=Path, default=DATA, help="folder of the four sets")
    options.add_argument("--most", type=int, default=1500, help="images of a set")
    args = parsed(options)
    sets = [few(load(existing(args.data, "--data"), name), args.most) for name in SETS]
    with workspace():
        features = {data.name: seen(data, [each for each in sets if each is not data]) for data in sets}
        return max(unknown(features), coverage(features))


def few(data: Set, most: int) -> Set:
    """A set with up to so many images, a third of them to test on, the same number of each class."""
    parts = [(data.pool, most - most // 3), (data.test, most // 3)]
    rows = [part[evenly(data.labels[part], count, 0)] for part, count in parts]
    kept, learn = np.concatenate(rows), len(rows[0])
    files = [data.files[row] for row in kept]
    return Set(data.name, files, data.labels[kept], data.classes, np.arange(learn), np.arange(learn, len(kept)))


class Seen(NamedTuple):
    """A set with the deepest features of its images, and those of strangers: images of the other sets."""

    data: Set
    array: np.ndarray
    strangers: np.ndarray


def seen(data: Set, others: list[Set]) -> Seen:
    """The features at the size of input that suits the set."""
    print(data.name, len(data.files), file=sys.stderr, flush=True)
    component = backbone(SETTINGS.backbone)
    trunk = trunks.build(component, preprocessing=None if data.size is None else trunks.resized(component, data.size))
    strangers = [path for other in others for path in spread(list(other.files), STRANGERS // len(others))]
    found = extract(
        [*data.files, *strangers], trace.stage_graph(trunk), trunk.preprocessing, trunk.names, trunk.names[-1], quiet
    ).array
    return Seen(data, found[: len(data.files)], found[len(data.files) :])


def split(data: Set, array: np.ndarray, without: int | None, seed: int) -> tuple[Examples, Examples]:
    """Images to train on and to validate on, without one class, whose number the others then get."""
    rows = data.pool[data.labels[data.pool] != without] if without is not None else data.pool
    _, labels = np.unique(data.labels[rows], return_inverse=True)
    held = np.zeros(len(rows), bool)
    held[evenly(labels, max(2, len(rows) // 5), seed)] = True
    train, val = (Examples(array[rows[part]], labels[part]) for part in (~held, held))
    return train, val


def unknown(features: dict[str, Seen]) -> int:
    report = Report(
        "unknown",
        "Area under the ROC curve (AUROC), and share of known test images above the score that 95 % of the novel ones "
        "reach (FPR95), in percent: means over classes that are left out, for that class (near) and for images of "
        "the other sets (far). The chosen detector is the best one where classes are left out of the training images.",
        {"classes left out of a set": MAX_CLASSES, "images of other sets": STRANGERS, "head": "logistic"},
    )
    names = [SOFTMAX, *(each.name for each in DETECTORS), CHOSEN]
    areas: dict[str, list[float]] = {name: [] for name in names}
    for name, (data, array, strangers) in features.items():
        alone = len(data.classes) < 3  # a head needs two
        results: dict[str, dict[str, list[tuple[float, float]]]] = {each: {} for each in names}
        chosen = []
        for label in [None] if alone else range(min(MAX_CLASSES, len(data.classes))):
            found, best = scored(data, array, label, strangers)
            chosen.append(best)
            for each, places in found.items():
                for place, pair in places.items():
                    results[each].setdefault(place, []).append(pair)
        mean = {
            each: {place: 100 * np.mean(pairs, axis=0) for place, pairs in places.items()}
            for each, places in results.items()
        }
        for place in mean[SOFTMAX]:
            row = {"set": f"{name}, {place}", "chosen": ", ".join(dict.fromkeys(chosen))}
            report.rows.append(row | {each: "{:.1f} / {:.0f}".format(*mean[each][place]) for each in names})
        report.figures[name] = {each: {place: pair.tolist() for place, pair in mean[each].items()} for each in names}
        for each in names:
            areas[each].append(float(np.mean([area for area, _ in mean[each].values()])))
    means = {each: float(np.mean(found)) for each, found in areas.items()}
    report.rows.append({"set": "mean of sets", "chosen": "", **{each: f"{mean:.1f}" for each, mean in means.items()}})
    best = max(mean for each, mean in means.items() if each != CHOSEN)
    report.bars.append(Bar("AUROC above maximum softmax's, points", [means[CHOSEN] - means[SOFTMAX]], "≥", 5))
    report.bars.append(Bar("AUROC below that of the best on average, points", [best - means[CHOSEN]], "≤", 2))
    share = 100 * cost(features, report)
    report.bars.append(Bar("time of the slowest detector, of the model's", [share], "≤", 5, " %"))
    return report.save()


def cost(features: dict[str, Seen], report: Report) -> float:
    """The share of the slowest detector in the time of a model, on one thread and images of one at a time."""
    data, array, _ = next(iter(features.values()))
    train, _ = split(data, array, None, 0)
    head = solved(train)
    trunk = trunks.build(backbone(SETTINGS.backbone))
    size = trunk.preprocessing.size
    graph = compose.cut_graph(onnx.load_model(trace.stage_graph(trunk)), trunk.names[-1])
    graphs = {ALONE: trace.head_graph(head, trunk.width)}
    for detector in DETECTORS:
        novel = NovelHead(head, fit(detector, train.features, train.labels, head, 0))
        graphs[detector.name] = trace.head_graph(novel, trunk.width, [NOVELTY])
    times = {name: timed(each, np.ascontiguousarray(train.features[:1])) for name, each in graphs.items()}
    model = timed(graph, np.zeros((1, size, size, 3), np.uint8)) + times[ALONE]
    report.figures["seconds"] = {**times, "model": model}
    return max(times[each.name] - times[ALONE] for each in DETECTORS) / model


def timed(graph: onnx.ModelProto, array: np.ndarray) -> float:
    """The median time of a graph for an array."""
    with on_disk(graph) as file, OnnxSession(file, threads=1) as session:
        session.run(array)
        times = []
        for _ in range(RUNS):
            start = time.perf_counter()
            session.run(array)
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def scored(
    data: Set, array: np.ndarray, label: int | None, strangers: np.ndarray
) -> tuple[dict[str, dict[str, tuple[float, float]]], str]:
    """AUROC and FPR95, near and far, of every detector with a class left out, and the name of the chosen one."""
    train, _ = split(data, array, label, 0)
    head = solved(train)
    known = array[data.test[data.labels[data.test] != label]] if label is not None else array[data.test]
    novel = {"far": strangers} if label is None else {"near": array[data.labels == label], "far": strangers}
    scores: dict[str, Any] = {SOFTMAX: lambda rows: -softmax(head_logits(head, rows)).max(1)}
    for detector in DETECTORS:
        fitted = fit(detector, train.features, train.labels, head, 0)
        scores[detector.name] = lambda images, fitted=fitted: raw_scores(fitted, images)
    best = choose(dict.fromkeys(DETECTORS, ORIGIN), HEADS[0], train, 0)[0].name
    scores[CHOSEN] = scores[best]
    found = {}
    for name, score in scores.items():
        own = score(known)
        found[name] = {
            place: (roc_area(each, own), float((own >= np.quantile(each, 0.05)).mean()))
            for place, each in ((place, score(images)) for place, images in novel.items())
        }
    return found, best


def solved(train: Examples) -> Any:
    """The default head, solved."""
    return HEADS[0].solve(train.features, train.labels, int(train.labels.max()) + 1, 0).eval()


def coverage(features: dict[str, Seen]) -> int:
    report = Report(
        "coverage",
        "Share of test images whose set of labels holds the right one, with thresholds from validation images that "
        "fitted neither the head nor its temperature; and the mean number of labels in a set.",
        {"head": "logistic", "validation": "a fifth of the images to learn from"},
    )
    below = far_below = 0
    for name, (data, array, _) in features.items():
        train, val = split(data, array, None, 0)
        head = solved(train)
        thresholds = conformal.fit(softmax(head_logits(head, val.features)), val.labels)
        probabilities = softmax(head_logits(head, array[data.test]))
        row = {"set": name, "validation images": str(len(val.labels)), "test images": str(len(data.test))}
        for each in conformal.achieved(thresholds, probabilities, data.labels[data.test]):
            low, high = each.interval
            below += high < each.coverage
            # The thresholds are drawn too: their coverage varies by the binomial of the validation images.
            far_below += high + 1.96 * (each.coverage * (1 - each.coverage) / len(val.labels)) ** 0.5 < each.coverage
            row[f"{each.coverage:.0%}"] = f"{each.achieved:.1%} ({low:.1%} to {high:.1%}), {each.set_size:.2f} labels"
            report.figures.setdefault(name, {})[f"{each.coverage:.0%}"] = [each.achieved, low, high, each.set_size]
        report.rows.append(row)
    report.notes.append(
        "A set always has the most probable label: a coverage below the accuracy is exceeded, with one label."
    )
    report.bars.append(Bar("wished coverages above the interval of the achieved one", [below], "=", 0, digits=0))
    what = "those above it with the draw of the validation images"
    report.bars.append(Bar(what, [far_below], "=", 0, digits=0))
    return report.save()


if __name__ == "__main__":
    sys.exit(main())
