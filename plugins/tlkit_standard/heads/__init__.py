"""Classifiers from features to logits. Declaring them imports neither torch nor scikit-learn."""

from __future__ import annotations

from tlkit.plugin.contract import Head
from tlkit_standard.heads.knn import Knn
from tlkit_standard.heads.linear import Logistic, NearestMean, Svm
from tlkit_standard.heads.mlp import Mlp
from tlkit_standard.heads.rbf_svm import RbfSvm

HEADS: tuple[Head, ...] = (Logistic(), Svm(), RbfSvm(), Knn(), NearestMean(), Mlp())
