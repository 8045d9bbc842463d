"""Writes a sidecar with the known description of a model, for editing."""

from __future__ import annotations

import json
from collections.abc import Sequence

from streamcell.card import Layout, Signature, State, Tensor
from streamcell.card.generation import Generation

from .describe import Description
from .sidecar import quoted


def sidecar_text(description: Description) -> str:
    """A sidecar in TOML that gives the same signature as `description`, whatever its source."""
    signature = description.signature
    lines = ["override = true  # replaces the card in the file"] if description.card else []
    lines.append(f"layout = {quoted(_layout(description))}")
    axes = description.new_axes
    everything = bool(axes) and all(name in axes for name in _names(signature))
    if everything:
        lines.append('batch_axis = "none"')
    elif signature.max_batch is not None and not axes:
        lines.append(f"max_batch = {signature.max_batch}")
    if signature.lengths is not None:
        lines.append(f"lengths = {quoted(signature.lengths)}")
    for key, tensors in (("inputs", signature.inputs), ("outputs", signature.outputs)):
        lines += [
            f"{key} = [",
            *(_tensor(each, each.name in axes and not everything) for each in tensors),
            "]",
        ]
    for state in signature.states:
        lines += ["", "[[states]]", *_state(state, state.input in axes)]
    if description.generation is not None:
        lines += ["", "[generation]", *_generation(description.generation)]
    return "\n".join(lines) + "\n"


def _layout(description: Description) -> Layout:
    """The layout of the graph in the file, whose time axis of one timestep `description` leaves out."""
    if not description.old_axes:
        return description.signature.layout
    return "time_batch" if 0 in description.old_axes.values() else "batch_time"


def _names(signature: Signature) -> list[str]:
    states = [name for state in signature.states for name in (state.input, state.output)]
    return [*(each.name for each in (*signature.inputs, *signature.outputs)), *states]


def _tensor(tensor: Tensor, unbatched: bool) -> str:
    parts = [f"name = {quoted(tensor.name)}", f"step_shape = {json.dumps(tensor.step_shape)}"]
    if unbatched:
        parts.append('batch_axis = "none"')
    if tensor.distribution is not None:
        parts.append(f"distribution = {quoted(tensor.distribution)}")
    return f"  {{ {', '.join(parts)} }},  # {tensor.dtype}"


def _state(state: State, unbatched: bool) -> list[str]:
    axis = '"none"' if unbatched else state.batch_axis
    return [
        f"input = {quoted(state.input)}",
        f"output = {quoted(state.output)}",
        f"batch_axis = {axis}",
        f"shape = {json.dumps(state.shape)}  # {state.dtype}, {state.session_bytes} bytes a session",
        f"initial = {_number(state.initial)}",
    ]


def _generation(generation: Generation) -> list[str]:
    said = generation.model_dump(exclude_none=True)
    return [
        f"{key} = {quoted(value) if isinstance(value, str) else _number(value)}"
        for key, value in said.items()
    ]


def _number(value: float | Sequence[float]) -> str:
    """A number or an array of numbers in TOML, which spells infinity as Python does."""
    return f"[{', '.join(map(repr, value))}]" if isinstance(value, Sequence) else repr(value)
