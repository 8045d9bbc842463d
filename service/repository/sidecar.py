"""The sidecar: a TOML file beside an .onnx from elsewhere that says what its inputs, outputs and states are."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from streamcell.card import DTYPES, Generation, Layout, Signature, State, Tensor, check_generation
from streamcell.card.signature import Dimension, Dtype
from streamcell.service.graph.interface import GraphInterface, GraphValue, axes_before_step
from streamcell.service.load_errors import SidecarError

# Of the whole file.
MOST_BYTES = 1 << 20


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SidecarTensor(_Strict):
    """One input or output. What is left out is read from the graph."""

    name: str
    dtype: Dtype | None = None
    # The shape of one session's single timestep; needed where the graph leaves a size open.
    step_shape: tuple[Dimension, ...] | None = None
    distribution: Literal["bernoulli_logits", "categorical_logits", "real"] | None = None
    # The lowest and the highest index of an input that indexes a table, or "any" to check none; left out: what the
    # graph says.
    index_range: tuple[int, int] | Literal["any"] | None = None


class SidecarState(_Strict):
    """One state: the graph's input `input` takes what its output `output` gave."""

    input: str
    output: str
    # Where the batch axis stands in the graph's tensor; needed where more or less than one size is open.
    batch_axis: Annotated[int, Field(ge=0)] | None = None
    # Without the batch axis; needed where the graph leaves more sizes open than the batch.
    shape: tuple[Dimension, ...] | None = None
    dtype: Dtype | None = None
    initial: float | tuple[float, ...] = 0.0


def _named(value: object) -> object:
    return (
        [{"name": item} if isinstance(item, str) else item for item in value]
        if isinstance(value, list)
        else value
    )


Tensors = Annotated[tuple[SidecarTensor, ...], BeforeValidator(_named), Field(min_length=1)]
Number = bool | int | float


class Sidecar(_Strict):
    """The file's content."""

    inputs: Tensors
    outputs: Tensors
    states: tuple[SidecarState, ...] = ()
    layout: Layout | None = None
    # Another way to give the layout: where the time axis stands, or that there is none.
    time_axis: Literal[0, 1, "none"] | None = None
    # Graph inputs that are the same in every run: a number, or nested lists of numbers.
    constants: dict[str, Number | list[Any]] = Field(default_factory=dict)
    lengths: str | None = None
    # "any": the batch size that the graph declares is only that of the example it was exported with.
    max_batch: Annotated[int, Field(ge=1)] | Literal["any"] | None = None
    # How an output becomes the next input.
    generation: Generation | None = None
    name: str | None = None
    # Whether this file stands in the place of the card that the model carries.
    override: bool = False

    @model_validator(mode="after")
    def _one_layout(self) -> Sidecar:
        if (self.layout is None) == (self.time_axis is None):
            raise ValueError(
                'give either layout ("batch", "batch_time", "time_batch") or time_axis (0, 1, "none")'
            )
        return self

    @property
    def tensor_layout(self) -> Layout:
        """The layout, however it was given."""
        if self.layout is not None:
            return self.layout
        return {0: "time_batch", 1: "batch_time"}.get(self.time_axis, "batch")  # type: ignore[return-value, arg-type]


