"""What a message may hold: as many bytes as its steps take; finite values, unless all are allowed; bools 0 or 1."""

from __future__ import annotations

import numpy as np

from streamcell.card import Signature

from .errors import InvalidArgument, MalformedMessage, NonFiniteInput, WrongByteCount
from .session import Work


def check_length(signature: Signature, work: Work) -> WrongByteCount | None:
    """What is wrong with the lengths of `work`'s payloads, which are to be [steps, *step_shape] each, or None."""
    for tensor, payload in zip(signature.inputs, work.payloads, strict=True):
        expected = work.steps * tensor.step_bytes
        if len(payload) != expected:
            return WrongByteCount(
                f"input {tensor.name!r}: {work.steps} timesteps take {expected} bytes, got {len(payload)}",
                input=tensor.name,
                expected=expected,
                got=len(payload),
            )
    return None


def check_values(signature: Signature, work: Work, allow_non_finite: bool) -> InvalidArgument | None:
    """What is wrong with the values of `work`'s payloads, naming the first bad one, or None."""
    for tensor, payload in zip(signature.inputs, work.payloads, strict=True):
        dtype = np.dtype(tensor.dtype)
        error: type[InvalidArgument]
        if dtype.kind == "f" and not allow_non_finite:
            fine = np.isfinite(np.frombuffer(payload, dtype))
            error, wanted = NonFiniteInput, "finite values"
        elif dtype.kind == "b":
            fine = np.frombuffer(payload, np.uint8) <= 1
            error, wanted = MalformedMessage, "bytes that are 0 or 1"
        else:
            continue
        if not fine.all():
            step, element = divmod(int(np.argmin(fine)), max(1, fine.size // work.steps))
            came = np.frombuffer(payload, np.uint8 if dtype.kind == "b" else dtype)[int(np.argmin(fine))]
            return error(
                f"input {tensor.name!r}: expected {wanted}, got {came} at step {step}, element {element}",
                input=tensor.name,
                step=step,
                element=element,
            )
    return None
