"""The pages of docs/ say what the code says."""

from __future__ import annotations

import importlib.util

import pytest

from tlkit.plugin.kinds import KINDS
from tlkit.plugin.registry import load


@pytest.fixture(scope="module")
def pages(checkout):
    spec = importlib.util.spec_from_file_location("generate", checkout / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.pages(load())


def test_every_page_is_as_it_would_be_written_now(pages, checkout):
    assert len(pages) == len(KINDS)
    for name, text in pages.items():
        assert (checkout / "docs" / name).read_text() == text, f"docs/{name} is stale; run: python docs/generate.py"


def test_every_component_and_option_has_a_line(pages):
    text = "\n".join(pages.values())
    for name in ("efficientnet-lite0", "logistic", "frozen", "tensorrt-rtx"):
        assert f"### `{name}`" in text
    assert "| `pca` |" in text


def test_every_heading_is_followed_by_words(pages):
    for text in pages.values():
        for section in text.split("\n### ")[1:]:
            body = section.split("\n", 1)[1]
            assert any(line and line[0] not in "`|#" for line in body.splitlines()), section
