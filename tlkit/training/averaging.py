"""The average of trunks that several trainings fine-tuned from the same weights, with other seeds.

It is as fast as one of them, and more accurate than one on average (Wortsman et al., "Model Soups: Averaging Weights of
Multiple Fine-Tuned Models Improves Accuracy Without Increasing Inference Time", ICML 2022). See
benchmarks/results/advise-soup.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from tlkit.model.bundle import ORIGINAL, open_bundle
from tlkit.model.modules import load_head
from tlkit.plugin.contract import Progress
from tlkit.training.blending import blend_weights, weights
from tlkit.training.config import TrainingConfig
from tlkit.training.heads import refit_head
from tlkit.training.result import TrainingResult, write_bundle
from tlkit.training.run import make_plan
from tlkit.training.trainer import FitResult


def average(
    source: Path, out: Path, config: TrainingConfig, bundles: Sequence[Path], progress: Progress
) -> TrainingResult:
    """Write the bundle `out` with the mean of the trunks of bundles that were trained as configured, but for the seed.

    Running statistics that training changed are computed from the images. The head is solved again on the new features,
    or that of the first bundle if that is significantly worse.
    """
    plan = make_plan(source, out, config)
    plan, before = plan.read(progress("features", len(plan.samples)))
    first, *_ = opened = [open_bundle(each) for each in bundles]
    images = [sample.path for sample in plan.dataset.of("train")]
    for number, each in enumerate(opened, start=1):
        tuned = {name: torch.from_numpy(array.copy()) for name, array in each.trunk.items()}
        blend_weights(plan.trunk, weights(plan.trunk), tuned, 1 / number, images)
    features = plan.extract(plan.trunk, progress("features of the averaged trunk", len(plan.samples)))
    (train, val), trained = plan.examples(features), load_head(first, config.head, first.head)
    head, lines = refit_head(config.head, trained, train, val, plan.classes, config.seed)
    changed = tuple(stage for stage, state in first.record.provenance.items() if state != ORIGINAL)
    fitted = FitResult([{"averaged": len(opened)}, *lines], changed=changed)
    settings = {**first.record.training, "averaged": len(opened)}
    return write_bundle(plan, replace(features, decoded=before.decoded), head, fitted, [], settings)
