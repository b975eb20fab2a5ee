"""Real distributions on sys.path, broken in every way we know, all installed at once beside the standard plugin."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

GOOD = """
from dataclasses import dataclass
from tlkit.plugin.contract import Head, option
from tlkit.plugin.hooks import hookimpl

@dataclass(frozen=True)
class Toy(Head):
    name = "NAME"
    size: int = option(3, "how large")

    def module(self, width, classes):
        raise NotImplementedError
"""
HEADS = "\n@hookimpl\ndef tlkit_heads():\n    return [Toy()]\n"


@dataclass
class Case:
    """The source of a plugin's module, and what the host has to make of it."""

    source: str
    state: str = "broken"
    reason: str = ""  # a regular expression for the plugin's reason, or for that of its refused offer
    offers: tuple[str, ...] = ()
    entry_point: str = ""


def toy(name: str) -> str:
    return GOOD.replace("NAME", name)


CASES = {
    "fine": Case(toy("fine-toy") + HEADS, "ok", offers=("fine-toy",)),
    "prints": Case("print('hello from import')\n" + toy("printing-toy") + HEADS, "ok", offers=("printing-toy",)),
    "raises": Case("import no_such_package", reason="failed to load: ModuleNotFoundError: .*no_such_package"),
    "exits": Case("import sys\nsys.exit(3)", reason="failed to load: SystemExit: 3"),
    "rebels": Case("class Odd(BaseException): ...\nraise Odd", reason="failed to load: .*Odd"),
    "garbled": Case("def", reason="failed to load: SyntaxError"),
    "mute": Case("class Mute(Exception):\n    __str__ = None\nraise Mute", reason="failed to load: .*Mute"),
    "empty": Case("", reason="implements none of tlkit_backbones, tlkit_heads"),
    "signature": Case(
        toy("x") + "@hookimpl\ndef tlkit_heads(config):\n    return [Toy()]", reason=r"tlkit_heads\(config\)"
    ),
    "misspelt": Case(
        toy("x") + HEADS + "@hookimpl\ndef tlkit_head():\n    return [Toy()]",
        reason=r"there is no hook tlkit_head \(did you mean 'tlkit_heads'\?\)",
    ),
    "unmarked": Case(
        toy("x") + HEADS + "def tlkit_targets():\n    return []", reason="tlkit_targets lacks the decorator"
    ),
    "newer": Case(
        toy("newer-toy") + HEADS + "@hookimpl(optionalhook=True)\ndef tlkit_samplers():\n    return []",
        "ok",
        offers=("newer-toy",),
    ),
    "raising": Case(
        toy("raising-toy") + HEADS + "@hookimpl\ndef tlkit_targets():\n    yield Toy()\n    raise OSError('no driver')",
        reason="tlkit_targets failed: OSError: no driver",
        offers=("raising-toy",),  # a hook that fails takes only its own offers with it
    ),
    "nothing": Case(toy("x") + "@hookimpl\ndef tlkit_heads():\n    Toy()", reason="tlkit_heads returned NoneType"),
    "single": Case(toy("x") + "@hookimpl\ndef tlkit_heads():\n    return Toy()", reason="tlkit_heads returned Toy"),
    "kind": Case(
        toy("a-head") + "@hookimpl\ndef tlkit_targets():\n    return [Toy()]", "ok", "not an instance .*contract.Target"
    ),
    "klass": Case(toy("a-class") + "@hookimpl\ndef tlkit_heads():\n    return [Toy]", "ok", "not an instance .*Head"),
    "nameless": Case(toy("x").replace("    name =", "    label =") + HEADS, "ok", "its name isn't"),
    "capital": Case(toy("Toy Head") + HEADS, "ok", "its name isn't lower-case"),
    "escaping": Case(toy("../toy") + HEADS, "ok", "its name isn't lower-case"),
    "thawed": Case(toy("thawed").replace("(frozen=True)", "") + HEADS, "ok", "Toy is not a frozen dataclass"),
    "plain": Case(toy("plain").replace("@dataclass(frozen=True)", "") + HEADS, "ok", "Toy is not a frozen dataclass"),
    "untyped": Case(toy("untyped").replace("int", "list[int]") + HEADS, "ok", r"option size: .*list\[int\]"),
    "default": Case(toy("default").replace("option(3", "option('3'") + HEADS, "ok", "size: its default must be int"),
    "twin": Case(toy("fine-toy") + HEADS, "ok", "both tlkit-fine 1.0 and tlkit-twin 1.0 offer it"),
    "aaa-clash": Case(toy("fine-toy") + HEADS, "ok", offers=("fine-toy",)),
    "namesake": Case(toy("namesake") + HEADS, "ok", offers=("namesake",), entry_point="fine"),
}
