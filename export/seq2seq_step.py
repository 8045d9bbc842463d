"""One timestep of the encoder–decoder: each row by its own stack, with one stack's arithmetic in all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from streamcell.models import GRULayer, LSTMLayer, RecurrentLayer, Seq2Seq

from .dense import Dense
from .errors import ExportError
from .graph import GraphBuilder
from .tensors import Float64, as_float64


@dataclass
class Step:
    """One timestep of all rows, as nodes of the loop's body."""

    body: GraphBuilder
    model: Seq2Seq

    def emit(self, names: list[str], running: str | None) -> str:
        """Make `NAME.new` of every `NAME.old`: h's layers, then c's, the stack's.

        Args:
            names: of the layers' states.
            running: bool[batch], the rows whose stack changes; None: all.

        Returns:
            The top layer's new h.
        """
        self._sort_rows()
        table = self.body.constant("table", _table(self.model).astype(np.float32))
        from_token = self.body.node("Gather", [table, "token"], "token.gates", axis=0)
        if self.model.stack:
            from_token = self.body.node("Add", [from_token, self._from_stack()], "input.gates")
        count = self.model.num_layers
        for index, (encoder, decoder) in enumerate(zip(self.model.encoder, self.model.decoder, strict=True)):
            below = names[index - 1] if index else None
            if isinstance(encoder, LSTMLayer) and isinstance(decoder, LSTMLayer):
                self._lstm(encoder, decoder, from_token, below, names[index], names[count + index])
            elif isinstance(encoder, GRULayer) and isinstance(decoder, GRULayer):
                self._gru(encoder, decoder, from_token, below, names[index])
            else:
                raise ExportError(f"no operators for a layer of type {type(encoder).__name__}")
        top = f"{names[count - 1]}.new"
        if self.model.stack:
            self._move_stack(top, running)
        return top

    def _from_stack(self) -> str:
        """What the stack's top adds to the first layer's gates: float32[batch, gates·hidden], zero at source tokens."""
        body, model = self.body, self.model
        layer = cast(RecurrentLayer, model.decoder[0])
        weight = _gates(layer, as_float64(layer.weight_ih)[:, model.embedding_size :])
        top = body.node(
            "Gather", ["stack.old", body.constant("stack.begin0", np.array(0, np.int64))], "stack.top", axis=0
        )
        body.node("Gather", [top, "rows.decoder"], "stack.x", axis=0)
        body.node(
            "MatMul", ["stack.x", body.constant("stack.weight", weight.T.astype(np.float32))], "stack.gates"
        )
        width = body.constant("gates", np.array([len(weight)], np.int64))
        count = body.node("Shape", ["rows.encoder"], "rows.encoder.count")
        shape = body.node("Concat", [count, width], "rows.encoder.shape", axis=0)
        zero = body.constant("zero.float", np.zeros(1, np.float32))
        body.node("Expand", [zero, shape], "stack.nothing")
        body.node("Concat", ["stack.nothing", "stack.gates"], "stack.sorted", axis=0)
        return body.node("Gather", ["stack.sorted", "rows.back"], "stack.input", axis=0)

    def _move_stack(self, top: str, running: str | None) -> None:
        """`stack.new`: a source token has pushed `top`, a target token has popped; other rows' is as it was.

        The new stack is read from [top, the old stack, zeros] in one piece, from place 0 by a row that pushes, from 2
        by one that pops, from 1 by one that is not `running` any more.
        """
        body, size = self.body, self.model.stack
        first = body.node("Unsqueeze", [top, body.axes(0)], "stack.first")
        shape = body.node("Shape", [first], "stack.first.shape")
        zero = body.node(
            "Expand", [body.constant("zero.float", np.zeros(1, np.float32)), shape], "stack.zero"
        )
        body.node("Concat", [first, "stack.old", zero], "stack.wide", axis=0)
        flat = body.constant("stack.flat", np.array([-1, self.model.hidden_size], np.int64))
        entries = body.node("Reshape", ["stack.wide", flat], "stack.entries")
        begins = [body.constant(f"stack.begin{at}", np.array(at, np.int64)) for at in range(3)]
        begin = body.node("Where", ["is_source", begins[0], begins[2]], "stack.moved")
        if running is not None:
            begin = body.node("Where", [running, begin, begins[1]], "stack.begin")
        column = body.constant("stack.column", np.arange(size, dtype=np.int64)[:, None])
        body.node("Add", [begin, column], "stack.place")
        body.node("Mul", ["stack.place", "batch.size"], "stack.start")
        body.node("Add", ["stack.start", "batch.rows"], "stack.entry")
        body.node("Gather", [entries, "stack.entry"], "stack.new", axis=0)

    def _sort_rows(self) -> None:
        """`rows.encoder`, `rows.decoder`: int64 indices of the rows of each kind; `rows.back`: the way back."""
        body = self.body
        sources = body.constant("sources", np.array(self.model.source_size, np.int64))
        body.node("Less", ["token", sources], "is_source")
        body.node("Not", ["is_source"], "is_target")
        flat = body.axes(-1)
        for kind, mask in (("encoder", "is_source"), ("decoder", "is_target")):
            body.node("NonZero", [mask], f"rows.{kind}.2d")
            body.node("Reshape", [f"rows.{kind}.2d", flat], f"rows.{kind}")
        body.node("Concat", ["rows.encoder", "rows.decoder"], "rows", axis=0)
        count = body.node("Shape", ["rows"], "rows.count")
        # The position of each row in `rows` is the argsort of `rows`.
        body.nodes("TopK", ["rows", count], ["rows.sorted", "rows.back"], "rows.sort", largest=0)

    def _product(self, x: str, pair: Sequence[Dense], name: str) -> str:
        """x float32[batch, in], each row by the encoder's map or the decoder's → float32[batch, out]."""
        body = self.body
        for kind, dense in zip(("encoder", "decoder"), pair, strict=True):
            rows = body.node("Gather", [x, f"rows.{kind}"], f"{name}.{kind}.x", axis=0)
            weight = body.constant(f"{name}.{kind}.weight", dense.weight.T.astype(np.float32))
            if dense.bias.any():
                bias = body.constant(f"{name}.{kind}.bias", dense.bias.astype(np.float32))
                body.node("Gemm", [rows, weight, bias], f"{name}.{kind}")
            else:
                body.node("MatMul", [rows, weight], f"{name}.{kind}")
        body.node("Concat", [f"{name}.encoder", f"{name}.decoder"], f"{name}.sorted", axis=0)
        return body.node("Gather", [f"{name}.sorted", "rows.back"], name, axis=0)

    def _split(self, x: str, sizes: list[int], names: list[str]) -> None:
        parts = self.body.constant("split_" + "_".join(map(str, sizes)), np.array(sizes, np.int64))
        self.body.nodes("Split", [x, parts], names, f"{names[0]}.split", axis=1)

    def _lstm(
        self, encoder: LSTMLayer, decoder: LSTMLayer, token: str, below: str | None, h: str, c: str
    ) -> None:
        """The equations of `streamcell.models.layers.scan.lstm_cell`, gates in the order i, f, o, g."""
        body, hidden = self.body, self.model.hidden_size
        if below is None:
            pair = [Dense(_gates(of, as_float64(of.weight_hh)), np.zeros(1)) for of in (encoder, decoder)]
            gates = body.node("Add", [self._product(f"{h}.old", pair, f"{h}.product"), token], f"{h}.gates")
        else:
            both = body.node("Concat", [f"{below}.new", f"{h}.old"], f"{h}.input", axis=1)
            pair = [_both(of) for of in (encoder, decoder)]
            gates = self._product(both, pair, f"{h}.gates")
        self._split(gates, [3 * hidden, hidden], [f"{h}.ifo.sum", f"{h}.g.sum"])
        sigmoid = body.node("Sigmoid", [f"{h}.ifo.sum"], f"{h}.ifo")
        self._split(sigmoid, [hidden] * 3, [f"{h}.i", f"{h}.f", f"{h}.o"])
        body.node("Tanh", [f"{h}.g.sum"], f"{h}.g")
        body.node("Mul", [f"{h}.i", f"{h}.g"], f"{h}.written")
        body.node("Mul", [f"{h}.f", f"{c}.old"], f"{h}.remembered")
        body.node("Add", [f"{h}.written", f"{h}.remembered"], f"{c}.new")
        body.node("Tanh", [f"{c}.new"], f"{h}.shown")
        body.node("Mul", [f"{h}.o", f"{h}.shown"], f"{h}.new")

    def _gru(self, encoder: GRULayer, decoder: GRULayer, token: str, below: str | None, h: str) -> None:
        """The equations of `streamcell.models.layers.scan.gru_reset_after_cell`."""
        body, hidden = self.body, self.model.hidden_size
        if below is not None:
            pair = [Dense(as_float64(of.weight_ih), as_float64(of.bias)) for of in (encoder, decoder)]
            token = self._product(f"{below}.new", pair, f"{h}.input")
        pair = [_recurrent(of) for of in (encoder, decoder)]
        product = self._product(f"{h}.old", pair, f"{h}.product")
        self._split(token, [2 * hidden, hidden], [f"{h}.ru.x", f"{h}.n.x"])
        self._split(product, [2 * hidden, hidden], [f"{h}.ru.h", f"{h}.n.h"])
        body.node("Add", [f"{h}.ru.x", f"{h}.ru.h"], f"{h}.ru.sum")
        sigmoid = body.node("Sigmoid", [f"{h}.ru.sum"], f"{h}.ru")
        self._split(sigmoid, [hidden] * 2, [f"{h}.r", f"{h}.u"])
        body.node("Mul", [f"{h}.r", f"{h}.n.h"], f"{h}.reset")
        body.node("Add", [f"{h}.n.x", f"{h}.reset"], f"{h}.n.sum")
        body.node("Tanh", [f"{h}.n.sum"], f"{h}.n")
        # u⊙h + (1 − u)⊙n = n + u⊙(h − n)
        body.node("Sub", [f"{h}.old", f"{h}.n"], f"{h}.away")
        body.node("Mul", [f"{h}.u", f"{h}.away"], f"{h}.held")
        body.node("Add", [f"{h}.n", f"{h}.held"], f"{h}.new")


