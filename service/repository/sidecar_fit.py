"""Makes a signature and constants of a sidecar and a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from streamcell.card import DTYPES, OpenInput, Signature, State, Tensor, check_generation
from streamcell.card.signature import Dtype
from streamcell.service.errors import shown
from streamcell.service.graph.interface import GraphInterface, GraphValue, axes_before_step, unfed
from streamcell.service.load_errors import Problems, SidecarError

from .sidecar import Sidecar, SidecarState, SidecarTensor, explain, nearest

# Unknown names that are compared with those of the graph: with a thousand of them each takes some 60 ms.
_MOST_HINTS = 20


def resolve(
    sidecar: Sidecar, interface: GraphInterface, added: Sequence[State] = (), given: Sequence[OpenInput] = ()
) -> tuple[Signature, dict[str, npt.NDArray[Any]]]:
    """The signature and the constants that `sidecar` gives to a graph with this interface, `new_axes` added.

    Args:
        sidecar: the file's content, without inputs that the server feeds.
        interface: the interface of the graph with the server's feeds built in.
        added: the states that the feeds have added.
        given: the inputs of the opening, which are among them.

    Raises:
        SidecarError: names that the graph lacks, sizes that neither says, constants of the wrong kind, inputs that
            nothing feeds; all of them at once.
    """
    return _Fit(sidecar, interface, added, given).signature()


def new_axes(sidecar: Sidecar) -> dict[str, int]:
    """The index at which to add a batch axis, for each name that has none according to `sidecar`."""
    everything = sidecar.batch_axis == "none"
    given = {each.name for each in sidecar.inputs if each.at is not None}
    at = axes_before_step(sidecar.tensor_layout).index("batch")
    axes = {
        tensor.name: 0 if tensor.name in given else at
        for tensor in (*(each for each in sidecar.inputs if each.from_ is None), *sidecar.outputs)
        if everything or tensor.batch_axis == "none"
    }
    for state in sidecar.states:
        if state.batch_axis == "none" or (everything and state.batch_axis is None):
            axes |= {state.input: 0, state.output: 0}
    if everything and sidecar.lengths is not None:
        axes[sidecar.lengths] = 0
    return axes


class _Fit:
    """Checks the sidecar's tables against the graph's interface, one by one, and collects the problems."""

    def __init__(
        self, sidecar: Sidecar, interface: GraphInterface, added: Sequence[State], given: Sequence[OpenInput]
    ) -> None:
        self._sidecar = sidecar
        self._added, self._given = added, tuple(given)
        self._interface = interface
        self._unbatched = new_axes(sidecar)
        self._problems = Problems()
        self._guesses: set[str] = set()  # names that unknown names probably mean
        self._unknown = 0

    def signature(self) -> tuple[Signature, dict[str, npt.NDArray[Any]]]:
        sidecar, interface = self._sidecar, self._interface
        inputs = self._tensors("inputs", interface.all_inputs, sidecar.inputs)
        outputs = self._tensors("outputs", interface.outputs, sidecar.outputs)
        states = (*self._states(), *self._added)
        constants = self._constants()
        if not self._problems:
            with self._problems.noted():
                signature = self._whole(inputs, outputs, states)
        if self._problems:
            self._add_unfed()
            context = f"the graph has\n{self._interface}" if self._unknown else ""
            raise SidecarError(str(self._problems), problems=self._problems, context=context)
        return signature, constants

    def _add_unfed(self) -> None:
        """Add problems that would show only after the others are solved: inputs that nothing feeds."""
        sidecar = self._sidecar
        fed = {each.name for each in sidecar.inputs}
        fed |= {each.input for each in sidecar.states} | {each.input for each in self._added}
        if hungry := unfed(self._interface, {*fed, *sidecar.constants, sidecar.lengths, *self._guesses}):
            self._problems.add(hungry)

    def _port(self, ports: dict[str, GraphValue], name: str, key: str) -> GraphValue | None:
        if name in ports:
            return ports[name]
        near = nearest(name, ports) if self._unknown < _MOST_HINTS else None
        self._unknown += 1
        if near is not None:
            self._guesses.add(near)
        hint = f"; did you mean {near!r}?" if near is not None else ""
        self._problems.add(f"{key}: the graph has no such name{hint}")
        return None

    def _tensors(
        self, key: str, ports: dict[str, GraphValue], tensors: tuple[SidecarTensor, ...]
    ) -> tuple[Tensor, ...]:
        lead = axes_before_step(self._sidecar.tensor_layout)
        found = []
        for tensor in tensors:
            port = self._port(ports, tensor.name, f"{key}: {tensor.name!r}")
            if port is not None:
                with self._problems.noted():
                    found.append(tensor_of(port, tensor, lead, key))
        return tuple(found)

    def _states(self) -> tuple[State, ...]:
        found = []
        for state in self._sidecar.states:
            where = f"states: {state.input!r}"
            port = self._port(self._interface.all_inputs, state.input, where)
            after = self._port(self._interface.outputs, state.output, f"{where}: output {state.output!r}")
            if port is not None and after is not None:
                with self._problems.noted():
                    found.append(_state(state, port, unbatched=state.input in self._unbatched))
        return tuple(found)

    def _constants(self) -> dict[str, npt.NDArray[Any]]:
        found = {}
        for name, value in self._sidecar.constants.items():
            port = self._port(self._interface.all_inputs, name, f"constants.{name}")
            if port is not None:
                with self._problems.noted():
                    found[name] = _constant(port, value)
        return found

    def _whole(
        self, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], states: tuple[State, ...]
    ) -> Signature:
        sidecar = self._sidecar
        if self._unbatched and sidecar.max_batch not in (None, 1):
            raise SidecarError(
                f"max_batch: {shown(min(self._unbatched))} has no batch axis, so runs take one session; leave it out"
            )
        try:
            signature = Signature(
                inputs=inputs,
                outputs=outputs,
                states=states,
                open_inputs=self._given,
                layout=sidecar.tensor_layout,
                lengths=sidecar.lengths,
                max_batch=1 if self._unbatched else max_batch(sidecar, self._interface),
            )
        except ValidationError as error:
            raise invalid(error) from error
        if sidecar.generation is not None:
            try:
                check_generation(signature, sidecar.generation)
            except ValueError as error:
                raise SidecarError(str(error)) from error
        return signature


def invalid(error: ValidationError) -> SidecarError:
    """An error of pydantic's as one that names keys."""
    return SidecarError("; ".join(explain(each) for each in error.errors(include_url=False)))


