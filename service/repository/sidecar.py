"""The sidecar: a TOML file beside an .onnx file that describes its inputs, outputs and states.

Its keys stand here, a class a table. `sidecar_fit` makes a signature of them and a graph.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from streamcell.card import Generation, Layout
from streamcell.card.signature import Dimension, Dtype
from streamcell.service.graph.interface import MOST_PORTS
from streamcell.service.load_errors import MOST_PROBLEMS, Problems, SidecarError

from .signed import SignedFiles

# Of the whole file.
MOST_BYTES = 1 << 20
# Of one pipeline.
MOST_STAGES = 16
# Of one dotted key. tomllib keeps every beginning of a key, so its memory grows with the square of their number.
MOST_PARTS = 64
_PART = rb"""(?:[\w-]++|"(?:[^"\\\n]|\\.)*+"?|'[^'\n]*+'?)"""
_KEY = re.compile(_PART + rb"(?:[ \t]*+\.[ \t]*+" + _PART + rb")*+")
# Characters of a name that is compared with others: the time grows with the square of their number.
_MOST_LIKE = 128
_NO_LAYOUT = 'give either layout ("batch", "batch_time", "time_batch") or time_axis (0, 1, "none")'


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SidecarTensor(_Strict):
    """One input or output. Omitted values are read from the graph."""

    name: str
    dtype: Dtype | None = None
    # The shape of one timestep of one session; required if the graph leaves a size open.
    step_shape: tuple[Dimension, ...] | None = None
    # "none": it belongs to one session, and each run takes one session.
    batch_axis: Literal["none"] | None = None
    distribution: Literal["bernoulli_logits", "categorical_logits", "real"] | None = None
    # The lowest and the highest index of an input that indexes a table, or "any" for no check; default: the graph's
    # range.
    index_range: tuple[int, int] | Literal["any"] | None = None


class SidecarInput(SidecarTensor):
    """An input. Inputs that clients do not send in messages name the source of their values."""

    # "open": a client sends it once, when it opens its session.
    at: Literal["open"] | None = None
    # The value of an input at the opening if a client sends none.
    default: float | tuple[float, ...] | None = None
    # Fed by the server: is it the session's first timestep, the number of earlier ones, the number of the run's.
    from_: Annotated[Literal["first_step", "step_index", "lengths"] | None, Field(alias="from")] = None
    # The number of earlier elements that precede the input: timesteps, or elements of the step's axis.
    context: Annotated[int, Field(ge=1)] | None = None
    context_axis: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> SidecarInput:
        if self.context_axis is not None and self.context is None:
            raise ValueError("context_axis needs context")
        if self.default is not None and self.at is None:
            raise ValueError('default needs at = "open"')
        if self.context is not None and self.at is not None:
            raise ValueError('an input with at = "open" has no context')
        if self.from_ is not None and (said := self.model_fields_set - {"name", "from_"}):
            raise ValueError(f"the server feeds it by `from`; leave out {', '.join(sorted(said))}")
        return self


class SidecarState(_Strict):
    """One state: the graph's input `input` gets the previous value of its output `output`."""

    input: str
    output: str
    # The index of the batch axis in the graph's tensor, or "none"; required unless exactly one size is open.
    batch_axis: Annotated[int, Field(ge=0)] | Literal["none"] | None = None
    # Without the batch axis; required if the graph leaves other sizes open than the batch.
    shape: tuple[Dimension, ...] | None = None
    dtype: Dtype | None = None
    initial: float | tuple[float, ...] = 0.0


class Stage(_Strict):
    """One file of a pipeline."""

    # Beside the TOML file or below it.
    file: Annotated[str, Field(min_length=1)]
    # The prefix of its values, `name.value`; default: the file's name.
    name: str | None = None
    # The sources of some of its inputs: "stage.output", or the name of an input of the pipeline.
    wires: dict[str, Annotated[str, Field(min_length=1)]] = Field(default_factory=dict)

    @property
    def label(self) -> str:
        """The prefix of its values' names."""
        return self.name if self.name is not None else PurePath(self.file).stem


def _named(value: object) -> object:
    return (
        [{"name": item} if isinstance(item, str) else item for item in value]
        if isinstance(value, list)
        else value
    )


