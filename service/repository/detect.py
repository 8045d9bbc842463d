"""Reads a signature from a graph without card and sidecar, if it can be read in one way only.

States are found by name (`state_names`), the batch axis by the symbol that states and inputs share, the time
axis by the second symbol. One error names everything that is unclear, with the graph's interface and a draft of a
sidecar.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NoReturn

from streamcell.card import DTYPES, Layout, Signature, State, Tensor
from streamcell.service.graph.interface import Dim, GraphInterface, GraphValue, axes_before_step
from streamcell.service.load_errors import DetectionError, Problems

from .sidecar_template import sidecar_template
from .state_names import alike, may_be_lengths, sounds_like_state, state_pairs

_NO_BATCH_AXIS = 'of one session, `batch_axis = "none"`'
_BATCH_NAMES = frozenset({"b", "n", "batch", "batch_size", "batchsize", "bs"})


def detect(
    interface: GraphInterface, unbatched: Collection[str] = (), *, sidecar_name: str = "model.toml"
) -> Signature:
    """The only signature that a graph with this interface can have.

    Args:
        interface: as declared in the file.
        unbatched: names without a batch axis (`find_unbatched`); the signature is that of the graph with one, at 0.
        sidecar_name: the file that the error asks the user to write.

    Raises:
        DetectionError: there is none, or more than one; it names everything that is unclear.
    """
    whole = interface
    if unbatched:
        size = 1 if all(not port.dynamic_axes for port in interface.inputs.values()) else "batch"
        whole = interface.with_axes(dict.fromkeys(unbatched, 0), size)
    detection = _Detection(whole)
    signature = detection.signature()
    if signature is None:
        raise DetectionError(
            f"no card, no {sidecar_name}, and the graph alone does not show how to serve it: {detection.problems}",
            problems=detection.problems,
            context=f"the graph has\n{interface}\ndescribe them in {sidecar_name} beside it; a draft:\n\n"
            f"{sidecar_template(interface, whole, unbatched)}",
        )
    return signature.model_copy(update={"max_batch": 1}) if unbatched else signature


class _Detection:
    """Two passes: first each name by itself, then all together; the second skips names that the first noted."""

    def __init__(self, interface: GraphInterface) -> None:
        self._interface = interface
        self.problems = Problems()
        self._pairs = state_pairs(interface.inputs, interface.outputs)
        taken, given = {i for i, _ in self._pairs}, {o for _, o in self._pairs}
        self._inputs = {n: p for n, p in interface.inputs.items() if n not in taken}
        self._outputs = {n: p for n, p in interface.outputs.items() if n not in given}
        # Names with a problem that the first pass has noted.
        self._unsure: set[str] = set()

    def _unclear(self, why: str) -> NoReturn:
        raise DetectionError(why)

    def _note(self, why: str, *names: str) -> None:
        self.problems.add(why)
        self._unsure.update(names)

    def signature(self) -> Signature | None:
        """None if there are problems."""
        self._check_names()
        self._check_shapes()
        self._check_kinds()
        self._pairs = [pair for pair in self._pairs if self._unsure.isdisjoint(pair)]
        for ports in (self._inputs, self._outputs):
            for name in self._unsure & ports.keys():
                del ports[name]
        signature = None
        if self._inputs and (self._outputs or not self.problems):
            with self.problems.noted():
                signature = self._read()
        return None if self.problems else signature

    def _read(self) -> Signature:
        if all(not p.dynamic_axes for p in (*self._inputs.values(), *self._state_inputs())):
            return self._fixed()
        batch = self._batch_symbol()
        layout, time = self._layout(batch)
        lead = axes_before_step(layout)
        inputs = self._tensors(self._inputs, lead)
        for p in self._outputs.values():
            with self.problems.noted():
                self._check_output(p, lead, time)
        outputs = self._tensors(self._outputs, lead)
        open_axes = {p.name: p.dynamic_axes for p in self._state_inputs()}
        states = self._states({name: axes[0] for name, axes in open_axes.items() if len(axes) == 1})
        return self._signature(inputs, outputs, states, layout)

    def _signature(
        self,
        inputs: list[Tensor],
        outputs: list[Tensor],
        states: list[State],
        layout: Layout,
        max_batch: int | None = None,
    ) -> Signature:
        if self.problems:  # then some are missing
            self._unclear(next(iter(self.problems)))
        return Signature(
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            states=tuple(states),
            layout=layout,
            max_batch=max_batch,
        )

    def _state_inputs(self) -> list[GraphValue]:
        return [self._interface.inputs[i] for i, _ in self._pairs]

    def _check_names(self) -> None:
        """Check that every name has one role, and that no remaining name sounds like a state."""
        for place, side in enumerate(("input", "output")):
            fitting: dict[str, list[tuple[str, str]]] = {}
            for pair in self._pairs:
                fitting.setdefault(pair[place], []).append(pair)
            for name, fits in fitting.items():
                if len(fits) > 1:
                    names = [each for pair in fits for each in pair]
                    self._note(f"state {side} {name!r} fits more than one name: {fits}", *names)
        for i, o in self._pairs:
            p, q = self._interface.inputs[i], self._interface.outputs[o]
            if not p.fits(q):
                self._note(f"{i!r} and {o!r} are named like a state, but are {p} and {q}", i, o)
        if not self._inputs or not self._outputs:
            self._note("by their names all inputs or all outputs are states")
        for name in self._inputs:
            if sounds_like_state(name):
                self._note(
                    f"input {name!r} is named like a state, but no output is named to go with it", name
                )
        for i, o in state_pairs(self._interface.defaults, self._interface.outputs):
            self._note(f"input {i!r} has a default value, but with output {o!r} it is named like a state", o)

    def _check_shapes(self) -> None:
        """Check that no remaining pair has a state's shapes."""
        if len(self._inputs) < 2 or len(self._outputs) < 2:
            return
        for i, p in self._inputs.items():
            for o, q in self._outputs.items():
                if p.dims == q.dims and alike(p, q):
                    self._note(f"input {i!r} and output {o!r} have one shape, {p}; they may be a state", i, o)
                elif alike(p, q):
                    self._note(f"input {i!r}, {p}, and output {o!r}, {q}, may be a state", i, o)

    def _check_kinds(self) -> None:
        for name, p in {**self._interface.inputs, **self._interface.outputs}.items():
            if p.dtype not in DTYPES:
                self._note(f"{name!r} is {p}; expected a dtype of {', '.join(DTYPES)}", name)
            if p.dims is None:
                self._note(f"{name!r} has no declared shape", name)
            elif not p.dims:
                self._note(f"{name!r} has no batch axis; is it a constant, or is it {_NO_BATCH_AXIS}?", name)
        for name, p in self._inputs.items():
            if may_be_lengths(p):
                self._note(f"input {name!r} may be each row's number of timesteps (`lengths`), or not", name)

    def _fixed(self) -> Signature:
        """All sizes are fixed: a graph exported for one session; a run is one timestep."""
        for name, p in {**self._inputs, **self._outputs}.items():
            if (p.dims or ())[:1] != (1,) and not (name in self._outputs and 0 in p.dynamic_axes):
                self.problems.add(
                    f"all sizes are fixed, and the first of {name!r}, {p}, is not a batch axis of 1; "
                    f"is the model {_NO_BATCH_AXIS}?"
                )
        axes = {}
        for p in self._state_inputs():
            if 1 in (p.dims or ()):
                # Any axis of size 1 may be the batch axis: it makes no difference.
                axes[p.name] = (p.dims or ()).index(1)
            else:
                self.problems.add(
                    f"all sizes are fixed, and state {p.name!r}, {p}, has no axis of 1; "
                    f"is the model {_NO_BATCH_AXIS}?"
                )
        inputs, outputs = self._tensors(self._inputs, ("batch",)), self._tensors(self._outputs, ("batch",))
        return self._signature(inputs, outputs, self._states(axes), "batch", 1)

    def _batch_symbol(self) -> Dim:
        """The symbol of all states' batch axis; without states the inputs' first symbol."""
        symbols: dict[Dim, str] = {}
        for p in self._state_inputs():
            if len(p.dynamic_axes) == 1:
                symbols[(p.dims or ())[p.dynamic_axes[0]]] = p.name
                continue
            shared = {q.dims[0] for q in self._inputs.values() if q.dims}
            open_ = [f"axis {a} ({(p.dims or ())[a] or 'unnamed'})" for a in p.dynamic_axes]
            hint = (
                f"; {sorted(map(str, shared))} is the inputs' first"
                if open_
                else f"; is it {_NO_BATCH_AXIS}?"
            )
            self.problems.add(
                f"state {p.name!r}, {p}: one size must be open, the batch; open are {open_ or 'none'}{hint}"
            )
        if len(symbols) > 1:
            self._unclear(f"the states' batch axes have different names: {symbols}")
        if symbols:
            return next(iter(symbols))
        first = {(p.dims or ())[0] for p in self._inputs.values()}
        second = {(p.dims or ())[1] if len(p.dims or ()) > 1 else None for p in self._inputs.values()}
        if len(second) == 1 and _is_batch(symbol := second.pop()) and not any(map(_is_batch, first)):
            return symbol
        if len(first) != 1:
            self._unclear(f"the inputs' first axes differ: {sorted(map(str, first))}")
        return first.pop()

    def _layout(self, batch: Dim) -> tuple[Layout, Dim]:
        """The common layout of all inputs, and the symbol of its time axis."""
        layouts: dict[Layout, str] = {}
        times: set[Dim] = set()
        for name, p in self._inputs.items():
            dims = p.dims or ()
            if p.dynamic_axes == (0,) and dims[0] == batch:
                layouts["batch"] = name
            elif p.dynamic_axes == (0, 1) and dims[0] == batch and dims[1] != batch:
                layouts["batch_time"] = name
                times.add(dims[1])
            elif p.dynamic_axes == (0, 1) and dims[1] == batch and dims[0] != batch:
                layouts["time_batch"] = name
                times.add(dims[0])
            else:
                self._note(
                    f"input {name!r}, {p}: expected [{batch}, …], [{batch}, time, …] or [time, {batch}, …] "
                    "with all other sizes fixed",
                    name,
                )
        if len(layouts) > 1 or len(times) > 1:
            self._unclear(f"the inputs differ in layout or in time axis: {layouts}")
        if not layouts:
            self._unclear(next(iter(self.problems)))
        return next(iter(layouts)), next(iter(times), None)

    def _check_output(self, p: GraphValue, lead: tuple[str, ...], time: Dim) -> None:
        dims = p.dims or ()
        wanted = ", ".join([*lead, "…"])
        if len(dims) < len(lead) or isinstance(dims[lead.index("batch")], int):
            self._unclear(f"output {p.name!r}: expected [{wanted}], the graph has {p}")
        own = dims[lead.index("time")] if "time" in lead else None
        if own not in (time, None):
            fixed = (
                f"; its exporter wrote down the {own} timesteps of the example: export an example of one timestep with "
                "only the batch open, or with dynamo=False"
            )
            self._unclear(
                f"output {p.name!r}: expected [{wanted}] with the inputs' time axis {time}, found {p}"
                f"{fixed if isinstance(own, int) and own > 1 else ''}"
            )

    def _tensors(self, ports: dict[str, GraphValue], lead: tuple[str, ...]) -> list[Tensor]:
        found = []
        for p in (p for name, p in ports.items() if name not in self._unsure):
            with self.problems.noted():
                sizes = self._sizes(p, range(len(lead)))
                found.append(Tensor(name=p.name, dtype=p.dtype, step_shape=sizes))  # type: ignore[arg-type]
        return found

    def _states(self, axes: dict[str, int]) -> list[State]:
        """The states whose batch axis is known."""
        found = []
        for i, o in self._pairs:
            if i in axes:
                p, axis = self._interface.inputs[i], axes[i]
                with self.problems.noted():
                    shape = self._sizes(p, range(axis, axis + 1))
                    found.append(State(input=i, output=o, dtype=p.dtype, shape=shape, batch_axis=axis))  # type: ignore[arg-type]
        return found

    def _sizes(self, p: GraphValue, without: range) -> tuple[int, ...]:
        sizes: list[int] = []
        for axis, dim in enumerate(p.dims or ()):
            if axis in without:
                continue
            if not isinstance(dim, int):
                self._unclear(f"{p.name!r}, {p}: the size of axis {axis} ({dim or 'unnamed'}) is open")
            sizes.append(dim)
        return tuple(sizes)


def _is_batch(dim: Dim) -> bool:
    return isinstance(dim, str) and dim.lower() in _BATCH_NAMES
