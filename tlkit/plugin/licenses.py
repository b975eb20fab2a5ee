"""Class of the license of pretrained weights: permissive, custom, non-commercial or unknown.

Identifiers and expressions are those of SPDX, https://spdx.org/licenses. A license that it doesn't list is named
`LicenseRef-...`, and its class is declared with it.
"""

from __future__ import annotations

import re

from tlkit.plugin.contract import LICENSE_CLASSES, Weights

PERMISSIVE, CUSTOM, NON_COMMERCIAL, UNKNOWN = LICENSE_CLASSES  # in the order of what they allow

# Those that weights are published with. Others that SPDX lists have conditions of their own, such as copyleft.
_PERMISSIVE = frozenset(
    {"0BSD", "AFL-3.0", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "BlueOak-1.0.0", "CC-BY-3.0"}
    | {"CC-BY-4.0", "CC0-1.0", "CDLA-Permissive-1.0", "CDLA-Permissive-2.0", "ECL-2.0", "HPND", "ISC", "MIT", "MIT-0"}
    | {"MulanPSL-2.0", "NCSA", "PDDL-1.0", "PSF-2.0", "PostgreSQL", "UPL-1.0", "Unlicense", "WTFPL", "X11", "Zlib"}
)
_REFERENCE = "LicenseRef-"


def license_fault(weights: Weights) -> str | None:
    """Return what is wrong with the license of weights, for the plugin's author, or None."""
    try:
        spdx = _canonical(weights.license)
    except ValueError:
        return f"the license {weights.license!r} is no SPDX expression"
    if weights.license_class not in (None, *LICENSE_CLASSES):
        return f"the license class {weights.license_class!r} is none of {', '.join(LICENSE_CLASSES)}"
    if weights.license_class is not None and _REFERENCE not in spdx:
        return f"the class of {spdx} is known, and {weights.license_class!r} is declared"
    return None


def license_class(weights: Weights) -> str:
    """Return the class of the license: of alternatives (OR) the best, of several that hold (AND) the worst."""
    declared = weights.license_class if weights.license_class in LICENSE_CLASSES else UNKNOWN
    try:
        tokens = re.findall(r"[()]|[^\s()]+", _canonical(weights.license))
    except ValueError:
        return declared
    return LICENSE_CLASSES[_alternatives(tokens, LICENSE_CLASSES.index(declared))]


def described_license(weights: Weights) -> str:
    """Return license and class in words: `Apache-2.0 (permissive)`."""
    return f"{weights.license} ({license_class(weights)})"


def _canonical(license: str) -> str:
    from packaging.licenses import canonicalize_license_expression  # only for who needs it: it has a table of all

    return canonicalize_license_expression(license)


def _alternatives(tokens: list[str], declared: int) -> int:
    """Read `a OR b` off the front of `tokens`; returns the index of its class."""
    found = _conditions(tokens, declared)
    while tokens[:1] == ["OR"]:
        del tokens[0]
        found = min(found, _conditions(tokens, declared))
    return found


def _conditions(tokens: list[str], declared: int) -> int:
    found = _single(tokens, declared)
    while tokens[:1] in (["AND"], ["WITH"]):
        if tokens.pop(0) == "WITH":  # an exception, which permits more
            del tokens[0]
        else:
            found = max(found, _single(tokens, declared))
    return found


def _single(tokens: list[str], declared: int) -> int:
    name = tokens.pop(0)
    if name == "(":
        found = _alternatives(tokens, declared)
        del tokens[0]
        return found
    if name.startswith(_REFERENCE):
        return declared
    if "-NC" in name:
        return LICENSE_CLASSES.index(NON_COMMERCIAL)
    return LICENSE_CLASSES.index(PERMISSIVE if name.rstrip("+") in _PERMISSIVE else CUSTOM)
