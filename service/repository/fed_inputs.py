"""Checks a sidecar's inputs that the server feeds, and its context, against the graph."""

from __future__ import annotations

from typing import Literal

from pydantic import ValidationError

from streamcell.card import OpenInput
from streamcell.service.graph.feeds import Context, Counted, Feeds, kept
from streamcell.service.graph.interface import GraphInterface, GraphValue, axes_before_step
from streamcell.service.graph.pooled import initial_value
from streamcell.service.load_errors import Problems, RewriteError, SidecarError

from .sidecar import Sidecar, SidecarInput, did_you_mean
from .sidecar_fit import invalid, max_batch, new_axes, tensor_of


def fed_inputs(sidecar: Sidecar, interface: GraphInterface) -> tuple[Sidecar, Feeds | None]:
    """The inputs that `sidecar` makes the server feed to a graph with this interface, and the sidecar without them.

    Raises:
        SidecarError: inputs whose shapes cannot be fed, or no input that clients send.
    """
    if len(sidecar.sent) == len(sidecar.inputs) and all(each.context is None for each in sidecar.inputs):
        return sidecar, None
    sent = sidecar.sent
    if not sent:
        raise SidecarError(
            'inputs: clients send none in their messages, since all have `from` or at = "open"; one is needed'
        )
    problems = Problems()
    lengths, contexts, counted, given = sidecar.lengths, [], [], []
    for each in sidecar.inputs:
        with problems.noted():
            if each.from_ == "lengths" and _is_lengths(each, sidecar, interface):
                if lengths is not None:
                    raise SidecarError(
                        f"inputs: {each.name!r}: lengths = {lengths!r} already takes the lengths"
                    )
                lengths = each.name
            elif each.from_ is not None:
                counted.append(_counted(each, sidecar, interface))
            elif each.at is not None:
                given.append(_given(each, interface))
    for each in sent:
        with problems.noted():
            if each.context is not None:
                contexts.append(_context(each, sidecar, lengths, interface))
    if problems:
        raise SidecarError(str(problems), problems=problems)
    rest = sidecar.model_copy(update={"inputs": sent, "lengths": lengths})
    if not (contexts or counted or given):
        return rest, None
    return rest, Feeds(
        sidecar.tensor_layout, sent[0].name, lengths, tuple(contexts), tuple(counted), tuple(given)
    )


def _port(each: SidecarInput, interface: GraphInterface) -> GraphValue:
    if (port := interface.all_inputs.get(each.name)) is not None:
        return port
    raise SidecarError(
        f"inputs: {each.name!r}: the graph has no such name{did_you_mean(each.name, interface.all_inputs)}",
        context=f"the graph has\n{interface}",
    )


def _is_lengths(each: SidecarInput, sidecar: Sidecar, interface: GraphInterface) -> bool:
    """True if it is equivalent to `lengths`, so that rows of different lengths may run together."""
    port = _port(each, interface)
    ranked = port.dims is None or len(port.dims) == 1
    return sidecar.tensor_layout != "batch" and port.dtype in ("int32", "int64") and ranked


def _context(each: SidecarInput, sidecar: Sidecar, lengths: str | None, interface: GraphInterface) -> Context:
    where = f"inputs: {each.name!r}: context"
    port = _port(each, interface)
    lead = axes_before_step(sidecar.tensor_layout)
    size = each.context or 0
    whole = tensor_of(port, each, lead, "inputs")
    if sidecar.tensor_layout != "batch":
        if each.context_axis is not None:
            raise SidecarError(f"{where} is timesteps with this layout; leave context_axis out")
        if lengths is not None:
            raise SidecarError(
                f"{where} and lengths {lengths!r} do not go together: leave lengths out, and sessions run together at "
                "equal numbers of timesteps"
            )
        return Context(whole, size)
    rank = len(whole.step_shape)
    axis = 0 if each.context_axis is None and rank == 1 else each.context_axis
    if not rank:
        raise SidecarError(f"{where}: a step without axes has no elements before it")
    if axis is None or axis >= rank:
        raise SidecarError(f"{where}: set context_axis, the axis of the step that it extends, below {rank}")
    step = list(whole.step_shape)
    if each.step_shape is None:
        step[axis] -= size
        if step[axis] < 1:
            raise SidecarError(f"{where} = {size}: the graph has {port}, which leaves no elements for a step")
    elif port.dims is not None and len(port.dims) == len(lead) + rank:
        declared = port.dims[len(lead) + axis]
        if isinstance(declared, int) and declared != step[axis] + size:
            raise SidecarError(
                f"{where} = {size} and step_shape {step} make {step[axis] + size} elements on axis {axis}, the graph "
                f"has {port}"
            )
    return Context(whole.model_copy(update={"step_shape": tuple(step)}), size, axis)


def _given(each: SidecarInput, interface: GraphInterface) -> OpenInput:
    where = f"inputs: {each.name!r}"
    port = _port(each, interface)
    if port.dims == ():
        raise SidecarError(
            f"{where}: the graph has {port}, one value for all sessions of a run; set batch_axis = "
            '"none", and runs have one session'
        )
    tensor = tensor_of(port, each, ("batch",), "inputs")
    try:
        value = OpenInput(**tensor.model_dump(), default=each.default)
        initial_value(kept(value))
    except ValidationError as error:
        raise invalid(error) from error
    except RewriteError as error:
        raise SidecarError(f"{where}: default {each.default} does not fit {tensor.dtype}") from error
    return value


def _counted(each: SidecarInput, sidecar: Sidecar, interface: GraphInterface) -> Counted:
    assert each.from_ is not None
    where = f"inputs: {each.name!r}: from = {each.from_!r}"
    port = _port(each, interface)
    if port.dtype is None or (port.dtype == "bool" and each.from_ != "first_step"):
        raise SidecarError(f"{where}: expected a tensor of numbers, the graph has {port}")
    lead = axes_before_step(sidecar.tensor_layout)
    dims = ("batch",) if port.dims is None else port.dims
    whole = bool(new_axes(sidecar))  # a graph of one session
    if all(d == 1 for d in dims) and (whole or max_batch(sidecar, interface) == 1):
        return Counted(each.name, each.from_, "row", (1,) * len(dims))
    if not dims:
        raise SidecarError(
            f"{where}: the graph has {port}, one number for all sessions of a run; set max_batch = 1, and runs have "
            "one session"
        )
    time = lead.index("time") if "time" in lead and each.from_ != "lengths" else None
    per: Literal["step", "row"] = "row"
    shape: tuple[int, ...] = (-1,)
    if whole and time is not None and not isinstance(dims[0], int):
        per = "step"
    elif time is not None and len(dims) > 1 and not isinstance(dims[time], int):
        per, shape = "step", (0, 0)
    ones = dims[len(shape) :]
    if any(isinstance(d, int) and d != 1 for d in ones):
        number = "timestep" if per == "step" else "session"
        raise SidecarError(f"{where}: expected one number a {number}, the graph has {port}")
    return Counted(each.name, each.from_, per, (*shape, *(1 for _ in ones)))
