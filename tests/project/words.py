"""Find terms that the project does not use: `python -m tests.project.words tlkit/training` prints file, line and term.

One idea has one word, the one that PyTorch, timm, scikit-learn, ONNX Runtime and TensorRT use, in American spelling.
`RULES` holds what is not written and what is written instead; `EXEMPT` the passages that need such a word, each with
its reason.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SUFFIXES = {".py", ".md", ".html", ".css", ".js", ".sh", ".toml", ".txt", ".tmpl", ".in"}
# Files that quote the words, and files that scripts write.
QUOTING = ("tests/project/words.py", "tests/project/test_words.py", "LICENSE", "benchmarks/results/*")

_THING = (
    "image|row|epoch|second|thread|line|point|byte|MiB|core|call|file|step|process|class|folder|stage|view|value|job"
)
_EACH = "image|epoch|second|class|stage|worker|core|row|step|batch|value|call|process|side|target|split|file|head|phase"
_STEMS = (
    "general|recogn|summar|serial|deserial|util|minim|maxim|organ|random|synchron|visual|special|material|penal|token|"
    "categor|character|emphas|priorit|custom|final|local|binar|vector|equal|factor|discret|harmon|memor"
)
# Term to use → what is not written: regular expressions over text, identifiers, comments and strings. A space matches
# any white space, a line break with `#` included; letters of both cases match; `_` separates words.
RULES: dict[str, tuple[str, ...]] = {
    # components and their parts
    "component (verb: provide)": ("offer", "offers", "offered", "offering", "on offer"),
    "preprocessing, or config, options (TrainingConfig)": ("recipes?", "pixel recipes?"),
    "optimization profile: min, opt, max": ("least, usual", "LEAST,USUAL,MOST"),
    # training
    "trainable or fine-tuned (stage, trunk, weights)": (
        r"(stages?|trunks?|layers?|networks?|nothing)( that| which)?( has| have| is| are| can)? (moves?|moved|moving)",
        r"(moves?|moved|moving) (the |a |its |no |\w+ )?(trunks?|stages?|weights|networks?)",
        r"(?:what|how|where) moves",
    ),
    "reinitialize, reinit": (r"restart(s|ed|ing)?", "begins? again from random"),
    "batch size; rates with per (images per second, per class)": (
        rf"({_THING})s? an? ({_EACH})(?! time| value)",
        "milliseconds a call",
    ),
    "augmented view": ("variety", "varieties"),
    "activation cache, frozen stages": ("frozen (border|boundary)",),
    "resume, interrupted run": (
        r"(take|taken|takes|took|taking) up",
        "left off",
        "begun (with|anew)",
        "anew",
        "workplaces?",
        "workrooms?",
    ),
    "rank, is_main_process, barrier": (r"\.leads", "def leads", r"\.retried"),
    "mixed precision dtype": ("format of products",),
    "learned": ("learnt",),
    # export and proof
    "export, exported graph, manifest": (
        "by-products?",
        "built.json",
        r"publish_\w+",
        "published from",
    ),
    "precision search, candidate, fallback, accuracy budget": (
        "ladders?",
        "rungs?",
        r"climb(s|ed|ing)?",
        "(gives?|gave|given|giving) way",
    ),
    "layer sensitivity": ("noise of the features",),
    "compared with, within the tolerance": ("held (more strictly )?against", "holds? [^.;]{0,40} against"),
    "label agreement, flipped label": ("called the same", "calls? (it |them |an image )?right"),
    "accuracy drop in percentage points": ("points? of accuracy", "points? (that )?(it|int8) (may )?costs?"),
    "atomically": ("whole or not at all",),
    "interleaved": ("in turns", "takes? turns", "by turns"),
    "throughput, latency": ("how fast",),
    "median (min to max)": ("(the )?least (and|to) (the )?greatest",),
    # advice and audit
    "domain shift: similar, different, unclear": ("likeness(es)?", "alike", "unlike"),
    "the four transfer-learning scenarios (CS231n)": ("(rule )?of the craft", "(the )?four cases"),
    "inconclusive; confident": ("enough to tell", "how sure", "not sure", "unsure"),
    "near-duplicate": ("twins?",),
    "leakage, shortcut": ("given away", "gives? away"),
    "label error": (r"mislabel(l?ed|s|l?ing)?",),
    "audit, check": ("look(s|ed|ing)? over",),
    "skipped, ignored": ("passed over",),
    "fix (an unreadable image, an option)": ("mend(s|ed|ing)?",),
    # turns of phrase
    "plain words": (
        "com(e|es|ing) of (it|this|that|them)",
        "what comes of",
        "skin of its teeth",
        "nought",
        "in vain",
        "heed(s|ed)?",
        "heedless",
        "in silence",
        "without a word",
        "made of it",
        "all that is random",
    ),
    "a statement of what the code does (project status belongs in a note)": (
        "never (been )?run on an? (NVIDIA )?GPU",
        "written without (one|a GPU)",
    ),
    # spelling
    "American spelling (license)": (r"licen[c]e[sd]?", "licencing"),
    "American spelling (optimizer)": (r"optimis\w*",),
    "American spelling (quantize)": (r"quantis\w*", r"dequantis\w*", r"requantis\w*"),
    "American spelling (normalize)": (r"(un|de|re)?normalis\w*",),
    "American spelling (standardize)": (r"standardis\w*",),
    "American spelling (regularize)": (r"regularis\w*",),
    "American spelling (initialize)": (r"(re|un)?initialis\w*",),
    "American spelling (parametrize)": (r"parametris\w*", r"parameteris\w*"),
    "American spelling (-ize)": (rf"({_STEMS})is(e|es|ed|ing|ation|ations|er|ers)",),
    "American spelling (color)": (r"colour\w*",),
    "American spelling (neighbor)": (r"neighbour\w*",),
    "American spelling (center)": (r"centre[sd]?",),
    "American spelling (behavior, favor, flavor)": (r"(behaviour|favour|flavour|honour)\w*",),
    "American spelling (analyze)": (r"analys(e|ed|er|ers|ing)",),
    "American spelling (artifact)": (r"artefact\w*",),
}

# Names of classes, functions, arguments and attributes, whole and in this case → what they are called.
NAMES: dict[str, str] = {
    "Offer|Offered": "Component, RegisteredComponent",
    "Pixels|pixel_recipe": "Preprocessing",
    "Facts": "DatasetStatistics",
    "Recipe": "TrainingConfig",
    "How": "RunOptions",
    "Choice": "DeviceOptions",
    "Machine": "Device",
    "Trained": "TrainingResult",
    "Fitted": "FitResult",
    "Scores": "Metrics",
    "Stored": "ActivationCache",
    "Variety": "AugmentedViews",
    "State": "Checkpoint",
    "Published": "ExportResult",
    "Rung": "CandidateResult",
    "Climbed": "PrecisionSearchResult",
    "Setting": "RuntimeConfig",
    "Question": "AdviceRequest",
    "Sight": "BackboneAnalysis",
    "Likeness|ALIKE|UNLIKE": "DomainShift (similar, different, unclear)",
    "Case": "Scenario",
    "Twin": "NearDuplicate",
    "unfit": "incompatible",
    "moving|moves|MOVES|MOVED|MOVER|mover": "trainable, fine_tuned",
    "still": "frozen",
    "images_a_step|images_a_second": "batch_size, images_per_second",
    "BUILT": "MANIFEST",
    "SURE|UNSURE|sure": "RECOMMENDED, INCONCLUSIVE",
}

# First words that tell a question, where a docstring states what there is ("Return …", "Mixed-precision dtype …").
QUESTIONS = {"What", "How", "Whether", "Where", "Which", "When", "Why", "Is", "Are", "Does"}
DOCSTRING = "docstring: a verb in the imperative or a noun first"


class Exemption(NamedTuple):
    """A passage that needs the word: files by glob, a regular expression over the line, and why."""

    files: str
    line: str
    reason: str


EXEMPT = (
    Exemption("CHANGELOG.md", r"^\|", "the tables of renames name the old words"),
    Exemption("docs/serving.md", r"^Restart=", "a setting of systemd"),
    Exemption("tests/*", r"\bCases?\b", "the cases of a test are called so"),
    Exemption("tests/data/test_jpeg.py", r"restart_marker_rows", "an option of Pillow"),
    Exemption("tests/data/test_stripping.py", r"restart_marker_rows", "an option of Pillow"),
    Exemption("tlkit/cli/*", r"click\.Choice", "a type of click"),
)


class Finding(NamedTuple):
    """A word that is not used, where it stands, and what to write."""

    file: str
    line: int
    found: str
    instead: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.found!r} → {self.instead}"


def _pattern(alternatives: Iterable[str]) -> re.Pattern[str]:
    """Whole words, `_` separating them, over line breaks with or without a comment's sign."""
    text = "|".join(f"(?:{each})" for each in alternatives).replace(" ", r"(?:\s+(?:\#:?\s*)?)")
    return re.compile(rf"(?<![A-Za-z])(?i:{text})(?![A-Za-z])|(?<=[a-z])(?=[A-Z])(?i:{text})(?![a-z])")


