"""States that are longer after a step than before it, as caches of keys and values are that keep every timestep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx

from streamcell.service.errors import shown
from streamcell.service.load_errors import GrowingStateError

from .index_trace import attribute_of
from .interface import Dim, GraphInterface, GraphValue

# What moves or casts values.
_KEEPS = frozenset({"Identity", "Cast", "Dropout", "Transpose"})
_MOST_DEPTH = 16


def refuse_growing(
    graph: onnx.GraphProto, interface: GraphInterface, states: Iterable[tuple[str, str]], *, by_name: bool
) -> None:
    """Raise GrowingStateError if the graph's interface or nodes show that one of `states` grows.

    Args:
        graph: the model's.
        interface: of `graph`.
        states: (input, output) of each; those that the graph does not have are left out.
        by_name: whether it is enough that an axis is called otherwise after the step.
    """
    found = []
    makers = {name: node for node in graph.node for name in node.output if name}
    for i, o in states:
        before, after = interface.all_inputs.get(i), interface.outputs.get(o)
        if before is None or after is None:
            continue
        axis = _declared(before, after)
        if axis is None:
            axis = _appended(makers, before, after)
        sure = axis is not None
        if axis is None and by_name:
            axis = _renamed(before, after)
        if axis is not None:
            found.append((before, after, axis, sure))
    if not found:
        return
    before, after, axis, sure = found[0]
    fixed = ["…" if d is None else str(d) for d in before.dims or after.dims or ()]
    if axis < len(fixed):
        fixed[axis] = "N"
    cut = ", ".join([*[":"] * axis, "-N:"])
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    grows, longer = ("grows", "longer") if sure else ("seems to grow", "with another size")
    otherwise = "" if sure else "; if its size stays the same, set shape and batch_axis in a sidecar"
    raise GrowingStateError(
        f"state {shown(before.name)}{more} {grows} with every step: it goes in as {before} and comes out {longer} "
        f"along axis {axis}, as {shown(after.name)}, {after}. A session's state has one size. Export the model with "
        f"a rolling cache of N steps: the input is [{', '.join(fixed)}], the output the last N of it and the new, in "
        f"PyTorch `torch.cat([cache, new], dim={axis})[{cut}]`, and attention masks what no step has filled yet "
        f"(docs/modern-recurrence.md has one){otherwise}"
    )


def _declared(before: GraphValue, after: GraphValue) -> int | None:
    """The one axis that is longer after the step, by the sizes that the interface declares."""
    if before.dims is None or after.dims is None or len(before.dims) != len(after.dims):
        return None
    pairs = enumerate(zip(before.dims, after.dims, strict=True))
    longer = [axis for axis, (p, q) in pairs if _longer(p, q)]
    return longer[0] if len(longer) == 1 else None


def _renamed(before: GraphValue, after: GraphValue) -> int | None:
    """The one axis, beside the batch, whose size is open and called otherwise after the step."""
    if before.dims is None or after.dims is None or len(before.dims) != len(after.dims):
        return None
    pairs = enumerate(zip(before.dims, after.dims, strict=True))
    others = [axis for axis, (p, q) in pairs if isinstance(p, str) and isinstance(q, str) and p != q]
    return others[0] if len(others) == 1 and len(before.dynamic_axes) > 1 else None


def _longer(before: Dim, after: Dim) -> bool:
    """Whether `after` is more by its number, or called "`before` + …"."""
    if isinstance(before, int) and isinstance(after, int):
        return after > before
    if not (isinstance(before, str) and isinstance(after, str)):
        return False
    return "+" in after and before in (part.strip() for part in after.split("+"))


def _appended(makers: Mapping[str, onnx.NodeProto], before: GraphValue, after: GraphValue) -> int | None:
    """The axis along which a Concat puts something behind or before the state, and nothing cuts the result."""
    rank = len(before.dims or after.dims or ())
    origin, moves = _origin(after.name, makers, rank)
    node = makers.get(origin)
    if node is None or node.op_type != "Concat" or len(node.input) < 2:
        return None
    if not any(_origin(name, makers, rank)[0] == before.name for name in node.input):
        return None
    axis = attribute_of(node, "axis") or 0
    axis += rank if axis < 0 else 0
    return moves.index(axis) if axis in moves else None


def _origin(name: str, makers: Mapping[str, onnx.NodeProto], rank: int) -> tuple[str, list[int]]:
    """The value that `name` is a moved or cast form of, and for each axis of `name` the axis of that value."""
    moves = list(range(rank))
    for _ in range(_MOST_DEPTH):
        node = makers.get(name)
        if node is None or node.op_type not in _KEEPS or not node.input:
            break
        if node.op_type == "Transpose":
            perm = attribute_of(node, "perm") or list(range(rank))[::-1]
            if sorted(perm) != list(range(rank)):
                break
            moves = [perm[axis] for axis in moves]
        name = node.input[0]
    return name, moves
