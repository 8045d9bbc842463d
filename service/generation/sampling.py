"""From outputs to next inputs: arg-max and seeded samples, for all rows of a batch at once. Plain numpy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from streamcell.card import Generation, Signature

Array: TypeAlias = npt.NDArray[Any]
Words: TypeAlias = npt.NDArray[np.uint64]

# SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


class Feedback(Enum):
    """How an output becomes the next input."""

    VALUE = 1
    ARGMAX = 2
    SAMPLE = 3


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one generation chooses its inputs. `top_k` 0: no limit."""

    feedback: Feedback
    temperature: float = 1.0
    top_k: int = 0
    seed: int = 0


def uniforms(seeds: Words, counters: Words, count: int) -> npt.NDArray[np.float64]:
    """float64[rows, count] in [0, 1), a function of each row's seed and counter alone: uint64[rows] both.

    A row's numbers are the first `count` of the SplitMix64 generator whose state is mix(mix(seed) + counter * gamma).
    """
    state = _mix(_mix(seeds) + counters * _GAMMA)
    stream = np.arange(1, count + 1, dtype=np.uint64) * _GAMMA
    words = _mix(state[:, None] + stream)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(words: Words) -> Words:
    words = (words ^ (words >> np.uint64(30))) * _MIX_1
    words = (words ^ (words >> np.uint64(27))) * _MIX_2
    return words ^ (words >> np.uint64(31))