Inputs = Annotated[
    tuple[SidecarInput, ...], BeforeValidator(_named), Field(min_length=1, max_length=MOST_PORTS)
]
Outputs = Annotated[
    tuple[SidecarTensor, ...], BeforeValidator(_named), Field(min_length=1, max_length=MOST_PORTS)
]
Number = bool | int | float


class Sidecar(_Strict):
    """The file's content."""

    inputs: Inputs
    outputs: Outputs
    states: Annotated[tuple[SidecarState, ...], Field(max_length=MOST_PORTS)] = ()
    # The files that are merged into one graph, to which everything else in this file refers.
    stages: Annotated[tuple[Stage, ...], Field(max_length=MOST_STAGES)] = ()
    layout: Layout | None = None
    # Another way to give the layout: the index of the time axis, or "none".
    time_axis: Literal[0, 1, "none"] | None = None
    # "none": of all inputs, outputs and states without a value of their own.
    batch_axis: Literal["none"] | None = None
    # Graph inputs that are the same in every run: a number, or nested lists of numbers.
    constants: dict[str, Number | list[Any]] = Field(default_factory=dict)
    lengths: str | None = None
    # "any": the graph's declared batch size is only that of the example used for its export.
    max_batch: Annotated[int, Field(ge=1)] | Literal["any"] | None = None
    # How an output becomes the next input.
    generation: Generation | None = None
    name: str | None = None
    # True if this file replaces the model's card.
    override: bool = False

    @model_validator(mode="after")
    def _one_layout(self) -> Sidecar:
        if (self.layout is None) == (self.time_axis is None):
            raise ValueError(_NO_LAYOUT)
        if self.batch_axis is not None and self.time_axis == 1:
            raise ValueError("time_axis: without a batch axis the time axis is 0")
        return self

    @property
    def sent(self) -> tuple[SidecarInput, ...]:
        """The inputs that clients send in each message."""
        return tuple(each for each in self.inputs if each.from_ is None and each.at is None)

    def with_states(self, others: Iterable[SidecarState]) -> Sidecar:
        """The same with the states of `others` whose inputs it does not name."""
        named = {each.name for each in self.inputs} | {each.input for each in self.states} | {*self.constants}
        more = tuple(each for each in others if each.input not in named)
        return self.model_copy(update={"states": self.states + more})

    @property
    def tensor_layout(self) -> Layout:
        """The layout, from either key."""
        if self.layout is not None:
            return self.layout
        return {0: "time_batch", 1: "batch_time"}.get(self.time_axis, "batch")  # type: ignore[return-value, arg-type]


# The class of each table, by its key at the top of the file.
_TABLES: dict[str, type[BaseModel]] = {
    "inputs": SidecarInput,
    "outputs": SidecarTensor,
    "states": SidecarState,
    "stages": Stage,
    "generation": Generation,
}


def read_sidecar(path: Path) -> Sidecar:
    """Read and validate a sidecar.

    Raises:
        SidecarError: it is no TOML, or keys are missing, unknown or have wrong values; it names file and keys.
    """
    sidecar, problems = inspect_sidecar(path)
    if sidecar is None or problems:
        raise SidecarError(str(problems), path, problems)
    return sidecar


def inspect_sidecar(path: Path, signed: SignedFiles | None = None) -> tuple[Sidecar | None, Problems]:
    """A sidecar's content, None if it cannot be read at all, and all its problems; of a signed model as it was signed.

    Raises:
        SidecarError: it is no TOML.
        UntrustedModelError: it is not what was signed.
    """
    data = _read_toml(path, signed)
    problems = Problems()
    while True:
        try:
            return Sidecar.model_validate(data), problems
        except ValidationError as error:
            found = error.errors(include_url=False)
            for each in found[: MOST_PROBLEMS + 1]:
                problems.add(explain(each))
            if ("layout" in data) == ("time_axis" in data):
                problems.add(_NO_LAYOUT)
            unknown = [each["loc"] for each in found if each["type"] == "extra_forbidden"]
            if len(unknown) < len(found) or not all(_without(data, list(place)) for place in unknown):
                return None, problems


