"""The base of a forecast as ONNX operators; `models/layers/lags.py` has the formulas."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from streamcell.card import Signature
from streamcell.models import Forecaster

from .graph import GraphBuilder
from .history import END, emit_last_steps, emit_slice
from .tensors import as_float64


def emit_lags(graph: GraphBuilder, model: Forecaster, x: str, signature: Signature) -> tuple[str, str]:
    """x float32[batch, time, columns] → the features and the base, and the state `recent` as it is after x."""
    own = model.lags.settings
    z = _columns(graph, x, own.targets, "lags.targets")
    if own.log:
        floor = as_float64(model.lags.floor).astype(np.float32)
        z = graph.node("Max", [z, graph.constant("lags.floor", floor)], "lags.floored")
        z = graph.node("Log", [z], "lags.log")
    zero = graph.constant("lags.zero", np.array(0, np.float32))
    seen = base = z
    extra: list[str] = []
    if own.history:
        lag = _Lag(graph, model, z, zero, signature)
        if own.differs:
            before, there = lag(1)
            seen = _product(graph, there, _minus(graph, z, before, "lags.step"), "lags.difference")
        if own.seasonal:
            (ahead, ahead_there), (season, there) = lag(own.season - 1), lag(own.season)
            move = _product(graph, there, _minus(graph, ahead, season, "lags.ahead"), "lags.move")
            extra = [move]
            if own.differs:
                earlier, all_there = lag(own.season + 1)
                then = _product(graph, all_there, _minus(graph, season, earlier, "lags.then"), "lags.was")
                seen = _minus(graph, seen, then, "lags.seen")
                base = graph.node("Add", [z, move], "lags.base")
            else:
                seen = _product(graph, there, _minus(graph, z, season, "lags.year"), "lags.seen")
                to_ahead = _product(graph, ahead_there, _minus(graph, ahead, z, "lags.to"), "lags.to_ahead")
                base = graph.node("Add", [z, to_ahead], "lags.base")
    others = [_columns(graph, x, own.others, "lags.others")] if own.others else []
    parts = [*others, seen, *extra]
    return (graph.node("Concat", parts, "lags.features", axis=2) if len(parts) > 1 else seen), base


def emit_restored(graph: GraphBuilder, model: Forecaster, y: str, base: str) -> str:
    """The output float32[batch, time, targets·levels] in raw units."""
    own = model.lags.settings
    if own.base == "value":
        return graph.node("Exp", [y], "lags.exp") if own.log else y
    if own.levels > 1:
        base = _columns(graph, base, np.repeat(np.arange(len(own.targets)), own.levels), "lags.bases")
    y = graph.node("Add", [y, base], "lags.sum")
    return graph.node("Exp", [y], "lags.exp") if own.log else y


class _Lag:
    """z of earlier steps, and whether there were such steps."""

    def __init__(
        self, graph: GraphBuilder, model: Forecaster, z: str, zero: str, signature: Signature
    ) -> None:
        self._graph = graph
        self._history = model.lags.settings.history
        count = len(model.lags.settings.targets)
        state = signature.states[-1]
        first = [1, 0, 2] if state.batch_axis else None
        recent = (
            state.input
            if first is None
            else graph.node("Transpose", [state.input], "lags.recent", perm=first)
        )
        # 1 for each step of x.
        one = _columns(graph, z, [0], "lags.first")
        one = graph.node("Mul", [one, zero], "lags.zeros")
        one = graph.node("Add", [one, graph.constant("lags.one", np.array(1, np.float32))], "lags.ones")
        now = graph.node("Concat", [z, one], "lags.now", axis=2)
        whole = graph.node("Concat", [recent, now], "lags.whole", axis=1)
        after = state.output if first is None else "lags.after"
        emit_last_steps(graph, whole, self._history, signature.lengths, after)
        if first is not None:
            graph.node("Transpose", [after], state.output, perm=first)
        self._values = _columns(graph, whole, range(count), "lags.values")
        self._there = _columns(graph, whole, [count], "lags.there")

    def __call__(self, steps: int) -> tuple[str, str]:
        """(z `steps` earlier, 1 if there was such a step), each float32[batch, time, …]."""
        start, end = self._history - steps, -steps if steps else END
        values, there = (
            emit_slice(self._graph, whole, start, end, f"{whole}.{steps}")
            for whole in (self._values, self._there)
        )
        return values, there


def _columns(graph: GraphBuilder, x: str, columns: Iterable[int], name: str) -> str:
    places = graph.constant(f"{name}.places", np.array(list(columns), np.int64))
    return graph.node("Gather", [x, places], name, axis=2)


def _minus(graph: GraphBuilder, a: str, b: str, name: str) -> str:
    return graph.node("Sub", [a, b], name)


def _product(graph: GraphBuilder, a: str, b: str, name: str) -> str:
    return graph.node("Mul", [a, b], name)