class Chooser:
    """Chooses next inputs for one model."""

    def __init__(self, signature: Signature, generation: Generation) -> None:
        """`generation` must fit `signature` (`check_generation`)."""
        names = [tensor.name for tensor in signature.outputs]
        self.output = names.index(generation.output)
        output = signature.outputs[self.output]
        (given,) = signature.inputs
        self.head = generation.head
        self.size = math.prod(output.step_shape)
        self.dtype = np.dtype(output.dtype).newbyteorder("<")
        self._generation = generation
        self._input_dtype = np.dtype(given.dtype).newbyteorder("<")
        self._input_size = math.prod(given.step_shape)
        self._deviation = None if generation.deviation is None else np.asarray(generation.deviation)

    def choose(
        self, y: Array, recipes: list[Recipe], counters: npt.NDArray[np.int64]
    ) -> tuple[Array, npt.NDArray[np.bool_]]:
        """Make each row's choice from its output.

        Args:
            y: float[rows, size], outputs of the generation's output tensor, flat.
            recipes: one a row.
            counters: int64[rows]; with the seed they fix what a sample draws.

        Returns:
            Classes int64[rows] for a categorical head, else [rows, size] of the input's dtype; and bool[rows], false
            if nothing can be chosen from the output: it holds a NaN, an infinity that is not -inf among
            logits, or no logit that is finite.
        """
        y = y.astype(np.float64)
        if self.head == "real":
            return self._real(y, recipes, counters)
        fine = ~(np.isnan(y) | (y == np.inf)).any(axis=1)
        if self.head == "categorical":
            fine &= np.isfinite(y).any(axis=1)
        y[~fine] = 0.0
        sampled = np.array([recipe.feedback is Feedback.SAMPLE for recipe in recipes])
        pick = self._classes if self.head == "categorical" else self._bits
        if sampled.all():
            return pick(y, recipes, counters), fine
        chosen = y.argmax(axis=1) if self.head == "categorical" else (y > 0).astype(self._input_dtype)
        if sampled.any():
            rows = np.flatnonzero(sampled)
            chosen[rows] = pick(y[rows], [recipes[row] for row in rows], counters[rows])
        return chosen, fine

    def encode(self, chosen: Array) -> Array:
        """The next inputs [rows, input size] for the result of `choose`."""
        if self.head != "categorical":
            return chosen
        tokens = chosen + self._generation.offset
        if self._generation.encoding == "index":
            return tokens.astype(self._input_dtype)[:, None]
        return self._one_hot(tokens)

    def payload(self, choice: bytes) -> bytes:
        """The next input for a choice as clients are told of it."""
        if self.head != "categorical":
            return choice
        return self.encode(np.frombuffer(choice, "<u4").astype(np.int64)).tobytes()

    def check(self, choices: bytes) -> int | None:
        """How many choices, as clients are told of them, these are; None: they are none."""
        if self.head == "categorical":
            classes = np.frombuffer(choices, "<u4") if len(choices) % 4 == 0 else np.array([self.size])
            return len(classes) if (classes < self.size).all() else None
        size = self._input_size * self._input_dtype.itemsize
        if len(choices) % size:
            return None
        values = np.frombuffer(choices, self._input_dtype)
        bits = self.head == "real" or bool(((values == 0) | (values == 1)).all())
        return len(choices) // size if bits else None

    def start(self, token: int) -> bytes:
        """The input for `token`."""
        tokens = np.array([token])
        if self._generation.encoding == "index":
            return tokens.astype(self._input_dtype).tobytes()
        return self._one_hot(tokens).tobytes()

    def _one_hot(self, tokens: Array) -> Array:
        inputs = np.zeros((len(tokens), self._input_size), self._input_dtype)
        inputs[np.arange(len(tokens)), tokens] = 1
        return inputs

    def _real(
        self, y: Array, recipes: list[Recipe], counters: npt.NDArray[np.int64]
    ) -> tuple[Array, npt.NDArray[np.bool_]]:
        noisy = np.array([recipe.feedback is Feedback.SAMPLE for recipe in recipes])
        if noisy.any():
            # Box and Muller's transform: the first half of the uniforms are radii, the second angles.
            both = uniforms(_seeds(recipes), counters.astype(np.uint64), 2 * self.size)
            radius = np.sqrt(-2.0 * np.log1p(-both[:, : self.size]))
            normal = radius * np.cos(2.0 * np.pi * both[:, self.size :])
            y = np.where(noisy[:, None], y + _temperatures(recipes) * self._deviation * normal, y)
        with np.errstate(over="ignore"):
            chosen = y.astype(self._input_dtype)
        return chosen, np.isfinite(chosen).all(axis=1)

    def _classes(self, y: Array, recipes: list[Recipe], counters: npt.NDArray[np.int64]) -> Array:
        """By inverting the cumulative distribution at one uniform number a row."""
        scaled = _keep_top(y, recipes)
        scaled = (scaled - scaled.max(axis=1, keepdims=True)) / _temperatures(recipes)
        total = np.cumsum(np.exp(scaled), axis=1)
        point = uniforms(_seeds(recipes), counters.astype(np.uint64), 1) * total[:, -1:]
        # Rounding must not move the point beyond the last class that may be chosen.
        point = np.minimum(point, np.nextafter(total[:, -1:], 0.0))
        chosen: Array = (total <= point).sum(axis=1)
        return chosen

    def _bits(self, y: Array, recipes: list[Recipe], counters: npt.NDArray[np.int64]) -> Array:
        scaled = _keep_top(y, recipes) / _temperatures(recipes)
        with np.errstate(over="ignore"):
            probability = 1.0 / (1.0 + np.exp(-scaled))
        drawn = uniforms(_seeds(recipes), counters.astype(np.uint64), self.size)
        return (drawn < probability).astype(self._input_dtype)


def _seeds(recipes: list[Recipe]) -> Words:
    return np.array([recipe.seed for recipe in recipes], np.uint64)


def _temperatures(recipes: list[Recipe]) -> Array:
    return np.array([[recipe.temperature] for recipe in recipes])


def _keep_top(y: Array, recipes: list[Recipe]) -> Array:
    """`y` with -inf in place of values below the row's k-th largest; ties with it are kept."""
    size = y.shape[1]
    tops = np.array([min(recipe.top_k or size, size) for recipe in recipes])
    for top in set(tops.tolist()) - {size}:
        rows = np.flatnonzero(tops == top)
        some = y[rows]
        least = np.partition(some, size - top, axis=1)[:, size - top, None]
        y = y.copy()
        y[rows] = np.where(some < least, -np.inf, some)
    return y