PATTERNS = {term: _pattern(alternatives) for term, alternatives in RULES.items()}
ANY = _pattern(each for alternatives in RULES.values() for each in alternatives)  # one pass over a text without any
NAMED = {name: term for names, term in NAMES.items() for name in names.split("|")}


def files(*paths: str | Path) -> list[Path]:
    """The text files under version control below `paths` (all without any), but those in `QUOTING`."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *map(str, paths)]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")[:-1]
    chosen = [name for name in listed if Path(name).suffix in SUFFIXES or Path(name).name == "Makefile"]
    chosen = [name for name in chosen if not any(fnmatch(name, pattern) for pattern in QUOTING)]
    return [ROOT / name for name in chosen if (ROOT / name).is_file()]


def findings(name: str, text: str) -> Iterator[Finding]:
    """What a file says in words that are not used, in the order of its lines."""
    found = [*_phrases(name, text)]
    if name.endswith(".py"):
        found += [*_names(name, text), *_docstrings(name, text)]
    lines = text.splitlines()
    yield from sorted(each for each in found if not _exempt(each, lines[each.line - 1]))


def _exempt(finding: Finding, line: str) -> bool:
    return any(fnmatch(finding.file, each.files) and re.search(each.line, line) for each in EXEMPT)


def _phrases(name: str, text: str) -> Iterator[Finding]:
    for term, pattern in PATTERNS.items() if ANY.search(text) else ():
        for match in pattern.finditer(text):
            yield Finding(name, text.count("\n", 0, match.start()) + 1, " ".join(match[0].split()), term)


def _names(name: str, text: str) -> Iterator[Finding]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME and (term := NAMED.get(token.string)):
            yield Finding(name, token.start[0], token.string, term)


def _docstrings(name: str, text: str) -> Iterator[Finding]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            written = ast.get_docstring(node) or ""
            first = re.match(r"\w+", written)
            if first and first[0] in QUESTIONS:
                yield Finding(name, node.body[0].lineno, written.split("\n")[0][:50], DOCSTRING)


def search(paths: Iterable[Path]) -> list[Finding]:
    """All findings in these files."""
    return [
        each for path in paths for each in findings(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
    ]


if __name__ == "__main__":
    found = search(files(*sys.argv[1:]))
    sys.stdout.writelines(f"{each}\n" for each in found)
    sys.exit(f"{len(found)} findings in {len({each.file for each in found})} files" if found else 0)
