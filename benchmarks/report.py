"""`tlkit report`: the page of 10^5 images, and evidence maps against Grad-CAM and EigenCAM.

python benchmarks/report.py page       # size of the page, time to load it in headless Chromium, requests and errors
python benchmarks/report.py evidence   # deletion curves of maps, and milliseconds per image
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from html import unescape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from _bench import (
    DATA,
    SETTINGS,
    TLKIT,
    Bar,
    Report,
    existing,
    parsed,
    parser,
    repeated,
    run,
    shown,
    spread,
    workspace,
)

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LOOK = """{
const faults = [];
addEventListener("error", event => faults.push(event.message));
addEventListener("securitypolicyviolation", event => faults.push(event.violatedDirective));
addEventListener("load", () => setTimeout(() => {
  const [entry] = performance.getEntriesByType("navigation"), said = document.createElement("pre");
  const requests = performance.getEntriesByType("resource").filter(each => !each.name.startsWith("data:")).length;
  said.id = "seen"; said.textContent = JSON.stringify({ms: entry.loadEventEnd, requests, faults,
    dots: document.querySelectorAll("#map circle").length});
  document.body.append(said);
}));
}"""
STEPS, PARTS = 10, 7  # of a deletion curve; parts of an image per side that are covered
OURS = "each position left out"


def main() -> int:
    options = parser(__doc__, repeat=5)
    options.add_argument("what", nargs="*", default=["page", "evidence"], help="page, evidence; both by default")
    options.add_argument("--images", type=Path, default=DATA / "sign_digits", help="images to fill the page with")
    options.add_argument("--data", type=Path, default=DATA / "ants_bees", help="folder with train/ and val/")
    options.add_argument("--count", type=int, default=100_000, help="images of the page")
    options.add_argument("--maps", type=int, default=200, help="images to find evidence in")
    args = parsed(options, count=60, maps=6)
    codes = [0]
    with workspace() as work:
        if "page" in args.what:
            codes.append(page(work, existing(args.images, "--images"), args.count, args.repeat))
        if "evidence" in args.what:
            codes.append(evidence(work, existing(args.data, "--data"), args.maps))
    return max(codes)


def page(work: Path, images: Path, count: int, repeat: int) -> int:
    report = Report(
        "report-page",
        "The page of `tlkit report` for many images (links to some thousands of files), loaded by headless "
        "Chromium from a file: the time from the navigation to the end of the load event, with script and pictures.",
        {"images": count, "from": shown(images), "turns": repeat},
    )
    for label in ("one", "other"):
        repeated(images, work / "few" / label, 20)
        repeated(images, work / "many" / label, count // 2)
    size = [] if SETTINGS.smallest else ["--size", "32"]  # what the network sees does not matter here
    run([TLKIT, "train", str(work / "few"), "-o", str(work / "run"), *SETTINGS.frozen, *size])
    run([TLKIT, "export", str(work / "run"), "--onnx"])
    file = work / "report.html"
    made = run([TLKIT, "report", str(work / "run"), str(work / "many"), "-o", str(file)])
    megabytes = file.stat().st_size / 1e6
    report.figures |= {"MB": megabytes, "seconds to make it": made.seconds, "peak MiB": made.peak_mib}
    report.bars.append(Bar("size of the page", [megabytes], "≤", 5.0, " MB"))
    row = {"images": f"{count:,}", "MB": f"{megabytes:.2f}", "made in": f"{made.seconds:.0f} s"}
    if BROWSER is None or SETTINGS.smallest:
        report.notes.append("not measured: chromium is not installed, or left out at the smallest setting")
    else:
        seen = [loaded(file, work) for _ in range(repeat)]
        report.figures |= {"ms to load": [each["ms"] for each in seen], "dots of the map": seen[0]["dots"]}
        row["ms to load"] = spread([each["ms"] for each in seen], 0)
        report.bars.append(Bar("time to load", [each["ms"] / 1000 for each in seen], "≤", 1.0, " s"))
        wrong = max(each["requests"] + len(each["faults"]) for each in seen)
        report.bars.append(Bar("requests, and errors on the console", [wrong], "=", 0, digits=0))
    report.rows.append(row)
    report.notes.append("Every image is in predictions.parquet; the page shows at most 1,000 of them.")
    return report.save()


def loaded(file: Path, work: Path) -> dict[str, Any]:
    """Measurements of a page that a browser has loaded."""
    allowed = base64.b64encode(hashlib.sha256(LOOK.encode()).digest()).decode()
    text = file.read_text().replace("script-src ", f"script-src 'sha256-{allowed}' ")
    looked = work / "looked.html"
    looked.write_text(text.replace("</body>", f"<script>{LOOK}</script></body>"))
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={work / 'profile'}"]
    command += ["--timeout=20000", "--dump-dom", looked.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    if found is None:
        sys.exit("the page did not load")
    seen: dict[str, Any] = json.loads(unescape(found[1]))
    return seen


def evidence(work: Path, data: Path, count: int) -> int:
    from tlkit.data.preprocessing import load
    from tlkit.runtime.evidence import Evidence, Occluded, heat
    from tlkit.runtime.model import Model

    report = Report(
        "report-evidence",
        "Evidence maps of the predicted class. The 49 parts of each image are covered in gray, those with the most "
        "evidence first. The mean probability of the class over the curve (deletion: Petsiuk, Das and Saenko, "
        "BMVC 2018) is lower for a better map. Maps are taken as they are drawn, without negative evidence. "
        "Milliseconds are those of a whole map, the trunk included.",
        {"data": shown(data), "images": count},
    )
    bundle = work / "run" if SETTINGS.smallest and (work / "run").exists() else work / "seen"
    if not bundle.exists():
        run([TLKIT, "train", str(data), "-o", str(bundle), *SETTINGS.frozen])
        run([TLKIT, "export", str(bundle), "--onnx"])
    files = sorted(path for path in (data / "val").rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if len(files) < count:
        files += sorted(
            path for path in (data / "train").rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png")
        )
    with Model.open(bundle, workers=1) as model:
        images = np.stack([load(file, model.preprocessing) for file in files[:count]])
        classes = model.session.run(images, ["logits"])["logits"].argmax(1).tolist()

        def drawn(maps: Any) -> Any:
            return np.stack([heat(each, images.shape[1]) for each in maps])

        sides: dict[str, Callable[[], Any]] = {
            "occlusion": lambda: drawn(Occluded(model.session).maps(images, classes)),
            "at random": lambda: np.random.default_rng(0).random((len(images), PARTS, PARTS), np.float32),
        }
        areas = {}
        with Evidence.of(model) as left_out:
            all_sides = {
                OURS: lambda: drawn(left_out.maps(images, classes)),
                **rivals(bundle, images, classes),
                **sides,
            }
            for name, make in all_sides.items():
                started = time.perf_counter()
                maps = make()
                milliseconds = 1000 * (time.perf_counter() - started) / len(images)
                areas[name] = deletion(model, images, classes, maps)
                area = float(areas[name].mean())
                report.figures[name] = {"deletion": area, "ms per image": milliseconds}
                report.rows.append({"map": name, "deletion": f"{area:.4f}", "ms per image": f"{milliseconds:.1f}"})
    if not any("CAM" in name for name in areas):
        report.notes.append("not measured: grad-cam is not installed, or left out at the smallest setting")
    for name in [name for name in areas if "CAM" in name or name == "at random"]:
        worse = areas[OURS] - areas[name]
        error = 1.96 * float(worse.std()) / len(worse) ** 0.5
        report.figures[f"minus {name}"] = {"mean": float(worse.mean()), "95 % interval, half": error}
        report.notes.append(f"Minus that of {name}: {worse.mean():.4f} (95 % interval ± {error:.4f}).")
        what = f"deletion, minus that of {name}, lower end of the 95 % interval"
        report.bars.append(Bar(what, [float(worse.mean()) - error], "≤", 0.0, digits=4))
    return report.save()


def rivals(bundle: Path, images: Any, classes: list[int]) -> dict[str, Callable[[], Any]]:
    """Grad-CAM and EigenCAM of the package grad-cam, at the last stage of the same network in PyTorch."""
    if SETTINGS.smallest or find_spec("pytorch_grad_cam") is None:
        return {}
    import torch
    from pytorch_grad_cam import EigenCAM, GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    from tlkit import resolve

    module: Any = resolve.trained_modules(bundle).module("model")
    normalized = module.trunk.normalize(torch.from_numpy(images)).detach()
    stages = list(module.trunk.stages.values())

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stages, self.pool, self.head = torch.nn.Sequential(*stages), module.trunk.pool, module.head.head

        def forward(self, x: Any) -> Any:
            return self.head(self.pool(self.stages(x)))

    network = Logits().eval()

    def made(kind: Any) -> Any:
        with kind(model=network, target_layers=[stages[-1]]) as cam:
            found = [
                cam(each[None], [ClassifierOutputTarget(label)])[0]
                for each, label in zip(normalized, classes, strict=True)
            ]
        return np.stack(found)

    return {"Grad-CAM": lambda: made(GradCAM), "EigenCAM": lambda: made(EigenCAM)}


def deletion(model: Any, images: Any, classes: list[int], maps: Any) -> Any:
    """The mean probability of the class of each image while more and more of its parts are covered."""
    from PIL import Image

    edges = np.linspace(0, images.shape[1], PARTS + 1).astype(int)
    small = [np.asarray(Image.fromarray(each).resize((PARTS, PARTS), Image.Resampling.BOX)) for each in maps]
    order = np.argsort(-np.stack(small).reshape(len(images), -1), axis=1, kind="stable")
    covered, curve = images.copy(), []
    for step in range(STEPS + 1):
        got = model.session.run(covered, ["probabilities"])["probabilities"]
        curve.append(got[np.arange(len(images)), classes])
        for row, cells in enumerate(order):
            for cell in cells[len(cells) * step // STEPS : len(cells) * (step + 1) // STEPS]:
                y, x = divmod(int(cell), PARTS)
                covered[row, edges[y] : edges[y + 1], edges[x] : edges[x + 1]] = 127
    return np.mean(curve, axis=0)


if __name__ == "__main__":
    sys.exit(main())
