"""One timestep of the recurrent operators, written out as Gemm and element-wise nodes.

The formulas are those of the ONNX operator specification (LSTM-14, GRU-14, RNN-14), forward direction, with T = 1.
Each function appends nodes and returns the new state [batch, hidden] (LSTM: hidden and cell state). Weights are
taken as the operators have them: W [1, gates·hidden, input], R [1, gates·hidden, hidden], B [1, 2·gates·hidden],
P [1, 3·hidden]; what depends on them alone is folded when ONNX Runtime loads the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .node_builder import NodeBuilder

# Activations without parameters; an operator with another one is not written out.
ACTIVATIONS = frozenset({"Sigmoid", "Tanh", "Relu", "Softsign", "Softplus"})
DEFAULTS = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


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


def step(write: NodeBuilder, cell: Cell, x: str, h: str, c: str = "") -> tuple[str, ...]:
    """One timestep.

    Args:
        write: takes the nodes.
        cell: the operator.
        x: [batch, input].
        h, c: [batch, hidden], the states before.

    Returns:
        h after, for an LSTM c too.
    """
    return _STEPS[cell.op](write, cell, x, h, c)


def _weights(write: NodeBuilder, cell: Cell) -> tuple[str, str]:
    return write.reshape(cell.W, GATES[cell.op] * cell.hidden, -1), write.reshape(cell.R, -1, cell.hidden)


def _biases(write: NodeBuilder, cell: Cell) -> tuple[str, str]:
    """Those of W and of R, [gates·hidden] each."""
    if not cell.B:
        return "", ""
    of_w, of_r = write.split(write.reshape(cell.B, -1), 2, 0)
    return of_w, of_r


def _bias(write: NodeBuilder, cell: Cell) -> str:
    """Both added up."""
    of_w, of_r = _biases(write, cell)
    return write.add("Add", of_w, of_r) if of_w else ""


def _gates(write: NodeBuilder, cell: Cell, x: str, h: str) -> str:
    """x·Wᵀ + h·Rᵀ + biases, as one product of [x, h] with [W, R]: on a card each node is a kernel or two."""
    both = write.add("Concat", *_weights(write, cell), axis=1)
    return write.gemm(write.add("Concat", x, h, axis=1), both, _bias(write, cell))


def _lstm(write: NodeBuilder, cell: Cell, x: str, h: str, c: str) -> tuple[str, ...]:
    f, g, after = cell.activations
    gates = _gates(write, cell, x, h)
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


def _gru(write: NodeBuilder, cell: Cell, x: str, h: str, c: str) -> tuple[str, ...]:
    f, g = cell.activations
    W, R = _weights(write, cell)
    if cell.linear_before_reset:
        of_w, of_r = _biases(write, cell)
        xz, xr, xn = write.split(write.gemm(x, W, of_w), 3, 1)
        hz, hr, hn = write.split(write.gemm(h, R, of_r), 3, 1)
        z, r = write.add(f, write.add("Add", xz, hz)), write.add(f, write.add("Add", xr, hr))
        candidate = write.add("Add", xn, write.add("Mul", r, hn))
    else:
        R_z, R_r, R_n = write.split(R, 3, 0)
        xz, xr, xn = write.split(write.gemm(x, W, _bias(write, cell)), 3, 1)
        z, r = write.add(f, write.gemm(h, R_z, xz)), write.add(f, write.gemm(h, R_r, xr))
        candidate = write.gemm(write.add("Mul", r, h), R_n, xn)
    n = write.add(g, candidate)
    # z⊙h + (1−z)⊙n, with one multiplication.
    return (write.add("Add", n, write.add("Mul", z, write.add("Sub", h, n))),)


def _rnn(write: NodeBuilder, cell: Cell, x: str, h: str, c: str) -> tuple[str, ...]:
    return (write.add(cell.activations[0], _gates(write, cell, x, h)),)


_STEPS: dict[str, Callable[[NodeBuilder, Cell, str, str, str], tuple[str, ...]]] = {
    "LSTM": _lstm,
    "GRU": _gru,
    "RNN": _rnn,
}
