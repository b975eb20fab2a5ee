"""Code, messages and documents are written in the field's words."""

from __future__ import annotations

import pytest

from tests.project import words


def test_nothing_is_written_in_words_that_the_field_does_not_use():
    files = words.files()
    assert len(files) > 250
    found = words.search(files)
    if found:
        pytest.fail("\n".join(map(str, found)), pytrace=False)


def test_every_exemption_is_needed():
    names = [(str(file.relative_to(words.ROOT)), file) for file in words.files()]
    for exemption in words.EXEMPT:
        texts = [file.read_text("utf-8") for name, file in names if words.fnmatch(name, exemption.files)]
        lines = [line for text in texts for line in text.splitlines()]
        assert any(words.re.search(exemption.line, line) for line in lines), exemption
        assert exemption.reason


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("a.md", "the offer of a plugin", "offer"),
        ("a.md", "written whole or\nnot at all", "whole or not at all"),
        ("a.py", "# written whole or\n# not at all", "whole or # not at all"),
        ("a.py", "def rung_of(x): ...", "rung"),
        ("a.py", "def the_rung(x): ...", "rung"),
        ("a.py", "class LastRung: ...", "Rung"),
        ("a.py", "class Rung: ...", "Rung"),
        ("a.py", "x = Trained(1)", "Trained"),
        ("a.py", "'''What it does.'''", "What it does."),
        ("a.py", "def f():\n    '''Whether it is so.'''", "Whether it is so."),
        ("a.py", "print('100 images a second')", "images a second"),
        ("a.md", "an optimiser", "optimiser"),
        ("a.md", "the stages that move", "stages that move"),
    ],
)
def test_a_word_is_found(name, text, found):
    assert found in [each.found for each in words.findings(name, text)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.md", "It was coffered, wrung, recommended and amended; what it does; decoded a second time."),
        ("a.md", "How to trained a network: Trained models."),
        ("a.py", "'''Return what was trained: an optimizer's state, 5 images per second.'''\nx = 'Trained'"),
        ("a.py", "'''Howard's method.'''"),
    ],
)
def test_the_fields_words_are_left_alone(name, text):
    assert list(words.findings(name, text)) == []
