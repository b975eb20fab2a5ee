"""Traces of PyTorch that take a third of their time.

Each one lists all operators of PyTorch once per namespace and translates the sources of 500 functions of onnxscript
again. In the processes of the tests that is done once: what it gives does not change.
"""

from __future__ import annotations

import functools
from typing import Any


def prepare_once() -> None:
    """Have PyTorch's exporter keep what it prepares at its first trace in this process, where it is one we know."""
    import torch
    from torch._export import utils

    try:
        from onnxscript import values
    except ImportError:
        return
    kind: Any = getattr(values, "TracedOnnxFunction", None)
    if isinstance(vars(kind or object).get("function_ir"), property):
        kept = functools.cached_property(kind.function_ir.fget)
        kept.__set_name__(kind, "function_ir")
        kind.function_ir = kept
    listed: Any = getattr(utils, "_materialize_cpp_cia_ops", None)
    if listed is not None and listed.__name__ != "<lambda>":
        by_namespaces = functools.cache(lambda _namespaces: listed())
        utils._materialize_cpp_cia_ops = lambda: by_namespaces(frozenset(torch.ops._dir))
