"""Each epoch is recorded with its speed in a log and in TensorBoard, and drawn."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from tests.kit.tiny import Line
from tlkit.errors import ResourceError
from tlkit.plugin.contract import Phase
from tlkit.training.heads import fit_head
from tlkit.training.history import LOG, Monitor, draw_curves
from tlkit.training.inputs import Examples

LABELS = np.repeat([0, 1], 20)
EXAMPLES = Examples(np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32), LABELS)


def fitted(epochs, monitor=None):
    _, result = fit_head(Line().module(4, 2), [Phase(epochs, 0.1)], EXAMPLES, EXAMPLES, monitor=monitor)
    return result


def test_the_log_has_a_line_per_epoch_with_its_speed(tmp_path):
    monitor = Monitor(log=tmp_path / LOG)
    history = fitted(3, monitor).history
    lines = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert lines == monitor.lines
    assert len(lines) == 3
    assert all(line["images_per_second"] > 0 for line in lines)
    timeless = [{name: line[name] for name in line if name not in ("seconds", "images_per_second")} for line in lines]
    assert timeless == history


def test_tensorboard_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ResourceError, match=r'TensorBoard is not installed; run: pip install "tlkit\[tensorboard\]"'):
        Monitor(tensorboard=tmp_path)


def test_tensorboard_is_written_if_it_is_installed(tmp_path):
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    fitted(2, Monitor(tensorboard=tmp_path))
    assert list(tmp_path.glob("events.*"))


def test_the_curves_are_drawn(tmp_path):
    from PIL import Image

    pytest.importorskip("matplotlib", reason="draws with matplotlib")
    picture = draw_curves(fitted(3).history, tmp_path)
    assert Image.open(picture).size > (800, 300)
    assert draw_curves([{"phase": 1, "solved": "logistic"}], tmp_path) is None
