"""Checks of a backbone's declaration: preprocessing and origin of the weights."""

from __future__ import annotations

import re
from pathlib import Path

from tlkit.conformance.backbone.subject import BackboneSubject
from tlkit.conformance.subject import CheckFailed, expect
from tlkit.conformance.watch import Watch, watching
from tlkit.plugin.contract import Weights
from tlkit.plugin.licenses import license_fault
from tlkit.util.text import listed

SIZES = range(8, 4097)
_SHA256 = re.compile(r"[0-9a-f]{64}")


def preprocessing(subject: BackboneSubject) -> None:
    """`preprocessing` is a `Preprocessing` with mean and standard deviation on the scale 0..1."""
    given = subject.preprocessing
    expect(given.size in SIZES, f"images of {given.size} x {given.size} pixels", do="check `preprocessing.size`")
    right = all(0.0 <= mean <= 1.0 for mean in given.mean) and all(0.0 < std <= 1.0 for std in given.std)
    wrong = f"mean {given.mean} and std {given.std} are not on the scale 0..1"
    expect(right, wrong, do="divide values on the scale 0..255 by 255")


def origin_of_the_weights(subject: BackboneSubject) -> None:
    """The origin of the weights is recorded, as a package or address, not as a path of one machine."""
    origin = _weights(subject).origin.strip()
    expect(bool(origin), "the weights have no origin", do="name the package or address, as in 'pypi:name==1.0'")
    right = not (Path(origin).is_absolute() or origin.startswith(("file:", "~", ".")))
    wrong = f"the origin {origin!r} is a path on one machine"
    expect(right, wrong, do="name the package or address that the weights were published at")


def license_of_the_weights(subject: BackboneSubject) -> None:
    """The license of the weights is recorded: an SPDX expression, or a `LicenseRef-...` with its class."""
    weights = _weights(subject)
    fault = license_fault(weights)
    do = "record it by its SPDX name, as in 'Apache-2.0'; without one, as 'LicenseRef-...' with its license_class"
    expect(fault is None, str(fault), do=do)


def hash_of_the_weights(subject: BackboneSubject) -> None:
    """The SHA-256 of the weights file is recorded; without one, the weights come from no file and no network."""
    sha256 = _weights(subject).sha256
    if sha256 is not None:
        right = bool(_SHA256.fullmatch(sha256))
        expect(right, f"{sha256!r} is no SHA-256", do="record the 64 hex digits of: sha256sum FILE")
        return
    watch, do = Watch(), "record the file's hash in `Weights(..., sha256=...)`, and check it before the file is read"
    try:
        with watching(watch):
            subject.component.stages(pretrained=True)
    except Exception as error:
        raise CheckFailed("there is no hash, and without a file there are no weights", do=do) from error
    read = [*watch.files, *watch.addresses]
    expect(not read, f"there is no hash, but weights are read from {listed(read)}", do=do)


def _weights(subject: BackboneSubject) -> Weights:
    source = getattr(subject.component, "weights", None)
    if not isinstance(source, Weights):
        raise CheckFailed(f"weights is {source!r}", do="declare: weights = Weights(origin, license, sha256)")
    return source
