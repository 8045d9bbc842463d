"""Finds the inputs, outputs and states of a graph without a batch axis, if its interface allows one reading only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from streamcell.service.graph.interface import Dim, GraphInterface, GraphValue

from .state_names import state_pairs

# Names that exporters and their users give an axis of timesteps.
_TIME_NAMES = frozenset(
    ("t", "time", "times", "steps", "timesteps", "seq", "seqlen", "sequence", "sequencelength", "frames")
)


def find_unbatched(interface: GraphInterface) -> frozenset[str]:
    """Names without a batch axis in a graph with this interface; empty if all have one, or if it is unclear."""
    pairs = state_pairs(interface.inputs, interface.outputs)
    read, written = {i for i, _ in pairs}, {o for _, o in pairs}
    inputs = [port for name, port in interface.inputs.items() if name not in read]
    outputs = [port for name, port in interface.outputs.items() if name not in written]
    known = all(port.dims is not None for port in (*interface.inputs.values(), *interface.outputs.values()))
    twice = len(read) < len(pairs) or len(written) < len(pairs)
    agree = all(interface.inputs[i].fits(interface.outputs[o]) for i, o in pairs)
    if not (inputs and outputs and known and agree) or twice:
        return frozenset()
    states = [interface.inputs[i] for i, _ in pairs]
    everything = frozenset((*interface.inputs, *interface.outputs))
    if any(port.dynamic_axes for port in interface.inputs.values()):
        return everything if _all_over_time(inputs, outputs, states) else frozenset()
    first = [_first(port) for port in inputs]
    if all(size == 1 for size in first):
        # There is a batch axis; a state without an axis of size 1 does not have it.
        if all(_first(port) == 1 or 0 in port.dynamic_axes for port in outputs):
            return frozenset(
                name for i, o in pairs if 1 not in (interface.inputs[i].dims or ()) for name in (i, o)
            )
        return frozenset()
    if 1 in first or (None in first and any(size is not None for size in first)):
        return frozenset()  # one has a batch axis and another has none, or a scalar may be a constant
    return frozenset() if _may_be_a_batch(first, outputs, states) else everything


def _first(port: GraphValue) -> Dim:
    return port.dims[0] if port.dims else None


def _all_over_time(
    inputs: Iterable[GraphValue], outputs: Iterable[GraphValue], states: Sequence[GraphValue]
) -> bool:
    """True if inputs and outputs are [time, …], and only that axis is open."""
    time = {_first(port) for port in inputs}
    if len(time) != 1 or not states or any(port.dynamic_axes for port in states):
        return False
    name = time.pop()
    sounds = isinstance(name, str) and name.lower().replace("_", "").replace("-", "") in _TIME_NAMES
    return (
        sounds
        and all(port.dynamic_axes == (0,) for port in inputs)
        and all(port.dynamic_axes == (0,) and _first(port) in (name, None) for port in outputs)
    )


def _may_be_a_batch(
    first: Sequence[Dim], outputs: Iterable[GraphValue], states: Iterable[GraphValue]
) -> bool:
    """True if all inputs and outputs begin with one size and all states contain it: it may be a batch of that size."""
    size = first[0]
    return (
        size is not None
        and len(set(first)) == 1
        and all(_first(port) == size for port in outputs)
        and all(size in (port.dims or ()) for port in states)
    )
