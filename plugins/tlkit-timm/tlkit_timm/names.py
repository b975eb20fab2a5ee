"""Names of timm's architectures, read from its source files: importing timm takes seconds, this milliseconds."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from tlkit.plugin.support import ResourceError

# The decorator that enters a function into timm's registry under its own name; other decorators may follow it.
_ENTRY = re.compile(r"^@register_model\b.*\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)


# Architectures that can't be used, with the reason; they are not listed. `_enc` are encoders of language models.
REFUSED = {
    r"crossvit_": "two branches of tokens exchange class tokens",
    r"tnt_": "tokens of patches and of pixels pass side by side",
    r"hrnet_": "maps of several resolutions pass side by side",
    r"gemma4_": "its path depends on the content of the images",
    r".*_enc$": "it gives no features of a whole image",
    r"volo_d4_448|volo_d5_(448|512)": "its preprocessing puts a border around images",
}


def architectures() -> list[str]:
    """Return every name in the registry of the installed timm that isn't refused, sorted. Raises ResourceError."""
    spec = importlib.util.find_spec("timm")  # locates it and runs none of it
    if spec is None or spec.origin is None:
        raise ResourceError("timm is not installed", do='run: pip install "timm>=1.0.22"')
    files = Path(spec.origin).parent.glob("models/*.py")
    names = sorted({name for file in files for name in _ENTRY.findall(file.read_text("utf-8"))})
    if not names:
        raise ResourceError("no architectures are found in this timm", file=spec.origin, do="upgrade tlkit-timm")
    return [name for name in names if not any(re.match(pattern, name) for pattern in REFUSED)]
