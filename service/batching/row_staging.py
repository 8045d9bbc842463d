"""From a batch's rows to the staging buffers: each is as long as its steps need, or is not copied."""

from __future__ import annotations

from streamcell.service.engine.engine import Engine
from streamcell.service.engine.staging import Staged

from .batch import Batch


class Misfit(Exception):
    """Some rows hold payloads that are not as long as their steps say; `rows` are their places in the batch.

    Every entrance checks that. If one forgets to, the row's sender is refused: a short or a long part would shift the
    rows behind it, and one session would read another's input.
    """

    def __init__(self, rows: list[int]) -> None:
        super().__init__(rows)
        self.rows = rows


class RowStaging:
    """Fills one engine's staging buffers. For the thread that runs the engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._step_bytes = [tensor.step_bytes for tensor in engine.signature.inputs]
        self._stateful = bool(engine.signature.states)

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
                parts = [row.parts[0][0].payloads[at] for row in rows]
                size *= batch.steps
                if set(map(len, parts)) != {size}:
                    raise Misfit([place for place, part in enumerate(parts) if len(part) != size])
                view[: used * size] = b"".join(parts)
            staged.lengths[:used] = batch.steps
        else:
            self._copy_ragged(staged, batch)
            staged.lengths[:used] = [row.steps for row in rows]
        if self._stateful:
            slots = [row.session.slot for row in rows]
            staged.write[:used, 0] = slots
            staged.read[:used] = [row.session.reads for row in rows]
        self._engine.pad(staged, used)
        return staged

    def _copy_ragged(self, staged: Staged, batch: Batch) -> None:
        rows = batch.rows
        for at, (view, step_bytes) in enumerate(zip(staged.inputs, self._step_bytes, strict=True)):
            stride = staged.steps * step_bytes
            for index, row in enumerate(rows):
                to = index * stride
                for work, start, count in row.parts:
                    payload = work.payloads[at]
                    if len(payload) != work.steps * step_bytes:
                        raise Misfit([index])
                    size = count * step_bytes
                    begin = start * step_bytes
                    view[to : to + size] = memoryview(payload)[begin : begin + size]
                    to += size
                end = (index + 1) * stride
                if to < end:  # another session's input of an earlier run
                    view[to:end] = bytes(end - to)
