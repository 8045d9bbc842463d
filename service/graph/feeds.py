"""Inputs that no message brings: a session's place in its sequence, context that is kept, values given at the opening.

All of it becomes ordinary states and nodes of the graph: a count of the timesteps so far, the last elements of an
input, and values that stay as they are. So batches, forks and resets know nothing of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from onnx import helper

from streamcell.card import Layout, OpenInput, State, Tensor
from streamcell.card.graphs.edit import remove_initializers, rename_uses
from streamcell.card.graphs.node_builder import NodeBuilder

from .interface import axes_before_step
from .pooled import modern_copy

Source = Literal["first_step", "step_index", "lengths"]

_STEPS, _STEPS_NEXT = "streamcell.steps", "streamcell.steps_next"
_INT64 = onnx.TensorProto.INT64


@dataclass(frozen=True)
class Context:
    """The last `size` elements of an input before a message's, zeros at first, which the graph takes before them.

    Attributes:
        tensor: the input as clients send it, without them.
        size: elements along `axis`.
        axis: of the step; None: they are timesteps.
    """

    tensor: Tensor
    size: int
    axis: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one session's context."""
        if self.axis is None:
            return (self.size, *self.tensor.step_shape)
        return tuple(self.size if at == self.axis else n for at, n in enumerate(self.tensor.step_shape))


