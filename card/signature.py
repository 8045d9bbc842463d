"""What crosses a model's border: inputs, outputs and states, each with its dtype and the shape of one step."""

from __future__ import annotations

import math
from collections import Counter
from functools import cached_property
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

# numpy dtype name → bytes an element. The dtypes that may cross the wire or live in the pool.
DTYPES: dict[str, int] = {
    "float32": 4,
    "float16": 2,
    "float64": 8,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "uint8": 1,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "bool": 1,
}

Dtype = Literal[
    "float32", "float16", "float64", "int8", "int16", "int32", "int64",
    "uint8", "uint16", "uint32", "uint64", "bool",
]  # fmt: skip
Dimension = Annotated[int, Field(ge=1)]

# How the graph's input and output tensors are laid out around `step_shape`:
# "batch_time" [B, T, *step], "time_batch" [T, B, *step], "batch" [B, *step] (one run is one timestep).
Layout = Literal["batch_time", "time_batch", "batch"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Tensor(_Strict):
    """One input or output: the tensor of a single session's single timestep."""

    name: str
    dtype: Dtype
    step_shape: tuple[Dimension, ...] = ()
    # What the values parametrise, for clients that sample or score them.
    distribution: Literal["bernoulli_logits", "categorical_logits", "real"] | None = None
    # The lowest and the highest value of an input that indexes a table: one pair for all elements of a step or one
    # for each, in C order; none: every value of the dtype.
    index_ranges: tuple[tuple[int, int], ...] = ()

    @model_validator(mode="after")
    def _ranges_fit(self) -> Tensor:
        if not self.index_ranges:
            return self
        if not self.dtype.startswith(("int", "uint")):
            raise ValueError(f"{self.name!r}: {self.dtype} is no index and has no index_ranges")
        if len(self.index_ranges) not in (1, math.prod(self.step_shape)):
            raise ValueError(
                f"{self.name!r}: {len(self.index_ranges)} index_ranges, expected one or {math.prod(self.step_shape)}"
            )
        bits = min(63, 8 * DTYPES[self.dtype] - (not self.dtype.startswith("u")))
        least, most = (0 if self.dtype.startswith("u") else -(2**bits)), 2**bits - 1
        for low, high in self.index_ranges:
            if not least <= low <= high <= most:
                raise ValueError(f"{self.name!r}: index range {low} to {high} is none of {self.dtype}")
        return self

    @cached_property
    def step_bytes(self) -> int:
        """Bytes of one timestep."""
        return math.prod(self.step_shape) * DTYPES[self.dtype]


class OpenInput(Tensor):
    """A value of a session's own, given once when it opens; `step_shape` is the value's shape.

    It is the first value of the state whose input has its name.
    """

    # What a session has that is given none, one number for every element or all of them in C order; None: it must be
    # given one.
    default: float | tuple[float, ...] | None = None


class State(_Strict):
    """A tensor carried from step to step: the graph's input `input` takes what its output `output` gave."""

    input: str
    output: str
    dtype: Dtype
    # One session's shape, batch axis left out: (2, 128) for two layers of 128.
    shape: tuple[Dimension, ...] = ()
    # Index of the batch axis in the graph's tensor: 1 for (layers, batch, hidden).
    batch_axis: Annotated[int, Field(ge=0)] = 0
    # The value before the first step: one number for every element, or all of them in C order.
    initial: float | tuple[float, ...] = 0.0

    @property
    def session_bytes(self) -> int:
        """Bytes that one session of this state takes."""
        return math.prod(self.shape) * DTYPES[self.dtype]

    @model_validator(mode="after")
    def _fits(self) -> State:
        if self.batch_axis > len(self.shape):
            raise ValueError(
                f"state {self.input!r}: batch_axis {self.batch_axis} is outside shape {self.shape}"
            )
        if isinstance(self.initial, tuple) and len(self.initial) != math.prod(self.shape):
            raise ValueError(
                f"state {self.input!r}: {len(self.initial)} initial values for shape {self.shape}, "
                f"expected {math.prod(self.shape)}"
            )
        return self


class Signature(_Strict):
    """The whole border of a model. A model without states is stateless and takes no slot."""

    inputs: Annotated[tuple[Tensor, ...], Field(min_length=1)]
    outputs: Annotated[tuple[Tensor, ...], Field(min_length=1)]
    states: tuple[State, ...] = ()
    layout: Layout = "batch_time"
    # What each session is given when it opens.
    open_inputs: tuple[OpenInput, ...] = ()
    # The int32[batch] input that gives each row's true number of timesteps, where the graph has one.
    lengths: str | None = None
    # The most rows a run may have, where the graph fixes it (a graph exported with batch 1); None: any.
    max_batch: Annotated[int, Field(ge=1)] | None = None

    @property
    def has_time(self) -> bool:
        """Whether one run can take several timesteps of a session."""
        return self.layout != "batch"

    @property
    def session_bytes(self) -> int:
        """Bytes of state that one session takes."""
        return sum(state.session_bytes for state in self.states)

    @model_validator(mode="after")
    def _unambiguous(self) -> Signature:
        taken = [t.name for t in self.inputs] + [s.input for s in self.states]
        if self.lengths is not None:
            taken.append(self.lengths)
            if self.layout == "batch":
                raise ValueError("`lengths` needs a layout with a time axis")
        # A state's output may be an output as well: y = h'.
        for names in (taken, [t.name for t in self.outputs], [s.output for s in self.states]):
            if twice := sorted(name for name, times in Counter(names).items() if times > 1):
                raise ValueError(f"named more than once: {', '.join(twice)}")
        states = {state.input: (state.dtype, state.shape, state.batch_axis) for state in self.states}
        for value in self.open_inputs:
            if states.get(value.name) != (value.dtype, value.step_shape, 0):
                raise ValueError(f"open input {value.name!r} is not the first value of a state")
        return self
