"""Classifiers from features to logits. Declaring them imports neither torch nor scikit-learn."""

from __future__ import annotations

from tlkit.plugin.contract import Head
from tlkit_standard.heads.linear import Logistic, NearestMean, Svm
from tlkit_standard.heads.memory import Knn, RbfSvm
from tlkit_standard.heads.mlp import Mlp

HEADS: tuple[Head, ...] = (Logistic(), Svm(), RbfSvm(), Knn(), NearestMean(), Mlp())
