"""Makes work of messages: every check that can be made before a message is queued."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from streamcell.card import Signature
from streamcell.proto import pb
from streamcell.service.errors import (
    MessageTooLarge,
    NoSteps,
    TooManySteps,
    WrongByteCount,
    WrongDtype,
    WrongInputCount,
    cut,
)
from streamcell.service.sessions.model import Model
from streamcell.service.sessions.session import Output, Work
from streamcell.service.sessions.value_check import ValueCheck
from streamcell.service.settings import Settings

_OUTPUTS = {
    pb.OUTPUT_MODE_ALL: Output.ALL,
    pb.OUTPUT_MODE_LAST: Output.LAST,
    pb.OUTPUT_MODE_NONE: Output.NONE,
}
# The same the other way round, for messages that the server makes.
OUTPUT_MODES = {output: mode for mode, output in _OUTPUTS.items()}

_HEADER_BYTES = 16  # at most, of a message before its only tensor


@dataclass(frozen=True)
class Limits:
    """Limits of one message."""

    max_message_bytes: int
    max_steps_per_message: int
    allow_non_finite: bool
    max_generate_steps: int
    max_beam_width: int

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """The server's limits."""
        return cls(
            settings.max_message_bytes,
            settings.max_steps_per_message,
            settings.non_finite == "allow",
            settings.max_generate_steps,
            settings.max_beam_width,
        )


def output_mode(mode: int, default: Output) -> Output:
    """The mode that a message asks for; `default` if it asks for none or for an unknown one."""
    return _OUTPUTS.get(mode, default)  # type: ignore[call-overload, no-any-return]


def check_size(data: bytes, limits: Limits) -> None:
    """Raise MessageTooLarge if a message exceeds the limit."""
    if len(data) > limits.max_message_bytes:
        raise MessageTooLarge(
            f"a message may have {limits.max_message_bytes} bytes, this one has {len(data)}",
            limit=limits.max_message_bytes,
            got=len(data),
        )


def check_dtypes(signature: Signature, dtypes: Sequence[str]) -> None:
    """Raise unless the dtypes that a client declares, if any, are the signature's."""
    if not dtypes:
        return
    expected = [tensor.dtype for tensor in signature.inputs]
    if len(dtypes) != len(expected):
        raise WrongInputCount(
            f"expected {len(expected)} dtypes, one an input, got {len(dtypes)}",
            expected=len(expected),
            got=len(dtypes),
        )
    for tensor, dtype in zip(signature.inputs, dtypes, strict=True):
        if dtype != tensor.dtype:
            raise WrongDtype(
                f"input {tensor.name!r}: expected {tensor.dtype}, got {cut(dtype)}",
                input=tensor.name,
                expected=tensor.dtype,
                got=dtype,
            )


def count_steps(signature: Signature, payloads: Sequence[bytes], declared: int, rows: int = 1) -> int:
    """The number of timesteps per row in `payloads`, each [rows, steps, *step_shape].

    Raises:
        WrongInputCount, WrongByteCount, NoSteps: the payloads do not have that shape.
    """
    if len(payloads) != len(signature.inputs):
        names = ", ".join(tensor.name for tensor in signature.inputs)
        raise WrongInputCount(
            f"expected {len(signature.inputs)} inputs ({names}), got {len(payloads)}",
            expected=len(signature.inputs),
            got=len(payloads),
        )
    first = signature.inputs[0]
    steps = declared or len(payloads[0]) // (first.step_bytes * rows)
    for tensor, payload in zip(signature.inputs, payloads, strict=True):
        if not payload and not declared:
            raise NoSteps(f"input {tensor.name!r} is empty: each message needs at least one timestep")
        expected = rows * steps * tensor.step_bytes
        if len(payload) != expected or not expected:
            shape = f"[{f'{rows}, ' if rows > 1 else ''}{steps or 'steps'}, {', '.join(map(str, tensor.step_shape))}]"
            raise WrongByteCount(
                f"input {tensor.name!r}: {tensor.dtype}{shape} takes "
                f"{expected or f'a multiple of {rows * tensor.step_bytes}'} bytes, got {len(payload)}",
                input=tensor.name,
                step_bytes=tensor.step_bytes,
                got=len(payload),
            )
    return steps


def fast_path_limits(model: Model, limits: Limits) -> tuple[int, int]:
    """(bytes of a step, maximum steps) of messages with one input that need no other check; 0, 0 if there are none.

    Such messages are within every limit and run in one chunk, so their values are checked with their batch.
    """
    inputs = model.file.signature.inputs
    if len(inputs) != 1:
        return 0, 0
    step_bytes = inputs[0].step_bytes
    room = (limits.max_message_bytes - _HEADER_BYTES) // step_bytes
    return step_bytes, max(0, min(room, limits.max_steps_per_message, model.max_chunk))


def make_work(
    model: Model, limits: Limits, payloads: Iterable[bytes], steps: int, output: Output, tag: int
) -> Work:
    """Work for one row of `steps` timesteps, which `count_steps` has found to fit.

    Raises:
        TooManySteps: over the limit.
        NonFiniteInput, MalformedMessage: a bad value in a message that will run in several chunks. Those of one
            chunk are checked with their batch.
    """
    if steps > limits.max_steps_per_message:
        raise TooManySteps(
            f"a message may carry {limits.max_steps_per_message} timesteps, this one carries {steps}",
            limit=limits.max_steps_per_message,
            got=steps,
        )
    work = Work(tuple(payloads), steps, output, tag, time.perf_counter())
    if steps > model.max_chunk:
        check = ValueCheck(model.file.signature, allow_non_finite=limits.allow_non_finite)
        if (error := check.first_bad(work)) is not None:
            raise error
    return work


def make_rows(
    model: Model, limits: Limits, payloads: tuple[bytes, ...], steps: int, output: Output, rows: int
) -> list[Work]:
    """Work for each row of a request, tagged 0, 1, …; the request is counted with its last row.

    Args:
        model: the model that runs.
        limits: limits of one message.
        payloads: one an input, [rows, steps, *step_shape] each, which `count_steps` has found to fit.
        steps: timesteps a row.
        output: which of them are answered.
        rows: how many there are.

    Raises:
        As `make_work`.
    """
    if rows == 1:
        return [make_work(model, limits, payloads, steps, output, 0)]
    sizes = [steps * tensor.step_bytes for tensor in model.file.signature.inputs]
    work = []
    for row in range(rows):
        mine = [data[row * size : (row + 1) * size] for data, size in zip(payloads, sizes, strict=True)]
        work.append(make_work(model, limits, mine, steps, output, row))
        work[-1].counted = row == rows - 1
    return work
