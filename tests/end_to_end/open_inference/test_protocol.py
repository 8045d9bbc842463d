"""The Open Inference Protocol's .proto against Triton's own descriptors, and the calls that run no model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
import tritonclient.grpc
from google.protobuf.descriptor import Descriptor, EnumDescriptor
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException

from streamcell.proto.inference import oip, rpc
from tests.support.waiting import waited

UNARY = (
    "ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer", "ModelConfig",
    "ModelStatistics", "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload",
)  # fmt: skip


@pytest.fixture(scope="module")
def triton(served: Any) -> Iterator[Any]:
    with tritonclient.grpc.InferenceServerClient(served.target) as client:
        yield client


def messages(found: dict[str, Descriptor]) -> Iterator[Descriptor]:
    for message in found.values():
        yield message
        yield from messages(message.nested_types_by_name)


def enums() -> Iterator[EnumDescriptor]:
    yield from oip.DESCRIPTOR.enum_types_by_name.values()
    for message in messages(oip.DESCRIPTOR.message_types_by_name):
        yield from message.enum_types


def theirs(full_name: str) -> Any:
    """Triton's descriptor of that name; KeyError where it has none."""
    return service_pb2.DESCRIPTOR.pool.FindMessageTypeByName(full_name)


@pytest.mark.parametrize(
    "message", list(messages(oip.DESCRIPTOR.message_types_by_name)), ids=lambda m: m.full_name
)
def test_every_field_has_the_number_and_the_type_that_tritons_has(message: Descriptor) -> None:
    def shape(descriptor: Descriptor) -> dict[str, tuple[Any, ...]]:
        return {
            field.name: (
                field.number,
                field.type,
                field.is_repeated,
                field.message_type and field.message_type.full_name,
                field.enum_type and field.enum_type.full_name,
                field.containing_oneof and field.containing_oneof.name,
            )
            for field in descriptor.fields
        }

    ours, other = shape(message), shape(theirs(message.full_name))
    assert ours == {name: other[name] for name in ours}
    assert message.GetOptions().map_entry == theirs(message.full_name).GetOptions().map_entry


@pytest.mark.parametrize("enum", list(enums()), ids=lambda e: e.full_name)
def test_every_enum_has_tritons_values(enum: EnumDescriptor) -> None:
    other = service_pb2.DESCRIPTOR.pool.FindEnumTypeByName(enum.full_name)
    assert {v.name: v.number for v in enum.values} == {v.name: v.number for v in other.values}


def test_the_service_is_tritons_without_what_is_left_out() -> None:
    ours = oip.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    other = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert ours.full_name == other.full_name
    assert sorted(ours.methods_by_name) == sorted((*UNARY, "ModelStreamInfer"))
    for name, method in ours.methods_by_name.items():
        same = other.methods_by_name[name]
        assert method.input_type.full_name == same.input_type.full_name
        assert method.output_type.full_name == same.output_type.full_name
        assert (method.client_streaming, method.server_streaming) == (
            same.client_streaming,
            same.server_streaming,
        )


@pytest.mark.conformance
def test_server_and_models_are_live_ready_and_described(triton: Any) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("lstm")
    assert triton.is_model_ready("lstm", "1")
    assert not triton.is_model_ready("lstm", "2")
    assert not triton.is_model_ready("nope")
    server = triton.get_server_metadata()
    assert server.name == "streamcell"
    assert "statistics" in server.extensions
    assert not [name for name in server.extensions if "memory" in name or name in ("trace", "logging")]
    model = triton.get_model_metadata("lstm")
    assert (model.name, list(model.versions)) == ("lstm", ["1"])
    assert [(t.name, t.datatype, list(t.shape)) for t in model.inputs] == [("x", "FP32", [-1, 3])]
    assert [(t.name, t.datatype, list(t.shape)) for t in model.outputs] == [("y", "FP32", [-1, 2])]
    stateless = triton.get_model_metadata("mlp")
    assert [list(t.shape) for t in stateless.inputs] == [[-1, -1, 3]]