def stage_files(path: Path) -> list[str] | None:
    """The files that a TOML file names as stages of a pipeline; None if it names none.

    Raises:
        SidecarError: it is no TOML, but speaks of stages.
    """
    try:
        stages = _read_toml(path).get("stages")
    except SidecarError:
        with suppress(OSError), path.open("rb") as file:
            if b"[[stages]]" in file.read(MOST_BYTES):
                raise
        return None
    if stages is None:
        return None
    tables = [each for each in stages if isinstance(each, dict)] if isinstance(stages, list) else []
    names = [each.get("file") for each in tables]
    return [name for name in names if isinstance(name, str) and is_below(name)]


def is_below(file: str) -> bool:
    """True if `file` is in the folder of the file that names it, or below it."""
    path = PurePath(file)
    return bool(path.name) and "\0" not in file and not path.is_absolute() and ".." not in path.parts


def _without(data: Any, place: list[int | str]) -> bool:
    """Remove the value at `place` from nested tables; True if it was there."""
    for key in place[:-1]:
        try:
            data = data[key]
        except (KeyError, IndexError, TypeError):
            return False
    return isinstance(data, dict) and data.pop(place[-1], None) is not None


def _read_toml(path: Path, signed: SignedFiles | None = None) -> dict[str, Any]:
    try:
        if signed is not None:
            text = signed.read(path)
        else:
            with path.open("rb") as file:
                text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise SidecarError(f"a sidecar has at most {MOST_BYTES} bytes, this one has more", path)
        dotted = (key for key in _KEY.findall(text) if key.count(b".") >= MOST_PARTS)
        if any(len(re.findall(_PART, key)) > MOST_PARTS for key in dotted):
            raise SidecarError(f"not valid: a key has at most {MOST_PARTS} parts, one here has more", path)
        return tomllib.loads(text.decode())
    except RecursionError as error:
        raise SidecarError("not valid TOML: it is nested too deeply", path) from error
    except ValueError as error:
        raise SidecarError(f"not valid TOML: {error}{_to_fill_in(text)}", path) from error
    except OSError as error:
        raise SidecarError(f"cannot be read: {error.strerror}", path) from error


def _to_fill_in(text: bytes) -> str:
    """The lines with a `?` of the draft that is not filled in yet, as the end of an error's text."""
    lines = [
        str(number) for number, line in enumerate(text.splitlines(), 1) if b"?" in line.partition(b"#")[0]
    ]
    return f"; fill in the `?` in line {', '.join(lines[:20])}" if lines else ""


def explain(error: Any) -> str:
    """One line for an error of pydantic's: the key, the expected value, the value found."""
    key = ".".join(
        str(part) for part in error["loc"] if part not in ("tuple[float, ...]", "float", "constrained-int")
    )
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key{_meant(error['loc'])}"
    message = str(error["msg"]).removeprefix("Value error, ")
    came = error.get("input")
    shown = "" if error["type"] in ("missing", "value_error") else f", got {came!r}"
    return f"{key}: {message}{shown}" if key else message


def _meant(place: tuple[int | str, ...]) -> str:
    """The key that an unknown key probably means, as the end of an error's text."""
    table, name = (str(place[0]) if len(place) > 1 else ""), str(place[-1])
    own = _keys(_TABLES.get(table, Sidecar))
    if near := did_you_mean(name, own):
        return near
    others: dict[str, type[BaseModel]] = {"the top of the file": Sidecar}
    others |= {f"a table of {key!r}": part for key, part in _TABLES.items()}
    for where, part in others.items():
        if name in _keys(part):
            return f"; it belongs to {where}"
    return f"; expected one of {', '.join(own)}"


def _keys(part: type[BaseModel]) -> list[str]:
    """The keys of a table, as spelled in the file."""
    return sorted(field.alias or key for key, field in part.model_fields.items())


def quoted(text: str) -> str:
    """`text` as a string of TOML."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The name in `known` that `name` probably means, ignoring case, `-` and `_`; long names mean none."""
    if len(name) > _MOST_LIKE:
        return None
    plain = {_plain(each): each for each in known if len(each) <= _MOST_LIKE}
    near = difflib.get_close_matches(_plain(name), plain, 1)
    return plain[near[0]] if near else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The `nearest` of `known` as the end of an error's text; empty if there is none."""
    near = nearest(name, known)
    return f"; did you mean {near!r}?" if near else ""


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
