"""What a file in int8 is worth: its proof in int8, and how much faster single steps are than in float32."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx

from streamcell.card import Signature
from streamcell.card.graphs.int8_form import int8_form

from .names import TIME
from .proof import Prover
from .runner import Runner

# Rows of a batch to measure, and the calls of each form.
ROWS, CALLS, BUDGET_S = (1, 8, 64), 30, 0.3


@dataclass(frozen=True)
class InInt8:
    """A graph and its form in int8.

    Attributes:
        graph: as it is in the file.
        form: the form in which the server multiplies in int8.
        runner: of that form.
    """

    graph: onnx.ModelProto
    form: onnx.ModelProto
    runner: Runner

    @classmethod
    def of(cls, graph: onnx.ModelProto, signature: Signature) -> InInt8 | None:
        """None if nothing of `graph` can be in int8.

        Raises:
            ExportError: this ONNX Runtime does not run it.
        """
        form = int8_form(graph, signature.lengths)
        return None if form is None else cls(graph, form, Runner(form.SerializeToString(), signature))

    def proved(self, prover: Callable[[Runner], Prover], tolerance: float) -> dict[str, Any]:
        """The card's "int8": the errors against PyTorch, and the speed here.

        Raises:
            ProofError: an error is over `tolerance`.
        """
        proof = prover(self.runner)
        found = proof.prove(tolerance, way="in int8")
        return {
            "max_error": found["max_error"],
            "errors": found["errors"],
            "times_as_fast": self._times_as_fast(proof),
        }

    def _times_as_fast(self, proof: Prover) -> dict[str, float]:
        """Rows of a batch → how many times as fast as in float32 a single step is, on one thread of this machine."""
        signature = proof.signature
        single = _at_one_step(self.graph)
        forms = [single, int8_form(single, signature.lengths) or self.form]
        runners = [Runner(form.SerializeToString(), signature) for form in forms]
        found = {}
        for rows in ROWS:
            drawn = proof.draw(rows, 1)
            inputs = drawn if signature.has_time else tuple(x[:, 0] for x in drawn)
            float32_s, int8_s = shortest([partial(run, inputs, proof.initial(rows)) for run in runners])
            found[str(rows)] = round(float32_s / int8_s, 2)
        return found


def shortest(calls: list[Callable[[], Any]]) -> list[float]:
    """Seconds that each of `calls` takes: its shortest, as they take turns. On a busy machine most wait for a core."""
    taken: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    until_s = time.perf_counter() + BUDGET_S
    for _ in range(CALLS):
        for call, times in zip(calls, taken, strict=True):
            began_s = time.perf_counter()
            call()
            times.append(time.perf_counter() - began_s)
        if time.perf_counter() > until_s:
            break
    return [min(times) for times in taken]


def gains(times_as_fast: dict[str, float]) -> bool:
    """Whether int8 is the faster one on the whole, as the server decides it."""
    return bool(np.prod(list(times_as_fast.values())) ** (1 / len(times_as_fast)) * 0.95 > 1)


def _at_one_step(graph: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    del copy.graph.value_info[:]
    for value in (*copy.graph.input, *copy.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == TIME:
                dim.dim_value = 1
    return copy
