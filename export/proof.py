"""The proof before saving: the graph in ONNX Runtime against the module in PyTorch, on random sequences.

The error between two tensors a (ONNX Runtime) and b (PyTorch) is max|a − b| / max(1, max|b|): relative where the
values are large, absolute where they are small. Anything not finite on either side is an infinite error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from streamcell.card import Signature

from .errors import ProofError
from .runner import Runner
from .tensors import Array

METRIC = "max|a-b| / max(1, max|b|)"
# fp16 and int8 round the weights. Their error depends on the model, so these tolerances only catch gross errors.
TOLERANCES: dict[str, float] = {"fp32": 1e-5, "fp16": 1e-2, "int8": 2e-1}

# Inputs [batch, time, ...], states → outputs [batch, time, ...], states after. The PyTorch side, in numpy.
Reference = Callable[[Sequence[Array], Sequence[Array]], tuple[tuple[Array, ...], tuple[Array, ...]]]
# (batch, time) → inputs; batch → initial states.
DrawInput = Callable[[int, int], tuple[Array, ...]]
Initial = Callable[[int], tuple[Array, ...]]


@dataclass
class Errors:
    """The largest error of each check, by the check's name."""

    worst: dict[str, float] = field(default_factory=dict)

    def compare(self, name: str, given: Array, wanted: Array) -> None:
        """Hold one tensor against another.

        Raises:
            ProofError: they differ in shape.
        """
        if given.shape != wanted.shape:
            raise ProofError(
                f"{name}: the graph gives shape {list(given.shape)}, PyTorch gives {list(wanted.shape)}"
            )
        self.worst[name] = max(self.worst.get(name, 0.0), error(given, wanted))

    def compare_all(self, name: str, given: Sequence[Array], wanted: Sequence[Array]) -> None:
        """The same for each pair."""
        for a, b in zip(given, wanted, strict=True):
            self.compare(name, a, b)


def error(given: Array, wanted: Array) -> float:
    """max|a − b| / max(1, max|b|) in double precision; 0 for nothing at all, inf if anything is not finite."""
    if wanted.size == 0:
        return 0.0
    a, b = given.astype(np.float64), wanted.astype(np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    return float(np.abs(a - b).max() / max(1.0, np.abs(b).max()))


@dataclass(frozen=True)
class Prover:
    """Everything that a proof needs; `prove` runs it.

    Attributes:
        runner: the graph. With layout "batch" every run is one timestep.
        reference: the module on whole sequences.
        draw: random inputs in the reference's layout.
        initial: the states before the first step.
        batches: numbers of rows to try.
        time: timesteps of a sequence.
        seed: of the chunks and lengths drawn here.
    """

    runner: Runner
    reference: Reference
    draw: DrawInput
    initial: Initial
    batches: tuple[int, ...] = (1, 2, 7)
    time: int = 19
    seed: int = 0

    @property
    def signature(self) -> Signature:
        return self.runner.signature

    def example(self) -> tuple[Array, ...]:
        """Inputs in the graph's own layout, of the largest batch."""
        inputs = self.draw(self.batches[-1], self.time)
        return inputs if self.signature.has_time else tuple(x[:, 0] for x in inputs)

    def prove(self, tolerance: float, way: str = "") -> dict[str, Any]:
        """Run every check that the signature allows.

        Args:
            tolerance: the largest error allowed.
            way: what is proved, for the error, if it is not the file as it is.

        Returns:
            The card's "proof": the metric, the tolerance, the largest error of each check.

        Raises:
            ProofError: an error is over `tolerance`.
        """
        errors = Errors()
        rng = np.random.default_rng(self.seed)
        for batch in self.batches:
            inputs = self.draw(batch, self.time)
            first = self.initial(batch)
            wanted = self.reference(inputs, first)
            if self.signature.has_time:
                self._check(errors, "sequence", inputs, first, wanted, [self.time])
                self._check(errors, "chunks", inputs, first, wanted, _chunks(rng, self.time))
                # From the end of a sequence: states that are not the initial ones.
                again = self.draw(batch, self.time)
                last = wanted[1]
                self._check(errors, "sequence", again, last, self.reference(again, last), [self.time])
            self._check(errors, "steps", inputs, first, wanted, [1] * self.time)
            if self.signature.lengths is not None:
                self._ragged(errors, rng, batch)
        over = {name: value for name, value in errors.worst.items() if not value <= tolerance}
        if over:
            found = ", ".join(f"{name} {value:.3g}" for name, value in sorted(over.items()))
            runtime = f"ONNX Runtime {way}" if way else "ONNX Runtime"
            raise ProofError(
                f"{runtime} and PyTorch differ: {found}, tolerance {tolerance:g} (error: {METRIC})"
            )
        return {
            "metric": METRIC,
            "tolerance": tolerance,
            "max_error": max(errors.worst.values()),
            "errors": dict(sorted(errors.worst.items())),
            "batch_sizes": list(self.batches),
            "timesteps": self.time,
        }

    def _check(
        self,
        errors: Errors,
        name: str,
        inputs: Sequence[Array],
        states: Sequence[Array],
        wanted: tuple[tuple[Array, ...], tuple[Array, ...]],
        chunks: Sequence[int],
    ) -> None:
        """The errors of inputs in chunks of these sizes; each starts from the last states of the chunk before."""
        start = 0
        pieces = []
        for length in chunks:
            piece = [x[:, start : start + length] for x in inputs]
            start += length
            if self.signature.has_time:
                part, states = self.runner(piece, states)
            else:
                part, states = self.runner([x[:, 0] for x in piece], states)
                part = tuple(y[:, None] for y in part)
            pieces.append(part)
        outputs, last = wanted
        joined = [np.concatenate(each, axis=1) for each in zip(*pieces, strict=True)]
        errors.compare_all(name, joined, outputs)
        errors.compare_all(f"{name} states", states, last)

    def _ragged(self, errors: Errors, rng: np.random.Generator, batch: int) -> None:
        """Compare rows of different lengths in one run, with garbage after their ends, with each row alone."""
        inputs = self.draw(batch, self.time)
        lengths = rng.integers(1, self.time + 1, batch)
        lengths[0] = self.time
        lengths[batch - 1] = 1 if batch > 1 else self.time
        given, after = self.runner(inputs, self.initial(batch), lengths)
        for row, length in enumerate(lengths):
            outputs, last = self.reference([x[row : row + 1, :length] for x in inputs], self.initial(1))
            errors.compare_all("ragged", [y[row : row + 1, :length] for y in given], outputs)
            for state, a, b in zip(self.signature.states, after, last, strict=True):
                errors.compare("ragged states", a.take([row], axis=state.batch_axis), b)


def _chunks(rng: np.random.Generator, time: int) -> list[int]:
    """Random piece sizes that add up to `time`, at least two of them if there are two timesteps."""
    cuts = np.flatnonzero(rng.random(time - 1) < 0.35) + 1
    edges = [0, *map(int, cuts if len(cuts) else [1]), time]
    return [b - a for a, b in pairwise(edges) if b > a]
