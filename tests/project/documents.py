"""The Markdown documents of the repository: their blocks, the commands in them, their links and anchors."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = {"console", "python", "toml", "sh", "text"}  # every block names one of these


class Block(NamedTuple):
    """A fenced block: its language, its text, and the file it is to be written to, where its first line names one."""

    language: str
    text: str
    file: str | None


def documents() -> list[Path]:
    """All Markdown files under version control, but the results that benchmarks write."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return [ROOT / name for name in names if not name.startswith("benchmarks/results/") and (ROOT / name).exists()]


def name_of(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


def blocks(document: Path) -> list[Block]:
    """All fenced blocks of a document, in order."""
    found: list[Block] = []
    inside: list[str] | None = None
    language = ""
    for line in document.read_text("utf-8").splitlines(keepends=True):
        if not line.startswith("```"):
            if inside is not None:
                inside.append(line)
        elif inside is None:
            language, inside = line[3:].strip(), []
        else:
            named = re.match(r"# file: (\S+)", inside[0])
            found.append(Block(language, "".join(inside), named[1] if named else None))
            inside = None
    assert inside is None, f"{document}: a block that is not closed"
    return found


def commands(found: Iterable[Block]) -> list[str]:
    """The commands of the console and shell blocks, in order, without comments."""
    lines: list[str] = []
    for block in found:
        if block.language == "console":
            lines += [line.removeprefix("$ ") for line in block.text.splitlines() if line.startswith("$ ")]
        elif block.language == "sh":
            lines += block.text.splitlines()
    return [command for line in lines if (command := re.sub(r"\s+# .*", "", line).strip())]


def prose(document: Path) -> str:
    """The text without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", document.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(document: Path) -> set[str]:
    """The anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(document: Path) -> Iterator[str]:
    """Links to files, and to headings in them, that lead nowhere."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path) if path else document
        if not file.exists():
            yield f"{name_of(document)}: {target}: there is no such file"
        elif anchor and anchor not in anchors(file):
            yield f"{name_of(document)}: {target}: there is no such heading"
