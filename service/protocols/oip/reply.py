"""Replies of the Open Inference Protocol, assembled from constant bytes, an id and a payload.

`tests/service/protocols/oip/test_wire.py` holds what is written here with the generated classes.
"""

from __future__ import annotations

from collections.abc import Sequence

from streamcell.card import State, Tensor
from streamcell.proto.inference import oip
from streamcell.service.errors import ServiceError, cut
from streamcell.service.protocols.common.protobuf import varint
from streamcell.service.repository.model_file import ModelFile

from .tensors import DATATYPES, RequestShape

# Field numbers and wire types of package inference: (number << 3) | type.
_ERROR = b"\x0a"  # ModelStreamInferResponse.error_message: 1, length-delimited
_REPLY = b"\x12"  # ModelStreamInferResponse.infer_response: 2
_ID = b"\x1a"  # ModelInferResponse.id: 3
_RAW = b"\x32"  # ModelInferResponse.raw_output_contents: 6
_FRONTS = 32  # id lengths for which a template keeps its first bytes


class ReplyTemplate:
    """The reply to requests of one shape on one version of a model. Thread-safe."""

    __slots__ = ("_after", "_after_bytes", "_before", "_fronts", "_only", "picks", "states")

    def __init__(self, file: ModelFile, names: Sequence[str], form: RequestShape) -> None:
        """Write the constant bytes.

        Args:
            names: outputs, or outputs of states, in the order of the reply.
            form: the request's.
        """
        signature = file.signature
        outputs = {tensor.name: (at, tensor) for at, tensor in enumerate(signature.outputs)}
        states = {state.output: (at, state) for at, state in enumerate(signature.states)}
        # The outputs of `names`, as indices: first the outputs, then the states.
        picks: list[int] = []
        described = []
        sizes = []
        for name in names:
            if name in outputs:
                at, tensor = outputs[name]
                shape, size = _output(tensor, form)
                dtype = tensor.dtype
            else:
                at, state = states[name]
                at += len(outputs)
                shape, size = _state(state, form)
                dtype = state.dtype
            picks.append(at)
            sizes.append(size)
            described.append(
                oip.ModelInferResponse.InferOutputTensor(name=name, datatype=DATATYPES[dtype], shape=shape)
            )
        self.states = any(at >= len(outputs) for at in picks)
        self.picks = tuple(picks)
        before = oip.ModelInferResponse(model_name=file.name, model_version=file.version)
        after = oip.ModelInferResponse(outputs=described)
        after.parameters["triton_final_response"].bool_param = True
        self._before = before.SerializeToString()
        # One piece before each payload.
        heads = [_RAW + varint(size) for size in sizes]
        heads[0] = after.SerializeToString() + heads[0]
        self._after = tuple(heads)
        self._after_bytes = sum(map(len, heads)) + sum(sizes)
        self._only = self.picks == (0,)
        self._fronts: dict[int, bytes] = {}

    def message(self, id_: bytes, tensors: Sequence[bytes]) -> bytes:
        """A ModelInferResponse to the request `id_`; `tensors` are all outputs and, if asked for, all states."""
        named = _ID + varint(len(id_)) + id_ if id_ else b""
        parts = [self._before, named]
        for head, at in zip(self._after, self.picks, strict=True):
            parts += (head, tensors[at])
        return b"".join(parts)

    def streamed(self, id_: bytes, tensors: Sequence[bytes]) -> bytes:
        """The same as a ModelStreamInferResponse."""
        front = self._fronts.get(len(id_))
        if front is None:
            front = self._front(len(id_))
        if self._only:
            return b"".join((front, id_, self._after[0], tensors[0]))
        parts = [front, id_]
        for head, at in zip(self._after, self.picks, strict=True):
            parts += (head, tensors[at])
        return b"".join(parts)

    def _front(self, id_bytes: int) -> bytes:
        inner = self._before + (_ID + varint(id_bytes) if id_bytes else b"")
        front = _REPLY + varint(len(inner) + id_bytes + self._after_bytes) + inner
        if len(self._fronts) < _FRONTS:
            self._fronts[id_bytes] = front
        return front


def _output(tensor: Tensor, form: RequestShape) -> tuple[list[int], int]:
    return [*form.lead, *tensor.step_shape], form.rows * form.steps * tensor.step_bytes


def _state(state: State, form: RequestShape) -> tuple[list[int], int]:
    return [form.rows, *state.shape], form.rows * state.session_bytes


def error_text(error: ServiceError, id_: bytes, sequence: object = None) -> str:
    """The error text for a stream. Triton's Python client shows neither status nor id, so the text has both."""
    named = cut(id_.decode(errors="replace")) or "<id_unknown>"
    whose = "" if sequence is None else f"[sequence: {cut(sequence)}] "
    return f"[request id: {named}] {whose}{error.code.name} {error.reason}: {error}"


def streamed_error(error: ServiceError, id_: bytes, sequence: object = None) -> bytes:
    """A ModelStreamInferResponse with an error and the request's id."""
    text = error_text(error, id_, sequence).encode()
    inner = _ID + varint(len(id_)) + id_ if id_ else b""
    return b"".join((_ERROR, varint(len(text)), text, _REPLY, varint(len(inner)), inner))
