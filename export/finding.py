"""How a module is to be called, found by calling it: the order of its axes, its states, its outputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice
from typing import Any

import numpy as np
import torch
from torch import nn

from streamcell.card import State

from .calling import (
    MOST_PLACES,
    Calling,
    Order,
    Results,
    Slot,
    output_names,
    parameters,
    results_of,
    same_shapes,
    sounds_like_state,
)
from .causes import causes, float64_cast
from .errors import ExportError, Misfit, UserCodeError
from .examples import Examples
from .nested import Nest, has_names, is_nothing, items
from .purity import unchanged
from .states import InitialState, detect_states, flat, initial_state_of
from .tensors import as_tensor
from .user_errors import user_code

# Two sizes of batch and time that no size of a model is likely to have both of.
BATCH, TIME = (2, 3), (5, 4)
_MOST_CANDIDATES, _MOST_TRIES = 6, 40


@dataclass(frozen=True)
class Found:
    """The facts about a module that an export needs.

    Attributes:
        initial: batch → the states before the first step, flat.
        outputs: the outputs' names.
    """

    calling: Calling
    examples: Examples
    initial: Callable[[int], list[torch.Tensor]]
    states: tuple[State, ...]
    outputs: tuple[str, ...]


def find(
    module: nn.Module,
    examples: Examples,
    order: Order,
    initial_state: InitialState | None,
    state_names: Sequence[str] | None,
) -> Found:
    """The way to call `module` with inputs in this order.

    States are what `initial_state` gives. Without it each parameter that is no input and has the default None, or
    none at all, may take states: the module is called without them, and what it returns is given back to it.

    Raises:
        ExportError: it does not run so, or returns what does not fit.
    """
    search = _Search(module, examples, order)
    given = initial_state_of(module, initial_state)
    if given is None:
        calling, initial = search.without_states()
    else:
        with user_code("initial_state"):
            detect_states(given, state_names)
        calling, initial = search.with_states(given)
    try:
        states = detect_states(initial, calling.state_names if state_names is None else state_names)
    except ExportError as error:
        raise (error if given is not None else Misfit(str(error))) from error
    if given is None:
        search.hold_zeros(calling, initial)
    return search.with_outputs(calling, initial, states)


class _Search:
    def __init__(self, module: nn.Module, examples: Examples, order: Order) -> None:
        self.calling = Calling(module, order, examples.slots)
        self.examples = examples
        self.name = type(module).__name__
        taken = {slot.parameter for slot in examples.slots}
        rest = [p for p in parameters(module) if p.name not in taken]
        self.varargs = any(p.kind is p.VAR_POSITIONAL for p in rest)
        self.candidates = [
            p
            for p in rest
            if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
            and (p.default is inspect.Parameter.empty or is_nothing(p.default))
        ][:_MOST_CANDIDATES]
        self.required = [p.name for p in self.candidates if p.default is inspect.Parameter.empty]
        # Called without states.
        self.bare = replace(self.calling, states=tuple(Slot(name, Nest.of(None)) for name in self.required))

    def draw(self, batch: int, time: int) -> list[torch.Tensor]:
        """Random inputs in the module's own order."""
        drawn = self.examples.draw(np.random.default_rng(time), batch, time)
        return [self.calling.own(as_tensor(x)) for x in drawn]

    @torch.no_grad()
    def run(self, calling: Calling, states: Sequence[torch.Tensor], batch: int, time: int) -> Any:
        inputs = self.draw(batch, time)
        shapes = ", ".join(str(list(each.shape)) for each in (*inputs, *states))
        told = f" and its {len(states)} states" if states else ""
        what = f"{self.name} does not run on {', '.join(self.examples.names)}{told} ({shapes})"
        try:
            with user_code(what), unchanged(calling.module):
                return calling.raw(inputs, states)
        except UserCodeError as error:
            named = dict(zip(self.examples.names, inputs, strict=True))
            named |= zip(calling.state_names, states, strict=True)
            if cast := float64_cast(calling.module, named):
                raise UserCodeError(f"{error}\n{cast}") from error
            raise

    def with_states(self, initial_state: InitialState) -> tuple[Calling, Callable[[int], list[torch.Tensor]]]:
        """The states are what `initial_state` gives; which parameters take them is tried."""

        def initial(batch: int) -> list[torch.Tensor]:
            with user_code("initial_state"):
                return flat(initial_state(batch))

        value = initial_state(BATCH[0])
        tensors = flat(value)
        problem: ExportError | None = None
        for slots in self._bindings(value):
            try:
                return self._fitting(replace(self.calling, states=slots), tensors), initial
            except Misfit as error:
                problem = problem or error
        if problem is None:
            raise Misfit(
                f"initial_state gives {len(tensors)} states, and {self.name}.forward has no parameter for them"
            )
        raise problem

    def _bindings(self, value: Any) -> Iterator[tuple[Slot, ...]]:
        """The ways in which parameters can take this initial state."""
        found = items(value)
        names = [p.name for p in self.candidates]
        if found is not None and not found:
            yield ()
            return
        if found is not None and set(found) <= set(names):
            yield tuple(Slot(key, Nest.of(part)) for key, part in found.items())
        elif found is not None:
            nests = [Nest.of(part) for part in found.values()]
            if len(nests) <= len(names):
                yield tuple(map(Slot, names, nests))
            if self.varargs and not names:
                yield tuple(Slot(None, nest) for nest in nests)
        for name in names:
            yield (Slot(name, Nest.of(value)),)

    def _fitting(self, calling: Calling, before: Sequence[torch.Tensor]) -> Calling:
        """`calling`, once it is seen to return states like those that it takes."""
        result = self.run(calling, before, BATCH[0], TIME[0])
        results = results_of(result, calling.states, before)
        count = len(flat(result))
        if results is None or (
            results.mode == "whole" and before and not same_shapes(before, results.split(result)[1])
        ):
            raise Misfit(
                f"{self.name}.forward took {len(before)} states and returned {max(count - 1, 0)} after y; "
                "a module with states returns y and then all of them"
            )
        names = calling.state_names
        for name, a, b in zip(names, before, results.split(result)[1], strict=True):
            if a.shape != b.shape or a.dtype != b.dtype:
                was, became = (str(t.dtype).removeprefix("torch.") for t in (a, b))
                text = (
                    f"state {name} goes in as {was} {list(a.shape)} and comes out as {became} {list(b.shape)}"
                )
                if a.shape == b.shape:
                    raise ExportError(f"{text}: return {name}.to(torch.{was})")
                raise Misfit(text)
        return replace(calling, results=results)

    def without_states(self) -> tuple[Calling, Callable[[int], list[torch.Tensor]]]:
        """The states are unknown: call without them and feed the outputs back."""
        required = self.required
        try:
            result = self.run(self.bare, (), BATCH[0], TIME[0])
        except ExportError as error:
            if not required:
                raise
            raise Misfit(
                f"{self.name}.forward takes {', '.join(required)}, and nothing says what is there before the first "
                f"step. If they are states, write\n\n    def initial_state(self, batch):\n        return "
                f"({', '.join('torch.zeros(batch, SIZE)' for _ in required)},)\n\n"
                f"if they are inputs, give each an example. (Called without: {error})"
            ) from error
        grows = None
        for slots, values in islice(_returned(result, [p.name for p in self.candidates]), _MOST_TRIES):
            calling = replace(self.calling, states=slots)
            before = [leaf for slot, v in zip(slots, values, strict=True) for leaf in slot.nest.take(v)]
            if not before:
                continue
            try:
                calling = self._fitting(calling, before)
            except ExportError:
                grows = grows or self._growing(calling, before)
                continue
            if not self._used(calling, before):
                continue
            return calling, self._zeros(calling.results, [t.dtype for t in before])
        if grows is not None:
            raise ExportError(grows)
        if required:
            raise Misfit(f"{self.name}.forward takes {', '.join(required)} and returns nothing like it")
        calling = replace(self.calling, results=Results("leaves"))
        return calling, lambda batch: []

    def _used(self, calling: Calling, states: Sequence[torch.Tensor]) -> bool:
        """True if every state changes the result."""
        before = flat(self.run(calling, states, BATCH[0], TIME[0]))
        for index, state in enumerate(states):
            changed = ~state if state.dtype is torch.bool else state + 1
            try:
                after = flat(
                    self.run(calling, [*states[:index], changed, *states[index + 1 :]], BATCH[0], TIME[0])
                )
            except UserCodeError:  # another value may be none, as the row behind a table's last
                continue
            if all(map(torch.equal, before, after)):
                return False
        return True

    def _growing(self, calling: Calling, before: Sequence[torch.Tensor]) -> str | None:
        """The sentence on states that grow with each call, such as a transformer's cache."""
        try:
            result = self.run(calling, before, BATCH[0], TIME[0])
            results = results_of(result, calling.states, before)
            after = [] if results is None else results.split(result)[1]
        except (ExportError, ValueError):
            return None
        step = 1 if self.calling.order == "step" else TIME[0]
        for name, a, b in zip(calling.state_names, before, after, strict=False):
            if a.dim() != b.dim():
                continue
            grown = [axis for axis in range(a.dim()) if a.shape[axis] != b.shape[axis]]
            if len(grown) == 1 and b.shape[grown[0]] == a.shape[grown[0]] + step:
                kept = ", ".join([":"] * grown[0] + ["-N:"])
                return (
                    f"state {name} grows by one for each timestep; keep the last N of them, "
                    f"`{name}[{kept}]`, and start with N from initial_state(batch)"
                )
        return None

    def _zeros(
        self, results: Results | None, dtypes: Sequence[torch.dtype]
    ) -> Callable[[int], list[torch.Tensor]]:
        """Initial states of zeros, as long as what the module returns if it is called without."""

        def initial(batch: int) -> list[torch.Tensor]:
            assert results is not None
            try:
                _, states = results.split(self.run(self.bare, (), batch, TIME[1]))
            except ValueError as error:
                raise ExportError(
                    f"forward returns its states in another form if it is called without them than with them: {error}; "
                    "return the same form each time, or give initial_state"
                ) from error
            return [torch.zeros(s.shape, dtype=dtype) for s, dtype in zip(states, dtypes, strict=True)]

        return initial

    def hold_zeros(self, calling: Calling, initial: Callable[[int], list[torch.Tensor]]) -> None:
        """
        Raises:
            ExportError: the module without a state does something else than with zeros.
        """
        if not calling.states:
            return
        batch, time = BATCH[0], TIME[0]
        without = flat(self.run(self.bare, (), batch, time))
        zeros = flat(self.run(calling, initial(batch), batch, time))
        if len(without) != len(zeros) or not all(
            a.shape == b.shape and torch.allclose(a.double(), b.double(), 1e-5, 1e-6)
            for a, b in zip(without, zeros, strict=True)
        ):
            names = ", ".join(dict.fromkeys(slot.parameter or "*state" for slot in calling.states))
            shapes = ", ".join(f"torch.zeros({_sizes(s, 'batch')})" for s in detect_states(initial, None))
            raise ExportError(
                f"{self.name} without {names} does not start from zeros, so it must say from what; write, with the "
                f"values that it begins with,\n\n    def initial_state(self, batch):\n        return ({shapes},)"
            )

    def with_outputs(
        self, calling: Calling, initial: Callable[[int], list[torch.Tensor]], states: tuple[State, ...]
    ) -> Found:
        """Name the outputs, and separate those of every timestep from those of the last one."""
        order = calling.order
        shapes: list[list[list[int]]] = []
        paths: list[tuple[str, ...]] = []
        for batch, time in zip(BATCH, TIME, strict=True):
            result = self.run(calling, initial(batch), batch, time)
            assert calling.results is not None
            try:
                found, _ = calling.results.split(result)
            except ValueError as problem:
                raise Misfit(f"{self.name} returns another form for another batch: {problem}") from problem
            if shapes and list(found) != paths:
                raise Misfit(f"{self.name} returns another form for another batch")
            paths = list(found)
            shapes.append([list(y.shape) for y in found.values()])
        names = output_names(paths)
        full = [
            [batch] if order == "step" else [batch, time] if order == "batch_time" else [time, batch]
            for batch, time in zip(BATCH, TIME, strict=True)
        ]
        last = []
        for name, *here in zip(names, *shapes, strict=True):
            every = all(shape[: len(axes)] == axes for shape, axes in zip(here, full, strict=True))
            only = here[0][1:] == here[1][1:] and [shape[:1] for shape in here] == [
                [batch] for batch in BATCH
            ]
            if not every and not only:
                axes = {"step": "batch", "batch_time": "batch, time", "time_batch": "time, batch"}[order]
                why = "".join(f"\n{line}" for line in causes(calling, self.examples, initial))
                raise Misfit(f"{name} must be [{axes}, ...] = {_open(full[0])}; got {here[0]}{why}")
            last.append(not every)
        taken = {*self.examples.names, *(state.input for state in states)}
        return Found(
            replace(calling, last=tuple(last)),
            self.examples,
            initial,
            states,
            tuple(f"{name}_out" if name in taken else name for name in names),
        )