def test_a_models_configuration_says_whether_it_has_sequences(triton: Any) -> None:
    recurrent = triton.get_model_config("lstm").config
    assert recurrent.WhichOneof("scheduling_choice") == "sequence_batching"
    assert recurrent.sequence_batching.max_sequence_idle_microseconds == 300_000_000
    assert not recurrent.sequence_batching.state
    assert not recurrent.sequence_batching.control_input
    assert recurrent.max_batch_size == 256
    assert [(t.name, t.data_type, list(t.dims)) for t in recurrent.input] == [
        ("x", model_config_pb2.TYPE_FP32, [3])
    ]
    assert recurrent.HasField("model_transaction_policy")
    assert not recurrent.model_transaction_policy.decoupled
    stateless = triton.get_model_config("mlp").config
    assert stateless.WhichOneof("scheduling_choice") == "dynamic_batching"


@pytest.mark.parametrize("ask", ["get_model_metadata", "get_model_config", "get_inference_statistics"])
def test_an_unknown_model_or_version_is_not_found(triton: Any, ask: str) -> None:
    for name, version in (("nope", ""), ("lstm", "9")):
        with pytest.raises(InferenceServerException) as caught:
            getattr(triton, ask)(name, version)
        assert caught.value.status() == "StatusCode.NOT_FOUND"
        # Triton's example clients look for this text, and their asyncio one at its beginning.
        assert caught.value.message().startswith("Request for unknown model: 'nope' is not found") == (
            not version
        )


def test_the_repository_is_listed_and_nothing_is_loaded_or_unloaded_unasked(
    triton: Any, modules: dict[str, Any]
) -> None:
    index = triton.get_model_repository_index().models
    assert [(m.name, m.version, m.state) for m in index] == [(name, "1", "READY") for name in sorted(modules)]
    for change in (triton.load_model, triton.unload_model):
        with pytest.raises(
            InferenceServerException, match="explicit model load / unload is not allowed"
        ) as caught:
            change("lstm")
        assert caught.value.status() == "StatusCode.UNAVAILABLE"
    assert triton.is_model_ready("lstm")


@pytest.mark.conformance
def test_what_is_not_offered_is_refused_in_words(served: Any, triton: Any) -> None:
    memory = "send the tensors in the request"
    asked: dict[Callable[[], Any], str] = {
        triton.get_trace_settings: "docs/deploy.md",
        triton.get_log_settings: "docs/deploy.md",
        triton.get_system_shared_memory_status: memory,
        lambda: triton.register_system_shared_memory("region", "/etc/passwd", 64, offset=2**63): memory,
        triton.unregister_system_shared_memory: memory,
        triton.get_cuda_shared_memory_status: memory,
        lambda: triton.register_cuda_shared_memory("region", b"aGFuZGxl", 0, 64): memory,
        triton.unregister_cuda_shared_memory: memory,
    }
    counted = {"code": "UNIMPLEMENTED", "reason": "NOT_SUPPORTED"}
    before = served.metric("streamcell_errors_total", **counted)
    for ask, words in asked.items():
        with pytest.raises(InferenceServerException, match=words) as caught:
            ask()
        assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
    assert waited(lambda: served.metric("streamcell_errors_total", **counted) == before + len(asked))
    x = tritonclient.grpc.InferInput("x", [1, 3], "FP32")
    x.set_shared_memory("region", 12)
    with pytest.raises(InferenceServerException, match=memory):
        triton.infer("mlp", [x])


def test_reflection_gives_a_client_the_whole_service(served: Any) -> None:
    with grpc.insecure_channel(served.target) as channel:
        ask = reflection_pb2.ServerReflectionRequest(file_containing_symbol="inference.GRPCInferenceService")
        (answer,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([ask]))
        (serialized,) = answer.file_descriptor_response.file_descriptor_proto
        assert serialized == oip.DESCRIPTOR.serialized_pb
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        (answer,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([ask]))
        assert {each.name for each in answer.list_services_response.service} == {
            "streamcell.v1.StreamCell", "inference.GRPCInferenceService", "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }  # fmt: skip


def test_the_projects_own_stubs_speak_it_too(served: Any) -> None:
    with grpc.insecure_channel(served.target) as channel:
        stub: Any = rpc.GRPCInferenceServiceStub(channel)
        assert stub.ModelMetadata(oip.ModelMetadataRequest(name="gru")).inputs[0].name == "x"
