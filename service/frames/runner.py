"""Frames at work, on the engine's thread: a turn's pieces, in as few runs as they fit in."""

from __future__ import annotations

import time

import numpy as np
import structlog

from streamcell.service.batching.batcher import Batcher
from streamcell.service.engine.engine import Engine, Staged
from streamcell.service.engine.staging import steps_of
from streamcell.service.errors import RefusedByModel, RunTimeout, ServiceError, WrongByteCount, run_failure
from streamcell.service.metrics.model_metrics import ModelMetrics
from streamcell.service.sessions.capacity import Ints
from streamcell.service.sessions.slots import INITIAL_ROW

from .admission import begin
from .frame import Frame, Piece
from .members import EXPIRED, FAILED, Members
from .turns import Turn

_log = structlog.get_logger(__name__)


class FrameRunner:
    """Runs a model's turns of frames. For the runner's thread."""

    def __init__(self, engine: Engine, batcher: Batcher, metrics: ModelMetrics, *, ragged: bool) -> None:
        self._engine = engine
        self._batcher = batcher
        self._metrics = metrics
        self._ragged = ragged
        self._input_bytes = [tensor.step_bytes for tensor in engine.signature.inputs]
        self._output_bytes = [tensor.step_bytes for tensor in engine.signature.outputs]
        self._stateful = bool(engine.signature.states)

    def turn(self, turn: Turn) -> None:
        """Run one piece of each stream's frame and answer the frames that are done with it."""
        pieces: list[tuple[Members, Piece]] = []
        for members in turn.sessions:
            if members.current is None or members.current.plan is None:
                self._begin(members, turn)
                self._expire(members)
            if members.current is not None and members.current.piece is not None:
                pieces.append((members, members.current.piece))
        for run in self._packed(pieces):
            self._run(run)
        for _, piece in pieces:
            piece.frame.advance()
        done: list[tuple[Members, Frame]] = []
        for members in turn.sessions:
            frame = members.current
            if frame is not None and frame.piece is None:
                if not members.ended:
                    self._finish(members, frame)
                    done.append((members, frame))
                members.current = None
        self._batcher.turned(turn)
        for members, frame in done:
            if not members.ended:
                self._metrics.delivered(0, 0, (), (time.perf_counter() - frame.arrived_s,))
                self._metrics.requests.inferences += int(np.count_nonzero(frame.ok))
                members.frame_owner.deliver_frame(frame)

    # Before the run

    def _expire(self, members: Members) -> None:
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

    def _begin(self, members: Members, turn: Turn) -> None:
        """Check the frame at hand against the stream's members and plan its runs."""
        frame = members.current
        if frame is None:
            return
        self._metrics.delivered(0, 0, (turn.taken_s - frame.arrived_s,), ())
        if len(frame.handles) and frame.misfit(self._input_bytes):
            # Each entrance checks that. If one forgets to, the frame's sender alone is refused.
            for row in range(len(frame.handles)):
                frame.refuse(row, WrongByteCount("the frame's inputs are not as long as its rows say"))
        if not begin(members, frame, self._batcher, self._metrics):
            members.current = None
            return
        frame.begin(
            self._output_bytes,
            max_batch=self._engine.max_batch,
            max_chunk=self._engine.max_chunk,
            ragged=self._ragged,
        )

    def _packed(self, pieces: list[tuple[Members, Piece]]) -> list[list[tuple[Members, Piece]]]:
        """The pieces in runs: at most `max_batch` rows each, none over twice as long as another."""
        if len(pieces) < 2:
            return [pieces] if pieces else []
        runs: list[list[tuple[Members, Piece]]] = []
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

    # The run

    def _run(self, run: list[tuple[Members, Piece]]) -> None:
        try:
            came_s = time.perf_counter()
            staged = self._stage(run)
            began_s = time.perf_counter()
            self._engine.run(staged)
            ended_s = time.perf_counter()
        except Exception as error:  # ONNX Runtime's errors share no base class
            self._failed(run, error)
            return
        rows = sum(len(piece.rows) for _, piece in run)
        self._metrics.ran(rows, staged.rows * staged.steps, ended_s - began_s)
        self._land(run, staged)
        # A failed run is run again row by row: each of them counts a part of its frame.
        self._metrics.requests.computed(
            len(run), 0, began_s - came_s, ended_s - began_s, time.perf_counter() - ended_s
        )

    def _stage(self, run: list[tuple[Members, Piece]]) -> Staged:
        """Copy the pieces' rows one after another into the staging buffers."""
        used = sum(len(piece.rows) for _, piece in run)
        staged = self._engine.stage(used, max(piece.longest for _, piece in run))
        targets = list(map(steps_of, staged.inputs, self._input_bytes))
        at = 0
        for members, piece in run:
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

    def _land(self, run: list[tuple[Members, Piece]], staged: Staged) -> None:
        """The states have advanced: note it, and copy the outputs out."""
        sources = list(map(steps_of, staged.outputs, self._output_bytes))
        at = steps = 0
        for members, piece in run:
            handles = piece.frame.handles[piece.rows]
            members.applied[handles] += piece.counts
            members.is_fresh[handles] = False
            piece.copy_out([each[at * staged.steps :] for each in sources], staged.steps)
            at += len(piece.rows)
            steps += int(piece.counts.sum())
        self._metrics.delivered(steps, at, (), ())

    def _failed(self, run: list[tuple[Members, Piece]], error: Exception) -> None:
        """Where every state is as it was, run each row alone, to refuse only what fails again; else end them all."""
        rows = sum(len(piece.rows) for _, piece in run)
        if not self._engine.commits_last or isinstance(error, RunTimeout):
            _log.error("engine run failed", rows=rows, exc_info=error)
            for members, piece in run:
                self._end(members, piece, piece.rows, run_failure(error))
            return
        self._engine.clear_inputs()
        if rows > 1:
            for members, piece in run:
                for place in range(len(piece.rows)):
                    self._run([(members, piece.alone(place))])
            return
        refusal = RefusedByModel.because(error, "row")
        ((members, piece),) = run
        if piece.start:  # what ran of the row before cannot be taken back
            self._end(members, piece, piece.rows, refusal)
        else:
            row = int(piece.rows[0])
            piece.frame.refuse(row, refusal)
            members.refused_in[piece.frame.handles[row]] = piece.frame.number

    def _end(self, members: Members, piece: Piece, rows: Ints, error: ServiceError) -> None:
        """End the sessions of `rows` for `error`."""
        handles = piece.frame.handles[rows]

        def drop() -> None:
            ended = members.drop(handles, FAILED, self._batcher.capacity)
            self._metrics.session_ended(error.reason.lower(), ended)

        self._batcher.change(members, drop)
        for row in rows.tolist():
            piece.frame.refuse(row, error, session_ended=True)

    # After it

    def _finish(self, members: Members, frame: Frame) -> None:
        """What the reply says beside the outputs."""
        members.count()
        inside = frame.handles < len(members.applied)
        frame.step_indices = np.zeros(len(frame.handles), np.int64)
        frame.step_indices[inside] = members.applied[frame.handles[inside]]
