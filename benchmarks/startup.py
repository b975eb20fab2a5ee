"""Start-up time: `tlkit --help` and `tlkit predict` of one image, as whole processes.

Each is compared with the minimum: importing click and pluggy, and a script of ONNX Runtime, Pillow and NumPy that reads
the same model.onnx. `tlkit --help` and `tlkit plugins` with twenty plugins are compared with themselves with one.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from _bench import (
    DATA,
    PYTHON,
    RIVALS,
    SETTINGS,
    TLKIT,
    Bar,
    Report,
    cpu,
    existing,
    exported,
    interleave,
    parsed,
    parser,
    ratios,
    repeated,
    run,
    seconds,
    shown,
    spread,
    workspace,
)

HELP, IMPORTS, PREDICT, BARE = (
    "tlkit --help",
    'python -c "import click, pluggy"',
    "tlkit predict model.onnx a.jpg",
    "bare script, same model and image",
)

VERBS = ("--help", "plugins")
PLUGINS = (1, 20)
PLUGIN = """
from dataclasses import dataclass
from tlkit import Backbone, Preprocessing, hookimpl, option
from tlkit.plugin.contract import Weights

@dataclass(frozen=True)
class Other(Backbone):
    name = "other-{number}"
    preprocessing = Preprocessing(64, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    weights = Weights("nowhere", license="Apache-2.0")
    width: int = option(8, "channels")

    def stages(self, *, pretrained):
        raise NotImplementedError

@hookimpl
def tlkit_backbones():
    return [Other()]
"""

FRAMEWORKS = """
import sys
from tlkit.cli import run
code = run(sys.argv[1:])
print([name for name in ("torch", "sklearn", "tlkit_standard") if name in sys.modules])
sys.exit(code)
"""


def main() -> int:
    options = parser(__doc__, repeat=20)
    options.add_argument("--images", type=Path, default=DATA / "ants_bees", help="a folder with a JPEG in it")
    args = parsed(options)
    images = existing(args.images, "--images")
    report = Report(
        "startup",
        "Whole processes that do next to nothing, against the least that could do it.",
        {"images": f"the first JPEG of {shown(images)}", "turns": args.repeat},
    )
    with workspace() as work:
        model = str(exported(work) / "onnx" / "fp32" / "model.onnx")
        SETTINGS.in_process = False  # processes are what is measured, at the smallest setting too
        image = str(repeated(images, work / "images", 1) / "000000.jpg")
        commands = {
            HELP: [TLKIT, "--help"],
            IMPORTS: [PYTHON, "-c", "import click, pluggy"],
            PREDICT: [TLKIT, "predict", model, image],
            BARE: [PYTHON, str(RIVALS / "bare_predict.py"), model, image],
        }
        for count in PLUGINS:
            path = [str(plugins(work / f"{count} plugins", count)), os.environ.get("PYTHONPATH", "")]
            variable = f"PYTHONPATH={os.pathsep.join(filter(None, path))}"
            commands |= {_with(verb, count): ["env", variable, TLKIT, verb] for verb in VERBS}
        if not SETTINGS.smallest:
            interleave(commands, 1)  # not counted: it fills the page cache
        runs = interleave(commands, args.repeat)
        loaded = {name: run([PYTHON, "-c", FRAMEWORKS, *commands[name][1:]]).output for name in (HELP, PREDICT)}

    for name, done in runs.items():
        peaks = [each.peak_mib for each in done]
        report.figures[name] = {"seconds": seconds(done), "CPU seconds": cpu(done), "peak MiB": peaks}
        report.rows.append(
            {
                "": f"`{name}`" if name != BARE else name,
                "ms": spread([1000 * value for value in seconds(done)], 0),
                "CPU ms": spread([1000 * value for value in cpu(done)], 0),
                "peak MiB": spread(peaks, 0),
            }
        )
    own, bare = (runs[name][-1].output.split("\t") for name in (PREDICT, BARE))
    report.notes.append(
        f"tlkit and the bare script give results that are {'equal' if own[1:] == bare[-2:] else 'DIFFERENT'}."
    )
    frameworks = {name: output.splitlines()[-1] for name, output in loaded.items()}
    report.figures["frameworks loaded"] = frameworks
    one, many = ([runs[_with(verb, count)] for verb in VERBS] for count in PLUGINS)
    grown = [ratios(seconds(after), seconds(before)) for before, after in zip(one, many, strict=True)]
    report.notes.append(
        f"`tlkit plugins`, which imports them all, with 20 plugins: {spread(grown[1])}x its time with one."
    )
    report.bars += [
        Bar(f"`{HELP}` as a multiple", ratios(seconds(runs[HELP]), seconds(runs[IMPORTS])), "≤", 2, "x"),
        Bar(f"`{PREDICT}` as a multiple", ratios(seconds(runs[PREDICT]), seconds(runs[BARE])), "<", 3, "x"),
        Bar(
            "torch, scikit-learn or the standard plugin loaded by either",
            [sum(line != "[]" for line in frameworks.values())],
            "=",
            0,
            "",
            0,
        ),
        Bar("`tlkit --help` with 20 plugins, as a multiple of its time with one", grown[0], "≤", 1.5, "x"),
    ]
    return report.save()


def _with(verb: str, count: int) -> str:
    return f"tlkit {verb}, {count} plugin{'s' if count > 1 else ''} more"


def plugins(site: Path, count: int) -> Path:
    """A folder of `count` installed distributions, each a plugin with a backbone."""
    for number in range(count):
        facts = site / f"tlkit_other_{number}-1.0.dist-info"
        facts.mkdir(parents=True)
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tlkit-other-{number}\nVersion: 1.0\n")
        (facts / "entry_points.txt").write_text(f"[tlkit]\nother-{number} = tlkit_other_{number}\n")
        (site / f"tlkit_other_{number}.py").write_text(PLUGIN.format(number=number))
    return site


if __name__ == "__main__":
    sys.exit(main())
