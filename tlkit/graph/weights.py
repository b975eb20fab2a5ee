"""Graphs without weights: those of an architecture, into which weights are put by the names of PyTorch's modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from tlkit.errors import ArtifactError

if TYPE_CHECKING:
    from torch import nn


def remove_weights(graph: onnx.ModelProto, module: nn.Module) -> onnx.ModelProto:
    """Remove the values of all initializers that are tensors of a module's state; names, types and shapes stay."""
    state = module.state_dict()
    for tensor in graph.graph.initializer:
        if tensor.name in state:
            name, dtype, shape = tensor.name, tensor.data_type, tuple(tensor.dims)
            tensor.Clear()
            tensor.name, tensor.data_type = name, dtype
            tensor.dims.extend(shape)
    return graph


def put_weights(graph: onnx.ModelProto, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    """Give the initializers of these names their values. Raises ArtifactError for another type or shape."""
    for tensor in graph.graph.initializer:
        array = arrays.get(tensor.name)
        if array is None:  # a constant of the architecture
            continue
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        if (kind, array.shape) != (tensor.data_type, tuple(tensor.dims)):
            raise ArtifactError(f"{tensor.name} has another type or shape than in the graph of its architecture")
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
