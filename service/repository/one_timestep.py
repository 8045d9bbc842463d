"""Finds inputs and outputs with a time axis of one fixed timestep, as torch.export writes it."""

from __future__ import annotations

from collections.abc import Iterable

from streamcell.service.graph.interface import GraphInterface, GraphValue, axes_before_step

from .sidecar import Sidecar
from .state_names import state_pairs


def find_one_timestep(interface: GraphInterface) -> dict[str, int]:
    """Of a graph whose inputs and outputs are all [1, batch, …], with the states' open size as the batch: the axis, 0.

    [batch, 1, …] is left as it is: the 1 may as well belong to the step.
    """
    pairs = state_pairs(interface.inputs, interface.outputs)
    read, written = {i for i, _ in pairs}, {o for _, o in pairs}
    inputs = [port for name, port in interface.inputs.items() if name not in read]
    outputs = [port for name, port in interface.outputs.items() if name not in written]
    states = [interface.inputs[i] for i, _ in pairs]
    batch = {(port.dims or ())[axis] for port in states for axis in port.dynamic_axes}
    if len(batch) != 1 or not all(len(port.dynamic_axes) == 1 for port in states):
        return {}
    alike = all(port.dynamic_axes == (1,) and port.dims and port.dims[1] in batch for port in inputs)
    if not inputs or not outputs or not alike or not _one_at(0, (*inputs, *outputs)):
        return {}
    if not all(1 in port.dynamic_axes for port in outputs):
        return {}
    return dict.fromkeys((port.name for port in (*inputs, *outputs)), 0)


def said_one_timestep(said: Sidecar, interface: GraphInterface) -> dict[str, int]:
    """The same of a sidecar that says where the time axis is, and a graph that fixes it at one timestep."""
    layout = said.tensor_layout
    if layout == "batch" or said.lengths is not None or said.batch_axis is not None:
        return {}
    axis = axes_before_step(layout).index("time")
    ports = {**interface.all_inputs, **interface.outputs}
    named = [tensor.name for tensor in (*said.inputs, *said.outputs)]
    if not all(name in ports for name in named) or not _one_at(axis, map(ports.__getitem__, named)):
        return {}
    return dict.fromkeys(named, axis)


def _one_at(axis: int, ports: Iterable[GraphValue]) -> bool:
    return all(port.dims is not None and len(port.dims) > axis and port.dims[axis] == 1 for port in ports)
