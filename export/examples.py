"""A module's inputs: their names, and timesteps from which random sequences are drawn."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, get_type_hints

import numpy as np
import torch
from torch import nn

from streamcell.card import DTYPES

from .calling import Slot, parameters
from .errors import ExportError, Misfit, SpecError
from .names import X
from .nested import Nest, name_of
from .states import dtype_name
from .tensors import Array, as_array
from .user_errors import user_code

_NUMBER = r"[-+\d.e]+?"
_SPEC = re.compile(
    r"(?P<name>[A-Za-z_]\w*(\.\w+)*):(?P<dtype>\w+)(\[(?P<shape>[\d, ]*)\])?"
    rf"(=(?P<low>{_NUMBER})\.\.(?P<high>{_NUMBER}))?"
)


@dataclass(frozen=True)
class Examples:
    """The inputs of a module, with timesteps to draw from.

    Attributes:
        slots: the parameters that take them.
        names: of each tensor.
        pools: of each tensor, [timesteps, *step].
    """

    slots: tuple[Slot, ...]
    names: tuple[str, ...]
    pools: tuple[Array, ...]
    dtypes: tuple[Any, ...]

    @classmethod
    def of(cls, module: nn.Module, example: Any, leading: int) -> Examples:
        """From a tensor for the first parameter, or a dict: parameter → tensor, or tuple, dict or dataclass of tensors.

        Args:
            leading: 2 if examples are [batch, time, *step], 1 if they are [batch, *step].

        Raises:
            ExportError: there is no such parameter, or an example has no timestep.
        """
        given: dict[str | None, Any]
        if isinstance(example, torch.Tensor):
            given, names = {next(iter(forward_takes(module)), None): example}, [X]
        elif isinstance(example, Mapping):
            check_parameters(module, list(example))
            given, names = dict(example), _names(example)
        else:
            raise ExportError(
                f"example_x must be a tensor or a dict, parameter → tensors; got a {type(example).__name__}"
            )
        slots = tuple(Slot(parameter, Nest.of(value)) for parameter, value in given.items())
        tensors = [
            leaf for slot, value in zip(slots, given.values(), strict=True) for leaf in slot.nest.take(value)
        ]
        wanted = "[batch, time, ...]" if leading == 2 else "[batch, ...]"
        for name, tensor in zip(names, tensors, strict=True):
            if tensor.dim() < leading or tensor.numel() == 0:
                what = "example_x" if names == [X] else f"the example of {name}"
                raise Misfit(f"{what} must be {wanted} and not empty; got {list(tensor.shape)}")
        return cls(
            slots,
            tuple(names),
            tuple(as_array(t).reshape(-1, *t.shape[leading:]) for t in tensors),
            tuple(
                dtype_name(t, name if names != [X] else "example_x")
                for name, t in zip(names, tensors, strict=True)
            ),
        )

    @property
    def step_shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(pool.shape[1:] for pool in self.pools)

    def draw(self, rng: np.random.Generator, batch: int, time: int) -> tuple[Array, ...]:
        """Of each input [batch, time, *step]: timesteps of the example in random order."""
        return tuple(pool[rng.integers(0, len(pool), (batch, time))] for pool in self.pools)


def _names(example: Mapping[str, Any]) -> list[str]:
    """A tensor is called as its parameter, with the way to it behind; a single parameter's name is left out.

    Raises:
        ExportError: there is no tensor.
    """
    found = [(parameter, path) for parameter, value in example.items() for path in Nest.of(value).paths()]
    if not found:
        raise ExportError("example_x holds no tensor")
    if len(example) == 1 and all(path for _, path in found):
        return ["_".join(path) for _, path in found]
    return [name_of(parameter, path) for parameter, path in found]


def check_parameters(module: nn.Module, names: Sequence[str]) -> None:
    """
    Raises:
        SpecError: `forward` has no parameter of one of these names.
    """
    takes = parameters(module)
    if any(p.kind is p.VAR_KEYWORD for p in takes):
        return
    known = forward_takes(module)
    for name in names:
        if name not in known:
            raise SpecError(
                f"{type(module).__name__}.forward has no parameter {name!r}; it takes {', '.join(known)}"
            )


def forward_takes(module: nn.Module) -> list[str]:
    """The names of `forward`'s parameters."""
    return [p.name for p in parameters(module) if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


@dataclass(frozen=True)
class InputSpec:
    """`NAME:DTYPE[SHAPE]=LOW..HIGH` from the shell.

    Attributes:
        path: the parameter, and behind dots the keys or fields in it.
        low, high: bounds of the values, both included; None: normal values, or the rows of an embedding.
    """

    path: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...] = ()
    low: float | None = None
    high: float | None = None

    @classmethod
    def parse(cls, text: str) -> InputSpec:
        """
        Raises:
            SpecError: it does not have this form.
        """
        found = _SPEC.fullmatch(text.strip())
        if found is None:
            raise SpecError(
                f"--input must be NAME:DTYPE[SIZES], for example x:float32[3] or tokens:int64; got {text!r}"
            )
        if found["dtype"] not in DTYPES:
            raise SpecError(f"--input {text}: {found['dtype']} is no dtype; use {', '.join(DTYPES)}")
        sizes = (found["shape"] or "").replace(" ", "")
        try:
            shape = tuple(int(size) for size in sizes.split(",")) if sizes else ()
            bounds = (None, None) if found["low"] is None else (float(found["low"]), float(found["high"]))
        except ValueError as error:
            raise SpecError(f"--input {text}: sizes are whole numbers, as in x:float32[3,64]=0..1") from error
        if shape and min(shape) < 1:
            raise SpecError(f"--input {text}: each size must be at least 1")
        if not _held(found["dtype"], *bounds):
            raise SpecError(
                f"--input {text}: the lowest value comes first, and {found['dtype']} must hold both"
            )
        return cls(tuple(found["name"].split(".")), found["dtype"], shape, *bounds)


