"""The Open Inference Protocol, as Triton and KServe speak it: one sequence a stream of `ModelStreamInfer`, or calls of
`ModelInfer`.

Needs the PyPI package `tritonclient[grpc]`, for its messages.
"""

from __future__ import annotations

import math
import secrets
from typing import Any

import grpc

from .dialects import Dialect, WrongReply, payload

_STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
_INFER = "/inference.GRPCInferenceService/ModelInfer"
_MOST_SESSIONS = 10_000  # at a time


def _messages() -> Any:
    try:
        from tritonclient.grpc import service_pb2
    except ImportError as error:
        raise RuntimeError(
            "the Open Inference Protocol's messages come with tritonclient: pip install 'tritonclient[grpc]'"
        ) from error
    return service_pb2


def _ask(target: str, call: str, **about: str) -> Any:
    """The server's answer to a unary call."""
    messages = _messages()
    with grpc.insecure_channel(target) as channel:
        ask: Any = channel.unary_unary(
            f"/inference.GRPCInferenceService/{call}",
            request_serializer=getattr(messages, f"{call}Request").SerializeToString,
            response_deserializer=getattr(messages, f"{call}Response").FromString,
        )
        return ask(getattr(messages, f"{call}Request")(**about), timeout=30, wait_for_ready=True)


def border(target: str, model: str) -> dict[str, Any]:
    """A model's input and output as a server describes them, as `Load`'s arguments; open sizes are taken as 1.

    Raises:
        ValueError: it has not one float32 input.
    """
    answer = _ask(target, "ModelMetadata", name=model)
    if len(answer.inputs) != 1 or answer.inputs[0].datatype != "FP32":
        raise ValueError(
            f"expected one FP32 input; {model!r} has {[(i.name, i.datatype) for i in answer.inputs]}"
        )
    return {
        "input_name": answer.inputs[0].name,
        "input_shape": tuple(max(1, size) for size in answer.inputs[0].shape),
        "output_name": answer.outputs[0].name,
    }


def requests_and_runs(target: str, model: str) -> tuple[int, int]:
    """How many requests on `model` the server has answered since it started, in how many runs, by its statistics."""
    stats = _ask(target, "ModelStatistics", name=model).model_stats
    return sum(each.inference_count for each in stats), sum(each.execution_count for each in stats)


def server_version(target: str) -> str:
    """The server's name and version, as it says."""
    answer = _ask(target, "ServerMetadata")
    return f"{answer.name} {answer.version}"


def oip(
    model: str, input_name: str, input_shape: tuple[int, ...], output_name: str, *, unary: bool = False
) -> Dialect:
    """A dialect of sequences whose ids no earlier load has used. `unary`: by `ModelInfer`, for short sessions only."""
    messages = _messages()
    base = secrets.randbits(40) << 20
    data = payload(4 * math.prod(input_shape), 1)

    def request(session: int, **flags: bool) -> bytes:
        message = messages.ModelInferRequest(model_name=model, raw_input_contents=[data])
        message.inputs.add(name=input_name, datatype="FP32", shape=input_shape)
        message.outputs.add(name=output_name)
        message.parameters["sequence_id"].int64_param = base + session + 1
        for name, value in flags.items():
            message.parameters[name].bool_param = value
        serialized: bytes = message.SerializeToString()
        return serialized

    def nth(session: int, n: int, messages: int) -> bytes:
        number, place = divmod(n, messages)
        # As Triton's clients do, with both flags in every request.
        return request(
            number * _MOST_SESSIONS + session,
            sequence_start=place == 0,
            sequence_end=place == messages - 1,
        )

    def check_call(reply: bytes, replies: int, steps: int) -> None:
        if not messages.ModelInferResponse.FromString(reply).raw_output_contents:
            raise WrongReply(f"expected an output; got {reply!r}")

    def check(reply: bytes, replies: int, steps: int) -> None:
        answer = messages.ModelStreamInferResponse.FromString(reply)
        if answer.error_message or not answer.infer_response.raw_output_contents:
            raise WrongReply(f"expected an output; got {answer.error_message or answer!r}")

    return Dialect(
        _INFER if unary else _STREAM,
        unary,
        lambda session: request(session, sequence_start=True),
        request,
        check_call if unary else check,
        lambda session: request(session, sequence_end=True),
        nth,
    )
