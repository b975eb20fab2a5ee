"""Loss, accuracy and rates over the epochs, as a picture beside the bundle's files."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tlkit.util.files import atomic_file

PICTURE = "curves.png"


def draw(history: Sequence[Mapping[str, Any]], root: Path) -> Path | None:
    """Draw the history of a training into the bundle `root`; None where there are no epochs, or no matplotlib.

    The picture is a by-product: the bundle is the same without it.
    """
    epochs = [line for line in history if "epoch" in line]
    if not epochs or importlib.util.find_spec("matplotlib") is None:
        return None
    from matplotlib.figure import Figure  # not pyplot: no window, no global state

    figure = Figure(figsize=(13, 4), layout="constrained")
    curves = {
        "loss": ("train_loss", "val_loss"),
        "accuracy": ("train_accuracy", "val_accuracy"),
        "highest learning rates": ("lr", "trunk_lr"),
    }
    for axes, (title, names) in zip(figure.subplots(1, 3), curves.items(), strict=True):
        for name in names:
            axes.plot([line.get(name) for line in epochs], label=name.replace("_", " "))
        for place in _borders(epochs):
            axes.axvline(place, color="grey", linestyle=":", linewidth=1)
        axes.set(title=title, xlabel="epoch")
        axes.legend()
    with atomic_file(root / PICTURE) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    return root / PICTURE


def _borders(epochs: Sequence[Mapping[str, Any]]) -> list[float]:
    """Where one phase ends and the next begins."""
    return [n - 0.5 for n in range(1, len(epochs)) if epochs[n]["phase"] != epochs[n - 1]["phase"]]
