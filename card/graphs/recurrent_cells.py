"""One timestep of the recurrent operators, written out as matrix products and element-wise nodes.

The formulas are those of the ONNX operator specification (LSTM-14, GRU-14, RNN-14), forward direction, with T = 1.
Each function appends nodes and returns the new state [batch, hidden] (LSTM: hidden and cell state). Weights are
taken as the operators have them: W [1, gates·hidden, input], R [1, gates·hidden, hidden], B [1, 2·gates·hidden],
P [1, 3·hidden]; what depends on them alone is folded when ONNX Runtime loads the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import onnx
from onnx import helper

from .node_builder import NodeBuilder

# Activations without parameters; an operator with another one is not written out.
ACTIVATIONS = frozenset({"Sigmoid", "Tanh", "Relu", "Softsign", "Softplus"})
DEFAULTS = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
# Attributes whose value the written-out form does not depend on.
_UNUSED = frozenset(
    {"hidden_size", "activations", "direction", "layout", "linear_before_reset", "input_forget"}
)
_PASSES_ON = frozenset({"Cast", "Identity"})


@dataclass(frozen=True)
class Cell:
    """One operator.

    Attributes:
        op: "RNN", "GRU" or "LSTM".
        hidden: its hidden size.
        activations: in the operator's order.
        linear_before_reset: of a GRU.
        W, R: names of the weights.
        B, P: names of the biases and the peepholes; "" for none.
    """

    op: str
    hidden: int
    activations: tuple[str, ...]
    linear_before_reset: bool
    W: str
    R: str
    B: str
    P: str


class Products(Protocol):
    """The matrix products of one timestep."""

    def both(self, h: str) -> str:
        """x·Wᵀ + h·Rᵀ + the biases of both, [batch, gates·hidden]."""

    def apart(self, h: str) -> tuple[str, str]:
        """x·Wᵀ and h·Rᵀ, each with its own bias."""

    def of_x(self) -> str:
        """x·Wᵀ + the biases of both."""

    def plus(self, value: str, h: str, begin: int, end: int) -> str:
        """value + h·Rᵀ for the gates' rows `begin` to `end` of R."""


class FloatProducts:
    """Products as Gemm nodes.

    Args:
        write: takes the nodes.
        cell: the operator.
        x: [batch, input].
    """

    def __init__(self, write: NodeBuilder, cell: Cell, x: str) -> None:
        self._write, self._cell, self._x = write, cell, x
        self._W = write.reshape(cell.W, GATES[cell.op] * cell.hidden, -1)
        self._R = write.reshape(cell.R, -1, cell.hidden)
        self._parts: dict[tuple[int, int], str] = {}

    def both(self, h: str) -> str:
        """See `Products`. One product of [x, h] with [W, R]: on a card each node is a kernel or two."""
        write = self._write
        both = write.add("Concat", self._W, self._R, axis=1)
        return write.gemm(write.add("Concat", self._x, h, axis=1), both, bias(write, self._cell))

    def apart(self, h: str) -> tuple[str, str]:
        """See `Products`."""
        of_w, of_r = biases(self._write, self._cell)
        return self._write.gemm(self._x, self._W, of_w), self._write.gemm(h, self._R, of_r)

    def of_x(self) -> str:
        """See `Products`."""
        return self._write.gemm(self._x, self._W, bias(self._write, self._cell))

    def plus(self, value: str, h: str, begin: int, end: int) -> str:
        """See `Products`."""
        if not self._parts:
            hidden, gates = self._cell.hidden, GATES[self._cell.op]
            places = [(gate * hidden, (gate + 1) * hidden) for gate in range(gates)]
            self._parts = dict(zip(places, self._write.split(self._R, gates, 0), strict=True))
        return self._write.gemm(h, self._parts[begin, end], value)


def cell_of(node: onnx.NodeProto) -> Cell | None:
    """The cell that `node` computes, if the operator can be written out.

    None for bidirectional and reversed operators, those with `clip`, `input_forget` or `layout` = 1, with activations
    that take parameters, and without initial states.
    """
    if node.op_type not in GATES or node.domain not in ("", "ai.onnx"):
        return None
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    activations = tuple(a.decode() for a in given.get("activations", ())) or DEFAULTS[node.op_type]
    states = [input_of(node, 5), *([input_of(node, 6)] if node.op_type == "LSTM" else [])]
    if (
        set(given) - _UNUSED
        or given.get("input_forget", 0)
        or given.get("direction", b"forward") != b"forward"
        or given.get("layout", 0)
        or "hidden_size" not in given
        or not ACTIVATIONS.issuperset(activations)
        or len(activations) != len(DEFAULTS[node.op_type])
        or not all(states)
    ):
        return None
    return Cell(
        node.op_type,
        given["hidden_size"],
        activations,
        bool(given.get("linear_before_reset", 0)),
        W=node.input[1],
        R=node.input[2],
        B=input_of(node, 3),
        P=input_of(node, 7),
    )


