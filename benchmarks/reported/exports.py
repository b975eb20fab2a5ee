"""Exports: processors, precisions, caches of graphs, kills, large networks and old runtimes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
from _bench import PYTHON, ROOT

from reported.workbench import Verdict, Workbench, adapted, codes, judged, on, trial

sys.path.insert(0, str(ROOT))
from tests.kit import processors
from tests.kit.distribution import at_start

CLOSE = 0.97  # cosine to fp32 that int8 features keep
OPSET, IR = 20, 9  # what the oldest supported runtime reads
OLDEST = ("onnxruntime==1.17.3", "numpy==1.26.4")  # the oldest that reads them, and the NumPy that it was built for
KILLED = """
import os, signal
synced, calls = os.fsync, []
def fsync(descriptor):
    calls.append(descriptor)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    synced(descriptor)
os.fsync = fsync
"""
WRITERS = """
import collections, json, multiprocessing, os, pathlib, sys
from tlkit.util.files import atomic_dir

place, times = pathlib.Path(sys.argv[1]), int(sys.argv[2])


def replace(found):
    for _ in range(times):
        try:
            with atomic_dir(place, replace=lambda _: None) as made:
                (made / "model.onnx").write_bytes(bytes(100_000))
                (made / "manifest.json").write_text("{}")
            found.put("replaced")
        except BaseException as error:
            found.put(type(error).__name__)


def look(found, end):
    seen = collections.Counter()
    while not end.is_set():
        seen["there" if (place / "manifest.json").exists() else "nothing there"] += 1
    for name in seen:
        found.put(name)


if __name__ == "__main__":
    os.makedirs(place.parent, exist_ok=True)
    with atomic_dir(place, replace=lambda _: None) as made:
        (made / "manifest.json").write_text("{}")
    context = multiprocessing.get_context("fork")
    found, end = context.SimpleQueue(), context.Event()
    reader = context.Process(target=look, args=(found, end))
    writers = [context.Process(target=replace, args=(found,)) for _ in range(2)]
    for process in (reader, *writers):
        process.start()
    counts = collections.Counter(found.get() for _ in range(2 * times))
    for process in writers:
        process.join()
    end.set()
    reader.join()
    while not found.empty():
        counts[found.get()] += 1
    print(json.dumps({**counts, "left": sorted(os.listdir(place.parent))}))
"""


@trial(
    "int8 by processor", "cosine to fp32 at least 0.97 everywhere", "0.75 at the least, 0.92 on average, without VNNI"
)
def int8_saturation(bench: Workbench) -> Verdict:
    """The same int8 file on this processor and on those that it can stand in for."""
    library = processors.compiled(bench.work)
    if isinstance(library, str):
        return Verdict(None, f"not measured: {library}")
    expected = _features(bench, "fp32", {})
    found = {kind: _cosines(expected, _features(bench, "int8", env)) for kind, env in _kinds(library).items()}
    text = "; ".join(f"{kind}: {cosines.min():.3f}, {cosines.mean():.3f}" for kind, cosines in found.items())
    return Verdict(all(cosines.min() >= CLOSE for cosines in found.values()), f"least and mean cosine: {text}")


@trial("int8 from another processor", "verified", "exit 4 or 6: export it again")
def int8_other_cpu(bench: Workbench) -> Verdict:
    """Graphs exported on one kind of processor, verified on another."""
    library = processors.compiled(bench.work)
    if isinstance(library, str):
        return Verdict(None, f"not measured: {library}")
    kinds = _kinds(library)
    here = {
        f"here, on {kind}": bench.tlkit("verify {good} --precision int8", env, fresh=True)
        for kind, env in kinds.items()
    }
    moved = bench.copied(bench.good)
    bench.done(f"export {moved} --onnx --precision int8", kinds["avx2"], fresh=True)
    back = {"on avx2, here": bench.tlkit(f"verify {moved} --precision int8")}
    return Verdict(not any(each.code for each in (here | back).values()), "exported " + codes(**here, **back))


def _kinds(library: Path) -> dict[str, dict[str, str]]:
    return {"this one": {}} | {kind: processors.environment(library, kind) for kind in processors.KINDS}


def _features(bench: Workbench, precision: str, env: dict[str, str]) -> np.ndarray:
    file = bench.place("features").with_suffix(".npy")
    bench.done(f"embed {{good}}/onnx/{precision} {{test}} -o {file}", env, fresh=True)
    return np.load(file)


def _cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


@trial("another option, another file of a plugin", "another trunk", "the old graph and features, exports fail for ever")
def stale_graph_cache(bench: Workbench) -> Verdict:
    """Change an option that only `forward` reads, then a function in the plugin's second file."""
    text = adapted("edges_like.py").replace("torch.tanh(x)", "bend(x)")
    site = bench.plugin("zzz-tiny", "", source="from zzz_bend import bend\n" + text)
    decoded, ended = [], []
    for gamma, bend in ((3, "tanh"), (3, "tanh"), (0.5, "tanh"), (0.5, "sigmoid")):
        (site / "zzz_bend.py").write_text(f"import torch\nbend = torch.{bend}\n")
        run = bench.out
        options = f"--backbone tiny --strategy frozen --set backbone.gamma={gamma} --json"
        decoded.append(bench.done(f"train {{photos}} -o {run} {options}", on(site)).facts["decoded"])
        ended.append(bench.tlkit(f"export {run} --onnx", on(site)).code)
    what = "images decoded by the first, the same, another option, another file"
    return Verdict(decoded == [48, 0, 48, 48] and not any(ended), f"{what}: {decoded}; exports: exit {ended}")


