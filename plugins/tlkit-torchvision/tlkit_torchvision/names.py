"""Names of torchvision's architectures, read from its source files: importing torchvision takes seconds."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from tlkit.plugin.support import ResourceError

# Files of torchvision/models with networks of today, and the kin that comes with them.
FILES = (
    "resnet",  # ResNeXt and Wide ResNet too
    "regnet",
    "convnext",
    "efficientnet",  # V1 and V2
    "mobilenetv3",
    "swin_transformer",  # V1 and V2
    "vision_transformer",
    "maxvit",
    "densenet",
    "mnasnet",
    "mobilenetv2",
    "shufflenetv2",
)

# The decorator that enters a function into torchvision's registry under its own name; others may follow it.
_ENTRY = re.compile(r"^@register_model\b.*\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)


def architectures() -> list[str]:
    """Return the names of the architectures that the installed torchvision has, sorted. Raises ResourceError."""
    spec = importlib.util.find_spec("torchvision")  # locates it and runs none of it
    if spec is None or spec.origin is None:
        raise ResourceError("torchvision is not installed", do='run: pip install "torchvision>=0.22"')
    files = [Path(spec.origin).parent / "models" / f"{name}.py" for name in FILES]
    names = sorted({name for file in files if file.exists() for name in _ENTRY.findall(file.read_text("utf-8"))})
    if not names:
        raise ResourceError("no architectures are found in this torchvision", do="upgrade tlkit-torchvision")
    return names
