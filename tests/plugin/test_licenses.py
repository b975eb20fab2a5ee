"""The class of a license, by SPDX expression or as the plugin declares it."""

from __future__ import annotations

import pytest

from tests.kit.tiny import Tiny
from tlkit import resolve
from tlkit.errors import ArtifactError, TlkitWarning, UsageError
from tlkit.plugin.contract import Weights
from tlkit.plugin.licenses import _PERMISSIVE, described_license, license_class, license_fault


@pytest.mark.parametrize(
    ("license", "declared", "expected"),
    [
        ("Apache-2.0", None, "permissive"),
        ("apache-2.0", None, "permissive"),  # as model hubs write it
        ("GPL-3.0-only", None, "custom"),
        ("CC-BY-NC-4.0", None, "non-commercial"),
        ("CC-BY-NC-SA-4.0 AND MIT", None, "non-commercial"),
        ("MIT OR GPL-2.0-or-later", None, "permissive"),
        ("(MIT OR CC-BY-NC-4.0) AND GPL-3.0-only", None, "custom"),
        ("Apache-2.0 WITH LLVM-exception", None, "permissive"),
        ("GPL-2.0-only WITH Classpath-exception-2.0 OR MIT", None, "permissive"),
        ("LicenseRef-DINOv3", "custom", "custom"),
        ("LicenseRef-DINOv3 AND MIT", "non-commercial", "non-commercial"),
        ("LicenseRef-DINOv3", None, "unknown"),
        ("other", None, "unknown"),
        ("", None, "unknown"),
    ],
)
def test_class(license: str, declared: str | None, expected: str) -> None:
    assert license_class(Weights("x", license, license_class=declared)) == expected


def test_the_table_has_identifiers_of_spdx() -> None:
    assert [each for each in _PERMISSIVE if license_fault(Weights("x", each))] == []


@pytest.mark.parametrize(
    ("weights", "fault"),
    [
        (Weights("x", "MIT"), None),
        (Weights("x", "LicenseRef-mine", license_class="custom"), None),
        (Weights("x", "see LICENSE"), "the license 'see LICENSE' is no SPDX expression"),
        (Weights("x", "MIT", license_class="custom"), "the class of MIT is known, and 'custom' is declared"),
        (Weights("x", "LicenseRef-a", license_class="free"), "the license class 'free' is none of permissive, custom,"),
    ],
)
def test_faults(weights: Weights, fault: str | None) -> None:
    assert (license_fault(weights) or "None").startswith(str(fault))


class Guarded(Tiny):
    weights = Weights("x", "CC-BY-NC-4.0")


def test_what_is_not_accepted_is_refused() -> None:
    resolve.check_license(Tiny(), ["permissive"])
    resolve.check_license(Guarded(), ["permissive", "non-commercial"])
    with pytest.raises(ArtifactError, match=r"CC-BY-NC-4.0 \(non-commercial\), and only permissive is accepted"):
        resolve.check_license(Guarded(), ["permissive"])
    with pytest.raises(UsageError, match="there is no license class 'free'"):
        resolve.check_license(Tiny(), ["free"])
    with pytest.warns(TlkitWarning, match=r"have the license CC-BY-NC-4.0 \(non-commercial\)"):
        resolve.check_license(Guarded(), [])
    assert described_license(Guarded.weights) == "CC-BY-NC-4.0 (non-commercial)"
