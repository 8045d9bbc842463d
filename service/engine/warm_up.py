"""What an engine does before it serves: every shape run once, the faster cell chosen, CUDA graphs captured and checked.

It must run on the thread that will run the engine, for ONNX Runtime keeps CUDA graphs by thread. Every run here reads
the initial state or scratch rows, and writes scratch rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np

from streamcell.service.graph.rows import INITIAL_ROW

from .staging import Staged

# Another form must be faster by this factor: measurements differ by less from one start to the next.
FASTER = 0.95
_LEAST_RUNS, _MOST_RUNS, _BUDGET_S = 3, 50, 0.01
# Of a replay against a plain run of the same kernels.
_TOLERANCE = 1e-5
_CHECK_STEPS = 4


def faster(runs: Sequence[Callable[[], None]]) -> int:
    """The fastest of `runs` (by the median of alternating calls); the first unless another is clearly faster."""
    medians = [median(times) for times in timed(runs, _BUDGET_S * len(runs))]
    best = min(range(len(runs)), key=medians.__getitem__)
    return best if medians[best] < FASTER * medians[0] else 0


def timed(runs: Sequence[Callable[[], None]], budget_s: float) -> list[list[float]]:
    """Seconds of each call of `runs`, which take turns for about `budget_s`."""
    taken: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()
    until_s = time.perf_counter() + budget_s
    for turn in range(_MOST_RUNS):
        for run, times in zip(runs, taken, strict=True):
            began_s = time.perf_counter()
            run()
            times.append(time.perf_counter() - began_s)
        if turn + 1 >= _LEAST_RUNS and time.perf_counter() > until_s:
            break
    return taken


def replays_as_it_runs(staged: Staged, plain: Callable[[], None], scratch: np.ndarray) -> bool:
    """Whether `staged.go`, a replayed CUDA graph, gives what `plain`, the same graph run kernel by kernel, gives.

    A few steps with random inputs, the first from the initial state, each way.
    """
    inputs = len(staged.inputs)
    given = []
    for run in (plain, staged.go):
        rng = np.random.default_rng(7)
        outputs = []
        for step in range(_CHECK_STEPS):
            for array in staged.values[:inputs]:
                array[...] = rng.standard_normal(array.shape) if array.dtype.kind == "f" else 0
            staged.read[:] = scratch[: staged.rows] if step else INITIAL_ROW
            staged.write[:, 0] = scratch[: staged.rows]
            staged.lengths[:] = staged.steps
            run()
            outputs += [array.copy() for array in staged.values[inputs:]]
        given.append(outputs)
    return all(
        np.allclose(a, b, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True)
        if a.dtype.kind == "f"
        else np.array_equal(a, b)
        for a, b in zip(*given, strict=True)
    )