def _dtype(port: GraphValue, given: Dtype | None, key: str) -> Dtype:
    dtype = given or port.dtype
    if dtype not in DTYPES:
        raise SidecarError(f"{key}: dtype {dtype or 'unknown'}; expected one of {', '.join(DTYPES)}")
    return dtype  # type: ignore[return-value]


def tensor_of(port: GraphValue, given: SidecarTensor, lead: tuple[str, ...], key: str) -> Tensor:
    """The tensor that `given` and `port` together describe; it has the axes `lead` before the step's own."""
    where = f"{key}: {port.name!r}"
    shape: tuple[int, ...]
    if given.step_shape is not None:
        shape = given.step_shape
    elif port.dims is None:
        raise SidecarError(f"{where}: the graph gives no shape; set step_shape, the shape of one timestep")
    else:
        if len(port.dims) < len(lead):
            raise SidecarError(f"{where}: expected [{', '.join([*lead, '…'])}], the graph has {port}")
        shape = _sizes(port, range(len(lead), len(port.dims)), where, "step_shape")
    try:
        return Tensor(
            name=port.name,
            dtype=_dtype(port, given.dtype, where),
            step_shape=shape,
            distribution=given.distribution,
            index_ranges=(given.index_range,) if isinstance(given.index_range, tuple) else (),
        )
    except ValidationError as error:
        raise invalid(error) from error


def _sizes(port: GraphValue, axes: range | list[int], where: str, key: str) -> tuple[int, ...]:
    sizes: list[int] = []
    for axis in axes:
        dim = (port.dims or ())[axis]
        if not isinstance(dim, int):
            raise SidecarError(
                f"{where}: the graph leaves axis {axis} ({dim or 'unnamed'}) of {port} open; set {key}"
            )
        sizes.append(dim)
    return tuple(sizes)


def _state(given: SidecarState, port: GraphValue, *, unbatched: bool) -> State:
    where = f"states: {given.input!r}"
    shape = given.shape
    if unbatched:
        axis = 0
    elif isinstance(given.batch_axis, int):
        axis = given.batch_axis
    elif port.dims is None or len(port.dynamic_axes) != 1:
        raise SidecarError(f'{where}: set batch_axis, "none" if it has none; the graph has {port}')
    else:
        axis = port.dynamic_axes[0]
    if shape is None:
        if port.dims is None or axis >= len(port.dims):
            raise SidecarError(
                f"{where}: batch_axis {axis} is outside {port}" if port.dims else f"{where}: set shape"
            )
        shape = _sizes(port, [a for a in range(len(port.dims)) if a != axis], where, "shape")
    try:
        return State(
            input=given.input,
            output=given.output,
            dtype=_dtype(port, given.dtype, where),
            shape=shape,
            batch_axis=axis,
            initial=given.initial,
        )
    except ValidationError as error:
        raise invalid(error) from error


def _constant(port: GraphValue, value: object) -> npt.NDArray[Any]:
    where = f"constants.{port.name}"
    dtype = np.dtype(_dtype(port, None, where))
    try:
        exact = np.array(value)
    except ValueError as error:
        raise SidecarError(
            f"{where}: expected a number or nested lists of equal lengths, got {value!r}"
        ) from error
    if exact.dtype.kind not in "biuf" or (exact.dtype.kind == "b") != (dtype.kind == "b"):
        raise SidecarError(f"{where}: expected {port}, got {value!r}")
    with np.errstate(all="ignore"):
        array = exact.astype(dtype)
    if dtype.kind != "f" and not np.array_equal(array, exact):
        raise SidecarError(f"{where}: {value!r} does not fit {dtype}")
    dims = port.dims
    if array.ndim == 0 and dims is not None and all(d == 1 or not isinstance(d, int) for d in dims):
        array = array.reshape([1] * len(dims))
    return array


def max_batch(sidecar: Sidecar, interface: GraphInterface) -> int | None:
    """The sidecar's value; else the graph's declared batch size, if any."""
    lead = axes_before_step(sidecar.tensor_layout)
    if sidecar.max_batch is not None:
        return None if sidecar.max_batch == "any" else sidecar.max_batch
    sizes = []
    for t in sidecar.inputs:
        dims = interface.all_inputs[t.name].dims
        if dims is not None and len(dims) >= len(lead) and isinstance(size := dims[lead.index("batch")], int):
            sizes.append(size)
    return min(sizes, default=None)
