"""Names of the default components: the only module of `tlkit/` that contains the name of one."""

from __future__ import annotations

DEFAULT_BACKBONE = "efficientnet-lite0"
DEFAULT_HEAD = "logistic"  # smallest to deploy, with the best probabilities
DEFAULT_DETECTOR = "neighbor-energy"  # of distance and logits: see benchmarks/unknown.py
DEFAULT_TARGET = "onnx"
FROZEN = "frozen"  # strategy: no stage is trained
FINE_TUNING = "probe-then-tune"  # strategy recommended to fine-tune: its head is fitted before the trunk is trained
