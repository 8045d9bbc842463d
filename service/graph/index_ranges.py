"""Which values an integer input may have: the rows of the tables that it indexes, found in the graph.

An input is followed from the interface through what moves or shifts its values to each node that takes them for
indices. What cannot be followed is left open, and so is what only some runs do: the branches of If. ONNX takes an
index of -1 for a table's last row; nobody sends that on purpose, so indices begin at 0.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TypeAlias

import numpy as np
import onnx

from streamcell.card import Signature, Tensor

from .index_trace import MOST_DEPTH, Ints, Scope, Trace, attribute_of, through

Ranges: TypeAlias = tuple[tuple[int, int], ...]

# Maximum elements of a step whose ranges differ between elements.
MOST_ELEMENTS = 1024


def with_index_ranges(
    graph: onnx.GraphProto, signature: Signature, stated: Collection[str] = ()
) -> Signature:
    """`signature` with the ranges of its integer inputs that `graph` shows, except for those that are `stated`."""
    inputs = tuple(
        tensor.model_copy(update={"index_ranges": _both(tensor, found)})
        if tensor.name not in stated and (found := find_ranges(graph, signature, tensor))
        else tensor
        for tensor in signature.inputs
    )
    given = tuple(
        value.model_copy(update={"index_ranges": _both(value, found)})
        if value.name not in stated and (found := find_ranges(graph, signature, value, whole=True))
        else value
        for value in signature.open_inputs
    )
    if (inputs, given) == (signature.inputs, signature.open_inputs):
        return signature
    return signature.model_copy(update={"inputs": inputs, "open_inputs": given})


def find_ranges(
    graph: onnx.GraphProto, signature: Signature, tensor: Tensor, *, whole: bool = False
) -> Ranges:
    """The range of each element of a step of `tensor`: one if all are equal, none if they are open.

    `whole`: it is given for the whole sequence, and has no time axis.
    """
    # Too many elements are not distinguished: two represent all.
    elements = size if (size := math.prod(tensor.step_shape)) <= MOST_ELEMENTS else 2
    if not tensor.dtype.startswith(("int", "uint")):
        return ()
    lead = (1, 1) if signature.has_time and not whole else (1,)
    places = np.arange(size).reshape(*lead, *tensor.step_shape) if size == elements else None
    limits = np.iinfo(tensor.dtype)
    found = _Found(
        np.full(elements, max(limits.min, -(2**63))), np.full(elements, min(limits.max, 2**63 - 1))
    )
    trace = Trace(elements, places, np.zeros(elements, np.int64))
    _walk(graph, {tensor.name: trace}, Scope(graph), found)
    return found.ranges() if found.any else ()


def _both(tensor: Tensor, found: Ranges) -> Ranges:
    """The intersection of the graph's and the signature's ranges; the graph's if they contradict each other."""
    if not tensor.index_ranges:
        return found
    count = max(len(found), len(tensor.index_ranges))
    pairs = [
        (max(a[0], b[0]), min(a[1], b[1]))
        for a, b in zip(_spread(found, count), _spread(tensor.index_ranges, count), strict=True)
    ]
    return tuple(pairs) if all(low <= high for low, high in pairs) else found


def _spread(ranges: Ranges, count: int) -> Ranges:
    return ranges * count if len(ranges) == 1 else ranges


class _Found:
    """The ranges as far as they have been found, and whether any was."""

    def __init__(self, low: Ints, high: Ints) -> None:
        self.low, self.high, self.any = low, high, False

    def bound(self, trace: Trace, size: int | None, at: Ints | None = None) -> None:
        """Note that the values of `trace`, or those at `at` if given, index an axis of `size`."""
        if size is None or size <= 0:
            return
        elements = trace.present() if at is None else np.unique(at)
        low, high = -trace.shift[elements], size - 1 - trace.shift[elements]
        kept = (np.maximum(self.low[elements], low), np.minimum(self.high[elements], high))
        if (
            kept[0] > kept[1]
        ).any():  # no value fits both: one of the two is never run, or means something else
            return
        self.low[elements], self.high[elements] = kept
        self.any = True

    def ranges(self) -> Ranges:
        pairs = list(zip(self.low.tolist(), self.high.tolist(), strict=True))
        if len(set(pairs)) == 1:
            return (pairs[0],)
        return tuple(pairs)


def _walk(
    graph: onnx.GraphProto, traces: Mapping[str, Trace], scope: Scope, found: _Found, depth: int = 0
) -> None:
    traces = dict(traces)
    for node in graph.node:
        for position, name in enumerate(node.input):
            if (trace := traces.get(name)) is None or node.domain not in ("", "ai.onnx"):
                continue
            _use(node, position, trace, scope, found)
            for output, goes_on in through(node, position, trace, scope):
                traces.setdefault(output, goes_on)
        if node.op_type in ("Scan", "Loop") and depth < MOST_DEPTH:
            for attribute in node.attribute:
                if attribute.name == "body":
                    body = {**traces, **_entering(node, attribute.g, traces)}
                    _walk(attribute.g, body, Scope(attribute.g, scope), found, depth + 1)


def _use(node: onnx.NodeProto, position: int, trace: Trace, scope: Scope, found: _Found) -> None:
    """Note the range where `node` takes the values for indices."""
    if node.op_type == "OneHot" and position == 0:
        depth = scope.constant(node.input[1])
        found.bound(trace, int(depth.reshape(-1)[0]) if depth is not None and depth.size == 1 else None)
        return
    if position != 1 or (dims := scope.dims(node.input[0])) is None:
        return
    if node.op_type in ("Gather", "GatherElements", "ScatterElements", "Scatter"):
        axis = attribute_of(node, "axis") or 0
        if -len(dims) <= axis < len(dims):
            found.bound(trace, dims[axis])
    elif node.op_type in ("GatherND", "ScatterND"):
        first = (attribute_of(node, "batch_dims") or 0) if node.op_type == "GatherND" else 0
        if trace.places is not None and trace.places.ndim:
            columns = trace.places.reshape(-1, trace.places.shape[-1]).T
            for size, column in zip(dims[first:], columns, strict=False):
                found.bound(trace, size, column)
        elif len(set(dims[first:])) == 1:
            found.bound(trace, dims[first])


def _entering(node: onnx.NodeProto, body: onnx.GraphProto, traces: Mapping[str, Trace]) -> dict[str, Trace]:
    """The values that enter the body of a Scan or a Loop, by their names there."""
    entering: dict[str, Trace] = {}
    scanned = (
        len(node.input) - (attribute_of(node, "num_scan_inputs") or 0) if node.op_type == "Scan" else None
    )
    for position, (name, inner) in enumerate(zip(node.input, body.input, strict=False)):
        if (trace := traces.get(name)) is not None and (node.op_type == "Scan" or position > 1):
            # Each iteration takes a part of the scanned value; all parts enter.
            entering[inner.name] = trace.moved(None) if scanned is not None and position >= scanned else trace
    return entering