@dataclass(frozen=True)
class Counted:
    """An input with the position of the run's timesteps in their sequence.

    Attributes:
        name: the graph's input.
        source: "first_step" (1 at a session's first timestep, else 0), "step_index" (timesteps before this one) or
            "lengths" (timesteps of the run).
        per: "step": one number a timestep; "row": one a session, that of its first timestep in the run.
        shape: what the numbers are reshaped to, as the operator Reshape takes it.
    """

    name: str
    source: Source
    per: Literal["step", "row"]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Feeds:
    """What the server feeds to one graph.

    Attributes:
        layout: the graph's.
        clock: an input from clients, whose timesteps are counted.
        lengths: the graph's input of lengths, if it has one.
        contexts: inputs with context.
        counted: inputs that are counted.
        given: inputs that a session is given at its opening.
    """

    layout: Layout
    clock: str
    lengths: str | None = None
    contexts: tuple[Context, ...] = ()
    counted: tuple[Counted, ...] = ()
    given: tuple[OpenInput, ...] = ()

    @property
    def counts(self) -> bool:
        """Whether a session's timesteps are counted in the graph."""
        return any(each.source != "lengths" for each in self.counted)

    def states(self) -> tuple[State, ...]:
        """The states that `apply` adds."""
        found = [
            State(
                input=f"streamcell.context.{context.tensor.name}",
                output=f"streamcell.context_next.{context.tensor.name}",
                dtype=context.tensor.dtype,
                shape=context.shape,
                batch_axis=1 if self.layout == "time_batch" else 0,
            )
            for context in self.contexts
        ]
        if self.counts:
            found.append(State(input=_STEPS, output=_STEPS_NEXT, dtype="int64"))
        return (*found, *map(kept, self.given))

    def apply(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """A copy of `model` that takes `states` in the place of what no client sends.

        Raises:
            RewriteError: an opset that cannot be converted to one that has the operators.
        """
        model = modern_copy(model)
        head = NodeBuilder(model)
        tail = head.beside()
        for context, state in zip(self.contexts, self.states(), strict=False):
            self._keep(head, tail, context, state)
        if self.counted:
            _Count(head, tail, self).feed()
        for state in map(kept, self.given):
            tail.add("Identity", state.input, into=state.output)
            element = next(v.type.tensor_type.elem_type for v in model.graph.input if v.name == state.input)
            model.graph.output.append(
                helper.make_tensor_value_info(state.output, element, ["batch", *state.shape])
            )
        made = [*head.nodes, *model.graph.node, *tail.nodes]
        del model.graph.node[:]
        model.graph.node.extend(made)
        return model

    def _keep(self, head: NodeBuilder, tail: NodeBuilder, context: Context, state: State) -> None:
        """Put the context before the input, and keep the end of both for the next run."""
        graph, name = head.graph, context.tensor.name
        lead = axes_before_step(self.layout)
        axis = lead.index("time") if context.axis is None else len(lead) + context.axis
        whole = head.name(f"streamcell.with_context.{name}")
        rename_uses(graph.node, name, whole)
        head.add("Concat", state.input, name, into=whole, axis=axis)
        ends = [tail.constant([at]) for at in (-context.size, np.iinfo(np.int64).max, axis)]
        tail.add("Slice", whole, *ends, into=state.output)
        port = next(value for value in graph.input if value.name == name)
        dims = port.type.tensor_type.shape.dim
        if axis < len(dims) and dims[axis].HasField("dim_value") and context.axis is not None:
            dims[axis].dim_value -= context.size
        shape: list[int | str] = [*state.shape]
        shape.insert(state.batch_axis, "batch")
        element = port.type.tensor_type.elem_type
        graph.input.append(helper.make_tensor_value_info(state.input, element, shape))
        graph.output.append(helper.make_tensor_value_info(state.output, element, shape))


def kept(value: OpenInput) -> State:
    """The state that keeps `value` from the opening on."""
    return State(
        input=value.name,
        output=f"streamcell.kept.{value.name}",
        dtype=value.dtype,
        shape=value.step_shape,
        initial=0.0 if value.default is None else value.default,
    )


class _Count:
    """The nodes that count."""

    def __init__(self, head: NodeBuilder, tail: NodeBuilder, feeds: Feeds) -> None:
        self._head, self._tail, self._feeds = head.beside("streamcell.counted"), tail, feeds
        self._result = head
        self._lead: Sequence[str] = axes_before_step(feeds.layout)

    def feed(self) -> None:
        """Replace the counted inputs."""
        head, feeds = self._head, self._feeds
        graph = head.graph
        run = self._run()
        index = ""
        if feeds.counts:
            for values, name in ((graph.input, _STEPS), (graph.output, _STEPS_NEXT)):
                values.append(helper.make_tensor_value_info(name, _INT64, ["batch"]))
            self._tail.add("Add", _STEPS, run, into=_STEPS_NEXT)
            if any(each.per == "step" for each in feeds.counted):
                index = self._index()
        types = {value.name: value.type.tensor_type.elem_type for value in graph.input}
        for each in feeds.counted:
            value = run if each.source == "lengths" else index if each.per == "step" else _STEPS
            if each.source == "first_step":
                value = head.add("Equal", value, head.constant(0))
            value = head.add("Cast", value, to=types[each.name])
            head.reshape(value, *each.shape, into=each.name)
        self._result.nodes.extend(head.nodes)
        fed = {each.name for each in feeds.counted}
        remove_initializers(graph, fed)
        for port in [value for value in graph.input if value.name in fed]:
            graph.input.remove(port)

    def _run(self) -> str:
        """int64[batch]: the timesteps of each row in this run."""
        head, feeds = self._head, self._feeds
        if feeds.lengths is not None:
            return head.add("Cast", feeds.lengths, to=_INT64)
        shape = head.add("Shape", feeds.clock)
        rows = head.add("Gather", shape, head.constant([self._lead.index("batch")]), axis=0)
        steps = self._steps() if "time" in self._lead else head.constant([1])
        return head.add("Expand", steps, rows)

    def _steps(self) -> str:
        """int64[1]: the longest row's timesteps."""
        head = self._head
        at = head.constant([self._lead.index("time")])
        return head.add("Gather", head.add("Shape", self._feeds.clock), at, axis=0)

    def _index(self) -> str:
        """The index of each timestep, int64 [batch, time] or [time, batch]."""
        head = self._head
        along = head.add("Range", head.constant(0), head.reshape(self._steps()), head.constant(1))
        time, batch = ([1, -1], [-1, 1]) if self._lead[0] == "batch" else ([-1, 1], [1, -1])
        return head.add("Add", head.reshape(_STEPS, *batch), head.reshape(along, *time))
