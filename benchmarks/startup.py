"""What a command costs before it does anything: `tlkit --help` and `tlkit predict` of one image, whole processes.

Each is held against the least that could do it: importing click and pluggy, and a script of ONNX Runtime, Pillow and
NumPy that reads the same model.onnx.
"""

from __future__ import annotations

import sys
from pathlib import Path

from _bench import (
    DATA,
    PYTHON,
    RIVALS,
    TLKIT,
    Bar,
    Report,
    cpu,
    existing,
    exported,
    parser,
    ratios,
    repeated,
    run,
    seconds,
    shown,
    spread,
    take_turns,
    workroom,
)

HELP, IMPORTS, PREDICT, BARE = (
    "tlkit --help",
    'python -c "import click, pluggy"',
    "tlkit predict model.onnx a.jpg",
    "bare script, same model and image",
)

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
    args = options.parse_args()
    images = existing(args.images, "--images")
    report = Report(
        "startup",
        "Whole processes that do next to nothing, against the least that could do it.",
        {"images": f"the first JPEG of {shown(images)}", "turns": args.repeat},
    )
    with workroom() as work:
        model = str(exported(work) / "onnx" / "fp32" / "model.onnx")
        image = str(repeated(images, work / "images", 1) / "000000.jpg")
        commands = {
            HELP: [TLKIT, "--help"],
            IMPORTS: [PYTHON, "-c", "import click, pluggy"],
            PREDICT: [TLKIT, "predict", model, image],
            BARE: [PYTHON, str(RIVALS / "bare_predict.py"), model, image],
        }
        take_turns(commands, 1)  # not counted: it fills the page cache
        runs = take_turns(commands, args.repeat)
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
    report.notes.append(f"tlkit and the bare script answer {'alike' if own[1:] == bare[-2:] else 'DIFFERENTLY'}.")
    frameworks = {name: output.splitlines()[-1] for name, output in loaded.items()}
    report.figures["frameworks loaded"] = frameworks
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
    ]
    return report.save()


if __name__ == "__main__":
    sys.exit(main())
