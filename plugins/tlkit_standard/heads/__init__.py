"""Classifiers from features to logits. Declaring them imports neither torch nor scikit-learn."""

from __future__ import annotations

from tlkit.plugin.contract import Head
from tlkit_standard.heads.knn import Knn
from tlkit_standard.heads.logistic import Logistic
from tlkit_standard.heads.mlp import Mlp
from tlkit_standard.heads.nearest_mean import NearestMean
from tlkit_standard.heads.rbf_svm import RbfSvm
from tlkit_standard.heads.svm import Svm

HEADS: tuple[Head, ...] = (Logistic(), Svm(), RbfSvm(), Knn(), NearestMean(), Mlp())
