"""Proves that a model's outputs do not depend on how its messages are joined or on the other rows of its batch.

Seeded random sequences run on scratch rows of an engine that has no sessions yet. The reference is each row alone and
step by step. Then they run in chunks, among loud neighbours, and with padding. The outputs must be the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from structlog.typing import FilteringBoundLogger

from streamcell.card import Signature
from streamcell.service.errors import RunTimeout, cut, node_error_text, run_error_text, shown
from streamcell.service.graph.rows import INITIAL_ROW

from .engine import Engine
from .proof_values import Array, cuts, draw, draw_given, same, worst

Kind: TypeAlias = Literal["rows", "steps"]

_ROWS, _STEPS = 3, 8
_MANY_ROWS, _MANY_STEPS, _ROUNDS = 16, 33, 3
_SMALL = (2, 4)
# Maximum bytes of one comparison's inputs and outputs: the model file decides how large a timestep is.
_MOST_BYTES = 256 * 2**20
_COPIES = 4  # of each value: drawn as float64, staged, expected, got


@dataclass(frozen=True)
class Difference:
    """One value that differs between two ways.

    Attributes:
        kind: "rows": it depends on the other rows of its batch; "steps": on how timesteps are joined.
        output: the output's name, or "" if the run failed.
        expected: the value of the row alone, step by step.
        got: the value of the other way.
        error: ONNX Runtime's message, if the run failed.
        ragged: True if the rows had different `lengths`, and rows without are right.
    """

    kind: Kind
    output: str = ""
    expected: float = 0.0
    got: float = 0.0
    error: str = ""
    ragged: bool = False

    def __str__(self) -> str:
        way = {"rows": "with several sessions in a run", "steps": "with several timesteps in a run"}[
            self.kind
        ]
        if self.ragged:
            way = "with sessions of different lengths in a run"
        if self.error:
            return f"{way} it fails: {self.error}"
        return f"{way} output {shown(self.output)} is {self.got:g}, alone and step by step {self.expected:g}"


class FailsAloneError(Exception):
    """The model fails for one session and one timestep that no client has sent; the text is ONNX Runtime's message."""


class _OutOfTimeError(Exception):
    """The proof's time limit is reached."""


@dataclass(frozen=True)
class ProofResult:
    """The result of a proof.

    Attributes:
        found: the differences, at most one of each kind.
        ways: the names of the ways that were compared with each row alone and step by step.
        unproved: why some comparisons were left out; "" if none were.
    """

    found: tuple[Difference, ...]
    ways: tuple[str, ...]
    unproved: str = ""

    def __str__(self) -> str:
        if not self.ways:
            return self.unproved or "nothing to compare: a run has one session and one timestep"
        ways = f"compared with each session alone and step by step: {', '.join(self.ways)}"
        return f"{ways}; {self.unproved}" if self.unproved else ways


def prove(
    engine: Engine, *, full: bool, limit_s: float, log: FilteringBoundLogger, to_the_bit: bool = False
) -> ProofResult:
    """Compare ways of running a model. The engine must have no sessions; only scratch rows are written.

    Args:
        engine: an engine on the CPU.
        full: True for more rows, longer sequences and several seeds.
        limit_s: seconds after which the proof stops, with the result so far.
        log: bound to the model; gets the reason if a model was not proved.
        to_the_bit: allow no difference, not even of rounding.

    Raises:
        FailsAloneError: no run of it succeeds.
        RunTimeout: a run took longer than a run may take.
    """
    proof = _Proof(engine, limit_s, to_the_bit)
    unproved = ""
    try:
        proof.run(full)
    except _OutOfTimeError:
        unproved = f"stopped after {limit_s:g} s"
        log.info("proof stopped for time", limit_s=limit_s, differences=len(proof.found))
    except _NoReferenceError as error:
        unproved = f"not proved: {error}"
        log.warning("model not proved", reason=str(error))
    engine.clear_inputs()
    return ProofResult(tuple(proof.found.values()), tuple(proof.ways), unproved)


class _NoReferenceError(Exception):
    """There is no reference to compare with."""


@dataclass(frozen=True)
class _Way:
    """One way of running all rows.

    Attributes:
        name: the way's name.
        kind: the kind of difference if its outputs differ.
        groups: the groups of rows that share runs.
        parts: the sizes of the chunks.
        combined: True if a difference means nothing once a simpler way has found one.
    """

    name: str
    kind: Kind
    groups: list[list[int]]
    parts: list[int]
    combined: bool = False