def read_sidecar(path: Path) -> Sidecar:
    """Read and validate a sidecar.

    Raises:
        SidecarError: it is no TOML, or a key is missing, unknown or has a wrong value; it names file and key.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise SidecarError(f"a sidecar has at most {MOST_BYTES} bytes, this one has more", path)
        data = tomllib.loads(text.decode())
    except RecursionError as error:
        raise SidecarError("not valid TOML: it is nested too deeply", path) from error
    except ValueError as error:
        raise SidecarError(f"not valid TOML: {error}", path) from error
    except OSError as error:
        raise SidecarError(f"cannot be read: {error.strerror}", path) from error
    try:
        return Sidecar.model_validate(data)
    except ValidationError as error:
        raise SidecarError("; ".join(_explain(e) for e in error.errors(include_url=False)), path) from error


def resolve(sidecar: Sidecar, border: GraphInterface) -> tuple[Signature, dict[str, npt.NDArray[Any]]]:
    """The signature and the constants that `sidecar` gives to a graph with this border.

    Raises:
        SidecarError: a name that the graph lacks, a size that neither says, a constant of the wrong kind.
    """
    lead = axes_before_step(sidecar.tensor_layout)
    constants = {
        name: _constant(_port(border.all_inputs, name, f"constants.{name}", border), value)
        for name, value in sidecar.constants.items()
    }
    inputs, outputs = (
        tuple(_tensor(_port(ports, t.name, f"{key}: {t.name!r}", border), t, lead, key) for t in tensors)
        for key, ports, tensors in (
            ("inputs", border.all_inputs, sidecar.inputs),
            ("outputs", border.outputs, sidecar.outputs),
        )
    )
    states = tuple(_state(s, border) for s in sidecar.states)
    try:
        signature = Signature(
            inputs=inputs,
            outputs=outputs,
            states=states,
            layout=sidecar.tensor_layout,
            lengths=sidecar.lengths,
            max_batch=_max_batch(sidecar, border, lead),
        )
    except ValidationError as error:
        raise SidecarError("; ".join(_explain(e) for e in error.errors(include_url=False))) from error
    if sidecar.generation is not None:
        try:
            check_generation(signature, sidecar.generation)
        except ValueError as error:
            raise SidecarError(str(error)) from error
    return signature, constants


def _port(ports: dict[str, GraphValue], name: str, key: str, border: GraphInterface) -> GraphValue:
    if name in ports:
        return ports[name]
    near = difflib.get_close_matches(name, ports, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise SidecarError(f"{key}: the graph has no such name{hint}; it has\n{border}")


def _dtype(port: GraphValue, given: Dtype | None, key: str) -> Dtype:
    dtype = given or port.dtype
    if dtype not in DTYPES:
        raise SidecarError(f"{key}: dtype {dtype or 'unknown'}; expected one of {', '.join(DTYPES)}")
    return dtype  # type: ignore[return-value]


def _tensor(port: GraphValue, given: SidecarTensor, lead: tuple[str, ...], key: str) -> Tensor:
    where = f"{key}: {port.name!r}"
    shape: tuple[int, ...]
    if given.step_shape is not None:
        shape = given.step_shape
    elif port.dims is None:
        raise SidecarError(f"{where}: the graph gives no shape; say step_shape, the shape of one timestep")
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
        raise SidecarError("; ".join(_explain(e) for e in error.errors(include_url=False))) from error


def _sizes(port: GraphValue, axes: range | list[int], where: str, key: str) -> tuple[int, ...]:
    sizes: list[int] = []
    for axis in axes:
        dim = (port.dims or ())[axis]
        if not isinstance(dim, int):
            raise SidecarError(
                f"{where}: the graph leaves axis {axis} ({dim or 'unnamed'}) of {port} open; say {key}"
            )
        sizes.append(dim)
    return tuple(sizes)


def _state(given: SidecarState, border: GraphInterface) -> State:
    where = f"states: {given.input!r}"
    port = _port(border.all_inputs, given.input, where, border)
    _port(border.outputs, given.output, f"{where}: output {given.output!r}", border)
    axis, shape = given.batch_axis, given.shape
    if axis is None:
        if port.dims is None or len(port.dynamic_axes) != 1:
            raise SidecarError(f"{where}: say batch_axis; the graph has {port}")
        axis = port.dynamic_axes[0]
    if shape is None:
        if port.dims is None or axis >= len(port.dims):
            raise SidecarError(
                f"{where}: batch_axis {axis} is outside {port}" if port.dims else f"{where}: say shape"
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
        raise SidecarError("; ".join(_explain(e) for e in error.errors(include_url=False))) from error


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


def _max_batch(sidecar: Sidecar, border: GraphInterface, lead: tuple[str, ...]) -> int | None:
    """What the file says; else the batch size that the graph declares, if it does."""
    if sidecar.max_batch is not None:
        return None if sidecar.max_batch == "any" else sidecar.max_batch
    sizes = []
    for t in sidecar.inputs:
        dims = border.all_inputs[t.name].dims
        if dims is not None and len(dims) >= len(lead) and isinstance(size := dims[lead.index("batch")], int):
            sizes.append(size)
    return min(sizes, default=None)


def _explain(error: Any) -> str:
    """One line from one of pydantic's errors: the key, what is expected, what came."""
    key = ".".join(
        str(part) for part in error["loc"] if part not in ("tuple[float, ...]", "float", "constrained-int")
    )
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        parts = (Sidecar, SidecarTensor, SidecarState, Generation)
        known = {key for part in parts for key in part.model_fields}
        near = difflib.get_close_matches(str(error["loc"][-1]), sorted(known), 1)
        return f"{key}: unknown key" + (f"; did you mean {near[0]!r}?" if near else "")
    came = error.get("input")
    shown = "" if error["type"] in ("missing", "value_error") else f", got {came!r}"
    return f"{key}: {message}{shown}" if key else message
