"""Copies a batch's rows into the staging buffers. A row whose length does not match its steps is not copied."""

from __future__ import annotations

import numpy as np

from streamcell.service.engine.engine import Engine
from streamcell.service.engine.staging import Staged, resting
from streamcell.service.graph.rows import INITIAL_ROW

from .batch import Batch
from .guarded_run import Misfit


class RowStaging:
    """Fills one engine's staging buffers. For the thread that runs the engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._step_bytes = [tensor.step_bytes for tensor in engine.signature.inputs]
        # Padding behind a row must hold valid indices: 0 may be outside a table's range.
        self._resting = [resting(tensor).tobytes() for tensor in engine.signature.inputs]
        self._stateful = bool(engine.signature.states)
        self._opens = bool(engine.signature.open_inputs)

    def stage(self, batch: Batch) -> Staged:
        """Copy the batch's rows into the buffers that its run takes.

        Raises:
            Misfit: some payloads have a wrong length. Nothing of these was copied.
        """
        rows = batch.rows
        used = len(rows)
        staged = self._engine.stage(used, batch.steps)
        if batch.uniform and staged.steps == batch.steps:
            for at, (view, size) in enumerate(zip(staged.inputs, self._step_bytes, strict=True)):
                parts = [row.work.payloads[at] for row in rows]
                size *= batch.steps
                if set(map(len, parts)) != {size}:
                    raise Misfit([place for place, part in enumerate(parts) if len(part) != size])
                view[: used * size] = b"".join(parts)
            staged.lengths[:used] = batch.steps
        else:
            self._copy_ragged(staged, batch)
            staged.lengths[:used] = [row.steps for row in rows]
        if self._stateful:
            staged.write[:used, 0] = [row.session.writes for row in rows]
            staged.read[:used] = [row.session.reads for row in rows]
            if self._opens:
                self._give(staged, batch)
        self._engine.pad(staged, used)
        return staged

    def _give(self, staged: Staged, batch: Batch) -> None:
        """Copy what sessions were given at their opening, if their next step reads the initial state."""
        for index, row in enumerate(batch.rows):
            if row.session.reads == INITIAL_ROW:
                for view, value in zip(staged.given, row.session.opening, strict=True):
                    view[index] = np.frombuffer(value, np.uint8)

    def _copy_ragged(self, staged: Staged, batch: Batch) -> None:
        for at, (view, step_bytes) in enumerate(zip(staged.inputs, self._step_bytes, strict=True)):
            for index, row in enumerate(batch.rows):
                to = index * staged.steps * step_bytes
                for work, start, count in row.parts:
                    payload = work.payloads[at]
                    if len(payload) != work.steps * step_bytes:
                        raise Misfit([index])
                    size = count * step_bytes
                    begin = start * step_bytes
                    view[to : to + size] = memoryview(payload)[begin : begin + size]
                    to += size
                end = (index + 1) * staged.steps * step_bytes
                if to < end:  # an earlier run left another session's input here
                    view[to:end] = self._resting[at] * ((end - to) // step_bytes)
