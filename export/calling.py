"""One way to call a module: which parameters take inputs and states, and where outputs and states come out."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import torch
from torch import nn

from .errors import ExportError
from .nested import Nest, has_names, is_nothing, items, name_of

# How the module takes its inputs: [batch, time, ...], [time, batch, ...] or one timestep, [batch, ...].
Order = Literal["batch_time", "time_batch", "step"]
# The number of parts of a returned tuple among which states are looked for.
MOST_PLACES = 6
# Words that parameters and results are called by if they carry something from step to step.
_STATE_WORDS = frozenset({
    "h", "c", "hx", "cx", "hc", "h0", "c0", "hn", "cn", "hidden", "state", "states", "cell", "memory", "mem", "cache",
    "carry", "context", "ctx", "past", "prev", "previous", "history", "buffer", "buf", "kv", "recurrent", "last",
})  # fmt: skip


@dataclass(frozen=True)
class Slot:
    """A parameter of `forward` and the form of its value; None as its name: one of `*args`."""

    parameter: str | None
    nest: Nest


@dataclass(frozen=True)
class Results:
    """The positions of the states in `forward`'s result.

    Attributes:
        mode: "keys": under `keys` of a dict, dataclass or named tuple; "items": the last parts of a tuple, one a
            state parameter; "leaves": the last tensors, however nested; "whole": all of it is the state and its
            first tensor the output as well, as of a GRUCell.
        states: the states' forms, one a parameter.
    """

    mode: Literal["keys", "items", "leaves", "whole"]
    states: tuple[Nest, ...] = ()
    keys: tuple[Any, ...] = ()

    def split(self, result: Any) -> tuple[dict[tuple[str, ...], torch.Tensor], list[torch.Tensor]]:
        """The outputs by their place in the result, and the states in the order of their parameters.

        Raises:
            ValueError: the result has another form.
        """
        if self.mode in ("keys", "items"):
            found = {key: value for key, value in (items(result) or {}).items() if not is_nothing(value)}
            keys = self.keys if self.mode == "keys" else tuple(found)[len(found) - len(self.states) :]
            if not set(keys) <= set(found):
                raise ValueError(f"the result lacks {', '.join(map(str, self.keys))}")
            states = [
                leaf
                for key, nest in zip(keys, self.states, strict=True)
                for leaf in nest.take(found.pop(key))
            ]
            outputs = {
                (str(key), *path): leaf
                for key, value in found.items()
                for path, leaf in _leaves(value).items()
            }
            return outputs, states
        leaves = _leaves(result)
        count = sum(map(len, self.states))
        paths = list(leaves)
        if self.mode == "whole":
            if len(leaves) != count:
                raise ValueError(f"{len(leaves)} tensors where {count} states were")
            return {(): leaves[paths[0]]}, list(leaves.values())
        if len(leaves) <= count:
            raise ValueError(f"{len(leaves)} tensors where there should be an output and {count} states")
        first = len(leaves) - count
        return {path: leaves[path] for path in paths[:first]}, [leaves[path] for path in paths[first:]]


def results_of(result: Any, slots: Sequence[Slot], before: Sequence[torch.Tensor]) -> Results | None:
    """The positions in `result` that states of these slots can have; None: none.

    The first at which they have the shapes of the states `before`, else the first at which they have their form.
    """
    nests = tuple(slot.nest for slot in slots)
    if not slots:
        return Results("leaves")
    found = items(result)
    attempts = []
    if found is not None and has_names(result):
        named = [_key_of(slot.parameter, found, alone=len(slots) == 1) for slot in slots]
        if None not in named:
            attempts.append(Results("keys", nests, tuple(named)))
    if found is not None and len(found) > len(slots):
        attempts.append(Results("items", nests))
    attempts += [Results("leaves", nests), Results("whole", nests)]
    if found is not None and not has_names(result):
        places = combinations(list(found)[1:MOST_PLACES], len(slots))
        attempts += [Results("keys", nests, keys) for keys in places]
    formed = []
    for attempt in attempts:
        try:
            outputs, after = attempt.split(result)
        except ValueError:
            continue
        if outputs and same_shapes(before, after):
            return attempt
        formed += [attempt] if outputs else []
    return next(iter(formed), None)


@dataclass(frozen=True)
class Calling:
    """A module with one way to call it.

    Attributes:
        module: in eval mode, on the CPU.
        order: of the module's own inputs and outputs.
        inputs, states: the parameters that take them.
        results: None while it is unknown.
        last: of each output, whether the module gives it for the last timestep only, [batch, ...].
    """

    module: nn.Module
    order: Order
    inputs: tuple[Slot, ...]
    states: tuple[Slot, ...] = ()
    results: Results | None = None
    last: tuple[bool, ...] = ()

    def raw(self, inputs: Sequence[torch.Tensor], states: Sequence[torch.Tensor]) -> Any:
        """What the module returns for inputs in its own order."""
        leaves = iter(inputs)
        given = [(slot.parameter, slot.nest.build(leaves)) for slot in self.inputs]
        leaves = iter(states)
        given += [(slot.parameter, slot.nest.build(leaves)) for slot in self.states]
        named = {name: value for name, value in given if name is not None}
        rest = [value for name, value in given if name is None]
        args: list[Any] = []
        for parameter in parameters(self.module):
            if parameter.kind is not parameter.POSITIONAL_ONLY and not (
                rest and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            ):
                break
            if parameter.name not in named:
                break
            args.append(named.pop(parameter.name))
        return self.module(*args, *rest, **named)

    def outputs(
        self, inputs: Sequence[torch.Tensor], states: Sequence[torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """`raw`, taken apart: outputs and states.

        Raises:
            ExportError: the result has not the form that it had before.
        """
        assert self.results is not None
        result = self.raw(inputs, states)
        try:
            outputs, after = self.results.split(result)
        except ValueError as problem:
            raise ExportError(f"forward returns results of several forms: {problem}") from problem
        return list(outputs.values()), after

    def __call__(
        self, inputs: Sequence[torch.Tensor], states: Sequence[torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Inputs [batch, time, ...] → outputs [batch, time, ...] and the states after.

        An output that is there for the last timestep only comes out as [batch, 1, ...]. A module of one timestep
        takes one.
        """
        if self.order == "step":
            outputs, after = self.step([x.squeeze(1) for x in inputs], states)
            return [y.unsqueeze(1) for y in outputs], after
        outputs, after = self.outputs([self.turned(x) for x in inputs], states)
        return [
            y.unsqueeze(1) if last else self.turned(y) for y, last in zip(outputs, self.last, strict=True)
        ], after

    def step(
        self, inputs: Sequence[torch.Tensor], states: Sequence[torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """One timestep: inputs [batch, ...] → outputs [batch, ...] and the states after."""
        if self.order == "step":
            return self.outputs(inputs, states)
        axis = 1 if self.order == "batch_time" else 0
        outputs, after = self.outputs([x.unsqueeze(axis) for x in inputs], states)
        return [y if last else y.squeeze(axis) for y, last in zip(outputs, self.last, strict=True)], after

    def own(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, time, ...] in the module's own order; with order "step" the first timestep."""
        return x[:, 0] if self.order == "step" else self.turned(x)

    def turned(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, time, ...] as the module has it, or back."""
        return x.transpose(0, 1) if self.order == "time_batch" else x

    @property
    def state_names(self) -> list[str]:
        """Of each state tensor: its parameter's name and the way to it."""
        rest = [slot for slot in self.states if slot.parameter is None]
        names = []
        for slot in self.states:
            stem = slot.parameter
            if stem is None:
                stem = "state" if len(rest) == 1 else f"state{rest.index(slot)}"
            names += [name_of(stem, path) for path in slot.nest.paths()]
        return names


def output_names(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """Names for outputs by their places: "y", "y0" and "y1", or the keys that a dict or dataclass gives them."""
    stems = list(paths)
    while all(stems) and len({path[0] for path in stems}) == 1 and stems[0][0].isdigit():
        stems = [path[1:] for path in stems]
    names = ["_".join(part for part in path if not part.isdigit()) or "y" + "".join(path) for path in stems]
    return names if len(set(names)) == len(names) else [name_of("y", path) for path in paths]


def parameters(module: nn.Module) -> list[inspect.Parameter]:
    """Those of the module's `forward`."""
    try:
        return list(inspect.signature(module.forward).parameters.values())
    except (AttributeError, TypeError, ValueError):  # some functions that are written in C have no signature
        return [inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL)]


def same_shapes(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> bool:
    """Whether each tensor has the shape of its counterpart."""
    return all(a.shape == b.shape for a, b in zip(before, after, strict=True))


def sounds_like_state(name: str) -> bool:
    """Whether a parameter or result is called as states are."""
    return bool(_STATE_WORDS & set(name.lower().strip("_").split("_")))


def _leaves(value: Any) -> dict[tuple[str, ...], torch.Tensor]:
    nest = Nest.of(value)
    return dict(zip(nest.paths(), nest.take(value), strict=True))


def _key_of(parameter: str | None, found: dict[Any, Any], *, alone: bool) -> Any:
    """The key of a result that belongs to a state parameter."""
    if parameter is None:
        return None
    for key in (parameter, f"{parameter}_next", f"next_{parameter}", f"new_{parameter}", f"{parameter}_new"):
        if key in found:
            return key
    like = [key for key in found if isinstance(key, str) and sounds_like_state(key)]
    return like[0] if alone and len(like) == 1 and len(found) > 1 else None