def _returned(result: Any, candidates: Sequence[str]) -> Iterator[tuple[tuple[Slot, ...], list[Any]]]:
    """The parts of a result that may be states, with the parameters that may take them; the likeliest first."""
    found = items(result)
    if found is not None:
        named = {name: found[name] for name in candidates if name in found}
        if named:
            yield tuple(Slot(name, Nest.of(value)) for name, value in named.items()), list(named.values())
        values = [value for value in found.values() if not is_nothing(value)]
        counts = range(min(len(candidates), len(values) - 1), 0, -1)
        tails = [values[-count:] for count in counts]
        if not has_names(result):
            places = values[1:MOST_PLACES]
            tails += [list(some) for count in counts for some in combinations(places, count)]
        like = [found[key] for key in found if isinstance(key, str) and sounds_like_state(key)]
        if len(like) == 1:
            tails.insert(0, like)
        inner = items(values[-1]) if values else None
        if inner is not None and 1 < len(inner) <= len(candidates):
            tails.append(list(inner.values()))
        for tail in tails:
            for names in _chosen(candidates, len(tail)):
                yield tuple(Slot(name, Nest.of(v)) for name, v in zip(names, tail, strict=True)), tail
    for (name,) in _chosen(candidates, 1):
        yield (Slot(name, Nest.of(result)),), [result]


def _chosen(candidates: Sequence[str], count: int) -> list[tuple[str, ...]]:
    """`count` of the candidates in their order, those with states' names first."""
    return sorted(combinations(candidates, count), key=lambda names: -sum(map(sounds_like_state, names)))


def _open(axes: Sequence[int]) -> str:
    return f"[{', '.join(map(str, axes))}, ...]"


def _sizes(state: State, batch: str) -> str:
    sizes = [str(size) for size in state.shape]
    sizes.insert(state.batch_axis, batch)
    return ", ".join(sizes)
