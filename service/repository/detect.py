"""Read a signature from a graph that has neither card nor sidecar, where it can be read in one way only.

States are found by name (`state_names`), the batch axis by the symbol that states and inputs share, the time
axis by the second symbol. Whatever is unclear is an error that prints the graph's border and a sidecar to paste.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NoReturn

from streamcell.card import DTYPES, Layout, Signature, State, Tensor
from streamcell.service.graph.interface import Dim, GraphInterface, GraphValue, axes_before_step
from streamcell.service.load_errors import DetectionError

from .sidecar_template import sidecar_template
from .state_names import compatible, sounds_like_state, state_pairs

_NO_BATCH_AXIS = 'of one session, `batch_axis = "none"`'
_BATCH_NAMES = frozenset({"b", "n", "batch", "batch_size", "batchsize", "bs"})


def detect(
    border: GraphInterface, unbatched: Collection[str] = (), *, sidecar_name: str = "model.toml"
) -> Signature:
    """The one signature that a graph with this border can have.

    Args:
        border: as declared in the file.
        unbatched: what has no batch axis (`find_unbatched`); the signature is that of the graph with one, at 0.
        sidecar_name: the file that the error asks for.

    Raises:
        DetectionError: there is none, or more than one.
    """
    if not unbatched:
        return _Detection(border, sidecar_name).signature()
    size = 1 if all(not port.dynamic_axes for port in border.inputs.values()) else "batch"
    signature = _Detection(border.with_axes(dict.fromkeys(unbatched, 0), size), sidecar_name).signature()
    return signature.model_copy(update={"max_batch": 1})


class _Detection:
    def __init__(self, border: GraphInterface, sidecar_name: str) -> None:
        self._border = border
        self._sidecar_name = sidecar_name
        self._pairs = state_pairs(border.inputs, border.outputs)
        taken, given = {i for i, _ in self._pairs}, {o for _, o in self._pairs}
        self._inputs = {n: p for n, p in border.inputs.items() if n not in taken}
        self._outputs = {n: p for n, p in border.outputs.items() if n not in given}

    def _unclear(self, why: str) -> NoReturn:
        raise DetectionError(
            f"no card, no {self._sidecar_name}, and the graph alone does not say how to serve it: {why}\n"
            f"the graph has\n{self._border}\n"
            f"say what they are in {self._sidecar_name} beside it; to begin with:\n\n{self._template()}"
        )

    def signature(self) -> Signature:
        self._check_names()
        self._check_kinds()
        if all(not p.dynamic_axes for p in self._border.inputs.values()):
            return self._fixed()
        batch = self._batch_symbol()
        layout, time = self._layout(batch)
        lead = axes_before_step(layout)
        inputs = tuple(self._tensor(p, lead) for p in self._inputs.values())
        for p in self._outputs.values():
            self._check_output(p, lead, time)
        outputs = tuple(self._tensor(p, lead) for p in self._outputs.values())
        states = tuple(self._state(i, o, self._border.inputs[i].dynamic_axes[0]) for i, o in self._pairs)
        return Signature(inputs=inputs, outputs=outputs, states=states, layout=layout)

    def _check_names(self) -> None:
        """Every name plays one part, and none that sounds like a state is left over."""
        for side, names in (("input", [i for i, _ in self._pairs]), ("output", [o for _, o in self._pairs])):
            if twice := sorted({n for n in names if names.count(n) > 1}):
                self._unclear(f"state {side} {twice[0]!r} fits more than one name: {self._pairs}")
        for i, o in self._pairs:
            if not compatible(self._border.inputs[i], self._border.outputs[o]):
                p, q = self._border.inputs[i], self._border.outputs[o]
                self._unclear(f"{i!r} and {o!r} are named like a state, but are {p} and {q}")
        if not self._inputs or not self._outputs:
            self._unclear("by their names all inputs or all outputs are states")
        for name in self._inputs:
            if sounds_like_state(name):
                self._unclear(f"input {name!r} is named like a state, but no output is named to go with it")
        for i, o in state_pairs(self._border.defaults, self._border.outputs):
            self._unclear(f"input {i!r} has a default value, but with output {o!r} it is named like a state")
        for i, p in self._inputs.items():
            for o, q in self._outputs.items():
                alike = p.dtype == q.dtype and p.dims == q.dims and len(p.dims or ()) > 1
                if alike and len(self._inputs) > 1 and len(self._outputs) > 1:
                    self._unclear(f"input {i!r} and output {o!r} have one shape, {p}; they may be a state")

    def _check_kinds(self) -> None:
        for name, p in {**self._border.inputs, **self._border.outputs}.items():
            if p.dtype not in DTYPES:
                self._unclear(f"{name!r} is {p}; expected a dtype of {', '.join(DTYPES)}")
            if p.dims is None:
                self._unclear(f"{name!r} has no declared shape")
            if not p.dims:
                self._unclear(f"{name!r} has no batch axis; is it a constant, or is it {_NO_BATCH_AXIS}?")
        for name, p in self._inputs.items():
            if p.dtype in ("int32", "int64") and len(p.dims or ()) == 1 and "len" in name.lower():
                self._unclear(f"input {name!r} may be each row's number of timesteps (`lengths`), or not")

    def _fixed(self) -> Signature:
        """Every size is given: a graph exported for one session; a run is one timestep."""
        for name, p in {**self._inputs, **self._outputs}.items():
            if (p.dims or ())[:1] != (1,) and not (name in self._outputs and 0 in p.dynamic_axes):
                self._unclear(
                    f"all sizes are fixed, and the first of {name!r}, {p}, is not a batch axis of 1; "
                    f"is the model {_NO_BATCH_AXIS}?"
                )
        for i, _ in self._pairs:
            if 1 not in (self._border.inputs[i].dims or ()):
                self._unclear(
                    f"all sizes are fixed, and state {i!r}, {self._border.inputs[i]}, has no axis of 1; "
                    f"is the model {_NO_BATCH_AXIS}?"
                )
        return Signature(
            inputs=tuple(self._tensor(p, ("batch",)) for p in self._inputs.values()),
            outputs=tuple(self._tensor(p, ("batch",)) for p in self._outputs.values()),
            # Which of several axes of size 1 is the batch's makes no difference.
            states=tuple(
                self._state(i, o, (self._border.inputs[i].dims or ()).index(1)) for i, o in self._pairs
            ),
            max_batch=1,
            layout="batch",
        )

    def _batch_symbol(self) -> Dim:
        """The symbol that every state has; without states the first one of the inputs."""
        symbols: dict[Dim, str] = {}
        for i, _ in self._pairs:
            p = self._border.inputs[i]
            if len(p.dynamic_axes) != 1:
                shared = {p.dims[0] for p in self._inputs.values() if p.dims}
                open_ = [f"axis {a} ({(p.dims or ())[a] or 'unnamed'})" for a in p.dynamic_axes]
                hint = f"; is it {_NO_BATCH_AXIS}?"
                if open_:
                    hint = f"; {sorted(map(str, shared))} is the inputs' first"
                self._unclear(
                    f"state {i!r}, {p}: one size must be open, the batch; open are {open_ or 'none'}{hint}"
                )
            symbols[(p.dims or ())[p.dynamic_axes[0]]] = i
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
        """The one layout of all inputs, and the symbol of its time axis."""
        layouts: dict[Layout, str] = {}
        times: set[Dim] = set()
        for name, p in self._inputs.items():
            dims = p.dims or ()
            layout: Layout
            if p.dynamic_axes == (0,) and dims[0] == batch:
                layout = "batch"
            elif p.dynamic_axes == (0, 1) and dims[0] == batch and dims[1] != batch:
                layout = "batch_time"
                times.add(dims[1])
            elif p.dynamic_axes == (0, 1) and dims[1] == batch and dims[0] != batch:
                layout = "time_batch"
                times.add(dims[0])
            else:
                self._unclear(
                    f"input {name!r}, {p}: expected [{batch}, …], [{batch}, time, …] or [time, {batch}, …] "
                    "with all other sizes fixed"
                )
            layouts[layout] = name
        if len(layouts) > 1 or len(times) > 1:
            self._unclear(f"the inputs differ in layout or in time axis: {layouts}")
        return next(iter(layouts)), next(iter(times), None)

    def _check_output(self, p: GraphValue, lead: tuple[str, ...], time: Dim) -> None:
        dims = p.dims or ()
        wanted = ", ".join([*lead, "…"])
        if len(dims) < len(lead) or isinstance(dims[lead.index("batch")], int):
            self._unclear(f"output {p.name!r}: expected [{wanted}], the graph has {p}")
        if "time" in lead and dims[lead.index("time")] not in (time, None):
            self._unclear(
                f"output {p.name!r}: expected [{wanted}] with the inputs' time axis {time}, found {p}"
            )

    def _tensor(self, p: GraphValue, lead: tuple[str, ...]) -> Tensor:
        return Tensor(name=p.name, dtype=p.dtype, step_shape=self._sizes(p, range(len(lead))))  # type: ignore[arg-type]

    def _state(self, i: str, o: str, axis: int) -> State:
        p = self._border.inputs[i]
        shape = self._sizes(p, range(axis, axis + 1))
        return State(input=i, output=o, dtype=p.dtype, shape=shape, batch_axis=axis)  # type: ignore[arg-type]

    def _sizes(self, p: GraphValue, without: range) -> tuple[int, ...]:
        sizes: list[int] = []
        for axis, dim in enumerate(p.dims or ()):
            if axis in without:
                continue
            if not isinstance(dim, int):
                self._unclear(f"{p.name!r}, {p}: the size of axis {axis} ({dim or 'unnamed'}) is open")
            sizes.append(dim)
        return tuple(sizes)

    def _template(self) -> str:
        return sidecar_template(self._border, self._pairs)


def _is_batch(dim: Dim) -> bool:
    return isinstance(dim, str) and dim.lower() in _BATCH_NAMES
