"""tlkit on an NVIDIA GPU against the same machine's CPU and what one would write instead; whole processes.

Of five parts: trainings, the first ones with an empty cache, against a plain PyTorch loop and fastai; decoding by
threads and by processes, with and without resizing; `tlkit embed` of a folder of JPEGs against timm with a worker per
core, and of more with and without resizing on the GPU; `tlkit predict` of one picture; and one graph without files,
from imports to its steady speed. Without a GPU the parts that need none are measured on the CPU, as the result says.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from _bench import (
    CACHE,
    DATA,
    PYTHON,
    RIVALS,
    SETTINGS,
    TLKIT,
    Bar,
    Report,
    Run,
    existing,
    interleave,
    missing,
    parsed,
    parser,
    ratios,
    repeated,
    run,
    seconds,
    spread,
    weights,
    workspace,
)

from tlkit.util.resources import cores

OURS = "tlkit"
LONG = 4  # times as many images, for the speed of resizing
BY_CPU = """import sys; from tlkit import cli; from tlkit.runtime import pipeline
pipeline.FROM = sys.maxsize; sys.exit(cli.run(sys.argv[1:]))"""  # tlkit without resizing on the GPU


def main() -> int:
    options = parser(__doc__, repeat=1)
    options.add_argument("--images", type=Path, default=DATA / "ants_bees", help="a folder with train/ and val/")
    options.add_argument("--count", type=int, default=6000, help="images to embed; those given are repeated")
    options.add_argument("--few", type=int, default=1000, help="images of the small folder")
    options.add_argument("--epochs", type=int, default=3, help="epochs of `full`")
    args = parsed(options, count=12, few=6, epochs=2)
    existing(args.images, "--images")
    why = no_gpu()
    SETTINGS.gpu = why is None
    report = Report(
        "gpu",
        f"Trainings, `tlkit embed` of {args.count} JPEGs, `tlkit predict` of one by EfficientNet-Lite0, and its graph "
        "alone, each a whole process, on a GPU and on the CPU of the same machine; beside them timm with a worker per "
        "core, a plain PyTorch loop with as many, and fastai.",
        {"count": args.count, "few": args.few, "epochs": args.epochs, "turns": args.repeat},
    )
    with workspace() as work:
        bundle = _train(report, args.images, args, work)
        for precision in ["fp32"] if SETTINGS.smallest else ["fp32", "fp16", "int8"]:
            run([TLKIT, "export", str(bundle), "--onnx", "--precision", precision])
        _decode(report, args.images, args)
        _embed(report, args.images, bundle, args)
        if SETTINGS.gpu:
            _resize(report, args.images, bundle, args)
        _predict(report, args.images, bundle, args)
        _graph(report, bundle)
        if SETTINGS.gpu:
            _fastai(report, args.images, args, work)
    if why is not None:
        report.notes.append(f"not measured: all that needs a GPU ({why})")
    return report.save()


def no_gpu() -> str | None:
    """The reason why there is no GPU to measure; None if there is one that all sides can use."""
    import onnxruntime
    import torch

    if SETTINGS.smallest:
        return "left out at the smallest setting"
    if not torch.cuda.is_available():
        return "PyTorch finds no GPU"
    return None if "CUDAExecutionProvider" in onnxruntime.get_available_providers() else "ONNX Runtime has no CUDA"


def _row(report: Report, side: str, times: Sequence[float], rates: Sequence[float] = (), phases: str = "") -> None:
    cells = {"seconds": spread(times) if times else "", "images/s": spread(rates, 0) if rates else "", "phases": phases}
    report.rows.append({"": side, **cells})


def _train(report: Report, images: Path, args: Any, work: Path) -> Path:
    """Return the bundle of the first training of all."""
    device = "cuda" if SETTINGS.gpu else "cpu"
    frozen = work / "frozen, first run"

    def trained(side: str, *options: str, cache: str = CACHE, on: str = device) -> Run:
        out = ["-o", str(work / side), "--backbone", SETTINGS.backbone, "--device", on, "--json"]
        with mock.patch.dict(os.environ, {} if SETTINGS.smallest else {"TLKIT_CACHE": str(work / cache)}):
            done = run([TLKIT, "train", str(images), *out, *options])
        rates = [line["images_per_second"] for line in json.loads(done.output)["epochs"][1:]]
        report.figures[side] = {"seconds": [done.seconds], "images/s": rates}
        _row(report, side, [done.seconds], rates)
        return done

    def traced() -> int:
        return len(list((work / CACHE / "graphs").glob("*-architecture.*.onnx")))

    before = traced()  # those of the tests, at the smallest setting
    full = ["--strategy", "full", "--set", f"strategy.epochs={args.epochs}", "--set", "strategy.batch_size=64"]
    partial = ["--strategy", "partial", "--set", f"strategy.trainable={min(2, SETTINGS.stages)}"]
    first = trained(frozen.name, "--strategy", "frozen")
    traces = traced()
    again = trained("frozen, later", "--strategy", "frozen")
    some = trained("partial, two stages", *partial, "--set", "strategy.epochs=5")
    whole = trained("full, first run", *full, cache="full")
    run([TLKIT, "export", str(work / "full, first run"), "--onnx"])
    report.figures["traces"] = {"first training": traces - before, "later": traced() - traces}
    report.bars += [
        Bar("traces of the first training", [traces - before], "≤", 1, digits=0),
        Bar("traces of the trainings and the export after it", [traced() - traces], "=", 0, digits=0),
    ]
    if not SETTINGS.gpu:
        return frozen
    cpu = trained("full, first run on the CPU", *full, cache="cpu", on="cpu")
    script = [PYTHON, str(RIVALS / "gpu_loop.py"), str(images), "--epochs", str(args.epochs)]
    plain = run([*script, "--workers", str(cores())])
    speed = json.loads(plain.output)["images_per_second"]
    report.figures["full, plain loop"] = {"seconds": [plain.seconds], "images/s": speed}
    _row(report, "full, plain loop", [plain.seconds], speed)
    report.bars += [
        Bar("seconds of `frozen`, the first run of all", [first.seconds], "≤", 14, " s"),
        Bar("seconds of `frozen`, later", [again.seconds], "≤", 6, " s"),
        Bar("seconds of `partial`, two stages, five epochs", [some.seconds], "≤", 12, " s"),
        Bar("seconds of `full`, the first run of all", [whole.seconds], "≤", 15, " s"),
        Bar("seconds of `full` on the GPU to those on the CPU", ratios([whole.seconds], [cpu.seconds]), "≤", 1, "x"),
        Bar(
            "images/s of `full` to those of the loop, from the second epoch",
            ratios(report.figures["full, first run"]["images/s"], speed),
            "≥",
            3,
            "x",
        ),
    ]
    return frozen


def _fastai(report: Report, images: Path, args: Any, work: Path) -> None:
    if lacking := missing("fastai", "timm"):
        report.notes.append(f"fastai: {lacking}")
        return
    script = [PYTHON, str(RIVALS / "fastai_train.py"), str(images), str(weights(work))]
    done = run([*script, "--epochs", str(args.epochs)])
    report.figures["full, fastai"] = {"seconds": [done.seconds]}
    _row(report, "full, fastai", [done.seconds])


def _decode(report: Report, images: Path, args: Any) -> None:
    script = [PYTHON, str(RIVALS / "decode_speed.py"), str(images), "--count", str(args.few), "--workers"]
    sides = {by: [*script, str(cores()), "--by", by] for by in ("threads", "processes")}
    sides |= {f"{by}, resized elsewhere": [*each, "--packed"] for by, each in sides.items()}
    for side, done in interleave(sides, args.repeat).items():
        found = [json.loads(each.output) for each in done]
        figures = {name: [each[name] for each in found] for name in found[0]}
        report.figures[f"decode, {side}"] = figures
        phases = ", ".join(f"{name} {spread(figures[name])}" for name in figures if name != "images/s")
        _row(report, f"decode, {cores()} {side}", [], figures["images/s"], phases)


def _embed(report: Report, images: Path, bundle: Path, args: Any) -> None:
    sides = [("fp32", "cpu")]
    sides += [] if SETTINGS.smallest else [("int8", "cpu")]
    sides += [("fp32", "cuda"), ("fp32", "auto"), ("fp16", "cuda")] if SETTINGS.gpu else []
    lacking, place = missing("timm", "torchvision"), bundle.parent / "embed"
    commands: dict[tuple[str, int], list[str]] = {}
    file = "" if lacking else str(weights(bundle.parent))
    for count in (args.few, args.count):
        folder = str(repeated(images, place / str(count), count))
        for precision, device in sides:
            graph = str(bundle / "onnx" / precision / "trunk.onnx")
            out = str(place / f"{precision}-{device}-{count}.npy")
            commands[f"{precision}, {device}", count] = [TLKIT, "embed", graph, folder, "-o", out, "--device", device]
        if not lacking:
            on = ["--device", "cuda", "--half", "--batch-size", "256"] if SETTINGS.gpu else []
            script = [PYTHON, str(RIVALS / "timm_embed.py"), folder, file, str(place / f"timm-{count}.npy")]
            commands["timm", count] = [*script, "--channels-last", "--workers", str(cores()), *on]
    runs = interleave({f"embed {count}, {side}": each for (side, count), each in commands.items()}, args.repeat)
    few, whole, steady = ({side: list[float]() for side, _ in commands} for _ in range(3))
    for side in few:
        few[side], whole[side] = (seconds(runs[f"embed {count}, {side}"]) for count in (args.few, args.count))
        steady[side] = [(args.count - args.few) / (b - a) for a, b in zip(few[side], whole[side], strict=True)]
        report.figures[f"embed, {side}"] = {
            "seconds": whole[side],
            "seconds of few": few[side],
            "images/s": steady[side],
        }
        _row(report, f"embed, {side}", whole[side], steady[side])
    if lacking:
        report.notes.append(f"timm: {lacking}")
    if not SETTINGS.gpu:
        return
    fast, decoded = steady["fp16, cuda"], report.figures["decode, processes"]["images/s"]
    report.bars += [
        Bar("seconds to embed in fp16 on the GPU", whole["fp16, cuda"], "≤", 3.5, " s"),
        Bar("images/s then, steady", fast, "≥", 3500, digits=0),
        Bar("of what processes decode", ratios(fast, decoded), "≥", 0.8, "x"),
        *([] if lacking else [Bar("times as many as timm", ratios(fast, steady["timm"]), "≥", 3, "x")]),
        Bar(
            "images/s of the cores alone in fp32, whole", [args.count / each for each in whole["fp32, cpu"]], "≥", 1400
        ),
        Bar(
            "images/s of the cores alone in int8, whole", [args.count / each for each in whole["int8, cpu"]], "≥", 2200
        ),
    ]
    for count, found in ((args.few, few), (args.count, whole)):
        _auto(report, f"embed of {count}", {device: found[f"fp32, {device}"] for device in ("cpu", "cuda", "auto")})


def _resize(report: Report, images: Path, bundle: Path, args: Any) -> None:
    """Embed many, resized on the GPU and on the CPU, to the bit the same."""
    place, graph = bundle.parent / "embed", str(bundle / "onnx/fp16/trunk.onnx")
    sides = {"resized there": [TLKIT], "resized by the CPU": [PYTHON, "-c", BY_CPU]}
    commands, files = {}, {}
    for count in (args.count, LONG * args.count):
        folder = str(repeated(images, place / str(count), count))
        for side, start in sides.items():
            files[side, count] = place / f"{side}-{count}.npy"
            commands[f"{side}, {count}"] = [*start, "embed", graph, folder, "-o", str(files[side, count])]
            commands[f"{side}, {count}"] += ["--device", "cuda"]
    runs, steady = interleave(commands, args.repeat), {}
    for side in sides:
        whole, long = (seconds(runs[f"{side}, {count}"]) for count in (args.count, LONG * args.count))
        steady[side] = [(LONG - 1) * args.count / (b - a) for a, b in zip(whole, long, strict=True)]
        report.figures[f"embed {LONG * args.count}, {side}"] = {"seconds": long, "images/s": steady[side]}
        _row(report, f"embed {LONG * args.count}, fp16, cuda, {side}", long, steady[side])
    same = {files[side, LONG * args.count].read_bytes() for side in sides}
    report.bars += [
        Bar("images/s in fp16 on the GPU, resized there", steady["resized there"], "≥", 6000, digits=0),
        Bar("results of images resized there and by the CPU", [len(same)], "=", 1, digits=0),
    ]


def _predict(report: Report, images: Path, bundle: Path, args: Any) -> None:
    """Label one picture, with the device that each side has."""
    image = str(min(images.rglob("*.jpg")))
    command = [TLKIT, "predict", str(bundle / "onnx/fp32/model.onnx"), image, "--device"]
    runs = interleave(
        {each: [*command, each] for each in (["cpu", "cuda"] if SETTINGS.gpu else []) + ["auto"]}, args.repeat
    )
    found = {device: seconds(done) for device, done in runs.items()}
    for device, times in found.items():
        report.figures[f"predict one, {device}"] = {"seconds": times}
        _row(report, f"predict one, {device}", times)
    if SETTINGS.gpu:
        _auto(report, "predict of one", found)


def _auto(report: Report, what: str, found: dict[str, list[float]]) -> None:
    best = min((found[device] for device in ("cpu", "cuda")), key=sum)
    report.bars.append(Bar(f"--device auto to the better device, {what}", ratios(found["auto"], best), "≤", 1.1, "x"))


def _graph(report: Report, bundle: Path) -> None:
    sides = {"fp32, cpu": ["fp32"]}
    if SETTINGS.gpu:
        on = ["--device", "cuda"]
        sides |= {"fp32, cuda": ["fp32", *on], "fp16, cuda": ["fp16", *on], "fp16, cuda, many": ["fp16", *on, "--many"]}
        sides |= {"fp16, cuda, resized there": ["fp16", *on, "--resized"]}
    for side, (precision, *more) in sides.items():
        script = [PYTHON, str(RIVALS / "graph_phases.py"), str(bundle / "onnx" / precision / "trunk.onnx"), *more]
        few = ["--seconds", "0.02"] if SETTINGS.smallest else []
        found = json.loads(run([*script, *few]).output)
        report.figures[f"graph, {side}"] = found
        phases = ", ".join(f"{name} {found[name]:.2f} s" for name in ("imports", "opening", "first call"))
        _row(
            report,
            f"graph, {side}",
            [sum(found[name] for name in ("imports", "opening", "first call"))],
            [found["images/s"]],
            phases,
        )
        if side == "fp32, cuda":
            report.bars.append(Bar("error of the features in fp32 on the GPU", [found["error"]], "≤", 1e-5, digits=8))
        if side == "fp16, cuda, many":
            bar = Bar("images/s of the graph in fp16, GPU time", [found["images/s on the GPU"]], "≥", 22000, digits=0)
            report.bars.append(bar)


if __name__ == "__main__":
    sys.exit(main())
