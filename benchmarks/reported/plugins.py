"""Plugins: what they raise, print and collide in, and metadata that hides them."""

from __future__ import annotations

import shutil
import sys

from _bench import ROOT

from reported.workbench import Verdict, Workbench, codes, judged, on, trial

sys.path.insert(0, str(ROOT))
from tests.kit.distribution import describe

PLUGIN_FAILED = 7  # exit code
TINY = "[tlkit]\nzzz-tiny = zzz_tiny\n"


@trial("two plugins with a backbone of one name", "that of the bundle is used", "exit 4: install what is installed")
def plugin_conflict(bench: Workbench) -> Verdict:
    """A bundle of one plugin; then another comes that is earlier in the alphabet."""
    site, run = bench.plugin("zzz-tiny", "edges_like.py"), bench.out
    bench.done(f"train {{photos}} -o {run} --backbone tiny --strategy frozen", on(site))
    bench.plugin("aaa-tiny", "edges_like.py", site=site)
    both = bench.tlkit(f"export {run} --onnx", on(site))
    without = bench.tlkit(f"export {run} --onnx", on(site) | {"TLKIT_DISABLE_PLUGINS": "aaa-tiny"})
    return Verdict(not (both.code or without.code), codes(with_both=both, other_disabled=without))


@trial("a plugin that prints", "`--json` is JSON", "no JSON: progress bars of a download in it")
def plugin_stdout(bench: Workbench) -> Verdict:
    """Python, native code and logging, in every verb that builds a backbone."""
    site, run = bench.plugin("nan-net", "nanny.py"), bench.out
    train = f"train {{photos}} -o {run} --backbone nanny --strategy frozen --set backbone.talk=true --json"
    lines = (train, f"export {run} --onnx --json", f"verify {run} --data {{photos}} --json")
    done = {line.split()[0]: bench.tlkit(line, on(site)) for line in lines}
    return Verdict(all(each.code == 0 and each.facts for each in done.values()), codes(**done))


@trial(
    "what a plugin raises while it works",
    "the plugin is named, no success",
    "exit 1: a bug in tlkit; exit 0 for `sys.exit`",
)
def plugin_errors(bench: Workbench) -> Verdict:
    """Exceptions in `stages`, in tracing and in a target's `build`, and the end of the process."""
    site, ended = bench.plugin("raiser-net", "raiser.py"), {}
    for how in ("missing", "import", "value", "shape", "bn", "none", "exit"):
        run = bench.out
        line = f"train {{photos}} -o {run} --backbone raiser --strategy frozen --set backbone.how={how}"
        ended[how] = bench.tlkit(line, on(site))
        if run.exists():
            return Verdict(False, f"{how}: there is a bundle")
    ended["target"] = bench.tlkit(f"export {bench.copied(bench.cut)} --target badtarget", on(site))
    named = all("raiser" in each.last or "badtarget" in each.last for each in ended.values())
    return Verdict(named and {each.code for each in ended.values()} <= {2, 5, PLUGIN_FAILED}, codes(**ended))


@trial(
    "outputs that are not finite", "a reject by name, and JSON stays JSON", "ants nan, exit 0; NaN in JSON; a NaN row"
)
def nan_outputs(bench: Workbench) -> Verdict:
    """A black picture, of which a network that standardizes each picture makes 0/0."""
    from PIL import Image

    site, run = bench.plugin("nan-net", "nanny.py"), bench.out
    black = bench.place("blank") / "black.png"
    black.parent.mkdir()
    Image.new("RGB", (80, 80)).save(black)
    mixed = {name: shutil.copytree(bench[name], bench.place(name)) for name in ("photos", "test")}
    for folder in mixed.values():
        shutil.copy(black, folder / "bees")
    bench.done(f"train {{photos}} -o {run} --backbone nanny --strategy frozen", on(site))
    bench.done(f"export {run} --onnx", on(site))
    model, rows = f"{run}/onnx/fp32/model.onnx", bench.place("rows").with_suffix(".npy")
    options = "--max-bad 0.5 --json"
    done = {
        "predict": bench.tlkit(f"predict {model} {black.parent} --json"),
        "embed": bench.tlkit(f"embed {model} {mixed['test']} -o {rows} {options}"),
        "eval": bench.tlkit(f"eval {model} {mixed['test']} {options}"),
        "train": bench.tlkit(
            f"train {mixed['photos']} -o {{out}} --backbone nanny --strategy frozen {options}", on(site)
        ),
    }
    import numpy as np

    named = all("black.png" in each.said for each in done.values())
    finite = bool(np.isfinite(np.load(rows)).all())
    valid = all(done[verb].facts for verb in ("embed", "eval", "train")) and "NaN" not in done["predict"].out
    return Verdict(named and finite and valid and not done["eval"].code, codes(**done))


@trial("metadata that hides a plugin, or tlkit", "the plugin works, or what hides it is named", "gone, and not said")
def hidden_metadata(bench: Workbench) -> Verdict:
    """An upgrade that left the old metadata, also before the new; one without files; two places; another `tlkit`."""
    found = {}
    for name, others in {
        "an old version beside it": [("zzz-tiny", "0.9", TINY)],
        "an old version without entry points": [("zzz-tiny", "0.9", "")],
        "an old version whose module is gone": [("zzz-tiny", "0.9", "[tlkit]\nzzz-tiny = zzz_gone\n")],
        "another tlkit": [("tlkit", "9.9", "")],
        "another tlkit with a plugin": [("tlkit", "9.9", "[tlkit]\nstandard = gone\n")],
    }.items():
        site = bench.plugin("zzz-tiny", "edges_like.py")
        for distribution, version, points in others:
            describe(site, distribution, points, version)
        found[name] = _seen(bench, on(site))
    site = bench.plugin("zzz-tiny", "edges_like.py")
    for file in (site / "zzz_tiny-1.0.dist-info").iterdir():
        file.unlink()
    found["its own files are gone"] = _seen(bench, on(site))
    first, second = bench.place("site"), bench.plugin("zzz-tiny", "edges_like.py")
    first.mkdir()
    describe(first, "zzz-tiny", "", "0.9")
    found["an older one before it on the path"] = _seen(bench, on(first, second))
    return judged(**found)


def _seen(bench: Workbench, env: dict[str, str]) -> bool:
    """Return whether backbones of the plugin and of tlkit are listed, or a word is said of what hides them."""
    listed = bench.tlkit("plugins --json", env, fresh=True)
    train = bench.tlkit("train {photos} -o {out} --backbone tiny --strategy frozen --golden 0", env, fresh=True)
    said = "hides" in listed.said + listed.out + train.said or "metadata" in listed.said + listed.out + train.said
    return '"efficientnet-lite0"' in listed.out and (('"tiny"' in listed.out and train.code == 0) or said)
