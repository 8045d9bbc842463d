"""Small graphs with states, composed of blocks at random: healthy ones, and ones that mix rows or look ahead.

Between two blocks a value is float32[batch, time, 4], or [batch, 4] if the layout has no time axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from .builder import WIDTH, Builder, RandomState
from .healthy import HEALTHY, STATEFUL
from .wrong import ONLY_IN_TIME, WRONG

LAYOUTS = ("batch", "batch_time", "time_batch")
OPSETS = (11, 12, 13, 15, 17, 18, 21)
TOKENS = 7


@dataclass(frozen=True)
class RandomModel:
    """A graph, how its sidecar describes it, and the names of the blocks that it is made of."""

    graph: onnx.ModelProto
    sidecar: str | None
    layout: str
    lengths: bool
    tokens: bool
    states: tuple[RandomState, ...]
    output: str
    blocks: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        """Whether it is right however it is run. Of the blocks with states only the operators heed `lengths`."""
        return set(self.blocks) <= ({"dense", "norm", "recurrent"} if self.lengths else set(HEALTHY))


def compose(seed: int) -> RandomModel:
    """The model of a seed: two to five blocks, one with a state at least. Every second model has a wrong one.

    As many seeds in a row as there are wrong blocks, twice, give each of them.
    """
    rng = np.random.default_rng(seed)
    wrong = list(WRONG)[seed // 2 % len(WRONG)] if seed % 2 else ""
    layout = LAYOUTS[1 + seed // 2 % 2] if wrong in ONLY_IN_TIME else LAYOUTS[seed % 3]
    opset = int(rng.choice(OPSETS))
    b = Builder(rng, layout, opset, lengths=layout != "batch" and rng.random() < 0.3)
    heeding = b.lengths and rng.random() < 0.6
    blocks, stateful = (
        (["dense", "norm", "recurrent"], ["recurrent"]) if heeding else (list(HEALTHY), list(STATEFUL))
    )
    names = [str(name) for name in rng.choice(blocks, int(rng.integers(1, 4)))]
    names.append(stateful[seed % len(stateful)])
    if wrong:
        names.append(wrong)
    rng.shuffle(names)
    tokens = rng.random() < 0.2
    value = b.add("Gather", b.weights(TOKENS, WIDTH), "x") if tokens else "x"
    value = b.add("Transpose", value, perm=[1, 0, 2]) if layout == "time_batch" else value
    for name in names:
        made = {**HEALTHY, **WRONG}[name](b, value)
        value = b.add("Add", value, made) if rng.random() < 0.3 else made
    output = "y"
    if layout == "time_batch":
        b.add("Transpose", value, perm=[1, 0, 2], into="y")
    else:
        b.add("Identity", value, into="y")
    flat = [s for s in b.states if (s.shape, s.axis, s.dtype) == ((WIDTH,), 0, "float32")]
    if layout == "batch" and flat and rng.random() < 0.2:
        output = f"{flat[0].name}_next"
    # The size of the batch in the file: open, or that of its example.
    fixed = rng.random() < 0.15
    graph = _graph(b, 1 if fixed else "b", tokens)
    # Names and sizes say enough of some graphs.
    plain = not (fixed or b.lengths or tokens or output != "y" or any(state.initial for state in b.states))
    sidecar = None if plain and rng.random() < 0.5 else _sidecar(b, output, fixed)
    return RandomModel(graph, sidecar, layout, b.lengths, tokens, tuple(b.states), output, tuple(names))


def _graph(b: Builder, batch: int | str, tokens: bool) -> onnx.ModelProto:
    lead: list[int | str] = {"batch": [batch], "batch_time": [batch, "t"], "time_batch": ["t", batch]}[
        b.layout
    ]

    def value(name: str, dtype: str, dims: list[int | str]) -> onnx.ValueInfoProto:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return helper.make_tensor_value_info(name, kind, [batch if d == "b" else d for d in dims])

    inputs = [value("x", "int64", lead) if tokens else value("x", "float32", [*lead, WIDTH])]
    if b.lengths:
        inputs.append(value("lengths", "int64", [batch]))
    inputs += [value(s.name, s.dtype, s.dims) for s in b.states]
    outputs = [value("y", "float32", [*lead, WIDTH])]
    outputs += [value(f"{s.name}_next", s.dtype, s.dims) for s in b.states]
    graph = helper.make_graph(b.nodes, "random", inputs, outputs, b.constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", b.opset)], ir_version=9)


def _sidecar(b: Builder, output: str, fixed: bool) -> str:
    lines = [f'layout = "{b.layout}"', 'inputs = ["x"]', f'outputs = ["{output}"]']
    if b.lengths:
        lines.append('lengths = "lengths"')
    if fixed:
        lines.append(str(b.rng.choice(["max_batch = 1", 'max_batch = "any"'])))
    for s in b.states:
        lines += ["[[states]]", f'input = "{s.name}"', f'output = "{s.name}_next"', f"batch_axis = {s.axis}"]
        if s.initial:
            lines.append(f"initial = {s.initial}")
    return "\n".join(lines) + "\n"
