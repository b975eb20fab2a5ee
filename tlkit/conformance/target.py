"""Checks of a target: what it builds from a small graph must agree with ONNX Runtime."""

from __future__ import annotations

import re
import shutil
import tempfile
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from tlkit.conformance import small
from tlkit.conformance.subject import CheckFailed, Skipped, Subject, expect, prepared
from tlkit.errors import ArtifactError, PluginError, ResourceError, TlkitError
from tlkit.plugin.contract import FEATURES, IMAGES, LOGITS, OptimizationProfile, Session, Target, silent
from tlkit.runtime.session import OnnxSession
from tlkit.verification.parity import TOLERANCES, compare

PRECISIONS = ("fp32", "fp16", "int8", "int8-symmetric")
PROFILE = OptimizationProfile(min=1, opt=4, max=9)
BATCHES = (1, 2, 5, 9)
IMAGES_IN = small.images(PROFILE.max)


class TargetSubject(Subject[Target]):
    """Target under test, and what it built from a small graph of each kind."""

    def __init__(self, component: Target, **how: Any) -> None:
        super().__init__(component, **how)
        self.root = Path(tempfile.mkdtemp(prefix="tlkit-"))
        weakref.finalize(self, shutil.rmtree, self.root, ignore_errors=True)

    def need(self) -> None:
        """Skip the check if the target can't run."""
        if missing := self.component.missing():
            raise Skipped(missing)

    def need_single_precision(self) -> None:
        """Skip the check if the target takes no fp32 graph."""
        if "fp32" not in self.component.precisions:
            raise Skipped("it takes no fp32 graph, and the small ones are")

    def graph(self, name: str) -> Path:
        """Return the ONNX file of the small `model` (images to features and logits) or `head` (features to logits)."""
        file = self.root / f"{name}.onnx"
        if not file.exists():
            onnx.save_model(small.model() if name == "model" else small.head(), file)
        return file

    def built(self, name: str) -> Path:
        """Return the file or folder that the target built from a small graph."""

        def build() -> Path:
            self.need()
            out = self.root / f"built-{name}{self.component.suffix}"
            self.component.build(small.source(self.graph(name)), out, PROFILE, silent)
            if not out.exists():
                raise FileNotFoundError(f"`build` wrote no {out.name}")
            return out

        return self.prepare(f"built-{name}", "builds", build)

    def session(self, name: str) -> Session:
        """Return what it built, opened."""
        return self.prepare(f"session-{name}", "opens", lambda: self.open(self.built(name)))

    def open(self, place: Path) -> Session:
        """Return a session. Skips the check if only building is possible here."""
        try:
            return self.component.open(place)
        except ResourceError as missing:
            raise Skipped(missing.what) from missing

    @prepared("opens")
    def expected(self) -> dict[str, NDArray[np.float32]]:
        """Outputs of ONNX Runtime for the images."""
        return OnnxSession(self.graph("model")).run(IMAGES_IN)


def suffix_of_its_files(subject: TargetSubject) -> None:
    """Its files have a suffix: a dot and what follows it."""
    suffix = getattr(subject.component, "suffix", None)
    fits = isinstance(suffix, str) and re.fullmatch(r"\.[a-z0-9_]+", suffix) is not None
    expect(fits, f"the suffix is {suffix!r}", do="declare it as in: suffix = '.engine'")


def precisions_are_known(subject: TargetSubject) -> None:
    """It lists the precisions of the graphs it can build, each of them once."""
    given = tuple(subject.component.precisions)
    fits = 0 < len(given) == len(set(given)) and set(given) <= set(PRECISIONS)
    expect(fits, f"the precisions are {given}", do=f"declare some of {', '.join(PRECISIONS)}")


def missing_says_what_to_install(subject: TargetSubject) -> None:
    """`missing()` is None if it can run, and otherwise the reason, with the command that installs it."""
    missing = subject.component.missing()
    fits = missing is None or (isinstance(missing, str) and " install " in missing)
    expect(fits, f"`missing()` returns {missing!r}", do="end it with the command, as in: 'run: pip install NAME'")
    expect(subject.component.missing() == missing, "`missing()` changes its mind", do="look at what is installed alone")


