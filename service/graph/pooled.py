"""Build the state pool into a model's graph.

Every state input becomes rows gathered from a pool `[rows, *shape]`, every state output is scattered into the
pool again. The caller binds a pool's input and output to the same memory, so ONNX Runtime updates rows in
place. It does not know of the aliasing; what keeps it right is that each pool's Scatter depends on its own
Gather.

A row that holds the initial value and is never written serves every session's first step; a fork reads its
parent's row and writes its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper, version_converter

from streamcell.card import Signature, State
from streamcell.card.graphs.edit import (
    drop_unread,
    forget_shapes,
    initializer_names,
    produced_names,
    remove_initializers,
    rename_uses,
    rename_value,
    value_names,
)
from streamcell.card.graphs.node_builder import NodeBuilder
from streamcell.service.load_errors import RewriteError

from .interface import check_signature, read_interface
from .pool_nodes import READ_SLOTS, WRITE_SLOTS, Scatter, commit_gate, open_port, pool_state

__all__ = [
    "READ_SLOTS",
    "TIME",
    "WRITE_SLOTS",
    "PoolTensor",
    "Pooled",
    "Scatter",
    "initial_value",
    "modern_copy",
    "open_port",
    "pool_states",
]

# The name of a run's number of timesteps, in the shapes of inputs and outputs.
TIME = "time"
# The first opset with ScatterND and ScatterElements, and the one for a graph that names none.
_MIN_OPSET, _DEFAULT_OPSET = 11, 17
# The first IR version whose initializers need not be graph inputs.
_MIN_IR_VERSION = 4


@dataclass(frozen=True, eq=False)
class PoolTensor:
    """One state's rows.

    Attributes:
        input: graph input, dtype[rows, *shape].
        output: graph output of the same shape, to be bound to the memory of `input`.
        dtype: of an element.
        shape: of one row: the state's shape without its batch axis.
        initial: dtype[*shape], read-only; what a row holds before a session's first step.
        state: the name of the state input that it replaces.
        written: graph output dtype[batch, *shape], the rows that the run writes; "" if it does not give them out.
    """

    input: str
    output: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    initial: npt.NDArray[Any]
    state: str
    written: str = ""


@dataclass(frozen=True)
class Pooled:
    """A graph with its pools.

    Attributes:
        model: takes the signature's inputs, `READ_SLOTS` int64[batch], `WRITE_SLOTS` int64[batch, 1], `open_port`s
            and the pools; gives the signature's outputs, batch first for every layout, and the pools. `lengths`
            is int32[batch] for every graph. A model without states has neither slots nor pools.
        pools: in the order of the signature's states.
        fixed_batch: the number of rows that every run must have, where the graph fixes it.
        commits_last: whether a run that fails leaves every pool as it was; so does a model without states.
    """

    model: onnx.ModelProto
    pools: tuple[PoolTensor, ...]
    fixed_batch: int | None = None
    commits_last: bool = False


def pool_states(
    model: onnx.ModelProto,
    signature: Signature,
    constants: Mapping[str, npt.NDArray[Any]] | None = None,
    *,
    scatter: Scatter = "nd",
    few_kernels: bool = False,
    commit_last: bool = False,
    gives_rows: bool = False,
) -> Pooled:
    """A copy of `model` whose states live in pools.

    The rows that one run writes must be distinct. A row may be read by several.

    Args:
        model: with its weights; it is not changed.
        signature: what its inputs, outputs and states are.
        constants: values for graph inputs that are the same in every run.
        scatter: "nd" writes rows with ScatterND, the fastest; "elements" with ScatterElements, which old versions
            of ONNX Runtime replay more safely in CUDA graphs.
        few_kernels: cut and join the layers of a state by Split and Concat in place of a Transpose, if that is all
            the graph does with it: fewer kernels on a card, slower on the CPU.
        commit_last: write rows only once everything else has run, so that a run that fails leaves every state as
            it was. ONNX Runtime chooses its own order otherwise.
        gives_rows: the rows that a run writes are outputs, too.

    Raises:
        SignatureError: the signature or a constant does not describe this graph.
        RewriteError: the graph uses a reserved name, or an opset without scatter that cannot be converted.
    """
    fixed_batch = check_signature(read_interface(model.graph), signature, constants or {})
    initial = [initial_value(state) for state in signature.states]
    model = modern_copy(model)
    graph = model.graph
    opened = {value.name: value for value in signature.open_inputs}
    reserved = {READ_SLOTS, WRITE_SLOTS, *map(open_port, opened)}
    if taken := reserved & value_names(graph):
        raise RewriteError(f"the graph uses the reserved name {min(taken)!r}; is it pooled already?")
    head = NodeBuilder(model, reserved=reserved)
    tail = head.beside()
    lengths_type = _elem_type(graph, signature.lengths)
    _fix_constants(graph, signature, constants or {})
    gate = None
    if commit_last and signature.states:
        gate = commit_gate(
            tail, [*(t.name for t in signature.outputs), *(s.output for s in signature.states)]
        )
    names = [
        pool_state(head, tail, state, scatter, gate, given=opened.get(state.input), few_kernels=few_kernels)
        for state in signature.states
    ]
    pools = tuple(
        PoolTensor(
            pool,
            pool_next,
            np.dtype(state.dtype),
            tuple(state.shape),
            value,
            state.input,
            _given_out(tail, new, signature) if gives_rows else "",
        )
        for state, value, (pool, pool_next, new) in zip(signature.states, initial, names, strict=True)
    )
    if lengths_type not in (None, TensorProto.INT32):
        _adapt_input(head, tail, str(signature.lengths), "Cast", to=lengths_type)
    if signature.layout == "time_batch":
        _put_batch_first(head, tail, signature)
    forget_shapes(graph, bodies_interface=signature.max_batch is None)
    nodes = [*head.nodes, *graph.node, *tail.nodes]
    del graph.node[:]
    graph.node.extend(nodes)
    _declare_interface(graph, signature, pools, "batch" if fixed_batch is None else fixed_batch)
    drop_unread(graph)
    return Pooled(model, pools, fixed_batch, commit_last or not pools)


def initial_value(state: State) -> npt.NDArray[Any]:
    """The value of `state` before the first step: dtype[*shape], read-only.

    Raises:
        RewriteError: a value that the state's dtype cannot hold.
    """
    given = np.array(state.initial, dtype=np.float64)
    with np.errstate(all="ignore"):
        cast = given.astype(state.dtype)
    back = cast.astype(np.float64)
    fits = np.array_equal(np.isfinite(back), np.isfinite(given))
    if not fits or (cast.dtype.kind != "f" and not np.array_equal(back, given)):
        raise RewriteError(f"state {state.input!r}: initial value {state.initial} does not fit {state.dtype}")
    value = np.full(state.shape, cast) if cast.ndim == 0 else cast.reshape(state.shape)
    value.setflags(write=False)
    return value


def modern_copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with an opset that has scatter and an IR version whose initializers need not be inputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    opset = next((o.version for o in copy.opset_import if o.domain in ("", "ai.onnx")), None)
    if opset is None:
        copy.opset_import.append(helper.make_opsetid("", _DEFAULT_OPSET))
    elif opset < _MIN_OPSET:
        try:
            copy = version_converter.convert_version(copy, _MIN_OPSET)
        except (RuntimeError, ValueError) as error:
            raise RewriteError(
                f"the graph uses opset {opset}, the pool needs {_MIN_OPSET} or newer, "
                f"and onnx cannot convert it: {error}"
            ) from error
    copy.ir_version = max(copy.ir_version, _MIN_IR_VERSION)
    return copy


def _elem_type(graph: onnx.GraphProto, name: str | None) -> int | None:
    return next((i.type.tensor_type.elem_type for i in graph.input if i.name == name), None)


def _fix_constants(
    graph: onnx.GraphProto, signature: Signature, constants: Mapping[str, npt.NDArray[Any]]
) -> None:
    """Make initializers of the constants; what the signature feeds has no default any more."""
    fed = {t.name for t in signature.inputs} | {s.input for s in signature.states} | {signature.lengths}
    remove_initializers(graph, {i for i in initializer_names(graph) if i in fed or i in constants})
    for name, value in constants.items():
        graph.initializer.append(numpy_helper.from_array(np.asarray(value, order="C"), name))


def _adapt_input(head: NodeBuilder, tail: NodeBuilder, name: str, op: str, **attributes: Any) -> None:
    """Make the graph read `op` of the input instead of the input."""
    adapted = head.name(f"streamcell.adapted.{name}")
    rename_uses([*head.nodes, *head.graph.node, *tail.nodes], name, adapted)
    head.add(op, name, into=adapted, **attributes)


def _put_batch_first(head: NodeBuilder, tail: NodeBuilder, signature: Signature) -> None:
    """Take and give [batch, time, …] where the graph works on [time, batch, …]."""
    graph = head.graph
    states = {s.input for s in signature.states}
    made = produced_names(graph) | initializer_names(graph) | states
    for tensor in signature.inputs:
        perm = [1, 0, *range(2, 2 + len(tensor.step_shape))]
        _adapt_input(head, tail, tensor.name, "Transpose", perm=perm)
    for tensor in signature.outputs:
        # An output that is one of the inputs has the caller's layout already.
        if tensor.name in made:
            inner = tail.name(f"streamcell.time_first.{tensor.name}")
            rename_value(graph, [*head.nodes, *graph.node, *tail.nodes], tensor.name, inner)
            perm = [1, 0, *range(2, 2 + len(tensor.step_shape))]
            tail.add("Transpose", inner, into=tensor.name, perm=perm)


def _declare_interface(
    graph: onnx.GraphProto, signature: Signature, pools: tuple[PoolTensor, ...], batch: int | str
) -> None:
    del graph.input[:], graph.output[:]
    lead = [batch, TIME] if signature.has_time else [batch]
    for values, tensors in ((graph.input, signature.inputs), (graph.output, signature.outputs)):
        values.extend(_value(t.name, t.dtype, [*lead, *t.step_shape]) for t in tensors)
    if signature.lengths is not None:
        graph.input.append(_value(signature.lengths, "int32", [batch]))
    if pools:
        graph.input.append(_value(READ_SLOTS, "int64", [batch]))
        graph.input.append(_value(WRITE_SLOTS, "int64", [batch, 1]))
    for value in signature.open_inputs:
        graph.input.append(_value(open_port(value.name), value.dtype, [batch, *value.step_shape]))
    for pool in pools:
        graph.input.append(_value(pool.input, pool.dtype.name, ["rows", *pool.shape]))
        graph.output.append(_value(pool.output, pool.dtype.name, ["rows", *pool.shape]))
        if pool.written:
            graph.output.append(_value(pool.written, pool.dtype.name, [batch, *pool.shape]))


def _given_out(tail: NodeBuilder, rows: str, signature: Signature) -> str:
    """The graph output that gives out `rows`: itself, if it is no output of the model's own."""
    if rows not in {tensor.name for tensor in signature.outputs}:
        return rows
    return tail.add("Identity", rows, into=tail.name(f"streamcell.written.{rows}"))


def _value(name: str, dtype: str, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
