"""The host has no favorites: only `tlkit.defaults` holds the name of a component."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tlkit import defaults
from tlkit.plugin.registry import load

# Names of components that mean something else in a module, with what they mean there.
EXEMPT = {
    ("tlkit/advice/backbone_analysis.py", "energy"): "a figure of the confidence of a classifier",
    ("tlkit/cli/options.py", "tensorrt"): "a device: ONNX Runtime's execution provider",
    ("tlkit/runtime/providers.py", "tensorrt"): "a device: ONNX Runtime's execution provider",
    ("tlkit/runtime/session.py", "tensorrt"): "a device: ONNX Runtime's execution provider",
    ("tlkit/runtime/tensorrt.py", "tensorrt"): "a folder of the cache",
    ("tlkit/cli/serve.py", "onnx"): "what is served unless another target is named",
    ("tlkit/cli/serve.py", "replace"): "Python's handling of text that can't be decoded",
    ("tlkit/conformance/declare.py", "onnx"): "a distribution on PyPI",
    ("tlkit/conformance/declare.py", "tensorrt"): "a distribution on PyPI",
    ("tlkit/doctor.py", "onnx"): "a distribution on PyPI",
    ("tlkit/doctor.py", "tensorrt"): "a distribution on PyPI",
    ("tlkit/embedding/search.py", "replace"): "Python's handling of text that can't be decoded",
    ("tlkit/exporting/gate.py", "onnx"): "a distribution on PyPI",
    ("tlkit/exporting/triton.py", "replace"): "Python's handling of text that can't be decoded",
    ("tlkit/reporting/card.py", "onnx"): "a tag on the Hugging Face hub",
    ("tlkit/reporting/card.py", "replace"): "Python's handling of text that can't be decoded",
    ("tlkit/runtime/model.py", "replace"): "Python's handling of text that can't be decoded",
    ("tlkit/serving/protocol.py", "replace"): "Python's handling of text that can't be decoded",
    ("tlkit/util/schema.py", "replace"): "Python's handling of text that can't be decoded",
    ("tlkit/runtime/feature_cache.py", "replace"): "Python's handling of text that can't be decoded",
}


def names() -> set[str]:
    return {component.name for plugin in load().plugins for component in plugin.components}


def literals(source: str) -> Iterator[str]:
    """Every string of a module, the parts of f-strings included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def favorites(source: str, known: set[str]) -> set[str]:
    """The names in a module, docstrings included.

    A name with a hyphen, slash or digit, like "probe-then-tune", counts wherever it stands; a plain word, like "full",
    where it is a whole literal, as in a look-up or an option.
    """
    found = set()
    for text in literals(source):
        found |= {name for name in known if text.removeprefix("--") == name}
        compound = {name for name in known if re.search(r"[-/0-9]", name)}
        found |= {name for name in compound if re.search(rf"(?<![\w/-]){re.escape(name)}(?![\w/-])", text)}
    return found


def test_only_the_defaults_name_components(checkout: Path) -> None:
    known = names()
    assert len(known) >= 15
    found = {
        (str(file.relative_to(checkout)), name)
        for file in (checkout / "tlkit").rglob("*.py")
        if file.name != "defaults.py"
        for name in favorites(file.read_text("utf-8"), known)
    }
    unknown, stale = sorted(found - EXEMPT.keys()), sorted(EXEMPT.keys() - found)
    if unknown or stale:
        pytest.fail(f"named outside of tlkit/defaults.py: {unknown}; no longer named, though exempt: {stale}")


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("x = get('frozen')", {"frozen"}),
        ("option('--frozen')", {"frozen"}),
        ("f'{x} frozen'", set()),
        ("'''A frozen trunk.'''", set()),
        ("'''tlkit train --backbone net-lite0'''", {"net-lite0"}),
        ("'net-lite01'", set()),
        ("f'run {net}-lite0'", set()),
        ("f'run net-lite0 {net}'", {"net-lite0"}),
    ],
)
def test_a_favorite_is_seen(source: str, found: set[str]) -> None:
    assert favorites(source, {"frozen", "net-lite0"}) == found


def test_the_defaults_are_installed() -> None:
    host = load()
    assert defaults.DEFAULT_BACKBONE in host.names("backbone")
    assert defaults.DEFAULT_HEAD in host.names("head")
    assert defaults.DEFAULT_DETECTOR in host.names("detector")
    assert defaults.DEFAULT_TARGET in host.names("target")
    assert {defaults.FROZEN} <= set(host.names("strategy"))
