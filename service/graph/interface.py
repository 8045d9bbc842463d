"""A graph's interface as the file declares it, and whether a signature describes it."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx

from streamcell.card import DTYPES, Layout, Signature, State, Tensor
from streamcell.card.graphs.edit import initializer_names
from streamcell.service.errors import cut, shown
from streamcell.service.load_errors import Problems, SignatureError

# One declared dimension: a size, a symbol's name, or None if the file declares nothing.
Dim = int | str | None

# Of inputs that must be fed, of outputs; of each one's name and axes. Reading a signature compares inputs with outputs.
MOST_PORTS, MOST_NAME, _MOST_AXES = 1024, 1024, 64


@dataclass(frozen=True)
class GraphValue:
    """One graph input or output as declared.

    Attributes:
        dtype: numpy's name; None where the file gives none or it is not a tensor.
        dims: one entry an axis; None where the rank is unknown.
    """

    name: str
    dtype: str | None
    dims: tuple[Dim, ...] | None

    def __str__(self) -> str:
        dims = "?" if self.dims is None else ", ".join("?" if d is None else cut(d) for d in self.dims)
        return f"{self.dtype or 'unknown'}[{dims}]"

    @property
    def dynamic_axes(self) -> tuple[int, ...]:
        """Axes whose size the file leaves open."""
        return tuple(axis for axis, d in enumerate(self.dims or ()) if not isinstance(d, int))

    def fits(self, other: GraphValue) -> bool:
        """Whether a tensor of the one's dtype and shape can be one of the other's."""
        if self.dtype != other.dtype:
            return False
        if self.dims is None or other.dims is None:
            return True
        return len(self.dims) == len(other.dims) and all(
            p == q or not isinstance(p, int) or not isinstance(q, int)
            for p, q in zip(self.dims, other.dims, strict=True)
        )

    def with_axis(self, axis: int, dim: Dim) -> GraphValue:
        """The same with one more axis, `axis`, of size `dim`."""
        if self.dims is None:
            return self
        return GraphValue(self.name, self.dtype, (*self.dims[:axis], dim, *self.dims[axis:]))


@dataclass(frozen=True)
class GraphInterface:
    """What a graph takes and gives.

    Attributes:
        inputs: the inputs that must be fed.
        defaults: inputs with an initializer; they need not be fed.
        outputs: the outputs.
    """

    inputs: dict[str, GraphValue]
    defaults: dict[str, GraphValue]
    outputs: dict[str, GraphValue]

    @property
    def all_inputs(self) -> dict[str, GraphValue]:
        """Inputs with and without a default."""
        return {**self.inputs, **self.defaults}

    def with_axes(self, axes: Mapping[str, int], dim: Dim) -> GraphInterface:
        """The same with one more axis of size `dim` in each tensor of `axes`, at that place."""

        def wider(ports: dict[str, GraphValue]) -> dict[str, GraphValue]:
            return {
                name: port.with_axis(axes[name], dim) if name in axes else port
                for name, port in ports.items()
            }

        return GraphInterface(wider(self.inputs), wider(self.defaults), wider(self.outputs))

    def __str__(self) -> str:
        return self._text

    @cached_property
    def _text(self) -> str:
        # Made once: each of many problems may end with it.
        lines = []
        for title, ports in (("inputs", self.inputs), ("default", self.defaults), ("outputs", self.outputs)):
            if ports:
                lines.append(f"  {title}:")
                lines += [f"    {name}: {port}" for name, port in ports.items()]
        return "\n".join(lines)


def read_interface(graph: onnx.GraphProto) -> GraphInterface:
    """The interface of `graph`, as declared.

    Raises:
        SignatureError: too many inputs or outputs, or one with too many axes or too long a name.
    """
    initialized = initializer_names(graph)
    ports = [_port(value) for value in graph.input]
    fed = [p for p in ports if p.name not in initialized]
    outputs = [_port(value) for value in graph.output]
    if max(len(fed), len(outputs)) > MOST_PORTS:
        raise SignatureError(
            f"a graph has at most {MOST_PORTS} inputs and as many outputs, this one has {len(fed)} and {len(outputs)}"
        )
    for p in (*ports, *outputs):
        if len(p.name) > MOST_NAME or len(p.dims or ()) > _MOST_AXES:
            raise SignatureError(
                f"{shown(p.name)}: a name has at most {MOST_NAME} characters and a tensor at most {_MOST_AXES} axes"
            )
    return GraphInterface(
        inputs={p.name: p for p in fed},
        defaults={p.name: p for p in ports if p.name in initialized},
        outputs={p.name: p for p in outputs},
    )


def axes_before_step(layout: Layout) -> tuple[str, ...]:
    """The axes before the step's own in a graph's inputs and outputs."""
    return {"batch_time": ("batch", "time"), "time_batch": ("time", "batch"), "batch": ("batch",)}[layout]


def check_signature(
    interface: GraphInterface, signature: Signature, constants: Mapping[str, np.ndarray]
) -> int | None:
    """Hold `signature` against the graph's own declaration.

    Returns:
        The number of rows that every run must have, if `signature.max_batch` says that the graph fixes it
        and the graph does; else None.

    Raises:
        SignatureError: names that the graph lacks, inputs that nothing feeds, dtypes, ranks or sizes that
            contradict, a time axis of fixed size; all of them at once.
    """
    given = interface.all_inputs
    lead = axes_before_step(signature.layout)
    rows: dict[str, int] = {}
    problems = Problems()
    for tensor in signature.inputs:
        with problems.noted():
            _check_tensor(_find(given, tensor.name, "input", interface), tensor, lead, "input", rows)
    for tensor in signature.outputs:
        with problems.noted():
            _check_tensor(
                _find(interface.outputs, tensor.name, "output", interface), tensor, lead, "output", {}
            )
    for state in signature.states:
        with problems.noted():
            _check_state(_find(given, state.input, "state input", interface), state, rows)
        with problems.noted():
            _check_state(_find(interface.outputs, state.output, "state output", interface), state, {})
    if signature.lengths is not None:
        with problems.noted():
            _check_lengths(_find(given, signature.lengths, "`lengths` input", interface), rows)
    for name, value in constants.items():
        with problems.noted():
            _check_constant(_find(given, name, "constant", interface), value)
    with problems.noted():
        _check_all_fed(interface, signature, constants)
    if problems:
        raise SignatureError(str(problems), problems=problems)
    return _fixed_rows(rows, signature.max_batch)


def _check_lengths(port: GraphValue, rows: dict[str, int]) -> None:
    if port.dtype not in ("int32", "int64") or (port.dims is not None and len(port.dims) != 1):
        raise SignatureError(
            f"lengths {port.name!r} must be int32[batch] or int64[batch], the graph has {port}"
        )
    _check_dims(port, ["batch"], "lengths", rows)


def _find(ports: Mapping[str, GraphValue], name: str, what: str, interface: GraphInterface) -> GraphValue:
    if name in ports:
        return ports[name]
    raise SignatureError(f"the graph has no {what} {name!r}; it has\n{interface}")


def _check_dtype(port: GraphValue, dtype: str, what: str) -> None:
    if port.dtype != dtype:
        raise SignatureError(f"{what} {port.name!r}: expected {dtype}, the graph has {port}")


def _check_tensor(
    port: GraphValue, tensor: Tensor, lead: tuple[str, ...], what: str, rows: dict[str, int]
) -> None:
    _check_dtype(port, tensor.dtype, what)
    _check_dims(port, [*lead, *tensor.step_shape], what, rows)
    if what == "input" and port.dims is not None and "time" in lead:
        size = port.dims[lead.index("time")]
        if isinstance(size, int):
            raise SignatureError(
                f'input {port.name!r}: the graph fixes the time axis at {size}: {port}; use layout "batch" and '
                "count that axis into step_shape"
            )


def _check_state(port: GraphValue, state: State, rows: dict[str, int]) -> None:
    expected: list[int | str] = [*state.shape]
    expected.insert(state.batch_axis, "batch")
    _check_dtype(port, state.dtype, "state")
    _check_dims(port, expected, "state", rows)


def _check_dims(port: GraphValue, expected: list[int | str], what: str, rows: dict[str, int]) -> None:
    """Compare sizes; the size of a fixed batch axis is noted in `rows`."""
    if port.dims is None:
        return
    wanted = ", ".join(map(str, expected))
    if len(port.dims) != len(expected):
        raise SignatureError(f"{what} {port.name!r}: expected [{wanted}], the graph has {port}")
    for axis, (dim, size) in enumerate(zip(port.dims, expected, strict=True)):
        if not isinstance(dim, int):
            continue
        if isinstance(size, int) and dim != size:
            raise SignatureError(
                f"{what} {port.name!r}, axis {axis}: expected [{wanted}], the graph has {port}"
            )
        if size == "batch":
            rows[port.name] = dim


def _check_constant(port: GraphValue, value: np.ndarray) -> None:
    _check_dtype(port, value.dtype.name, "constant")
    if port.dims is not None and (
        len(port.dims) != value.ndim
        or any(isinstance(d, int) and d != n for d, n in zip(port.dims, value.shape, strict=True))
    ):
        raise SignatureError(
            f"constant {port.name!r}: the graph has {port}, the value's shape is {value.shape}"
        )


def _check_all_fed(
    interface: GraphInterface, signature: Signature, constants: Mapping[str, np.ndarray]
) -> None:
    fed = {t.name for t in signature.inputs} | {s.input for s in signature.states} | {signature.lengths}
    if both := sorted(name for name in constants if name in fed):
        raise SignatureError(f"named as a constant and as an input or state too: {', '.join(both)}")
    if hungry := unfed(interface, {*fed, *constants}):
        raise SignatureError(hungry)


def unfed(interface: GraphInterface, fed: Container[str | None]) -> str:
    """The problem if only `fed` are fed: the names of required inputs that are not; empty if there are none."""
    hungry = [f"{name}: {port}" for name, port in interface.inputs.items() if name not in fed]
    if not hungry:
        return ""
    return (
        f"nothing feeds these inputs: {'; '.join(hungry)}; each must be an input (of each message, with "
        '`at = "open"` of the session, or with `from` of the server), a state, `lengths` or a constant'
    )


def _fixed_rows(rows: Mapping[str, int], max_batch: int | None) -> int | None:
    if max_batch is None or not rows:
        return None
    if len(sizes := set(rows.values())) > 1 or max_batch not in sizes:
        declared = ", ".join(f"{name!r} {size}" for name, size in rows.items())
        raise SignatureError(
            f"max_batch is {max_batch}, the graph fixes the batch axis elsewhere: {declared}"
        )
    return max_batch


def _port(value: onnx.ValueInfoProto) -> GraphValue:
    if not value.type.HasField("tensor_type"):
        return GraphValue(value.name, None, None)
    tensor = value.type.tensor_type
    dims: Iterable[Dim] | None = None
    if tensor.HasField("shape"):
        dims = [_dim(d) for d in tensor.shape.dim]
    return GraphValue(value.name, _dtype(tensor.elem_type), None if dims is None else tuple(dims))


def _dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    kind = dim.WhichOneof("value")
    if kind == "dim_value":
        # Some exporters write 0 or -1 for "unknown".
        return dim.dim_value if dim.dim_value > 0 else None
    return dim.dim_param or None


def _dtype(elem_type: int) -> str | None:
    if elem_type == onnx.TensorProto.UNDEFINED:
        return None
    name = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(elem_type)).name
    # numpy has substitutes for bfloat16, float8 and strings; ONNX's names are clearer.
    return (
        name
        if name in DTYPES and _is_plain(elem_type, name)
        else onnx.TensorProto.DataType.Name(elem_type).lower()
    )


def _is_plain(elem_type: int, name: str) -> bool:
    return onnx.helper.np_dtype_to_tensor_dtype(np.dtype(name)) == elem_type
