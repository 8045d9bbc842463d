"""Runs frames on the engine thread: the slices of a round, in as few runs as possible."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import TypeAlias

import numpy as np

from streamcell.service.batching.batcher import Batcher
from streamcell.service.batching.guarded_run import GuardedRun, Later
from streamcell.service.engine.engine import Engine, Staged
from streamcell.service.engine.staging import steps_of
from streamcell.service.errors import (
    RefusedByModel,
    ServiceError,
    SessionExpired,
    WrongByteCount,
    run_failure,
)
from streamcell.service.graph.rows import INITIAL_ROW
from streamcell.service.metrics.model_metrics import ModelMetrics
from streamcell.service.metrics.request_metrics import RunTally
from streamcell.service.sessions.capacity import Ints

from .admission import admit
from .copies import FrameCopies
from .frame import Frame, FrameSlice
from .members import EXPIRED, FAILED, FrameSessions
from .rounds import FrameRound, complete_round

Slices: TypeAlias = list[tuple[FrameSessions, FrameSlice]]


class FrameRunner:
    """Runs a model's rounds of frames. For the engine thread."""

    def __init__(self, engine: Engine, batcher: Batcher, metrics: ModelMetrics, *, ragged: bool) -> None:
        self._engine = engine
        self._batcher = batcher
        self._metrics = metrics
        self._ragged = ragged
        self._input_bytes = [tensor.step_bytes for tensor in engine.signature.inputs]
        self._output_bytes = [tensor.step_bytes for tensor in engine.signature.outputs]
        self._stateful = bool(engine.signature.states)
        # uint8[pool's places, bytes] for each open input: what members were given, by slot. Not by handle: one stays in
        # use until its member is closed, though that may have expired, so there may be any number of handles.
        self._given = [
            np.zeros((engine.pool.places, value.step_bytes), np.uint8)
            for value in engine.signature.open_inputs
        ]
        self._copies = FrameCopies(engine.pool, batcher, metrics, self._given)
        # Values are checked when a frame arrives: of a row that runs in several slices all or none is applied.
        self._guarded = GuardedRun(engine, metrics, check=None)

    def run(self, round_: FrameRound) -> None:
        """Run one slice of each stream's frame and answer the frames that are done with it."""
        slices: Slices = []
        for members in round_.sessions:
            if members.current is None or members.current.plan is None:
                self._begin(members, round_)
                self._expire(members)
            if members.current is not None and members.current.next_slice is not None:
                slices.append((members, members.current.next_slice))
        for together in self._packed(slices):
            self._guarded(self, together)
        for _, part in slices:
            part.frame.advance()
        done: list[tuple[FrameSessions, Frame]] = []
        for members in round_.sessions:
            frame = members.current
            if frame is not None and frame.next_slice is None:
                if not members.ended:
                    members.stepped(frame.handles[frame.ok])
                    if len(frame.fork) or frame.snapshot:
                        self._copies.run(members, partial(self._copies.after, members, frame))
                    self._finish(members, frame)
                    done.append((members, frame))
                members.current = None
        self._batcher.complete_by(partial(complete_round, round_, self._batcher.capacity))
        for members, frame in done:
            if not members.ended:
                latency_s = time.perf_counter() - frame.arrived_s
                self._metrics.answered(int(np.count_nonzero(frame.ok)), latency_s, frame.spent)
                members.frame_listener.deliver_frame(frame)
            if members.leaving:  # the frame is committed: others may have what its members had
                self._batcher.change(members, partial(members.release, self._batcher.capacity))

    # Before the run

    def _expire(self, members: FrameSessions) -> None:
        before_s, members.expire_before_s = members.expire_before_s, 0.0
        # Queued frames may have rows for members that look idle; housekeeping asks again later.
        if not before_s or members.queue:
            return

        def expire() -> None:
            handles, capacity = members.idle(before_s), self._batcher.capacity
            expired = members.drop(handles, EXPIRED, capacity)
            self._metrics.session_ended(SessionExpired.reason.lower(), expired)
            if members.frames_kept is not None:
                members.frames_kept.settle(members, handles)
                if members.current is None:  # else a frame may have closed members, and is not committed
                    members.release(capacity)
            members.count()

        self._batcher.change(members, expire)

    def _begin(self, members: FrameSessions, round_: FrameRound) -> None:
        """Check the current frame against the stream's members and plan its runs."""
        frame = members.current
        if frame is None:
            return
        self._metrics.queue_wait_s.observe_one(round_.taken_s - frame.arrived_s)
        if len(frame.handles) and frame.misfit(self._input_bytes):
            # Every protocol checks this. If one forgets, only this frame is refused.
            for row in range(len(frame.handles)):
                frame.refuse(
                    row, WrongByteCount("the frame's inputs do not have the length that its rows declare")
                )
        if not admit(members, frame, self._batcher, self._metrics, self._copies):
            members.current = None
            return
        if len(frame.opened) and frame.restore is None:
            slots = members.slots[frame.opened]
            for given, values in zip(self._given, frame.openings, strict=True):
                given[slots] = values
        frame.begin(
            self._output_bytes,
            max_batch=self._engine.max_batch,
            max_chunk=self._engine.max_chunk,
            ragged=self._ragged,
        )

    def _packed(self, slices: Slices) -> list[Slices]:
        """The slices in runs: at most `max_batch` rows each, none over twice as long as another."""
        if len(slices) < 2:
            return [slices] if slices else []
        runs: list[Slices] = []
        rows = shortest = 0
        for each in sorted(slices, key=lambda pair: pair[1].shortest):
            part = each[1]
            rows += len(part.rows)
            longest = max(part.longest, *[other.longest for _, other in runs[-1]]) if runs else 0
            fits = longest <= (2 * shortest if self._ragged else shortest)
            if runs and fits and rows <= self._engine.max_batch:
                runs[-1].append(each)
            else:
                runs.append([each])
                rows, shortest = len(part.rows), part.shortest
        return runs

    # The run, as `GuardedRun` asks for it

    def count(self, rows: Slices) -> int:
        """How many rows there are."""
        return sum(len(part.rows) for _, part in rows)

    def fill(self, rows: Slices) -> Staged:
        """Copy the slices' rows one after another into the staging buffers."""
        used = self.count(rows)
        staged = self._engine.stage(used, max(part.longest for _, part in rows))
        targets = list(map(steps_of, staged.inputs, self._input_bytes))
        at = 0
        for members, part in rows:
            end = at + len(part.rows)
            part.copy_in(part.frame.inputs, [each[at * staged.steps :] for each in targets], staged.steps)
            staged.lengths[at:end] = part.counts
            if self._stateful:
                handles = part.frame.handles[part.rows]
                slots = members.slots[handles]
                reads, staged.write[at:end, 0] = members.rows_of(handles, part.start)
                fresh = members.fresh_members[handles]
                staged.read[at:end] = np.where(fresh, INITIAL_ROW, reads)
                if staged.given and fresh.any():
                    for view, given in zip(staged.given, self._given, strict=True):
                        view[at:end][fresh] = given[slots[fresh]]
            at = end
        self._engine.pad(staged, used)
        return staged

    def without(self, rows: Slices, bad: list[int], later: Later) -> Slices:
        """Never called: a frame's lengths and values are checked when it arrives."""
        raise AssertionError(f"rows {bad} of a frame have not been checked")

    def apart(self, rows: Slices) -> Iterator[Slices]:
        """The rows one by one."""
        for members, part in rows:
            for place in range(len(part.rows)):
                yield [(members, part.alone(place))]

    def completed(self, rows: Slices, staged: Staged, run: RunTally) -> None:
        """Advance the sessions, and copy the outputs out."""
        sources = list(map(steps_of, staged.outputs, self._output_bytes))
        at = steps = 0
        for members, part in rows:
            handles = part.frame.handles[part.rows]
            members.applied[handles] += part.counts
            members.fresh_members[handles] = False
            part.copy_out([each[at * staged.steps :] for each in sources], staged.steps)
            at += len(part.rows)
            steps += int(part.counts.sum())
        run.steps, run.chunks = steps, at
        for _, part in rows:
            part.frame.spent = run.spent(part.frame.spent)

    def refused(self, rows: Slices, cause: Exception, later: Later) -> None:
        """A row that failed alone is refused, or if steps of it have been applied, its session ends."""
        refusal = RefusedByModel.because(cause, "row")
        ((members, part),) = rows
        if part.start:  # the row's earlier steps cannot be undone
            self._end(members, part, part.rows, refusal)
        else:
            row = int(part.rows[0])
            part.frame.refuse(row, refusal)
            members.refused_in[part.frame.handles[row]] = part.frame.number

    def failed(self, rows: Slices, cause: Exception) -> None:
        """End all sessions with a row in the run."""
        for members, part in rows:
            self._end(members, part, part.rows, run_failure(cause))

    def _end(self, members: FrameSessions, part: FrameSlice, rows: Ints, error: ServiceError) -> None:
        """End the sessions of `rows` for `error`."""
        handles = part.frame.handles[rows]

        def drop() -> None:
            ended = members.drop(handles, FAILED, self._batcher.capacity)
            self._metrics.session_ended(error.reason.lower(), ended)

        self._batcher.change(members, drop)
        for row in rows.tolist():
            part.frame.refuse(row, error, session_ended=True)

    # After it

    def _finish(self, members: FrameSessions, frame: Frame) -> None:
        """Fill in the parts of the reply that are not outputs."""
        members.count()
        if frame.restore is not None and not len(frame.handles):
            return
        inside = frame.handles < len(members.applied)
        frame.step_indices = np.zeros(len(frame.handles), np.int64)
        frame.step_indices[inside] = members.applied[frame.handles[inside]]
