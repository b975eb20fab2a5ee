"""Systems: installations, containers, locales, disks and limits."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

from _bench import PYTHON, ROOT, TLKIT

from reported.workbench import Outcome, Verdict, Workbench, codes, judged, on, trial

sys.path.insert(0, str(ROOT))
from tests.kit.distribution import at_start

RESOURCE = 5  # exit code
BELIEVED = """
import os
os.sched_getaffinity = lambda pid: set(range(64))
from pathlib import Path
from tlkit.util import resources
resources.cpu_quota.__wrapped__.__defaults__ = (Path({system!r}),)
"""
NO_TEMPORARY = """
import tempfile
tempfile._candidate_tempdir_list = lambda: ["/proc/nonexistent"]
"""
NO_ENTRY = """
import pwd
def getpwuid(uid):
    raise KeyError(uid)
pwd.getpwuid = getpwuid
"""
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
THREADS = """
import os, sys
from tlkit.cli import run
from tlkit.util.resources import cores
code = run(sys.argv[1:])
print(cores(), len(os.listdir("/proc/self/task")), file=sys.stderr)
sys.exit(code)
"""


@trial(
    "base install: every verb", "the extra to install, exit 5 at once", "exit 1: a bug in tlkit: ModuleNotFoundError"
)
def base_install(bench: Workbench) -> Verdict:
    """An environment of its own, with what `pip install tlkit` brings."""
    place, rows = bench.place("base"), bench.place("rows").with_suffix(".parquet")
    bench.run([PYTHON, "-m", "venv", str(place)])
    if bench.run([str(place / "bin/python"), "-m", "pip", "install", "-q", str(ROOT)]).code:
        return Verdict(None, "not measured: tlkit can't be installed into an environment of its own")
    bench.done(f"embed {{cut}} {{test}} -o {rows}")
    model = "{cut}/onnx/fp32/model.onnx"
    works = (
        f"predict {model} {{test}}",
        f"predict {model} {{test}} --unknown --coverage 0.9",
        f"embed {model} {{test}} -o {bench.place('rows')}.npy",
        f"eval {model} {{test}}",
        "verify {cut}",
        f"inspect {model}",
        "export {cut} --triton {out}",
        f"report {{cut}} {{test}} -o {bench.place('page')}.html",
        f"suggest {model} {{test}} -n 2 -o {bench.place('next')}.csv",
        "plugins",
        "plugins show logistic",
        "plugins new tlkit-new --kind head",
        "doctor",
        "completion bash",
        "--version",
        "--help",
    )
    asks = (
        "train {photos} -o {out}",
        "train {photos} -o {out} --strategy frozen",
        "train {photos} -o {out} --budget 60",
        "advise {photos} --audit",
        "export {cut} --onnx",
        "export {cut} --onnx --precision int8",
        "plugins check logistic",
        "verify {cut} --data {photos}",
        f"embed {model} {{test}} -o {bench.place('rows')}.parquet",
        f"embed {{cut}} {{test}} -o {bench.place('job')}/",
        f"index {rows}",
        f"search {rows} {{test}} --model {{cut}}",
        f"search {rows} {{test}} --model {{cut}} --approximate",
        f"eval {model} {{test}} --plot {bench.place('plot')}.png",
        f"card {{cut}} -o {bench.place('card')}",
        "bench {cut} --target onnx --batch-size 1",
        "serve {cut} --port 0",
    )

    def run(line: str) -> Outcome:
        return bench.run([str(place / "bin/tlkit"), *line.format_map(bench).split()])

    wrong = [line for line in works if run(line).code]
    wrong += [line for line in asks if not run(line).refused(RESOURCE, "pip install", "tlkit[")]
    listed = ", ".join(line.split()[0] for line in wrong)
    return Verdict(not wrong, f"{len(works)} work, {len(asks)} name the extra" if not wrong else f"wrong: {listed}")


@trial(
    "the lowest versions of pyproject.toml", "they work", "click 8.2 and 8.3, onnx 1.17 and 1.18, onnxscript 0.5 fail"
)
def lower_bounds(bench: Workbench) -> Verdict:
    """The verbs in the environment that `make lowest` leaves, whose tests it runs."""
    lowest = ROOT / ".venv-lowest/bin/tlkit"
    if not lowest.exists():
        return Verdict(None, "not measured: run `make lowest` before, which makes the environment and runs the tests")
    run, env = bench.out, {"TLKIT_CACHE": str(bench.place("cache"))}
    lines = (
        f"train {{photos}} -o {run} --strategy frozen --cut stage3",
        f"export {run} --onnx",
        f"export {run} --onnx --precision int8",
        f"verify {run}",
        f"predict {run} {{test}}",
        f"embed {run} {{test}} -o {bench.place('rows')}.parquet",
        f"eval {run} {{test}}",
    )
    done = {line.split()[0]: bench.run([str(lowest), *line.format_map(bench).split()], env) for line in lines}
    return Verdict(not any(each.code for each in done.values()), codes(**done))


@trial(
    "a quota of 2 processors among 64", "2 are used; `--threads`", "one image 2,400 ms instead of 60, 560 MB for 193"
)
def many_cores(bench: Workbench) -> Verdict:
    """Control groups of both versions that allow two processors, where the affinity names 64."""
    found = {}
    for version, files in {
        "v1": {"proc/self/cgroup": "3:cpu,cpuacct:/pod\n", "sys/fs/cgroup/cpu/pod/cpu.cfs_quota_us": "200000\n"}
        | {"sys/fs/cgroup/cpu/pod/cpu.cfs_period_us": "100000\n"},
        "v2": {"proc/self/cgroup": "0::/pod\n", "sys/fs/cgroup/pod/cpu.max": "200000 100000\n"},
    }.items():
        site, system = bench.place("site"), bench.place("system")
        site.mkdir()
        for name, content in files.items():
            (system / name).parent.mkdir(parents=True, exist_ok=True)
            (system / name).write_text(content)
        at_start(site, BELIEVED.format(system=str(system)))
        for more, cores in (("", 2), (" --threads 1", 1)):
            model = bench.good / "onnx/fp32/model.onnx"
            line = f"predict {model} {bench.test}{more}"
            done = bench.python(THREADS, *line.split(), env=on(site))
            used, threads = map(int, done.said.split()[-2:])
            found[f"{version}{more}: {used} of 64, {threads} threads"] = used == cores and threads <= 12
    return judged(**found)


@trial("a locale that is not UTF-8", "UTF-8 all the same", "exit 1: UnicodeEncodeError; labels in ISO-8859-1, exit 0")
def locale_triton(bench: Workbench) -> Verdict:
    """Classes of other letters, exported for Triton in the locales C and, where it can be made, de_DE.ISO-8859-1."""
    images = bench.place("letters")
    for label, folder in {"Käfer": "ants", "蜂": "bees"}.items():
        (images / label).mkdir(parents=True)
        for file in (bench.photos / folder).iterdir():
            os.link(file, images / label / file.name)
    run, found = bench.out, {}
    bench.done(f"train {images} -o {run} --strategy frozen --cut stage2")
    bench.done(f"export {run} --onnx")
    for name, env in {"C": ASCII, **_german(bench.work)}.items():
        repository = bench.place("repository")
        done = bench.tlkit(f"export {run} --triton {repository}", env, fresh=True)
        labels = [file.read_bytes() for file in repository.glob("*/labels.txt")]
        found[f"{name}: exit {done.code}"] = done.code == 0 and labels == ["Käfer\n蜂\n".encode()]
        theirs = bench.place("repository") / run.name / "config.pbtxt"
        theirs.parent.mkdir(parents=True)
        theirs.write_bytes(b'name: "K\xe4fer"\n')
        found[f"{name}: a model of others stays"] = (
            bench.tlkit(f"export {run} --triton {theirs.parents[1]}", env, fresh=True).code == 2
        )
    return judged(**found)


def _german(work: Path) -> dict[str, dict[str, str]]:
    """Return the environment of a German locale in ISO-8859-1, made in a folder."""
    place = work / "locales"
    place.mkdir(exist_ok=True)
    command = ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", str(place / "de_DE.ISO-8859-1")]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"de_DE.ISO-8859-1": {"LC_ALL": "de_DE.ISO-8859-1", "LOCPATH": str(place), "PYTHONUTF8": "0"}}


@trial("a full stdout, no temporary folder, no home", "exit 5 and what to do", "exit 1: a bug in tlkit: OSError")
def oserrors(bench: Workbench) -> Verdict:
    """As in a container that is read-only, run by a user without a name."""
    site, nobody = bench.place("site"), bench.place("site")
    for place, source in ((site, NO_TEMPORARY), (nobody, NO_ENTRY)):
        place.mkdir()
        at_start(place, source)
    without = ["env", *(part for name in ("HOME", "XDG_CACHE_HOME", "TLKIT_CACHE") for part in ("-u", name))]
    done = {
        "predict, stdout full": _full(bench, "predict {cut} {test}"),
        "verify, stdout full": _full(bench, "verify {cut} --json"),
        "int8 without a temporary folder": bench.tlkit(
            f"export {bench.copied(bench.cut)} --onnx --precision int8", on(site), fresh=True
        ),
        "Triton without a temporary folder": bench.tlkit("export {cut} --triton {out}", on(site), fresh=True),
    }
    export = ["export", str(bench.copied(bench.cut)), "--onnx"]
    done["no home"] = bench.run([*without, TLKIT, *export], on(nobody))
    right = all(each.code == RESOURCE or (name == "no home" and each.code == 0) for name, each in done.items())
    return Verdict(right, codes(**done))


def _full(bench: Workbench, line: str) -> Outcome:
    command = [TLKIT, *line.format_map(bench).split()]
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    return Outcome(ended.returncode, "", ended.stderr.decode())


@trial("memory that the system refuses", "exit 5", "exit 4: export it again")
def runtime_memory(bench: Workbench) -> Verdict:
    """1,024 images at once in 2.5 GB of addresses."""
    done = bench.tlkit("bench {good} --target onnx --batch-size 1024", preexec_fn=_little_memory)
    return Verdict(done.refused(RESOURCE) and "export it again" not in done.said, f"exit {done.code}: {done.last}")


def _little_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (2_500_000 << 10, 2_500_000 << 10))


@trial("warnings of ONNX Runtime", "none on stderr", "lines of its loggers among ours")
def quiet_runtime(bench: Workbench) -> Verdict:
    """Every verb that opens a graph, on exports of every precision."""
    lines = (
        "verify {good}",
        "predict {good}/onnx/int8/model.onnx {test}",
        f"embed {{good}} {{test}} -o {bench.place('rows')}.npy",
        "eval {good} {test}",
        "inspect {good}/onnx/fp32/model.onnx",
        "bench {good} --target onnx --batch-size 1",
        "doctor",
        f"export {bench.copied(bench.good)} --onnx --precision int8",
        "train {photos} -o {out} --strategy frozen --cut stage2",
    )
    said = {line.split()[0]: bench.tlkit(line, fresh=True).said for line in lines}
    loud = [verb for verb, text in said.items() if "onnxruntime" in text and ("[W:" in text or "[E:" in text)]
    return Verdict(not loud, f"{len(lines)} verbs are quiet" if not loud else "loud: " + ", ".join(loud))