@trial("activations beyond 65,504 in fp16", "refused, or kept in float", "exit 0: cosine 1, 0.00 points lost")
def fp16_overflow(bench: Workbench) -> Verdict:
    """The gate of fp16 on a CPU, which computes it in float."""
    site, run = bench.plugin("nan-net", "nanny.py"), bench.out
    bench.done(
        f"train {{photos}} -o {run} --backbone nanny --strategy frozen --cut a --set backbone.scale=300000", on(site)
    )
    bench.done(f"export {run} --onnx", on(site))
    plain = bench.tlkit(f"export {run} --onnx --precision fp16", on(site))
    search = bench.tlkit(f"export {run} --onnx --precision fp16 --max-drop 0.5", on(site))
    kept = plain.code == 6 and (search.code == 6 or not (run / "onnx/fp16").exists())
    return Verdict(kept, codes(fp16=plain, with_max_drop=search) + f"; {plain.last}")


@trial("an export is killed", "the next command works and clears away", "exit 1: KeyError")
def killed_export(bench: Workbench) -> Verdict:
    """SIGKILL at the third fsync of an export over an earlier one; then a copy of a graph's folder beside it."""
    site, run = bench.place("site"), bench.copied(bench.cut)
    site.mkdir()
    at_start(site, KILLED)
    killed = bench.tlkit(f"export {run} --onnx", on(site), fresh=True)
    verified, again = bench.tlkit(f"verify {run}"), bench.tlkit(f"export {run} --onnx")
    left = sorted(file.name for file in (run / "onnx").iterdir())
    subprocess.run(["cp", "-r", run / "onnx/fp32", run / "onnx/fp32-backup"], check=True)
    return judged(
        killed=killed.code == -signal.SIGKILL,
        verified_after=verified.code == 0,
        exported_again=again.code == 0,
        nothing_left=left == ["fp32"],
        a_copy_beside_it_does_not_matter=bench.tlkit(f"verify {run}").code == 0,
    )


@trial("two processes replace one folder", "300 of 300, always there", "5 to 12 of 300 fail, `.old` folders stay")
def race_atomic_dir(bench: Workbench) -> Verdict:
    """Two writers and a reader."""
    return race(bench, 150)


def race(bench: Workbench, times: int) -> Verdict:
    """Replace a folder so often by each of two processes, while a third looks at it."""
    done = bench.python(WRITERS, bench.place("race") / "fp32", times)
    facts = json.loads(done.out)
    right = facts == {"replaced": 2 * times, "there": 1, "left": ["fp32"]}
    return Verdict(
        right, f"{facts.pop('replaced', 0)} of {2 * times}; seen: {', '.join(f for f in facts if f != 'left')}"
    )


@trial("a network beyond 2 GiB", "refused at once; a cut that fits is traced alone", "EncodeError after 80 s, for both")
def huge_model(bench: Workbench) -> Verdict:
    """270,000 hidden units, of 8 KiB of weights each."""
    site = bench.plugin("huge-net", "huge.py")
    line = "train {test} -o {out} --backbone huge --strategy frozen --set backbone.hidden="
    whole, cut = (bench.tlkit(f"{line}270000{more}", on(site)) for more in ("", " --cut stem"))
    run = bench.out
    bench.done(line.replace("{out}", str(run)) + "40000", on(site))
    bench.done(f"export {run} --onnx", on(site))
    peak = bench.tlkit(f"predict {run}/onnx/fp32/model.onnx {{test}}", preexec_fn=_at_most_900_mib)
    return Verdict(
        whole.refused(2) + whole.refused(3) + whole.refused(4) + whole.refused(5) > 0 and cut.code == peak.code == 0,
        codes(whole=whole, cut=cut, predict_with_328_MB_of_weights_in_900_MiB_of_data=peak) + f"; {whole.last}",
    )


def _at_most_900_mib() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (900 << 20, 900 << 20))


@trial("ONNX Runtime 1.17.3", "reads every precision, same probabilities", "IR 10 can't be read")
def older_runtime(bench: Workbench) -> Verdict:
    """IR and opset, and the oldest runtime itself, installed in a folder."""
    import onnx
    import onnxruntime

    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    np.save(bench.work / "pixels.npy", pixels)
    graphs = [bench.good / f"onnx/{precision}/model.onnx" for precision in ("fp32", "int8")]
    bench.done("export {good} --onnx --precision fp16")
    graphs.append(bench.good / "onnx/fp16/model.onnx")
    for graph in graphs:
        model = onnx.load(graph)
        if model.ir_version > IR or any(each.domain == "" and each.version > OPSET for each in model.opset_import):
            return Verdict(False, f"{graph.parent.name}: IR {model.ir_version}")
    older = bench.work / "older"
    command = [PYTHON, "-m", "pip", "install", "-q", "--target", str(older), *OLDEST]
    if bench.run(command).code:
        return Verdict(None, f"not measured: {' '.join(OLDEST)} can't be installed")
    source = (
        "import sys, numpy as np, onnxruntime as o\nx = np.load(sys.argv[1])\n"
        "for g in sys.argv[3:]: np.save(g.replace('/', '_').join((sys.argv[2], '.npy')), "
        "o.InferenceSession(g, providers=['CPUExecutionProvider']).run(['probabilities'], {'images': x})[0])"
    )
    results = bench.place("results")
    results.mkdir()
    done = bench.python(source, bench.work / "pixels.npy", f"{results}/", *graphs, env=on(older))
    if done.code:
        return Verdict(False, done.last)
    apart = {}
    for graph in graphs:
        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        (expected,) = session.run(["probabilities"], {"images": pixels})
        got = np.load(results / f"{str(graph).replace('/', '_')}.npy")
        apart[graph.parent.name] = float(np.abs(got - expected).max())
    return Verdict(max(apart.values()) < 1e-3, f"greatest difference of probabilities: {apart}")
