"""Checks of a backbone's declaration: preprocessing and origin of the weights."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tlkit.conformance.backbone.subject import BackboneSubject
from tlkit.conformance.pictures import pictures, preprocessed
from tlkit.conformance.subject import CheckFailed, Skipped, expect
from tlkit.conformance.watch import Watch, watching
from tlkit.plugin.contract import INTERPOLATIONS, Preprocessing, Weights
from tlkit.plugin.licenses import license_fault
from tlkit.util.text import listed

SIZES = range(8, 4097)
GRAY_LEVELS = (
    4.0  # mean difference of a picture: libraries crop at whole pixels, half a pixel apart; faults from 3 to 20
)
NEARER = 0.9  # of the difference with the declared filter: another one as near as that is the library's
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
    if not subject.pretrained:
        raise Skipped("without a hash, it needs the pretrained weights; pass --pretrained, or pretrained=True")
    watch, do = Watch(), "record the file's hash in `Weights(..., sha256=...)`, and check it before the file is read"
    try:
        with watching(watch):
            subject.component.stages(pretrained=True)
    except Exception as error:
        raise CheckFailed("there is no hash, and without a file there are no weights", do=do) from error
    read = [*watch.files, *watch.addresses]
    expect(not read, f"there is no hash, but weights are read from {listed(read)}", do=do)


def preprocessing_equals_the_library(subject: BackboneSubject) -> None:
    """Twenty pictures are preprocessed as by the library itself, if its reference does that: crop, filter and scale."""
    given, theirs = subject.preprocessing, subject.reference.preprocess(subject.component)
    if theirs is None:
        raise Skipped("its reference has no `preprocess` to compare with")
    levels = 255.0 * np.array(given.std)[:, None, None]
    expected = [np.asarray(theirs(picture)) for picture in pictures()]
    shape = (3, given.size, given.size)
    do = "correct `preprocessing`: size, mean, std, crop_pct, crop_mode, interpolation, as the library has them"
    expect(expected[0].shape == shape, f"the library gives {expected[0].shape}, not {shape}", do=do)
    differences = {
        name: [
            float((np.abs(ours - wanted) * levels).mean())
            for ours, wanted in zip(_normalized(replace(given, interpolation=name)), expected, strict=True)
        ]
        for name in INTERPOLATIONS
    }
    own = differences[given.interpolation]
    wrong = f"a picture differs from the library's by {max(own):.1f} gray levels on average"
    expect(max(own) <= GRAY_LEVELS, wrong, do=do)
    mean = {name: sum(each) / len(each) for name, each in differences.items()}
    best = min(mean, key=lambda name: mean[name])
    nearer = f"the library interpolates {best} ({mean[best]:.2f} gray levels of difference), not {given.interpolation}"
    expect(mean[best] >= NEARER * mean[given.interpolation], f"{nearer} ({mean[given.interpolation]:.2f})", do=do)


def _normalized(given: Preprocessing) -> Iterator[NDArray[np.float64]]:
    """Yield the pictures normalized, `(3, S, S)`."""
    mean, std = (np.array(each)[:, None, None] for each in (given.mean, given.std))
    for picture in preprocessed(given):
        yield (picture.transpose(2, 0, 1) / 255.0 - mean) / std


def _weights(subject: BackboneSubject) -> Weights:
    source = getattr(subject.component, "weights", None)
    if not isinstance(source, Weights):
        raise CheckFailed(f"weights is {source!r}", do="declare: weights = Weights(origin, license, sha256)")
    return source
