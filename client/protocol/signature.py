"""All inputs or all outputs of a model: an array if there is one tensor; several by name or in order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from streamcell.client.errors import InvalidInput, ServerFault
from streamcell.proto import pb

from .tensors import SEQUENCES, Axes, TensorCodec

OutputMode: TypeAlias = Literal["all", "last", "none"]

_MODES: dict[str, pb.OutputMode] = {
    "": pb.OUTPUT_MODE_UNSPECIFIED,
    "all": pb.OUTPUT_MODE_ALL,
    "last": pb.OUTPUT_MODE_LAST,
    "none": pb.OUTPUT_MODE_NONE,
}


def output_mode(name: str | None) -> pb.OutputMode:
    """The wire's value for "all", "last" or "none"; unspecified for None.

    Raises:
        InvalidInput: WRONG_OUTPUT_MODE.
    """
    try:
        return _MODES[name or ""]
    except KeyError:
        raise InvalidInput(
            f"output mode: expected 'all', 'last' or 'none', got {name!r}", reason="WRONG_OUTPUT_MODE"
        ) from None


class SignatureCodec:
    """Encodes the inputs of steps and decodes their outputs."""

    __slots__ = ("_inputs", "_outputs")

    def __init__(self, inputs: Iterable[pb.TensorSpec], outputs: Iterable[pb.TensorSpec]) -> None:
        self._inputs = [TensorCodec(spec.name, spec.dtype, spec.step_shape) for spec in inputs]
        self._outputs = [TensorCodec(spec.name, spec.dtype, spec.step_shape) for spec in outputs]

    @property
    def dtypes(self) -> list[str]:
        """The inputs' dtypes, in order."""
        return [str(codec.dtype) for codec in self._inputs]

    @property
    def the_input(self) -> TensorCodec:
        """The input of a model with exactly one."""
        (codec,) = self._inputs
        return codec

    def encode(
        self, x: Any, ranks: tuple[int, ...], axes: Axes = SEQUENCES
    ) -> tuple[list[bytes], tuple[int, ...]]:
        """One payload for each input, and their common leading shape.

        Raises:
            InvalidInput: WRONG_INPUT_COUNT, WRONG_DTYPE, WRONG_SHAPE or NO_STEPS.
        """
        if len(self._inputs) == 1 and not isinstance(x, Mapping):
            data, leading = self._inputs[0].encode(x, ranks, axes)
            payloads = [data]
        else:
            payloads, leading = self._encode_several(self._in_order(x), ranks, axes)
        if 0 in leading:
            raise InvalidInput("expected at least one timestep, got none", reason="NO_STEPS")
        return payloads, leading

    def _encode_several(
        self, values: Sequence[Any], ranks: tuple[int, ...], axes: Axes
    ) -> tuple[list[bytes], tuple[int, ...]]:
        pairs = [codec.encode(value, ranks, axes) for codec, value in zip(self._inputs, values, strict=True)]
        payloads, shapes = [data for data, _ in pairs], [leading for _, leading in pairs]
        for codec, leading in zip(self._inputs, shapes, strict=True):
            if leading != shapes[0]:
                raise InvalidInput(
                    f"input {codec.name!r}: expected the leading shape of {self._inputs[0].name!r}, "
                    f"{list(shapes[0])}, got {list(leading)}",
                    reason="WRONG_SHAPE",
                )
        return payloads, shapes[0]

    def _in_order(self, x: Any) -> Sequence[Any]:
        names = [codec.name for codec in self._inputs]
        if isinstance(x, Mapping):
            if set(x) == set(names):
                return [x[name] for name in names]
            got = ", ".join(map(str, x)) or "none"
        elif isinstance(x, (tuple, list)):
            if len(x) == len(names):
                return x
            got = f"{len(x)} in a {type(x).__name__}"
        else:
            got = f"one {type(x).__name__}"
        raise InvalidInput(
            f"expected {len(names)} inputs by name or in order ({', '.join(names)}), got {got}",
            reason="WRONG_INPUT_COUNT",
            metadata={"expected": str(len(names)), "got": got},
        )

    def decode(self, payloads: Sequence[bytes], leading: tuple[int, ...]) -> Any:
        """The output's array; a dict of arrays by name if there are several; None if the reply has none.

        Raises:
            ServerFault: MALFORMED_REPLY.
        """
        if not payloads:
            return None
        if len(payloads) != len(self._outputs):
            raise ServerFault(
                f"expected {len(self._outputs)} outputs, the reply has {len(payloads)}",
                reason="MALFORMED_REPLY",
            )
        if len(payloads) == 1:
            return self._outputs[0].decode(payloads[0], leading)
        return {
            codec.name: codec.decode(data, leading)
            for codec, data in zip(self._outputs, payloads, strict=True)
        }