def _table(model: Seq2Seq) -> Float64:
    """Each token's contribution to the first layer's gates, [tokens, gates·hidden]: its own stack's input weights."""
    embedding = as_float64(model.embedding.weight)
    parts = []
    for stack, rows in (
        (model.encoder, embedding[: model.source_size]),
        (model.decoder, embedding[model.source_size :]),
    ):
        layer = cast(RecurrentLayer, stack[0])
        weight, bias = (_gates(layer, as_float64(of)) for of in (layer.weight_ih, layer.bias))
        parts.append(rows @ weight[:, : model.embedding_size].T + bias)
    return np.concatenate(parts)


def _gates(layer: RecurrentLayer, value: Float64) -> Float64:
    """Rows in the order in which the step wants the gates: an LSTM's i, f, g, o as i, f, o, g."""
    if isinstance(layer, LSTMLayer):
        i, f, g, o = np.split(value, 4)
        return np.concatenate([i, f, o, g])
    return value


def _both(layer: LSTMLayer) -> Dense:
    """Input and recurrent weights side by side: the map of [x, h]."""
    weight = np.concatenate([as_float64(layer.weight_ih), as_float64(layer.weight_hh)], axis=1)
    return Dense(_gates(layer, weight), _gates(layer, as_float64(layer.bias)))


def _recurrent(layer: GRULayer) -> Dense:
    """W_h·h + b_hn, the bias for the candidate alone."""
    bias = np.zeros(3 * layer.hidden_size)
    bias[2 * layer.hidden_size :] = as_float64(layer.bias_hn)
    return Dense(as_float64(layer.weight_hh), bias)
