"""The messages of the Open Inference Protocol over gRPC, made from the names, types and numbers of its fields.

The table is this module's own; the classes live in a pool of their own, beside those of any client in the process.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"
# Message: field type number, ...; * is repeated, {X} a map from strings to X, and of those with | at most one is set.
SCHEMA = """
ServerLiveRequest:
ServerLiveResponse: live bool 1
ServerReadyRequest:
ServerReadyResponse: ready bool 1
ModelReadyRequest: name string 1, version string 2
ModelReadyResponse: ready bool 1
ServerMetadataRequest:
ServerMetadataResponse: name string 1, version string 2, extensions *string 3
ModelMetadataRequest: name string 1, version string 2
TensorMetadata: name string 1, datatype string 2, shape *int64 3
ModelMetadataResponse: name string 1, versions *string 2, platform string 3, inputs *TensorMetadata 4, \
outputs *TensorMetadata 5
InferParameter: bool_param |bool 1, int64_param |int64 2, string_param |string 3, double_param |double 4, \
uint64_param |uint64 5
InferTensorContents: bool_contents *bool 1, int_contents *int32 2, int64_contents *int64 3, uint_contents *uint32 4, \
uint64_contents *uint64 5, fp32_contents *float 6, fp64_contents *double 7, bytes_contents *bytes 8
InferInputTensor: name string 1, datatype string 2, shape *int64 3, parameters {InferParameter} 4, \
contents InferTensorContents 5
InferRequestedOutputTensor: name string 1, parameters {InferParameter} 2
ModelInferRequest: model_name string 1, model_version string 2, id string 3, parameters {InferParameter} 4, \
inputs *InferInputTensor 5, outputs *InferRequestedOutputTensor 6, raw_input_contents *bytes 7
InferOutputTensor: name string 1, datatype string 2, shape *int64 3, parameters {InferParameter} 4, \
contents InferTensorContents 5
ModelInferResponse: model_name string 1, model_version string 2, id string 3, parameters {InferParameter} 4, \
outputs *InferOutputTensor 5, raw_output_contents *bytes 6
ModelStreamInferResponse: error_message string 1, infer_response ModelInferResponse 2
ModelConfigRequest: name string 1, version string 2
ModelParameter: string_value string 1
ModelInput: name string 1, data_type int32 2, dims *int64 4
ModelOutput: name string 1, data_type int32 2, dims *int64 3
ModelConfig: name string 1, platform string 2, backend string 17, max_batch_size int32 4, input *ModelInput 5, \
output *ModelOutput 6, parameters {ModelParameter} 14
ModelConfigResponse: config ModelConfig 1
ModelStatisticsRequest: name string 1, version string 2
StatisticDuration: count uint64 1, ns uint64 2
InferStatistics: success StatisticDuration 1, fail StatisticDuration 2, queue StatisticDuration 3, \
compute_input StatisticDuration 4, compute_infer StatisticDuration 5, compute_output StatisticDuration 6
InferBatchStatistics: batch_size uint64 1
ModelStatistics: name string 1, version string 2, last_inference uint64 3, inference_count uint64 4, \
execution_count uint64 5, inference_stats InferStatistics 6, batch_stats *InferBatchStatistics 7
ModelStatisticsResponse: model_stats *ModelStatistics 1
RepositoryIndexRequest: repository_name string 1, ready bool 2
ModelIndex: name string 1, version string 2, state string 3, reason string 4
RepositoryIndexResponse: models *ModelIndex 1
"""
_MESSAGE, _OPTIONAL, _REPEATED = 11, 1, 3


@cache
def messages() -> dict[str, type[Any]]:
    """Return the class of every message by its name."""
    file = descriptor_pb2.FileDescriptorProto(name="tlkit/inference.proto", package=PACKAGE, syntax="proto3")
    for line in SCHEMA.strip().splitlines():
        name, _, fields = line.partition(":")
        message = file.message_type.add(name=name)
        for described in filter(None, map(str.strip, fields.split(","))):
            _add(message, *described.split())
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = (pool.FindMessageTypeByName(f"{PACKAGE}.{message.name}") for message in file.message_type)
    return {each.name: message_factory.GetMessageClass(each) for each in found}


def _add(message: Any, name: str, kind: str, number: str) -> None:
    """Add a field to the description of a message."""
    mark, bare = kind[0], kind.strip("*|{}")
    field = message.field.add(name=name, number=int(number), label=_REPEATED if mark in "*{" else _OPTIONAL)
    if mark == "|":
        if not message.oneof_decl:
            message.oneof_decl.add(name="parameter_choice")
        field.oneof_index = 0
    if mark == "{":
        entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        _add(entry, "key", "string", "1")
        _add(entry, "value", bare, "2")
        field.type, field.type_name = _MESSAGE, f".{PACKAGE}.{message.name}.{entry.name}"
    elif bare.islower():
        field.type = descriptor_pb2.FieldDescriptorProto.Type.Value(f"TYPE_{bare.upper()}")
    else:
        field.type, field.type_name = _MESSAGE, f".{PACKAGE}.{bare}"
