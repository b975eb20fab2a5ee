"""The advice as pictures, PNG bytes each: accuracy and shift against depth, and maps of the images."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from tlkit.data.images import Rejected, load
from tlkit.learn.advise.advice import Advice
from tlkit.learn.advise.evidence import Sight, draw
from tlkit.learn.advise.probes import front
from tlkit.plugin.contract import Pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

MOST_POINTS, MOST_THUMBNAILS = 800, 60
THUMBNAIL = Pixels(28, mean=(0.5,) * 3, std=(0.5,) * 3, crop=1.0, filter="bilinear")
COMPONENTS = 50  # that t-SNE starts from, as its authors do


def depth(sights: Sequence[Sight]) -> bytes:
    """The probe's accuracy with its interval, the nearest class mean's, and the shift, stage by stage."""
    from matplotlib.figure import Figure  # not pyplot: no window, no global state

    figure = Figure(figsize=(5.6 * len(sights) + 0.6, 4.2), layout="constrained")
    for axes, sight in zip(figure.subplots(1, len(sights), squeeze=False)[0], sights, strict=True):
        names = [stage.name for stage in sight.stages]
        places = np.arange(len(names))
        accuracy = np.array([stage.probe.accuracy for stage in sight.stages])
        low, high = np.array([stage.probe.interval for stage in sight.stages]).T
        axes.errorbar(places, accuracy, yerr=[accuracy - low, high - accuracy], marker="o", capsize=3, label="probe")
        nearest = [stage.nearest.accuracy for stage in sight.stages]
        axes.plot(places, nearest, marker=".", linestyle=":", label="nearest class mean")
        axes.set_xticks(places, names, rotation=45, ha="right")
        axes.set(ylim=(0, 1.02), ylabel="left-out accuracy", title=sight.backbone.name)
        handles, labels = axes.get_legend_handles_labels()
        if sight.shift.stages:
            other = axes.twinx()
            shifts = [sight.shift.stages.get(name, np.nan) for name in names]
            other.bar(places, shifts, width=0.5, color="grey", alpha=0.25, label="shift")
            other.set(ylabel="shift from the pretraining", ylim=(0, max(0.3, 1.1 * np.nanmax(shifts))))
            more = other.get_legend_handles_labels()
            handles, labels = handles + more[0], labels + more[1]
        axes.legend(handles, labels, loc="lower right", fontsize=8)
    return _png(figure)


def maps(advice: Advice, seed: int = 0) -> bytes:
    """The images of train by their features at the recommended cut: principal components, and t-SNE, with thumbnails.

    Van der Maaten and Hinton, "Visualizing Data using t-SNE", JMLR 2008.
    """
    from matplotlib.figure import Figure
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    sight = advice.sight
    rows = draw(advice.labels, sight.features.usable, MOST_POINTS, seed)
    features = front(sight.features.stage(sight.trunk.names.index(advice.recommendation.cut))[rows])
    few = min(COMPONENTS, len(rows) - 1, features.shape[1])
    components = PCA(few, random_state=seed).fit_transform(features) if few >= 2 else np.zeros((len(rows), 2))
    places = {"principal components": components[:, :2]}
    if len(rows) >= 10:
        perplexity = min(30.0, (len(rows) - 1) / 3)
        places["t-SNE"] = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(components)
    figure = Figure(figsize=(7 * len(places), 7), layout="constrained")
    colours = _colours(len(advice.dataset.labels))
    for axes, (title, points) in zip(figure.subplots(1, len(places), squeeze=False)[0], places.items(), strict=True):
        _map(axes, advice, rows, points, colours)
        axes.set(title=title, xticks=[], yticks=[])
    return _png(figure)


def _map(axes: Any, advice: Advice, rows: NDArray[np.int64], points: NDArray[Any], colours: NDArray[Any]) -> None:
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    labels = advice.labels[rows]
    for label in np.unique(labels)[:20]:
        here = points[labels == label]
        axes.scatter(*here.T, s=14, color=colours[label], label=advice.dataset.labels[label])
    rest = ~np.isin(labels, np.unique(labels)[:20])
    axes.scatter(*points[rest].T, s=14, color=colours[labels[rest]])
    samples = advice.dataset.of("train")
    for row, point in list(zip(rows, points, strict=True))[:MOST_THUMBNAILS]:
        try:
            picture = load(samples[row].path, THUMBNAIL)
        except Rejected:
            continue
        frame = {"edgecolor": colours[advice.labels[row]], "linewidth": 2}
        axes.add_artist(AnnotationBbox(OffsetImage(picture, zoom=0.9), point, pad=0.1, bboxprops=frame))
    axes.legend(fontsize=8, loc="best")


def _colours(count: int) -> NDArray[Any]:
    from matplotlib import colormaps

    if count <= 10:
        return np.asarray(colormaps["tab10"](np.arange(count)))
    return np.asarray(colormaps["turbo"](np.linspace(0, 1, count)))


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
