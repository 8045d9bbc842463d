"""The sidecar to begin with, for a graph whose signature cannot be read from the graph alone."""

from __future__ import annotations

import json
from collections.abc import Sequence

from streamcell.service.graph.interface import GraphInterface, GraphValue


def sidecar_template(border: GraphInterface, pairs: Sequence[tuple[str, str]]) -> str:
    """A sidecar in TOML with everything that the graph says, and a `?` for each thing to fill in.

    Args:
        border: of the graph.
        pairs: (input, output) of what is likely to be a state.
    """
    states = dict(reversed(pairs))
    if len(states) == len(border.inputs) or len(set(states.values())) == len(border.outputs):
        # Something must go in and something must come out: leave it to the reader what.
        states = {}
    scalars = {n: p for n, p in border.inputs.items() if p.dims == () and n not in states}
    inputs = [p for n, p in border.inputs.items() if n not in states and n not in scalars]
    outputs = [p for n, p in border.outputs.items() if n not in states.values()]
    lines = [
        'layout = "batch"  # [batch, *step_shape]; or "batch_time" [batch, time, *step_shape], "time_batch"',
        *_tensors("inputs", inputs),
        *_tensors("outputs", outputs),
    ]
    if scalars:
        lines += ["", "[constants]"]
        lines += [f"{json.dumps(name)} = ?  # {port}" for name, port in scalars.items()]
    for name, output in states.items():
        lines += ["", "[[states]]", *_state(border.inputs[name], output)]
    if not states:
        lines += [
            "",
            "# for each state, if there are any:",
            "# [[states]]",
            '# input = "…"',
            '# output = "…"',
        ]
    return "\n".join(lines) + "\n"


def _tensors(key: str, ports: Sequence[GraphValue]) -> list[str]:
    lines = [f"{key} = ["]
    for port in ports:
        # Past the batch axis, an open size is either the time axis or one to be named.
        if port.dims is not None and all(isinstance(d, int) for d in port.dims[1:]):
            lines.append(f"  {json.dumps(port.name)},  # {port}")
        else:
            lines.append(f"  {{ name = {json.dumps(port.name)}, step_shape = [?] }},  # {port}")
    return [*lines, "]"]


def _state(port: GraphValue, output: str) -> list[str]:
    axes = port.dynamic_axes
    axis = str(axes[0]) if len(axes) == 1 else "?"
    lines = [
        f"input = {json.dumps(port.name)}  # {port}",
        f"output = {json.dumps(output)}",
        f"batch_axis = {axis}",
    ]
    if len(axes) > 1 or port.dims is None:
        lines.append("shape = [?]  # of one session, without the batch axis")
    return [*lines, "initial = 0.0"]
