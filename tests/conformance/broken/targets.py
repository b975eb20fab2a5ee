"""Targets with one thing wrong each, by the check that has to find it. They are ONNX Runtime, but for that."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

import numpy as np
import onnx

from tests.conformance.broken.registry import Registry
from tlkit.errors import ResourceError
from tlkit.plugin.contract import FEATURES, Session, Target
from tlkit.runtime.session import OnnxSession

BROKEN = Registry()
breaks = BROKEN.breaks


class Changed(Session):
    """ONNX Runtime with what it gives changed."""

    def __init__(self, file, change=lambda arrays: arrays):
        self.inner, self.change = OnnxSession(file), change
        self.input, self.outputs, self.metadata = self.inner.input, self.inner.outputs, self.inner.metadata

    def run(self, array, outputs=None):
        return self.change(self.inner.run(array, outputs))


@dataclass(frozen=True)
class Copy(Target):
    name, suffix = "copy", ".copy"

    def build(self, made, out, profile, progress):
        shutil.copyfile(made.graph, out)

    def open(self, file):
        return Changed(file)


def each(function):
    return lambda arrays: {name: function(array) for name, array in arrays.items()}


@breaks("suffix-of-its-files", "the suffix is 'engine'")
class Bare(Copy):
    suffix = "engine"


@breaks("precisions-are-known", r"the precisions are \('fp32', 'fp4'\)")
class Precise(Copy):
    precisions = ("fp32", "fp4")


@breaks("missing-says-what-to-install", "`missing\\(\\)` returns 'no runtime'")
class Curt(Copy):
    def missing(self):
        return "no runtime"


@breaks("builds", "it raised FileNotFoundError: `build` wrote no built-model.copy")
class Lazy(Copy):
    def build(self, made, out, profile, progress):
        pass


@breaks("leaves-the-graph-alone", "`build` changed the ONNX file")
class Meddling(Copy):
    def build(self, made, out, profile, progress):
        super().build(made, out, profile, progress)
        model = onnx.load_model(made.graph)
        model.producer_name = "me"
        onnx.save_model(model, made.graph)


@breaks("opens", r"the model has input and outputs \('images', \('logits', 'features'\)\)")
class Reordering(Copy):
    def open(self, file):
        session = super().open(file)
        session.outputs = tuple(reversed(session.outputs))
        return session


@breaks("metadata-passes-through", "metadata is lost: tlkit.labels")
class Forgetful(Copy):
    def open(self, file):
        session = super().open(file)
        session.metadata = {"tlkit.bundle": session.metadata["tlkit.bundle"]}
        return session


@breaks("agrees-with-onnx-runtime", "it differs from ONNX Runtime: .*feature error 0.00999")
class Scaling(Copy):
    def open(self, file):
        return Changed(file, each(lambda array: array * np.float32(1.01)))


@breaks("head-agrees-with-onnx-runtime", "the head differs from ONNX Runtime")
class ScalingHeads(Copy):
    def open(self, file):
        session = Changed(file)
        if session.input == FEATURES:
            session.change = each(lambda array: array * np.float32(1.01))
        return session


@breaks("arrays-are-float32", "it gives features of float64, not float32")
class Double(Copy):
    def open(self, file):
        return Changed(file, each(lambda array: array.astype(np.float64)))


@breaks("gives-what-is-asked-for", r"asked for \('features',\), it gives \['features', 'logits'\]")
class Generous(Copy):
    def open(self, file):
        session = Changed(file)
        session.run = lambda array, _outputs=None: session.inner.run(array)
        return session


def into(buffers):
    """Results in buffers that are used again."""

    def change(arrays):
        for name, array in arrays.items():
            buffer = buffers.setdefault((name, len(array)), np.empty_like(array))
            buffer[:] = array
        return {name: buffers[name, len(array)] for name, array in arrays.items()}

    return change


@breaks("results-are-kept", "a later run changes features, logits; return copies")
class Reusing(Copy):
    def open(self, file):
        return Changed(file, into({}))


@breaks("runs-in-threads", "workers is 0")
class Workless(Copy):
    def open(self, file):
        session = super().open(file)
        session.workers = 0
        return session


class Last(Changed):
    """Sessions that all give what the one opened last would."""

    opened: list[Changed] = []  # noqa: RUF012

    def __init__(self, file):
        super().__init__(file)
        self.opened.append(self)
        self.offset = np.float32(len(self.opened))

    def run(self, array, outputs=None):
        return each(lambda given: given + self.opened[-1].offset)(super().run(array, outputs))


@breaks("two-sessions-at-once", "a second session of the same file changes the first")
class Sharing(Copy):
    def open(self, file):
        return Last(file)


@breaks("refuses-what-it-did-not-write", "given something else, `open` accepts it")
class Trusting(Copy):
    def open(self, file):
        if b"no engine" not in file.read_bytes():
            return super().open(file)
        session = Changed.__new__(Changed)
        session.input, session.outputs, session.metadata = "images", ("logits",), {}
        return session


@breaks("says-that-a-file-is-missing", "for a file that isn't there, `open` raises KeyError")
class Obscure(Copy):
    def open(self, file):
        if not file.exists():
            raise KeyError(file)
        return super().open(file)


@breaks("says-that-a-file-is-missing", "for a file that isn't there, `open` raises ResourceError")
class Excusing(Copy):
    def open(self, file):
        if not file.exists():
            raise ResourceError("no runtime is installed")
        return super().open(file)
