"""tlkit on an NVIDIA GPU against the same machine's CPU and what one would write instead; whole processes.

Of four parts: decoding by threads and by processes; `tlkit embed` of a folder of JPEGs against timm with a worker per
core; one graph without files, from imports to its steady speed; and `full` with bf16 against a plain PyTorch loop and
fastai. Without a GPU the parts that need none are measured on the CPU, and the result says so.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from _bench import (
    DATA,
    PYTHON,
    RIVALS,
    SETTINGS,
    TLKIT,
    Bar,
    Report,
    existing,
    exported,
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

OURS = "tlkit"  # as the script of the training calls it


def main() -> int:
    options = parser(__doc__, repeat=2)
    options.add_argument("--images", type=Path, default=DATA / "ants_bees", help="a folder with train/ and val/")
    options.add_argument("--count", type=int, default=6000, help="images to embed; those given are repeated")
    options.add_argument("--few", type=int, default=1000, help="images of the small folder")
    options.add_argument("--epochs", type=int, default=3, help="epochs of `full`")
    args = parsed(options, count=12, few=6, epochs=2)
    existing(args.images, "--images")
    why = no_gpu()
    SETTINGS.gpu = why is None
    devices = ["cpu"] if why else ["cpu", "cuda", "auto"]
    report = Report(
        "gpu",
        f"`tlkit embed` of {args.count} JPEGs by EfficientNet-Lite0, one graph alone, and `full` for {args.epochs} "
        "epochs, each a whole process, on a GPU and on the CPU of the same machine; beside them timm with a worker per "
        "core, a plain PyTorch loop with as many, and fastai.",
        {"count": args.count, "few": args.few, "epochs": args.epochs, "turns": args.repeat},
    )
    with workspace() as work:
        bundle = exported(work)
        if not SETTINGS.smallest:
            run([TLKIT, "export", str(bundle), "--onnx", "--precision", "fp16"])
        _decode(report, args.images, args)
        _embed(report, args.images, bundle, devices, args)
        _graph(report, bundle, devices)
        if why is None:
            _train(report, args.images, args, work)
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


def _decode(report: Report, images: Path, args: Any) -> None:
    script = [PYTHON, str(RIVALS / "decode_speed.py"), str(images), "--count", str(args.few), "--workers"]
    sides = {f"{cores()} {by}": [*script, str(cores()), "--by", by] for by in ("threads", "processes")}
    sides |= {} if SETTINGS.smallest else {"1 thread": [*script, "1", "--by", "threads"]}
    for side, done in interleave(sides, args.repeat).items():
        found = [json.loads(each.output) for each in done]
        figures = {name: [each[name] for each in found] for name in found[0]}
        report.figures[f"decode, {side}"] = figures
        phases = ", ".join(f"{name} {spread(figures[name])}" for name in figures if name != "images/s")
        row = {"": f"decode, {side}", "seconds": "", "images/s": spread(figures["images/s"], 0), "phases": phases}
        report.rows.append(row)


def _embed(report: Report, images: Path, bundle: Path, devices: list[str], args: Any) -> None:
    precisions = ["fp32"] if SETTINGS.smallest else ["fp32", "fp16"]
    lacking, gpu = missing("timm", "torchvision"), "cuda" in devices
    place = bundle.parent / "embed"
    commands: dict[tuple[str, int], list[str]] = {}
    file = "" if lacking else str(weights(bundle.parent))
    for count in (args.few, args.count):
        folder = str(repeated(images, place / str(count), count))
        for precision in precisions:
            graph = str(bundle / "onnx" / precision / "trunk.onnx")
            for device in devices:
                out = str(place / f"{precision}-{device}-{count}.npy")
                commands[f"{OURS}, {precision}, {device}", count] = [
                    *(TLKIT, "embed", graph, folder, "-o", out, "--device", device)
                ]
        if not lacking:
            on = ["--device", "cuda", "--half", "--batch-size", "256"] if gpu else []
            script = [PYTHON, str(RIVALS / "timm_embed.py"), folder, file, str(place / f"timm-{count}.npy")]
            commands["timm", count] = [*script, "--channels-last", "--workers", str(cores()), *on]
    runs = interleave({f"{side}, {count} images": each for (side, count), each in commands.items()}, args.repeat)
    whole: dict[str, list[float]] = {}
    for side in dict.fromkeys(side for side, _ in commands):
        few, whole[side] = (seconds(runs[f"{side}, {count} images"]) for count in (args.few, args.count))
        steady = [(args.count - args.few) / (b - a) for a, b in zip(few, whole[side], strict=True)]
        report.figures[f"embed, {side}"] = {"seconds": whole[side], "seconds of few": few, "images/s": steady}
        cells = {"seconds": spread(whole[side]), "images/s": spread(steady, 0)}
        report.rows.append({"": f"embed, {side}", **cells, "phases": ""})
    if lacking:
        report.notes.append(f"timm: {lacking}")
    if not gpu:
        return
    fast = whole[f"{OURS}, fp16, cuda"]
    report.bars.append(Bar("seconds to embed in fp16 on the GPU", fast, "≤", 3.5, " s"))
    if not lacking:
        report.bars.append(Bar("times as fast as timm, fp16", ratios(whole["timm"], fast), "≥", 3, "x"))
    for precision in precisions:
        best = min((whole[f"{OURS}, {precision}, {device}"] for device in ("cpu", "cuda")), key=sum)
        chosen = ratios(whole[f"{OURS}, {precision}, auto"], best)
        report.bars.append(Bar(f"--device auto to the better device, {precision}", chosen, "≤", 1.1, "x"))


def _graph(report: Report, bundle: Path, devices: list[str]) -> None:
    sides = {"fp32, cpu": ["fp32"]}
    if "cuda" in devices:
        on = ["--device", "cuda"]
        sides |= {"fp32, cuda": ["fp32", *on], "fp16, cuda": ["fp16", *on], "fp16, cuda, many": ["fp16", *on, "--many"]}
    for side, (precision, *more) in sides.items():
        script = [PYTHON, str(RIVALS / "graph_phases.py"), str(bundle / "onnx" / precision / "trunk.onnx"), *more]
        few = ["--seconds", "0.02"] if SETTINGS.smallest else []
        found = json.loads(run([*script, *few]).output)
        report.figures[f"graph, {side}"] = found
        phases = ", ".join(f"{name} {found[name]:.2f} s" for name in ("imports", "opening", "first call"))
        first = sum(found[name] for name in ("imports", "opening", "first call"))
        cells = {"seconds": f"{first:.2f}", "images/s": f"{found['images/s']:.0f}", "phases": phases}
        report.rows.append({"": f"graph, {side}", **cells})
        if side == "fp16, cuda, many":
            bar = Bar("images/s of the graph in fp16, GPU time", [found["images/s on the GPU"]], "≥", 22000, digits=0)
            report.bars.append(bar)


def _train(report: Report, images: Path, args: Any, work: Path) -> None:
    script = [PYTHON, str(RIVALS / "gpu_loop.py"), str(images), "--epochs", str(args.epochs), "--workers", str(cores())]
    runs = interleave({side: [*script, "--side", side] for side in (OURS, "plain loop")}, args.repeat)
    speed = {}
    for side, done in runs.items():
        found = [json.loads(each.output) for each in done]
        speed[side] = [each["images_per_second"] for each in found]
        busy = [each["busy"] for each in found]
        report.figures[f"full, {side}"] = {"seconds": seconds(done), "images/s": speed[side], "GPU busy": busy}
        cells = {"seconds": spread(seconds(done)), "images/s": spread(speed[side], 0)}
        report.rows.append({"": f"full, {side}", **cells, "phases": f"GPU busy {spread(busy, 0, ' %')}"})
    report.bars += [
        Bar("images/s of `full` to those of the loop", ratios(speed[OURS], speed["plain loop"]), "≥", 3, "x"),
        Bar("seconds of `full`, the first run of all", seconds(runs[OURS])[:1], "≤", 15, " s"),
    ]
    if lacking := missing("fastai", "timm"):
        report.notes.append(f"fastai: {lacking}")
        return
    file = str(weights(work))
    done = run([PYTHON, str(RIVALS / "fastai_train.py"), str(images), file, "--epochs", str(args.epochs)])
    report.figures["full, fastai"] = {"seconds": [done.seconds]}
    report.rows.append({"": "full, fastai", "seconds": f"{done.seconds:.2f}", "images/s": "", "phases": ""})


if __name__ == "__main__":
    sys.exit(main())
