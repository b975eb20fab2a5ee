"""Load what is to be served: proven beside what is served now, one scheduler per trunk, and the old one on failure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlkit.errors import TlkitError
from tlkit.exporting.triton import trunk_name
from tlkit.graph.compose import add_probabilities
from tlkit.model.bundle import Bundle, read_record
from tlkit.model.exports import MANIFEST, TARGET, Exports
from tlkit.model.reference_images import golden_pixels
from tlkit.plugin.contract import FEATURES, LOGITS, PROBABILITIES, Session
from tlkit.runtime.model import Model
from tlkit.runtime.session import OnnxSession, Wrapped, head_output, load_graph, on_disk
from tlkit.serving.adaptive import adapted
from tlkit.serving.models import ServedModel, Source, discover, prove
from tlkit.serving.scheduler import Scheduler
from tlkit.verification.replay import Replay

Signature = tuple[object, ...]
OpenGraph = Callable[[Path, str], Model]  # the graph "model" or "trunk" of a bundle's export


class SharedTrunk(Wrapped):
    """One trunk and the heads of several bundles, whose outputs are named `head/output`; a batch may be for several."""

    def __init__(self, trunk: Session, heads: Mapping[str, Session]) -> None:
        own = [head_output(name, output) for name, head in heads.items() for output in head.outputs]
        super().__init__(trunk, (FEATURES, *own))
        self._heads = heads

    def run(self, array: NDArray[Any], outputs: Sequence[str] | None = None) -> dict[str, NDArray[np.float32]]:
        arrays = self._session.run(array, [FEATURES])
        names = list(outputs or self.outputs)
        for name, head in self._heads.items():
            own = head_output(name, "")
            if wanted := [each.removeprefix(own) for each in names if each.startswith(own)]:
                answers = head.run(arrays[FEATURES], wanted)
                arrays |= {head_output(name, output): values for output, values in answers.items()}
        return arrays

    def close(self) -> None:
        for session in (self._session, *self._heads.values()):
            session.close()


@dataclass(eq=False)
class _Candidate:
    """A model that was proven: just now, or as it is `served` already."""

    source: Source
    signature: Signature
    trunk: str
    model: Model
    bundle: Bundle
    replay: Replay
    served: ServedModel | None = None


@dataclass
class Loader:
    """Loads the bundles at `paths`, of which `place` is the folder of the export that is served, as "onnx/fp32".

    `schedule` makes the scheduler of a session.
    """

    paths: Sequence[Path]
    place: str
    open_graph: OpenGraph
    schedule: Callable[[Session, str], Scheduler]
    failures: dict[str, str] = field(default_factory=dict)  # by name, why the newest is not served
    _known: dict[str, _Candidate] = field(default_factory=dict)
    _bad: dict[str, Signature] = field(default_factory=dict)

    def load(self, *, strict: bool) -> list[ServedModel] | None:
        """Return the models to serve now, those that are served already among them; None if nothing has changed.

        With `strict` an error ends it; otherwise it is in `failures`, and what was served of that name stays.
        """
        found: dict[str, _Candidate] = {}
        changed = False
        sources = discover(self.paths)
        for source in sources:
            known = self._known.get(source.name)
            try:
                signature = self._signature(source)
                if known is not None and known.signature == signature:
                    found[source.name] = known
                    continue
                if self._bad.get(source.name) != signature:
                    changed = True
                    found[source.name] = self._prove(source, signature)
                    self.failures.pop(source.name, None)
                    self._bad.pop(source.name, None)
                    continue
            except (TlkitError, OSError, KeyError) as error:
                if strict:
                    raise
                self.failures[source.name] = error.what if isinstance(error, TlkitError) else type(error).__name__
                self._bad[source.name] = signature = self._try_signature(source)
            if known is not None:
                found[source.name] = known
        for name in self.failures.keys() - {source.name for source in sources}:
            del self.failures[name]
        if not changed and found.keys() == self._known.keys():
            return None
        served = self._group(found)
        self._known = {
            name: replace(candidate, served=served[name], model=served[name].model) for name, candidate in found.items()
        }
        return list(served.values())

    def _signature(self, source: Source) -> Signature:
        """Return what changes when a bundle or its export does."""
        digest = read_record(source.root)["digest"]
        file = source.root / self.place / MANIFEST
        seen = file.stat() if file.exists() else None
        return source, digest, None if seen is None else (seen.st_mtime_ns, seen.st_size, seen.st_ino)

    def _try_signature(self, source: Source) -> Signature:
        try:
            return self._signature(source)
        except (TlkitError, OSError, KeyError) as error:
            return (str(error),)

    def _prove(self, source: Source, signature: Signature) -> _Candidate:
        model, bundle, replay = prove(source, lambda root: self.open_graph(root, "model"))
        model.session = adapted(model.session, golden_pixels(bundle))
        target, _, precision = self.place.partition("/")
        trunk = source.name
        if target == TARGET:
            file = Exports.of(bundle).get(target, precision).file("trunk")
            trunk = f"{model.preprocessing} {trunk_name(bundle, load_graph(file))}"
        return _Candidate(source, signature, trunk, model, bundle, replay)

    def _group(self, found: Mapping[str, _Candidate]) -> dict[str, ServedModel]:
        """Return the models by name: on a scheduler of their own, or on one with all others of their trunk."""
        groups: dict[str, list[_Candidate]] = {}
        for candidate in found.values():
            groups.setdefault(candidate.trunk, []).append(candidate)
        served: dict[str, ServedModel] = {}
        for group in groups.values():
            new = [each for each in group if each.served is None]
            shared = self._shared(group) if len(group) > 1 and new else None
            name = "+".join(sorted(each.source.name for each in group))
            together = None if shared is None else self.schedule(shared, name)
            for each in group:
                if together is not None:
                    if each.served is None:
                        each.model.close()
                    prefix = head_output(each.source.name, "")
                    made = ServedModel(each.source, each.model, each.bundle, each.replay, together, prefix)
                elif each.served is not None:
                    made = each.served
                else:
                    own = self.schedule(each.model.session, each.source.name)
                    made = ServedModel(each.source, each.model, each.bundle, each.replay, own)
                served[each.source.name] = made
        return {name: served[name] for name in found}

    def _shared(self, group: Sequence[_Candidate]) -> SharedTrunk | None:
        """Return one session for a group; None if it does not give, to the bit, what the models of the group give."""
        precision = self.place.partition("/")[2]
        with ExitStack() as opened:
            opening = self.open_graph(group[0].source.root, "trunk").session
            trunk = adapted(opening, golden_pixels(group[0].bundle))
            opened.callback(trunk.close)
            heads: dict[str, Session] = {}
            for each in group:
                head = load_graph(Exports.of(each.bundle).get(precision=precision).file("head"))
                add_probabilities(head.graph, LOGITS, PROBABILITIES, each.bundle.record.activation)
                with on_disk(head) as file:
                    heads[each.source.name] = OnnxSession(file, workers=trunk.workers, threads=1)
                opened.callback(heads[each.source.name].close)
            shared = SharedTrunk(trunk, heads)
            for each in group:
                if not _same(shared, each):
                    return None
            opened.pop_all()
            return shared


def _same(shared: SharedTrunk, candidate: _Candidate) -> bool:
    """Return whether a head on a shared trunk gives for the golden images what the model by itself gives."""
    pixels = golden_pixels(candidate.bundle)
    served = candidate.served
    session, prefix = (candidate.model.session, "") if served is None else (served.scheduler.session, served.prefix)
    names = {FEATURES: FEATURES} | {
        prefix + name: head_output(candidate.source.name, name) for name in candidate.model.session.outputs[1:]
    }
    alone, together = session.run(pixels, list(names)), shared.run(pixels, list(names.values()))
    return all(np.array_equal(alone[name], together[other], equal_nan=True) for name, other in names.items())
