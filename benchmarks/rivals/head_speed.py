"""A head in core operators and the same scikit-learn pipeline through skl2onnx, both by ONNX Runtime on all cores.

python head_speed.py FEATURES.npy LABELS.npy ROUNDS; prints JSON: milliseconds per call by head, batch and side, and how
many labels of each differ from scikit-learn's own on rows that nothing was fitted on. `--alone` leaves out skl2onnx.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC
from tlkit_standard.heads.memory import RbfSvm

from tlkit.graph.trace import head_graph

C, COMPONENTS = 3.0, 128
BATCHES = (1, 64)
PLAIN: dict[str, Any] = {"c": C, "power": 1.0, "l2": False, "calibrate": False}

HEADS = {
    "RBF-SVM": (replace(RbfSvm(), **PLAIN), make_pipeline(SVC(C=C, break_ties=True))),
    "PCA + RBF-SVM": (
        replace(RbfSvm(), **PLAIN, pca=COMPONENTS),
        make_pipeline(PCA(COMPONENTS, svd_solver="full"), SVC(C=C, break_ties=True)),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("features")
    parser.add_argument("labels")
    parser.add_argument("rounds", type=int)
    parser.add_argument("--seconds", type=float, default=0.5, help="of every side in every round")
    parser.add_argument("--alone", action="store_true")
    args = parser.parse_args()
    features, labels = np.load(args.features).astype(np.float32), np.load(args.labels)
    order = np.random.default_rng(0).permutation(len(features))
    fitted_on, unseen = np.split(order, [len(order) * 4 // 5])
    found = {}
    for name, (configured, pipeline) in HEADS.items():
        head, components = configured, min(COMPONENTS, *features[fitted_on].shape)
        if hasattr(pipeline[0], "n_components"):
            head = replace(configured, pca=components)
            pipeline[0].set_params(n_components=components)
        module = head.solve(features[fitted_on], labels[fitted_on], int(labels.max()) + 1, seed=0)
        pipeline.fit(features[fitted_on], labels[fitted_on])
        sides = {"tlkit": opened(head_graph(module.eval(), features.shape[1]))}
        rows = features[unseen]
        called = {"tlkit": run(sides["tlkit"], rows)[0].argmax(1)}
        if not args.alone:
            from skl2onnx import to_onnx

            sides["skl2onnx"] = opened(to_onnx(pipeline, features[:1], options={"zipmap": False}, target_opset=17))
            called["skl2onnx"] = run(sides["skl2onnx"], rows)[0].ravel()
        differ = {side: int((answer != pipeline.predict(rows)).sum()) for side, answer in called.items()}
        found[name] = {"rows": len(rows), "labels that differ": differ, "ms": timed(sides, rows, args)}
    print(json.dumps(found))


def opened(graph: Any) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, rows: np.ndarray[Any, Any]) -> list[Any]:
    outputs: list[Any] = session.run(None, {session.get_inputs()[0].name: rows})
    return outputs


def timed(
    sides: dict[str, Any], rows: np.ndarray[Any, Any], args: argparse.Namespace
) -> dict[str, dict[str, list[float]]]:
    """The median call of each round, in ms, the sides interleaved."""
    times: dict[str, dict[str, list[float]]] = {str(batch): {side: [] for side in sides} for batch in BATCHES}
    for batch in BATCHES:
        for _ in range(args.rounds):
            for side, session in sides.items():
                calls: list[float] = []
                end = time.perf_counter() + args.seconds
                while time.perf_counter() < end or not calls:
                    before = time.perf_counter()
                    run(session, rows[:batch])
                    calls.append(1000 * (time.perf_counter() - before))
                times[str(batch)][side].append(statistics.median(calls))
    return times


if __name__ == "__main__":
    main()
