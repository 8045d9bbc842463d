"""Frames at work, on the engine's thread: the slices of a round, in as few runs as they fit in."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import TypeAlias

import numpy as np

from streamcell.service.batching.batcher import Batcher
from streamcell.service.batching.guarded_run import GuardedRun, Later, RunTimes
from streamcell.service.engine.engine import Engine, Staged
from streamcell.service.engine.rows import INITIAL_ROW
from streamcell.service.engine.staging import steps_of
from streamcell.service.errors import RefusedByModel, ServiceError, WrongByteCount, run_failure
from streamcell.service.metrics.model_metrics import ModelMetrics
from streamcell.service.sessions.capacity import Ints

from .admission import admit
from .frame import Frame, FrameSlice
from .members import EXPIRED, FAILED, FrameSessions
from .rounds import FrameRound, complete_round

Slices: TypeAlias = list[tuple[FrameSessions, FrameSlice]]


class FrameRunner:
    """Runs a model's rounds of frames. For the engine's thread."""

    def __init__(self, engine: Engine, batcher: Batcher, metrics: ModelMetrics, *, ragged: bool) -> None:
        self._engine = engine
        self._batcher = batcher
        self._metrics = metrics
        self._ragged = ragged
        self._input_bytes = [tensor.step_bytes for tensor in engine.signature.inputs]
        self._output_bytes = [tensor.step_bytes for tensor in engine.signature.outputs]
        self._stateful = bool(engine.signature.states)
        # Values are checked when a frame arrives: of a row that runs in several pieces all or none is applied.
        self._guarded = GuardedRun(engine, metrics, check=None)

    def run(self, round_: FrameRound) -> None:
        """Run one piece of each stream's frame and answer the frames that are done with it."""
        pieces: Slices = []
        for members in round_.sessions:
            if members.current is None or members.current.plan is None:
                self._begin(members, round_)
                self._expire(members)
            if members.current is not None and members.current.piece is not None:
                pieces.append((members, members.current.piece))
        for slices in self._packed(pieces):
            self._guarded(self, slices)
        for _, piece in pieces:
            piece.frame.advance()
        done: list[tuple[FrameSessions, Frame]] = []
        for members in round_.sessions:
            frame = members.current
            if frame is not None and frame.piece is None:
                if not members.ended:
                    self._finish(members, frame)
                    done.append((members, frame))
                members.current = None
        self._batcher.complete_by(partial(complete_round, round_, self._batcher.capacity))
        for members, frame in done:
            if not members.ended:
                self._metrics.delivered(0, 0, (), (time.perf_counter() - frame.arrived_s,))
                self._metrics.requests.inferences += int(np.count_nonzero(frame.ok))
                members.frame_owner.deliver_frame(frame)

    # Before the run

    def _expire(self, members: FrameSessions) -> None:
        before_s, members.expire_before_s = members.expire_before_s, 0.0
        # Frames that wait may have rows for members that look idle: housekeeping asks again.
        if not before_s or members.queue:
            return

        def expire() -> None:
            self._metrics.session_ended(
                "session_expired", members.drop(members.idle(before_s), EXPIRED, self._batcher.capacity)
            )
            members.count()

        self._batcher.change(members, expire)

    def _begin(self, members: FrameSessions, round_: FrameRound) -> None:
        """Check the frame at hand against the stream's members and plan its runs."""
        frame = members.current
        if frame is None:
            return
        self._metrics.delivered(0, 0, (round_.taken_s - frame.arrived_s,), ())
        if len(frame.handles) and frame.misfit(self._input_bytes):
            # Each entrance checks that. If one forgets to, the frame's sender alone is refused.
            for row in range(len(frame.handles)):
                frame.refuse(row, WrongByteCount("the frame's inputs are not as long as its rows say"))
        if not admit(members, frame, self._batcher, self._metrics):
            members.current = None
            return
        frame.begin(
            self._output_bytes,
            max_batch=self._engine.max_batch,
            max_chunk=self._engine.max_chunk,
            ragged=self._ragged,
        )

    def _packed(self, pieces: Slices) -> list[Slices]:
        """The pieces in runs: at most `max_batch` rows each, none over twice as long as another."""
        if len(pieces) < 2:
            return [pieces] if pieces else []
        runs: list[Slices] = []
        rows = shortest = 0
        for each in sorted(pieces, key=lambda pair: pair[1].shortest):
            piece = each[1]
            rows += len(piece.rows)
            longest = max(piece.longest, *(other.longest for _, other in runs[-1])) if runs else 0
            fits = longest <= (2 * shortest if self._ragged else shortest)
            if runs and fits and rows <= self._engine.max_batch:
                runs[-1].append(each)
            else:
                runs.append([each])
                rows, shortest = len(piece.rows), piece.shortest
        return runs

    # The run, as `GuardedRun` asks for it

    def count(self, rows: Slices) -> int:
        """How many rows there are."""
        return sum(len(piece.rows) for _, piece in rows)

    def fill(self, rows: Slices) -> Staged:
        """Copy the slices' rows one after another into the staging buffers."""
        used = self.count(rows)
        staged = self._engine.stage(used, max(piece.longest for _, piece in rows))
        targets = list(map(steps_of, staged.inputs, self._input_bytes))
        at = 0
        for members, piece in rows:
            end = at + len(piece.rows)
            piece.copy_in(piece.frame.inputs, [each[at * staged.steps :] for each in targets], staged.steps)
            staged.lengths[at:end] = piece.counts
            if self._stateful:
                handles = piece.frame.handles[piece.rows]
                slots = members.slots[handles]
                staged.write[at:end, 0] = slots
                staged.read[at:end] = np.where(members.is_fresh[handles], INITIAL_ROW, slots)
            at = end
        self._engine.pad(staged, used)
        return staged

    def without(self, rows: Slices, bad: list[int], later: Later) -> Slices:
        """Never called: a frame's lengths and values are checked when it arrives."""
        raise AssertionError(f"rows {bad} of a frame have not been checked")

    def apart(self, rows: Slices) -> Iterator[Slices]:
        """The rows one by one."""
        for members, piece in rows:
            for place in range(len(piece.rows)):
                yield [(members, piece.alone(place))]

    def completed(self, rows: Slices, staged: Staged, times: RunTimes) -> tuple[int, int]:
        """Advance the sessions, and copy the outputs out."""
        sources = list(map(steps_of, staged.outputs, self._output_bytes))
        at = steps = 0
        for members, piece in rows:
            handles = piece.frame.handles[piece.rows]
            members.applied[handles] += piece.counts
            members.is_fresh[handles] = False
            piece.copy_out([each[at * staged.steps :] for each in sources], staged.steps)
            at += len(piece.rows)
            steps += int(piece.counts.sum())
        self._metrics.delivered(steps, at, (), ())
        # A failed run is run again row by row: each of them counts as a part of its frame.
        return len(rows), 0

    def refused(self, rows: Slices, cause: Exception, later: Later) -> None:
        """A row that failed alone is refused, or if steps of it have been applied, its session ends."""
        refusal = RefusedByModel.because(cause, "row")
        ((members, piece),) = rows
        if piece.start:  # what ran of the row before cannot be taken back
            self._end(members, piece, piece.rows, refusal)
        else:
            row = int(piece.rows[0])
            piece.frame.refuse(row, refusal)
            members.refused_in[piece.frame.handles[row]] = piece.frame.number

    def failed(self, rows: Slices, cause: Exception) -> None:
        """All sessions with a row in the run end."""
        for members, piece in rows:
            self._end(members, piece, piece.rows, run_failure(cause))

    def _end(self, members: FrameSessions, piece: FrameSlice, rows: Ints, error: ServiceError) -> None:
        """End the sessions of `rows` for `error`."""
        handles = piece.frame.handles[rows]

        def drop() -> None:
            ended = members.drop(handles, FAILED, self._batcher.capacity)
            self._metrics.session_ended(error.reason.lower(), ended)

        self._batcher.change(members, drop)
        for row in rows.tolist():
            piece.frame.refuse(row, error, session_ended=True)

    # After it

    def _finish(self, members: FrameSessions, frame: Frame) -> None:
        """What the reply says beside the outputs."""
        members.count()
        inside = frame.handles < len(members.applied)
        frame.step_indices = np.zeros(len(frame.handles), np.int64)
        frame.step_indices[inside] = members.applied[frame.handles[inside]]
