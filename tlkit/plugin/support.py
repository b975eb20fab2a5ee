"""Names that a plugin may import besides the contract. Stable; what needs a framework is imported at its first use.

Errors to raise, files and hashes, text for messages, modules of PyTorch to build stages of, sessions of ONNX Runtime,
and CUDA. A plugin imports `tlkit`, `tlkit.plugin.contract` and this module; tests and references of a plugin import
`tlkit.conformance` as well.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tlkit.errors import ArtifactError, DataError, ResourceError, TlkitError, UsageError, one_line
from tlkit.plugin.hooks import hookimpl
from tlkit.util.files import atomic_dir, atomic_file, cache_dir, is_address, open_regular, sha256, translate_os_errors
from tlkit.util.remote import file_system, reaching
from tlkit.util.resources import cores, processor_kind
from tlkit.util.text import counted, did_you_mean, listed
from tlkit.util.walk import walk

if TYPE_CHECKING:
    from tlkit.data.decoding import SUFFIXES as IMAGE_SUFFIXES
    from tlkit.doctor import gpus
    from tlkit.model.stages import NotAChain, take_apart
    from tlkit.model.trunk import ChannelsLastPool, MeanPool, Normalize, TokenPool, load_tensors
    from tlkit.model.weights import load_weights, read_weights, reading_weights
    from tlkit.runtime.cuda import CapturedGraph, Channel, gpu
    from tlkit.runtime.cuda import runtime as cuda_runtime
    from tlkit.runtime.session import OnnxSession, quiet_options, read_graph
    from tlkit.util.statistics import fit_temperature, log_sum_exp, softmax

__all__ = [
    "IMAGE_SUFFIXES",
    "ArtifactError",
    "CapturedGraph",
    "Channel",
    "ChannelsLastPool",
    "DataError",
    "MeanPool",
    "Normalize",
    "NotAChain",
    "OnnxSession",
    "ResourceError",
    "TlkitError",
    "TokenPool",
    "UsageError",
    "atomic_dir",
    "atomic_file",
    "cache_dir",
    "cores",
    "counted",
    "cuda_runtime",
    "did_you_mean",
    "file_system",
    "fit_temperature",
    "gpu",
    "gpus",
    "hookimpl",
    "is_address",
    "listed",
    "load_tensors",
    "load_weights",
    "log_sum_exp",
    "one_line",
    "open_regular",
    "processor_kind",
    "quiet_options",
    "reaching",
    "read_graph",
    "read_weights",
    "reading_weights",
    "sha256",
    "softmax",
    "take_apart",
    "translate_os_errors",
    "walk",
]

# What is imported at its first use, by module, as its name there:ours: the rooms above, and what needs NumPy.
_MODULES = {
    "tlkit.data.decoding": "SUFFIXES:IMAGE_SUFFIXES",
    "tlkit.doctor": "gpus",
    "tlkit.model.stages": "NotAChain take_apart",
    "tlkit.model.trunk": "ChannelsLastPool MeanPool Normalize TokenPool load_tensors",
    "tlkit.model.weights": "load_weights read_weights reading_weights",
    "tlkit.runtime.cuda": "CapturedGraph Channel gpu runtime:cuda_runtime",
    "tlkit.runtime.session": "OnnxSession quiet_options read_graph",
    "tlkit.util.statistics": "fit_temperature log_sum_exp softmax",
}
_NAMES = [(module, *each.split(":")) for module, names in _MODULES.items() for each in names.split()]
_LATER = {names[-1]: (module, names[0]) for module, *names in _NAMES}


def __getattr__(name: str) -> Any:
    """Import a name at its first use."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, name_there = _LATER[name]
    return getattr(import_module(module), name_there)
