"""Drafts a sidecar for a graph whose signature cannot be read from the graph alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from streamcell.card import Layout
from streamcell.service.graph.interface import Dim, GraphInterface, GraphValue, axes_before_step

from .sidecar import quoted
from .state_names import likely_states, may_be_lengths, possible_states, state_pairs


def sidecar_template(
    interface: GraphInterface, whole: GraphInterface | None = None, unbatched: Collection[str] = ()
) -> str:
    """A sidecar in TOML with everything that the graph's interface shows, and a `?` for each value to fill in.

    Args:
        interface: as declared in the file.
        whole: the same with added batch axes.
        unbatched: names without a batch axis.
    """
    return _Template(interface, whole or interface, unbatched).text()


def likely_pairs(interface: GraphInterface) -> dict[str, str]:
    """Input → output of all likely states, by name or by shape, as in the draft of the sidecar."""
    named, likely = _pairs(interface)
    return named | likely


class _Template:
    def __init__(
        self, declared: GraphInterface, interface: GraphInterface, unbatched: Collection[str]
    ) -> None:
        self._declared = {**declared.inputs, **declared.outputs}
        self._interface = interface
        self._unbatched = unbatched
        self._no_batch = unbatched and all(name in unbatched for name in self._declared)
        named, likely = _pairs(interface)
        self._states = named | likely
        self._likely = likely.keys()
        inputs = {n: p for n, p in interface.inputs.items() if n not in self._states}
        self._outputs = {n: p for n, p in interface.outputs.items() if n not in self._states.values()}
        self._scalars = {n: p for n, p in inputs.items() if p.dims == ()}
        self._inputs = {n: p for n, p in inputs.items() if p.dims != ()}
        self._batch = self._batch_symbol()
        self._layout = self._likely_layout()
        self._lead = axes_before_step(self._layout)

    def text(self) -> str:
        has_time = self._layout != "batch"
        lengths = [n for n, p in self._inputs.items() if has_time and may_be_lengths(p)]
        inputs = [p for n, p in self._inputs.items() if n not in lengths]
        lines = [
            f'layout = "{self._layout}"  # "batch": [batch, *step_shape]; "batch_time": [batch, time, *step_shape]; '
            '"time_batch"'
        ]
        if self._no_batch:
            lines.append('batch_axis = "none"')
        lines += [f"lengths = {quoted(name)}" for name in lengths[:1]]
        outputs, left_out, notes = self._whole_outputs()
        lines += [*notes, "inputs = [", *map(self._tensor, inputs), "]"]
        lines += ["outputs = [", *map(self._tensor, outputs), *left_out, "]"]
        if self._scalars:
            lines += ["", "[constants]"]
            lines += [f"{quoted(name)} = ?  # {self._told(port)}" for name, port in self._scalars.items()]
        for name, output in self._states.items():
            lines += [
                "",
                "[[states]]",
                *self._state(self._interface.inputs[name], self._interface.outputs[output]),
            ]
        return "\n".join([*lines, *([] if self._states else self._no_states())]) + "\n"

    def _told(self, port: GraphValue) -> str:
        """Dtype and shape for a comment, which ends with its line."""
        return "".join(c if c.isprintable() else "?" for c in str(self._declared[port.name]))

    def _no_states(self) -> list[str]:
        """Comments that show how to describe a state; an output with an input's shape may be both."""
        i, o = next(possible_states(self._inputs, self._outputs), ("…", "…"))
        begin = "# for each state, if any; a state's output can also be an output:"
        return ["", begin, "# [[states]]", f"# input = {quoted(i)}", f"# output = {quoted(o)}"]

    def _batch_symbol(self) -> Dim:
        """The likely name of the batch axis: the states' one open size, else the inputs' first; or its one size."""
        axes = [
            p.dims[p.dynamic_axes[0]] for p in self._state_inputs() if p.dims and len(p.dynamic_axes) == 1
        ]
        first = [p.dims[0] for p in self._inputs.values() if p.dims]
        return Counter(axes or first).most_common(1)[0][0] if axes or first else None

    def _state_inputs(self) -> list[GraphValue]:
        return [self._interface.inputs[name] for name in self._states]

    def _likely_layout(self) -> Layout:
        """A layout with a time axis if an input and an output have the batch's symbol and one other before the rest."""
        times: list[set[tuple[Dim, ...]]] = []
        for ports in (self._inputs, self._outputs):
            leads = [p.dims[:2] for p in ports.values() if p.dims and p.dynamic_axes == (0, 1)]
            times.append({lead for lead in leads if lead[0] != lead[1]})
        leads = [lead for lead in times[0] & times[1] if self._batch in lead]
        if len(leads) != 1:
            return "batch"
        return "batch_time" if leads[0][0] == self._batch else "time_batch"

    def _fixed(self, port: GraphValue, axis: int) -> int:
        """The fixed size of `port` at the batch or the time axis; 0: it follows the batch or the time."""
        size = port.dims[axis] if port.dims and axis < len(port.dims) else None
        return size if isinstance(size, int) and size != self._batch else 0

    def _whole_outputs(self) -> tuple[list[GraphValue], list[str], list[str]]:
        """The outputs to propose, lines about those left out, and lines that go before the tables."""
        left_out = {}
        for name, port in self._outputs.items():
            if port.dims is not None and len(port.dims) < len(self._lead):
                left_out[name] = f"expected [{', '.join([*self._lead, '…'])}]"
            for axis, which in enumerate(self._lead):
                if size := self._fixed(port, axis):
                    left_out[name] = f"its {which} axis is {size} for any {which}"
        axis = self._lead.index("batch")
        fixed = {self._fixed(port, axis) for port in self._outputs.values()}
        if len(left_out) == len(self._outputs) and fixed == {1}:
            return (
                list(self._outputs.values()),
                [],
                ["max_batch = 1  # the outputs have one row for any batch"],
            )
        lines = [
            f"  # left out: {quoted(n)}, {self._told(self._outputs[n])}: {why}" for n, why in left_out.items()
        ]
        kept = [port for name, port in self._outputs.items() if name not in left_out]
        return kept, lines if kept else [*lines, "  ?"], self._one_row()

    def _one_row(self) -> list[str]:
        """The line that makes one session run at a time, if a state's output has one row for any batch."""
        for name, output in self._states.items():
            axis = _batch_axis(self._interface.inputs[name], self._batch)
            if axis is not None and self._fixed(self._interface.outputs[output], axis) == 1:
                return [f"max_batch = 1  # state output {quoted(output)} has one row for any batch"]
        return []

    def _tensor(self, port: GraphValue) -> str:
        # After the batch and the time axis, an open size must be filled in.
        steps = None if port.dims is None else port.dims[len(self._lead) :]
        if steps is not None and all(isinstance(size, int) for size in steps):
            return f"  {quoted(port.name)},  # {self._told(port)}"
        return f"  {{ name = {quoted(port.name)}, step_shape = {_sizes(steps)} }},  # {self._told(port)}"

    def _state(self, port: GraphValue, output: GraphValue) -> list[str]:
        axis = _batch_axis(port, self._batch)
        likely = "; likely a state, by its shape alone: if it is none, name both above"
        lines = [
            f"input = {quoted(port.name)}  # {self._told(port)}{likely if port.name in self._likely else ''}",
            f"output = {quoted(output.name)}  # {self._told(output)}",
        ]
        if port.name not in self._unbatched:
            lines.append('batch_axis = ?  # or "none"' if axis is None else f"batch_axis = {axis}")
        elif not self._no_batch:
            lines.append('batch_axis = "none"')
        shape = None if port.dims is None or axis is None else [*port.dims[:axis], *port.dims[axis + 1 :]]
        if port.dims is None or len(port.dynamic_axes) > 1:
            lines.append(f"shape = {_sizes(shape)}  # of one session, without the batch axis")
        return [*lines, "initial = 0.0"]


def _pairs(interface: GraphInterface) -> tuple[dict[str, str], dict[str, str]]:
    """Input → output of states by their names, and of likely states by their shapes."""
    named = dict(reversed(state_pairs(interface.inputs, interface.outputs)))
    if len(named) == len(interface.inputs) or len(set(named.values())) == len(interface.outputs):
        # There must be an input and an output besides: the reader decides which.
        return {}, {}
    inputs = {n: p for n, p in interface.inputs.items() if n not in named}
    outputs = {n: p for n, p in interface.outputs.items() if n not in named.values()}
    return named, dict(likely_states(inputs, outputs))


def _batch_axis(port: GraphValue, batch: Dim) -> int | None:
    """The index of a state's batch axis: its open size, or the one with the batch's name or size."""
    if len(port.dynamic_axes) == 1:
        return port.dynamic_axes[0]
    return port.dims.index(batch) if port.dims and batch in port.dims else None


def _sizes(sizes: Sequence[Dim] | None) -> str:
    """A TOML array of sizes with `?` for each that is open."""
    if sizes is None:
        return "[?]"
    return f"[{', '.join(str(size) if isinstance(size, int) else '?' for size in sizes)}]"
