"""How a model's output becomes its next input, so that a server can run steps by itself."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .signature import DTYPES, Dimension, Signature, Tensor

Head = Literal["real", "bernoulli", "categorical"]
Encoding = Literal["value", "one_hot", "index"]

_ENCODINGS: dict[str, tuple[Encoding, ...]] = {
    "real": ("value",),
    "bernoulli": ("value",),
    "categorical": ("one_hot", "index"),
}
# The `distribution` that an output must have, if it has one.
_DISTRIBUTIONS = {"real": "real", "bernoulli": "bernoulli_logits", "categorical": "categorical_logits"}


class Generation(BaseModel):
    """The way from one step's output to the next step's input.

    A head is "real" (the output vector itself is the next input), "bernoulli" (logits; the next input is a vector
    of 0 and 1 of the same shape) or "categorical" (logits over K classes). A class goes in as a one-hot vector or as
    an index: an integer token of step shape [] or [1]. The token of class k is `offset` + k.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    output: str
    input: str
    head: Head
    # Left out: "value" for a real or a Bernoulli head, "one_hot" for a categorical one.
    encoding: Encoding = "value"
    offset: Annotated[int, Field(ge=0)] = 0
    # The token that a generation begins with, unless a request brings its own first input. None: what the last
    # output gives.
    start: Annotated[int, Field(ge=0)] | None = None
    # The class that ends a generation.
    stop: Annotated[int, Field(ge=0)] | None = None
    # Standard deviation of a real output about the truth, for sampling: one for all elements, or each in C order.
    deviation: (
        Annotated[float, Field(ge=0, allow_inf_nan=False)]
        | tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...]
        | None
    ) = None

    @model_validator(mode="before")
    @classmethod
    def _usual_encoding(cls, data: object) -> object:
        if isinstance(data, dict) and data.get("head") == "categorical":
            return {"encoding": "one_hot"} | data
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Generation:
        if self.encoding not in _ENCODINGS[self.head]:
            raise ValueError(
                f"a {self.head} head goes in as {' or '.join(_ENCODINGS[self.head])}, not as {self.encoding}"
            )
        if self.head != "categorical":
            for name, value in (("offset", self.offset or None), ("start", self.start), ("stop", self.stop)):
                if value is not None:
                    raise ValueError(f"{name} is for a categorical head, not for a {self.head} one")
        if self.head != "real" and self.deviation is not None:
            raise ValueError(f"deviation is for a real head, not for a {self.head} one")
        return self


def check_generation(signature: Signature, generation: Generation) -> None:
    """Hold `generation` against the signature that it is for.

    Raises:
        ValueError: the model has no such input or output or takes more than one input, or shapes, dtypes or the
            output's distribution do not fit; the text says what was expected and what was found.
    """
    given = _find(signature.inputs, generation.input, "input")
    output = _find(signature.outputs, generation.output, "output")
    if len(signature.inputs) > 1:
        names = ", ".join(tensor.name for tensor in signature.inputs)
        raise ValueError(f"generation: a model that generates has one input, this one has {names}")
    wanted = _DISTRIBUTIONS[generation.head]
    if output.distribution not in (None, wanted):
        raise ValueError(
            f"generation: a {generation.head} head needs an output of {wanted}, "
            f"{output.name!r} is {output.distribution}"
        )
    if not output.dtype.startswith("float"):
        raise ValueError(f"generation: expected a float output, {output.name!r} is {output.dtype}")
    if generation.head == "categorical":
        _check_classes(given, output, generation)
    else:
        _check_values(given, output, generation)


def _find(tensors: tuple[Tensor, ...], name: str, what: str) -> Tensor:
    for tensor in tensors:
        if tensor.name == name:
            return tensor
    names = ", ".join(tensor.name for tensor in tensors)
    raise ValueError(f"generation: the model has no {what} {name!r}; it has {names}")


def _check_values(given: Tensor, output: Tensor, generation: Generation) -> None:
    if given.step_shape != output.step_shape:
        raise ValueError(
            f"generation: output {output.name!r} {list(output.step_shape)} cannot be fed to input {given.name!r} "
            f"{list(given.step_shape)}: the shapes of a step must be the same"
        )
    if generation.head == "real" and not given.dtype.startswith("float"):
        raise ValueError(f"generation: a real head needs a float input, {given.name!r} is {given.dtype}")
    size = math.prod(output.step_shape)
    if isinstance(generation.deviation, tuple) and len(generation.deviation) != size:
        raise ValueError(
            f"generation: {len(generation.deviation)} deviations for an output of {size} elements"
        )


def _check_classes(given: Tensor, output: Tensor, generation: Generation) -> None:
    if len(output.step_shape) != 1:
        raise ValueError(
            f"generation: a categorical head needs an output [classes], {output.name!r} has {list(output.step_shape)}"
        )
    (classes,) = output.step_shape
    tokens = _tokens(given, generation)
    if generation.offset + classes > tokens:
        raise ValueError(
            f"generation: {classes} classes from token {generation.offset} on do not fit input {given.name!r}, "
            f"which takes {tokens} tokens"
        )
    if generation.start is not None and generation.start >= tokens:
        raise ValueError(
            f"generation: start {generation.start} is no token of input {given.name!r}, which takes {tokens}"
        )
    if generation.stop is not None and generation.stop >= classes:
        raise ValueError(f"generation: stop {generation.stop} is none of {classes} classes")


def _tokens(given: Tensor, generation: Generation) -> int:
    """The number of different tokens of the input."""
    if generation.encoding == "one_hot":
        if len(given.step_shape) != 1:
            raise ValueError(
                f"generation: one_hot needs an input [tokens], {given.name!r} has {list(given.step_shape)}"
            )
        size: Dimension = given.step_shape[0]
        return size
    if math.prod(given.step_shape) != 1 or len(given.step_shape) > 1:
        raise ValueError(
            f"generation: index needs an input of step shape [] or [1], {given.name!r} has {list(given.step_shape)}"
        )
    if not given.dtype.startswith(("int", "uint")):
        raise ValueError(f"generation: index needs an integer input, {given.name!r} is {given.dtype}")
    return int(2 ** (8 * DTYPES[given.dtype] - (0 if given.dtype.startswith("u") else 1)))
