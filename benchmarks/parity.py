"""Compares two devices: every kind of model, in random batches with varying lengths.

Outputs and states of sessions that come and go in random company must agree, step for step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from streamcell.service.engine.device import Device
from streamcell.service.engine.engine import Cell, Engine, EngineOptions, Staged
from streamcell.service.engine.pool import MakeJournal
from streamcell.service.graph.pooled import Pooled, pool_states
from streamcell.service.graph.rows import INITIAL_ROW
from streamcell.service.repository.model_file import ModelFile


@dataclass(frozen=True)
class Parity:
    """The result of a comparison.

    Attributes:
        runs: batches that ran on both devices.
        steps: timesteps of sessions in them.
        output_error, state_error: the largest |a − b| / max(1, |b|).
    """

    runs: int
    steps: int
    output_error: float
    state_error: float


def pooled(file: ModelFile, device: Device, *, journal: bool = False) -> Pooled:
    """The model in its pool, as the server builds it for `device`, with a journal or without."""
    return pool_states(
        file.load(),
        file.signature,
        file.constants,
        scatter=device.scatter,
        few_kernels=device.few_kernels,
        gives_rows=journal and not device.on_host,
    )


def engine(
    file: ModelFile,
    device: Device,
    *,
    sessions: int = 40,
    slots: int | None = None,
    max_batch: int = 16,
    max_chunk: int = 8,
    cell: Cell | None = None,
    cuda_graphs: bool | None = None,
    make_journal: MakeJournal | None = None,
) -> Engine:
    """An engine for `file`, warmed up on this thread, which must be the one that runs it."""
    made = Engine(
        pooled(file, device, journal=make_journal is not None),
        file.signature,
        EngineOptions(
            device=device,
            max_sessions=sessions,
            slots=slots,
            max_batch=max_batch,
            max_chunk=max_chunk,
            cell=cell,
            cuda_graphs=cuda_graphs,
            make_journal=make_journal,
        ),
    )
    made.warm_up()
    return made


def compare(a: Engine, b: Engine, *, sessions: int = 40, runs: int = 60, seed: int = 0) -> Parity:
    """Run the same random batches on both.

    Args:
        a, b: engines of one model, with room for `sessions` sessions.
        sessions: how many come and go; a third of the runs carry single steps only.
        runs: batches.
        seed: of what is drawn.
    """
    rng = np.random.default_rng(seed)
    signature = a.signature
    fresh = np.ones(sessions, np.bool_)
    output_error = state_error = 0.0
    steps_run = 0
    for number in range(runs):
        rows = rng.permutation(sessions)[: rng.integers(1, a.max_batch + 1)]
        most = 1 if number % 3 == 0 or not signature.has_time else int(rng.integers(1, a.max_chunk + 1))
        lengths = rng.integers(1, most + 1, len(rows)) if signature.lengths else np.full(len(rows), most)
        feeds = [_draw(rng, (len(rows), most, *t.step_shape), t.dtype) for t in signature.inputs]
        fresh[rows] |= rng.random(len(rows)) < 0.1  # another session took the slot
        given = [_run(engine, rows, fresh, lengths, feeds) for engine in (a, b)]
        fresh[rows] = False
        steps_run += int(lengths.sum())
        inside = np.arange(most) < lengths[:, None]
        for one, other in zip(*given, strict=True):
            output_error = max(output_error, _error(one[inside], other[inside]))
    for session in range(sessions) if signature.states else ():
        held = [engine.pool.read(engine.pool.first_slot + session) for engine in (a, b)]
        state_error = max(state_error, *(_error(x, y) for x, y in zip(*held, strict=True)))
    return Parity(runs, steps_run, output_error, state_error)


def _draw(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray[Any, Any]:
    """Normal numbers; for integer dtypes 0 and 1, which are tokens of any table."""
    return rng.integers(0, 2, shape) if "int" in dtype else rng.standard_normal(shape)


def _run(
    on: Engine,
    rows: np.ndarray[Any, Any],
    fresh: np.ndarray[Any, Any],
    lengths: np.ndarray[Any, Any],
    feeds: list[np.ndarray[Any, Any]],
) -> list[np.ndarray[Any, Any]]:
    """One batch; its outputs [rows, steps, …]."""
    used, most = len(rows), feeds[0].shape[1]
    staged: Staged = on.stage(used, most)
    inputs = len(staged.inputs)
    for array, feed in zip(staged.values[:inputs], feeds, strict=True):
        inner = array.reshape(staged.rows, staged.steps, *feed.shape[2:])
        inner[:used, :most] = feed
    slots = on.pool.first_slot + rows
    staged.lengths[:used] = lengths
    staged.write[:used, 0] = slots
    staged.read[:used] = np.where(fresh[rows], INITIAL_ROW, slots)
    on.pad(staged, used)
    if on.spills:
        on.place(staged, used)
    on.run(staged)
    return [
        array.reshape(staged.rows, staged.steps, -1)[:used, :most].copy() for array in staged.values[inputs:]
    ]


def _error(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    if not np.isfinite(a).all():
        return float("inf")
    return float((np.abs(a - b) / np.maximum(1, np.abs(b))).max(initial=0.0))