class _Proof:
    def __init__(self, engine: Engine, limit_s: float, to_the_bit: bool) -> None:
        self.found: dict[Kind, Difference] = {}
        self.ways: dict[str, None] = {}
        self._engine = engine
        self._signature: Signature = engine.signature
        self._exact = to_the_bit
        self._until_s = time.perf_counter() + limit_s
        self._limit_s = limit_s
        self._given: list[Array] = []  # uint8[rows, bytes] an open input

    def run(self, full: bool) -> None:
        """Make the comparisons, in rounds."""
        size = (_ROWS, _STEPS)
        x = self._inputs(1, 1, 0)
        try:
            self._reference(x, [1])
        except _NoReferenceError:
            self._run_at_rest()
            raise
        began_s = time.perf_counter()
        self._reference(x, [1])
        if 60 * (time.perf_counter() - began_s) > self._limit_s or not self._fits(*size):
            size = _SMALL
        if not self._fits(*size):
            raise _NoReferenceError(
                f"{size[0]} rows of {size[1]} timesteps take more than {_MOST_BYTES} bytes"
            )
        self._round(*size, seed=1)
        # A state may show what is wrong late, also in a graph of one timestep.
        most = _MANY_STEPS if self._signature.states else self._engine.max_chunk
        many = max(2, min(_MANY_ROWS, self._engine.max_batch)), max(2, min(_MANY_STEPS, most))
        if full and self._fits(*many):
            for seed in range(2, 2 + _ROUNDS):
                self._round(*many, seed=seed)

    def _fits(self, rows: int, steps: int) -> bool:
        """True if a comparison of this size fits the memory bound."""
        step_bytes = sum(tensor.step_bytes for tensor in (*self._signature.inputs, *self._signature.outputs))
        return _COPIES * rows * steps * step_bytes <= _MOST_BYTES

    def _round(self, rows: int, steps: int, seed: int) -> None:
        signature, engine = self._signature, self._engine
        rng = np.random.default_rng(seed)
        x = self._inputs(rows, steps, seed)
        if signature.states:
            parts = [1] * steps
        elif signature.has_time:  # a stateless model may look at a message as a whole
            steps = min(steps, engine.max_chunk)
            x = [array[:, :steps] for array in x]
            parts = [steps]
        else:
            parts = [1]
        expected = self._reference(x, parts)
        if not same(expected, self._reference(x, parts)):
            raise _NoReferenceError("it answers the same input differently each time")
        for way in self._ways(rng, rows, steps, parts):
            if way.kind in self.found or (way.combined and self.found):
                continue
            self.ways[way.name] = None
            self._compare(x, expected, way)

    def _ways(self, rng: np.random.Generator, rows: int, steps: int, parts: list[int]) -> Iterator[_Way]:
        """The ways to compare with each row alone and step by step."""
        signature, most = self._signature, self._engine.max_chunk
        chunks = bool(signature.states) and signature.has_time and most > 1
        alone = [[row] for row in range(rows)]
        if chunks:
            longest = min(steps - 2 if steps > 3 else steps, most)
            yield _Way("one chunk", "steps", alone, [longest])
            yield _Way("random chunks", "steps", alone, list(cuts(rng, steps, most)))
        together = self._engine.max_batch
        if together > 1:
            groups = [list(range(begin, min(begin + together, rows))) for begin in range(0, rows, together)]
            yield _Way("neighbours", "rows", groups, parts)
            if chunks:
                cut = list(cuts(rng, steps, most))
                yield _Way("neighbours in chunks", "rows", groups, cut, combined=True)
            if signature.lengths and signature.states:
                yield _Way("lengths", "rows", groups, [min(steps // 2, most)], combined=True)

    def _run_way(self, x: list[Array], expected: list[Array], way: _Way) -> list[Array]:
        if way.name == "lengths":
            return self._ragged(x, expected, way.groups, way.parts[0])
        return self._sequences(x, way.groups, way.parts)

    def _run_at_rest(self) -> None:
        """Run one row of one timestep that no client has sent, like the warm-up."""
        self._engine.clear_inputs()
        staged = self._engine.stage(1, 1)
        self._engine.pad(staged, 0)
        try:
            staged.go()
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise FailsAloneError(node_error_text(error)) from error

    def _reference(self, x: list[Array], parts: Sequence[int]) -> list[Array]:
        """The outputs of each row alone. A model may fail for random numbers, such as one that uses them as indices."""
        try:
            return self._sequences(x, [[row] for row in range(len(x[0]))], parts)
        except (_OutOfTimeError, RunTimeout):
            raise
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise _NoReferenceError(f"it fails for random input: {cut(run_error_text(error))}") from error

    def _ragged(
        self, x: list[Array], expected: list[Array], groups: list[list[int]], steps: int
    ) -> list[Array]:
        """Rows of different lengths share a run, and then each one's next timesteps.

        Behind a row's end stands its later input, which must not have changed its state.
        """
        lengths = np.maximum(1, steps - 2 * np.arange(len(x[0])))
        more = x[0].shape[1] - steps
        got = [np.copy(array) for array in expected]
        for group in groups:
            ends, at = lengths[group], list(range(len(group)))
            places = ends[:, None] + np.arange(more)
            begun = self._apply(x, group, 0, steps, [INITIAL_ROW] * len(group), ends)
            later = [array[np.array(group)[:, None], places] for array in x]
            runs = [self._apply(later, at, step, step + 1, self._scratch(group)) for step in range(more)]
            for array, first, *following in zip(got, begun, *runs, strict=True):
                for row, place in zip(group, at, strict=True):
                    array[row, : ends[place]] = first[place, : ends[place]]
                    array[row, places[place]] = [step[place, 0] for step in following]
        return got

    def _compare(self, x: list[Array], expected: list[Array], way: _Way) -> None:
        ragged = way.name == "lengths"
        try:
            got = self._run_way(x, expected, way)
        except (_OutOfTimeError, RunTimeout):
            raise
        except Exception as error:  # ONNX Runtime's errors share no base class
            said = cut(run_error_text(error))
            self.found[way.kind] = Difference(way.kind, error=said, ragged=ragged)
            return
        for tensor, right, wrong in zip(self._signature.outputs, expected, got, strict=True):
            if (values := worst(tensor, right, wrong, exact=self._exact)) is not None:
                self.found[way.kind] = Difference(way.kind, tensor.name, *values, ragged=ragged)
                return

    def _inputs(self, rows: int, steps: int, seed: int) -> list[Array]:
        """Arrays [rows, steps, *step_shape]; odd rows are loud, and one timestep of rows 2, 6, 10, ….

        Each row gets values of its own for the opening, or the defaults.
        """
        rng = np.random.default_rng(seed)
        x = [draw(rng, tensor, rows, steps) for tensor in self._signature.inputs]
        self._given = [draw_given(rng, value, rows) for value in self._signature.open_inputs]
        return x

    def _sequences(self, x: list[Array], groups: list[list[int]], parts: Sequence[int]) -> list[Array]:
        """The outputs [rows, steps, *step_shape] of the rows, a group at a time, the timesteps cut into `parts`.

        What `parts` leave over runs one timestep at a time.
        """
        steps = x[0].shape[1] if self._signature.states or self._signature.has_time else 1
        outputs: list[Array] = []
        for group in groups:
            begin, runs = 0, []
            scratch = self._scratch(group)
            for part in (*parts, *[1] * (steps - sum(parts))):
                read = scratch if begin else [INITIAL_ROW] * len(group)
                runs.append(self._apply(x, group, begin, begin + part, read))
                begin += part
            made = [np.concatenate(each, 1) for each in zip(*runs, strict=True)]
            outputs = [np.concatenate(pair) for pair in zip(outputs, made, strict=True)] if outputs else made
        return outputs

    def _scratch(self, group: list[int]) -> list[int]:
        """The rows of the pool with the states of `group`."""
        rows: list[int] = self._engine.pool.scratch_rows[: len(group)].tolist()
        return rows

    def _apply(
        self,
        x: list[Array],
        group: list[int],
        begin: int,
        end: int,
        read: list[int],
        lengths: Array | None = None,
    ) -> list[Array]:
        if time.perf_counter() > self._until_s:
            raise _OutOfTimeError
        engine, has_time, count, steps = self._engine, self._signature.has_time, len(group), end - begin
        staged = engine.stage(count, steps)
        for buffer, array in zip(staged.values, x, strict=False):
            if has_time:
                buffer[:count, :steps] = array[group, begin:end]
            else:
                buffer[:count] = array[group, begin]
        for view, given in zip(staged.given, self._given, strict=True):
            view[:count] = given[group]
        staged.read[:count] = read
        staged.write[:count, 0] = self._scratch(group)
        staged.lengths[:count] = steps if lengths is None else lengths
        engine.pad(staged, count)
        staged.go()
        outputs = staged.values[len(x) :]
        return [np.copy(out[:count, :steps] if has_time else out[:count, None]) for out in outputs]