def input_of(node: onnx.NodeProto, place: int) -> str:
    """The name of an input, "" if it is not given."""
    return node.input[place] if place < len(node.input) else ""


def lengths_values(graph: onnx.GraphProto, lengths: str | None) -> set[str]:
    """The values that are a row's number of timesteps: "" for all of them, the model's lengths, and casts of these."""
    found = {"", *([lengths] if lengths else [])}
    for node in graph.node:
        if node.op_type in _PASSES_ON and node.input[0] in found:
            found.update(node.output)
    return found


def step(write: NodeBuilder, cell: Cell, products: Products, h: str, c: str = "") -> tuple[str, ...]:
    """One timestep.

    Args:
        write: takes the nodes.
        cell: the operator.
        products: of x and the weights.
        h, c: [batch, hidden], the states before.

    Returns:
        h after, for an LSTM c too.
    """
    return _STEPS[cell.op](write, cell, products, h, c)


def write_single(write: NodeBuilder, node: onnx.NodeProto, cell: Cell, products: Products) -> None:
    """A run of one timestep in place of `node`: its outputs under their names."""
    states = [
        write.reshape(input_of(node, place), -1, cell.hidden) for place in (5, 6) if input_of(node, place)
    ]
    after = step(write, cell, products, *states)
    outputs = [*node.output, "", ""]
    if outputs[0]:
        write.reshape(after[0], 1, 1, -1, cell.hidden, into=outputs[0])
    for name, value in zip(outputs[1:], after, strict=False):
        if name:
            write.reshape(value, 1, -1, cell.hidden, into=name)


def biases(write: NodeBuilder, cell: Cell) -> tuple[str, str]:
    """Those of W and of R, [gates·hidden] each; "" for none."""
    if not cell.B:
        return "", ""
    of_w, of_r = write.split(write.reshape(cell.B, -1), 2, 0)
    return of_w, of_r


def bias(write: NodeBuilder, cell: Cell) -> str:
    """Both added up; "" for none."""
    of_w, of_r = biases(write, cell)
    return write.add("Add", of_w, of_r) if of_w else ""


def _lstm(write: NodeBuilder, cell: Cell, products: Products, h: str, c: str) -> tuple[str, ...]:
    f, g, after = cell.activations
    gates = products.both(h)
    if cell.P:
        i, o, forget, candidate = write.split(gates, 4, 1)
        peep_i, peep_o, peep_f = write.split(write.reshape(cell.P, -1), 3, 0)
        i = write.add(f, write.add("Add", i, write.add("Mul", peep_i, c)))
        forget = write.add(f, write.add("Add", forget, write.add("Mul", peep_f, c)))
    else:  # the three gates lie together
        gates, candidate = write.split(gates, (3 * cell.hidden, cell.hidden), 1)
        i, o, forget = write.split(write.add(f, gates), 3, 1)
    new_c = write.add("Add", write.add("Mul", forget, c), write.add("Mul", i, write.add(g, candidate)))
    if cell.P:
        o = write.add(f, write.add("Add", o, write.add("Mul", peep_o, new_c)))
    return write.add("Mul", o, write.add(after, new_c)), new_c


def _gru(write: NodeBuilder, cell: Cell, products: Products, h: str, c: str) -> tuple[str, ...]:
    f, g = cell.activations
    hidden = cell.hidden
    if cell.linear_before_reset:
        of_x, of_h = products.apart(h)
        xz, xr, xn = write.split(of_x, 3, 1)
        hz, hr, hn = write.split(of_h, 3, 1)
        z, r = write.add(f, write.add("Add", xz, hz)), write.add(f, write.add("Add", xr, hr))
        candidate = write.add("Add", xn, write.add("Mul", r, hn))
    else:
        xz, xr, xn = write.split(products.of_x(), 3, 1)
        z = write.add(f, products.plus(xz, h, 0, hidden))
        r = write.add(f, products.plus(xr, h, hidden, 2 * hidden))
        candidate = products.plus(xn, write.add("Mul", r, h), 2 * hidden, 3 * hidden)
    n = write.add(g, candidate)
    # z⊙h + (1−z)⊙n, with one multiplication.
    return (write.add("Add", n, write.add("Mul", z, write.add("Sub", h, n))),)


def _rnn(write: NodeBuilder, cell: Cell, products: Products, h: str, c: str) -> tuple[str, ...]:
    return (write.add(cell.activations[0], products.both(h)),)


_STEPS: dict[str, Callable[[NodeBuilder, Cell, Products, str, str], tuple[str, ...]]] = {
    "LSTM": _lstm,
    "GRU": _gru,
    "RNN": _rnn,
}