def builds(subject: TargetSubject) -> None:
    """`build` writes the given file or folder, from a graph of images and from one of features."""
    for name in ("model", "head"):
        subject.built(name)


def leaves_the_graph_alone(subject: TargetSubject) -> None:
    """`build` does not change the graph that it reads."""
    before = small.model().SerializeToString()
    subject.built("model")
    same = onnx.load_model(subject.graph("model")).SerializeToString() == before
    expect(same, "`build` changed the ONNX file that it was given", do="read it only")


def opens(subject: TargetSubject) -> None:
    """`open` gives a `Session` whose input and outputs are the graph's, in their order."""
    wanted = {"model": (IMAGES, (FEATURES, LOGITS)), "head": (FEATURES, (LOGITS,))}
    for name, (input_, outputs) in wanted.items():
        session = subject.session(name)
        expect(isinstance(session, Session), f"`open` returns {type(session).__name__}", do="subclass tlkit.Session")
        got = (session.input, tuple(session.outputs))
        expect(got == (input_, outputs), f"the {name} has input and outputs {got}", do=f"give {(input_, outputs)}")


def metadata_passes_through(subject: TargetSubject) -> None:
    """The session has all metadata of the graph, or none: then it gets those of the manifest."""
    found = subject.session("model").metadata
    lacking = [key for key, value in small.FACTS.items() if found and found.get(key) != value]
    do = "store the metadata of `made` in what `build` writes, or leave the session's empty"
    expect(not lacking, f"metadata is lost: {', '.join(lacking)}", do=do)


def agrees_with_onnx_runtime(subject: TargetSubject) -> None:
    """Features and logits are those of ONNX Runtime within the tolerance, for every batch it is built for."""
    subject.need_single_precision()
    verdict = compare(subject.expected, subject.session("model"), IMAGES_IN, batches=BATCHES)
    do = "compute in the precision of the graph; keep the channels' order"
    expect(verdict.passed, f"it differs from ONNX Runtime: {verdict.summary()}", do=do)


def head_agrees_with_onnx_runtime(subject: TargetSubject) -> None:
    """Logits of a graph that starts at features are those of ONNX Runtime, too."""
    subject.need_single_precision()
    features = subject.expected[FEATURES]
    expected = OnnxSession(subject.graph("head")).run(features)
    verdict = compare(expected, subject.session("head"), features, batches=BATCHES)
    expect(verdict.passed, f"the head differs from ONNX Runtime: {verdict.summary()}", do="feed it float32")


def arrays_are_float32(subject: TargetSubject) -> None:
    """Outputs are float32 NumPy arrays by name, a row per image."""
    for batch in BATCHES:
        for name, array in subject.session("model").run(IMAGES_IN[:batch]).items():
            fits = isinstance(array, np.ndarray) and array.dtype == np.float32 and len(array) == batch
            shape = getattr(array, "shape", type(array).__name__)
            expect(fits, f"for {batch} images, {name} is {shape}", do="return float32 arrays `(N, ...)`")


def gives_what_is_asked_for(subject: TargetSubject) -> None:
    """`run(array, names)` gives those outputs only, and all of them by default."""
    session = subject.session("model")
    for names in ((FEATURES,), (LOGITS,), (LOGITS, FEATURES), None):
        got = set(session.run(IMAGES_IN[:1], names))
        wanted = set(names or (FEATURES, LOGITS))
        expect(got == wanted, f"asked for {names}, it gives {sorted(got)}", do="use the argument `outputs`")


def results_are_kept(subject: TargetSubject) -> None:
    """An array that was returned stays as it is when the session runs again."""
    session = subject.session("model")
    first = session.run(IMAGES_IN[:1])
    kept = {name: array.copy() for name, array in first.items()}
    session.run(IMAGES_IN[1:2])
    changed = [name for name, array in first.items() if not np.array_equal(array, kept[name])]
    expect(not changed, f"a later run changes {', '.join(changed)}", do="return copies of reused buffers")


