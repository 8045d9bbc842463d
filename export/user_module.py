"""A user's module as the proof and the exporter need it: inputs drawn, whole sequences run, its own claims checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from .causes import causes
from .errors import ExportError, ProofError
from .finding import Found
from .proof import error
from .purity import unchanged
from .tensors import Array, as_array, as_tensor
from .user_errors import user_code

Arrays = tuple[Array, ...]
_RULE = "Every timestep may depend on the past only through the states, and on no other row"


class Impure(ProofError):
    """The module does not compute every timestep from the past alone, through the states.

    Attributes:
        causes: the layers that are to blame, with what to write.
    """

    def __init__(self, text: str, causes: Sequence[str] | None = None) -> None:
        self.causes = list(causes or ())
        if causes is not None:
            text += "\n" + "\n".join(causes) if causes else f" {_RULE}"
        super().__init__(text)


class UserModule:
    """A module that has been found out, on arrays: inputs [batch, time, *step] → outputs [batch, time, *out]."""

    def __init__(self, found: Found) -> None:
        self.found = found
        self._rng = np.random.default_rng(0)
        self._by_step = found.calling.order == "step" or any(found.calling.last)

    @property
    def name(self) -> str:
        """The module's class."""
        return type(self.found.calling.module).__name__

    def draw(self, batch: int, time: int) -> Arrays:
        """Of each input [batch, time, *step]: timesteps of the example in random order."""
        return self.found.examples.draw(self._rng, batch, time)

    def initial(self, batch: int) -> Arrays:
        """The states before the first step."""
        return tuple(map(as_array, self.found.initial(batch)))

    def __call__(self, inputs: Sequence[Array], states: Sequence[Array]) -> tuple[Arrays, Arrays]:
        """Inputs [batch, time, *step] and the states before → outputs [batch, time, ...] and the states after.

        A module of one timestep, or with outputs for the last timestep only, runs step by step.
        """
        if not self._by_step:
            return self._run(inputs, states)
        pieces = []
        for step in range(inputs[0].shape[1]):
            outputs, states = self._run([x[:, step : step + 1] for x in inputs], states)
            pieces.append(outputs)
        return tuple(np.concatenate(each, axis=1) for each in zip(*pieces, strict=True)), tuple(states)

    @torch.no_grad()
    def _run(self, inputs: Sequence[Array], states: Sequence[Array]) -> tuple[Arrays, Arrays]:
        """One call; outputs for the last timestep only are [batch, 1, ...]."""
        calling = self.found.calling
        shapes = ", ".join(str(list(each.shape)) for each in (*inputs, *states))
        with user_code(f"{self.name} does not run on {shapes}"), unchanged(calling.module):
            outputs, after = calling(list(map(as_tensor, inputs)), list(map(as_tensor, states)))
            return tuple(map(as_array, outputs)), tuple(map(as_array, after))

    def check(self, tolerance: float, time: int = 5) -> tuple[torch.Tensor, ...]:
        """Check that the module follows the convention, in PyTorch alone.

        Returns:
            One timestep of each output, [batch, *out].

        Raises:
            ExportError: outputs differ in shape at one timestep or one row.
            Impure: the whole sequence gives something else than its steps one by one, a row something else than
                among others, or the same call something else twice.
        """
        batch = 2
        inputs, first = self.draw(batch, time), self.initial(batch)
        whole, end = self._whole(inputs, first)
        again, _ = self._whole(inputs, first)
        if (worst := _worst(whole, again)) > tolerance:
            raise Impure(
                f"{self.name} gives other outputs each time for the same inputs: error {worst:.3g}. Does it draw "
                "random numbers, as F.dropout without training=self.training does?",
            )
        steps, states = [], first
        for step in range(time):
            outputs, states = self._run([x[:, step : step + 1] for x in inputs], states)
            self._same_axes("timestep", outputs, [y[:, :1] for y in whole])
            steps.append(outputs)
        joined = [
            each[-1] if last else np.concatenate(each, axis=1)
            for each, last in zip(zip(*steps, strict=True), self.found.calling.last, strict=True)
        ]
        self._hold("time", (*joined, *states), (*whole, *end), tolerance)
        for row in range(batch):
            outputs, after = self._whole([x[row : row + 1] for x in inputs], self._row(first, row))
            alike = [y[row : row + 1] for y in whole]
            self._same_axes("row", outputs, alike)
            self._hold("rows", (*outputs, *after), (*alike, *self._row(end, row)), tolerance)
        return tuple(as_tensor(y[:, 0]) for y in whole)

    def _whole(self, inputs: Sequence[Array], states: Sequence[Array]) -> tuple[Arrays, Arrays]:
        """The sequence in one call, if the module takes a time axis."""
        return self(inputs, states) if self.found.calling.order == "step" else self._run(inputs, states)

    def _row(self, states: Sequence[Array], row: int) -> list[Array]:
        return [
            s.take([row], axis=each.batch_axis) for s, each in zip(states, self.found.states, strict=True)
        ]

    def _same_axes(self, what: str, given: Sequence[Array], wanted: Sequence[Array]) -> None:
        """
        Raises:
            ExportError: outputs of one timestep or row lack axes that those of many have.
        """
        for name, y, alike in zip(self.found.outputs, given, wanted, strict=True):
            if y.shape != alike.shape:
                raise ExportError(
                    f"{name} of one {what} should be {list(alike.shape)} as in a chunk and is {list(y.shape)}; "
                    "does a squeeze() without an axis drop one?"
                )

    def _hold(
        self, what: Literal["time", "rows"], given: Sequence[Array], wanted: Sequence[Array], tolerance: float
    ) -> None:
        worst = _worst(given, wanted)
        if worst <= tolerance:
            return
        differs = {
            "time": "other outputs step by step than for the whole sequence",
            "rows": "a row other outputs alone than beside others",
        }[what]
        found = self.found
        raise Impure(
            f"in PyTorch itself, {self.name} gives {differs}: error {worst:.3g}, tolerance {tolerance:g}.",
            causes(found.calling, found.examples, found.initial),
        )


def _worst(given: Sequence[Array], wanted: Sequence[Array]) -> float:
    pairs = list(zip(given, wanted, strict=True))
    if any(a.shape != b.shape for a, b in pairs):
        return float("inf")
    return max((error(a, b) for a, b in pairs), default=0.0)
