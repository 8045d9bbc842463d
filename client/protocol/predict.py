"""`Predict`, without transport. Both clients share it."""

from __future__ import annotations

from typing import Any

from streamcell.proto import pb

from .opening import OpenInputs, open_inputs
from .signature import SignatureCodec, output_mode

_SEQUENCE_OR_BATCH = (1, 2)


def get_model(model: str, version: str) -> pb.GetModelRequest:
    """The request for a model's signature."""
    return pb.GetModelRequest(model=model, version=version)


def request(
    codec: SignatureCodec, model: str, version: str, x: Any, output: str | None, inputs: OpenInputs = None
) -> tuple[pb.PredictRequest, bool]:
    """The request for `x`, and True if `x` has a batch axis."""
    payloads, leading = codec.encode(x, _SEQUENCE_OR_BATCH)
    batched = len(leading) == 2
    message = pb.PredictRequest(
        model=model,
        version=version,
        inputs=payloads,
        batch=leading[0] if batched else 1,
        steps=leading[-1],
        output_mode=output_mode(output),
        dtypes=codec.dtypes,
        open_inputs=open_inputs(inputs, one_row=not batched),
    )
    return message, batched


def outputs(codec: SignatureCodec, reply: pb.PredictResponse, batched: bool) -> Any:
    """The reply's outputs, with a batch axis if the request had one."""
    return codec.decode(reply.outputs, (reply.batch, reply.steps) if batched else (reply.steps,))
