"""Small edits of an ONNX graph that must hold inside If, Loop and Scan bodies too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx

# Operators whose output is computed from the *values* of the inputs named here (None: of all of them), so that
# no optimiser can drop the dependency: x·0 is not 0 for a NaN, and a gate's weight is not known to be 0.
_ALL = None
_CARRIES: dict[str, tuple[int, ...] | None] = {
    **dict.fromkeys(
        ("Add", "Sub", "Mul", "Div", "MatMul", "Gemm", "Max", "Min", "Sum", "Mean", "Einsum"), _ALL
    ),
    **dict.fromkeys(("Conv", "PRelu", "LSTM", "GRU", "RNN", "MatMulInteger", "Concat"), _ALL),
    **dict.fromkeys(
        ("Sigmoid", "Tanh", "Relu", "LeakyRelu", "Elu", "Selu", "Softplus", "Softsign", "Gelu"), (0,)
    ),
    **dict.fromkeys(("HardSigmoid", "HardSwish", "Neg", "Exp", "Log", "Sqrt", "Abs", "Erf", "Softmax"), (0,)),
    **dict.fromkeys(("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Cast"), (0,)),
    **dict.fromkeys(("BatchNormalization", "LayerNormalization", "QuantizeLinear", "DequantizeLinear"), (0,)),
    **dict.fromkeys(("Slice", "Split", "Gather"), (0,)),
}
# These drop a part of their input; behind a Concat that part may be the one that mattered.
_SELECTS = frozenset({"Slice", "Split", "Gather"})


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The bodies that `node` holds."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def all_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor in `model`, whatever its attributes' types claim."""
    nodes = [node for function in model.functions for node in function.node]
    graphs = [model.graph]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes += graph.node
        for node in nodes:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                if attribute.HasField("g"):
                    graphs.append(attribute.g)
                graphs += attribute.graphs
        nodes = []


def value_names(graph: onnx.GraphProto) -> set[str]:
    """Every name of a value in `graph` and in the bodies inside it."""
    names = {v.name for values in (graph.input, graph.output, graph.value_info) for v in values}
    names |= initializer_names(graph)
    for node in graph.node:
        names.update(node.input, node.output)
        for body in subgraphs(node):
            names |= value_names(body)
    return names


def initializer_names(graph: onnx.GraphProto) -> set[str]:
    """Names of the dense and the sparse initializers of `graph`."""
    return {i.name for i in graph.initializer} | {s.values.name for s in graph.sparse_initializer}


def produced_names(graph: onnx.GraphProto) -> set[str]:
    """Values that nodes of `graph` itself compute."""
    return {name for node in graph.node for name in node.output if name}


def rename_uses(nodes: Iterable[onnx.NodeProto], old: str, new: str) -> None:
    """Make everything that reads value `old`, in `nodes` and the bodies inside them, read `new`."""
    for node in nodes:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new
        for body in subgraphs(node):
            if old not in _own_names(body):
                rename_uses(body.node, old, new)
                for output in body.output:
                    if output.name == old:
                        output.name = new


def rename_value(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto], old: str, new: str) -> None:
    """Rename the value `old` of one of `nodes` or an initializer of `graph`, where it is made and where it is read.

    `graph.output` keeps its names.
    """
    nodes = list(nodes)
    rename_uses(nodes, old, new)
    for node in nodes:
        for index, name in enumerate(node.output):
            if name == old:
                node.output[index] = new
    for initializer in (*graph.initializer, *(s.values for s in graph.sparse_initializer)):
        if initializer.name == old:
            initializer.name = new


def remove_initializers(graph: onnx.GraphProto, names: set[str]) -> None:
    """Drop the dense and sparse initializers called one of `names`."""
    for dense in [i for i in graph.initializer if i.name in names]:
        graph.initializer.remove(dense)
    for sparse in [s for s in graph.sparse_initializer if s.values.name in names]:
        graph.sparse_initializer.remove(sparse)


def drop_unread(graph: onnx.GraphProto) -> None:
    """Drop the nodes of `graph`, in order, that no output of it depends on; ONNX Runtime would run them."""
    needed = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
            for body in subgraphs(node):
                needed |= value_names(body)
    if len(kept) < len(graph.node):
        replace_nodes(graph, reversed(kept))


def drop_unread_initializers(graph: onnx.GraphProto) -> None:
    """Drop the dense initializers of `graph` that neither its nodes nor its outputs name."""
    read = {output.name for output in graph.output}
    for node in graph.node:
        read.update(node.input)
        for body in subgraphs(node):
            read |= value_names(body)
    remove_initializers(graph, {i.name for i in graph.initializer} - read)


def replace_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Replace the nodes of `graph` by `nodes`. Some of these may be its own."""
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def forget_shapes(graph: onnx.GraphProto, *, bodies_interface: bool) -> None:
    """Drop inferred shapes, which need not hold in the edited graph; the runtime infers them again.

    Args:
        bodies_interface: also the sizes, not the ranks, that bodies declare for their own inputs and outputs.
    """
    del graph.value_info[:]
    for node in graph.node:
        for body in subgraphs(node):
            forget_shapes(body, bodies_interface=bodies_interface)
            for value in (*body.input, *body.output) if bodies_interface else ():
                for dim in value.type.tensor_type.shape.dim if _has_shape(value) else ():
                    dim.Clear()


def surely_depends(graph: onnx.GraphProto, source: str, target: str) -> bool:
    """Whether value `target` is computed from value `source` in a way that no optimiser can cut.

    False means "not proved": only paths over well-known operators of the graph itself count, not those that
    use a mere shape, that run through a body, or that select from a concatenation.
    """
    carried, mixed = {source}, set[str]()
    for node in graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type not in _CARRIES:
            continue
        wanted = _CARRIES[node.op_type]
        read = {name for i, name in enumerate(node.input) if wanted is None or i in wanted} & carried
        if not read or (node.op_type in _SELECTS and read & mixed):
            continue
        carried.update(name for name in node.output if name)
        if node.op_type == "Concat" or read & mixed:
            mixed.update(name for name in node.output if name)
    return target in carried


def _own_names(body: onnx.GraphProto) -> set[str]:
    return {i.name for i in body.input} | initializer_names(body) | produced_names(body)


def _has_shape(value: onnx.ValueInfoProto) -> bool:
    return value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape")
