from tlkit_standard.heads.logistic import Logistic, Svm

HEADS = (Logistic(), Svm())