def runs_in_threads(subject: TargetSubject) -> None:
    """`workers` threads may run it concurrently."""
    session = subject.session("model")
    threads = "the number of threads that gain by calling `run` concurrently; 1 if none"
    for name, what in (("workers", threads), ("batch_size", "the rows per call with the best throughput")):
        value = getattr(session, name)
        expect(type(value) is int and value >= 1, f"{name} is {value!r}", do=f"set {what}")
    batches = [IMAGES_IN[index : index + 1] for index in range(PROFILE.max)] * 4
    alone = [session.run(batch)[LOGITS] for batch in batches]
    with ThreadPoolExecutor(session.workers) as pool:
        together = list(pool.map(lambda batch: session.run(batch)[LOGITS], batches))
    error = max(float(np.abs(one - other).max()) for one, other in zip(alone, together, strict=True))
    same = error <= TOLERANCES["fp32"].error
    expect(same, f"in threads its results differ by {error:.2g}", do="guard what is shared")


def two_sessions_at_once(subject: TargetSubject) -> None:
    """An export can be opened twice, and the sessions don't disturb each other."""
    one = subject.session("model")
    before = one.run(IMAGES_IN[:2])[LOGITS]
    subject.open(subject.built("model")).run(IMAGES_IN[2:4])
    same = np.array_equal(one.run(IMAGES_IN[:2])[LOGITS], before)
    expect(same, "a second session of the same file changes the first", do="share no buffers between sessions")


def refuses_what_it_did_not_write(subject: TargetSubject) -> None:
    """`open` raises an ArtifactError for another format, for half a file, and for an empty one."""
    spoiling: dict[str, Callable[[bytes], bytes]] = {
        "something else": lambda _: b"no engine" * 99,
        "half a file": lambda content: content[:-64],
        "nothing": lambda _: b"",
    }
    for what, spoil in spoiling.items():
        place = subject.root / what / f"spoiled{subject.component.suffix}"
        _copy(subject.built("model"), place, spoil)
        do = "check what you read, and raise tlkit.errors.ArtifactError(what, file=place, do=...)"
        opened = _opens(subject, place, ArtifactError, f"given {what}", do)
        expect(not opened, f"given {what}, `open` accepts it", do=do)


def says_that_a_file_is_missing(subject: TargetSubject) -> None:
    """`open` raises a TlkitError for a file that is not there."""
    subject.need()
    missing, do = subject.root / f"missing{subject.component.suffix}", "raise tlkit.errors.DataError"
    opened = _opens(subject, missing, TlkitError, "for a file that isn't there", do)
    expect(not opened, "`open` opens a file that isn't there", do=do)


def _copy(built: Path, place: Path, spoil: Callable[[bytes], bytes]) -> None:
    """Copy a file, or a folder with all its files, with the content of each changed."""
    for file in [built] if built.is_file() else [each for each in built.rglob("*") if each.is_file()]:
        copy = place / file.relative_to(built)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(spoil(file.read_bytes()))


def _opens(subject: TargetSubject, file: Path, refusal: type[TlkitError], when: str, do: str) -> bool:
    """Return True if `open` opens a file, False if it raises `refusal`. Fails if it raises anything else."""
    try:
        subject.open(file)
    except PluginError as error:
        raise CheckFailed(f"{when}, `open` raises {type(error.__cause__).__name__}", do=do) from error
    except refusal:
        return False
    except Skipped as skipped:
        subject.session("model")  # which skips the check where nothing can be opened
        raise CheckFailed(f"{when}, `open` raises ResourceError", do=do) from skipped
    except TlkitError as error:
        raise CheckFailed(f"{when}, `open` raises {type(error).__name__}", do=do) from error
    return True


SUBJECT = TargetSubject
