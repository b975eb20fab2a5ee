"""What a backbone says of itself."""

from __future__ import annotations

import re
from pathlib import Path

from tlkit.conformance.backbone.subject import BackboneSubject
from tlkit.conformance.subject import CheckFailed, expect
from tlkit.conformance.watch import Watch, watching
from tlkit.plugin.contract import Weights
from tlkit.util.text import listed

SIZES = range(8, 4097)
_SPDX = re.compile(r"\(*[A-Za-z0-9][A-Za-z0-9.+-]*\)*(?: (?:AND|OR|WITH) \(*[A-Za-z0-9][A-Za-z0-9.+-]*\)*)*")
_NO_LICENSE = frozenset({"", "-", "?", "n-a", "none", "other", "tbd", "todo", "unknown", "unlicensed"})
_SHA256 = re.compile(r"[0-9a-f]{64}")


def pixel_recipe(subject: BackboneSubject) -> None:
    """The pixel recipe is a `Pixels` whose mean and deviation are on the scale 0..1."""
    preprocessing = subject.preprocessing
    expect(
        preprocessing.size in SIZES,
        f"images of {preprocessing.size} x {preprocessing.size} pixels",
        do="check the recipe's size",
    )
    expect(
        all(0.0 <= mean <= 1.0 for mean in preprocessing.mean) and all(0.0 < std <= 1.0 for std in preprocessing.std),
        f"mean {preprocessing.mean} and std {preprocessing.std} are not on the scale 0..1",
        do="divide by 255 what is meant for 0..255",
    )


def origin_of_the_weights(subject: BackboneSubject) -> None:
    """It says where the weights come from, in a way that means something on another machine."""
    origin = _weights(subject).origin.strip()
    expect(bool(origin), "the source has no origin", do="name the package or address, as in 'pypi:name==1.0'")
    expect(
        not (Path(origin).is_absolute() or origin.startswith(("file:", "~", "."))),
        f"the origin {origin!r} is a place on one machine",
        do="name the package or address that the weights were published at",
    )


def license_of_the_weights(subject: BackboneSubject) -> None:
    """The license of the weights is recorded, as an SPDX expression."""
    spdx = _weights(subject).license.strip()
    expect(
        spdx.lower() not in _NO_LICENSE and bool(_SPDX.fullmatch(spdx)),
        f"the license {spdx!r} is none",
        do="record it by its SPDX name, as in 'Apache-2.0'; where there is none, 'LicenseRef-...' with a word for it",
    )


def hash_of_the_weights(subject: BackboneSubject) -> None:
    """The SHA-256 of the weights file is recorded; without one, the weights come from no file and no network."""
    sha256 = _weights(subject).sha256
    if sha256 is not None:
        right = bool(_SHA256.fullmatch(sha256))
        expect(right, f"{sha256!r} is no SHA-256", do="record the 64 hex digits of: sha256sum FILE")
        return
    watch, do = Watch(), "record the file's hash in `Source(..., sha256=...)`, and check it before the file is read"
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