def _held(dtype: str, low: float | None, high: float | None) -> bool:
    """Whether values from `low` to `high` can be drawn: whole numbers are drawn as int64 first."""
    if low is None or high is None or dtype == "bool":
        return True
    if dtype.startswith("float"):
        most = float(np.finfo(dtype).max)
        return -most <= low <= high <= most
    limits = np.iinfo(dtype)
    return limits.min <= low <= high <= min(limits.max, np.iinfo("int64").max)


def example_tensor(spec: InputSpec, leading: int, tokens: int = 2, seed: int = 0) -> torch.Tensor:
    """[4, 64, *shape], or [256, *shape] with `leading` 1, random by a fixed seed.

    Values are normal, or whole numbers from 0 to `tokens` - 1, or within the spec's bounds.
    """
    generator = torch.Generator().manual_seed(seed)
    size = (*((4, 64) if leading == 2 else (256,)), *spec.shape)
    dtype: torch.dtype = getattr(torch, spec.dtype)
    low, high = spec.low, spec.high
    if dtype is torch.bool:
        return torch.rand(size, generator=generator) < 0.5
    if dtype.is_floating_point:
        if low is None or high is None:
            return torch.randn(size, generator=generator).to(dtype)
        return (low + (high - low) * torch.rand(size, generator=generator)).to(dtype)
    first, last = (0, tokens - 1) if low is None or high is None else (int(low), int(high))
    return torch.randint(first, last + 1, size, generator=generator).to(dtype)


def examples_from(module: nn.Module, specs: Sequence[InputSpec], leading: int) -> dict[str, Any]:
    """What `export_module` takes as its example.

    Whole numbers are drawn below the size of the smallest embedding of the module, 2 if it has none.

    Raises:
        SpecError: there is no such parameter, or an input is given twice.
    """
    tables = [each.num_embeddings for each in module.modules() if isinstance(each, nn.Embedding)]
    check_parameters(module, [spec.path[0] for spec in specs])
    found: dict[str, Any] = {}
    for seed, spec in enumerate(specs):
        *way, last = spec.path
        here = found
        for key in way:
            here = here.setdefault(key, {})
            if not isinstance(here, dict):
                raise SpecError(f"--input {'.'.join(spec.path)}: {key} is an input itself")
        if last in here:
            raise SpecError(f"--input {'.'.join(spec.path)} is given twice")
        here[last] = example_tensor(spec, leading, min(tables, default=2), seed)
    hints = _hints(module)
    return {name: _as_hinted(hints.get(name), value) for name, value in found.items()}


def _hints(module: nn.Module) -> dict[str, Any]:
    try:
        return get_type_hints(module.forward)
    except Exception:  # an annotation with an unknown name does not matter here
        return {}


def _as_hinted(hint: Any, value: Any) -> Any:
    """A dict as the dataclass or named tuple that the parameter is annotated with."""
    made = isinstance(hint, type) and (is_dataclass(hint) or hasattr(hint, "_fields"))
    if not made or not isinstance(value, dict):
        return value
    with user_code(f"{hint.__name__} cannot be made of {', '.join(value)}"):
        return hint(**value)
