"""Copies of a stream's sessions: forks of members, and the whole stream as one image and back.

The engine thread makes them between two runs of the stream's frames, and copies states on the device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import structlog

from streamcell.service.batching.batcher import Batcher
from streamcell.service.engine.pool import StatePool
from streamcell.service.errors import EngineFailed, ModelUnloading, ServiceError, SessionLimit, UnknownHandle
from streamcell.service.metrics.model_metrics import ModelMetrics
from streamcell.service.sessions.image import Bytes, Image

from .frame import Frame, Refusal
from .members import LIVE, FrameSessions

_log = structlog.get_logger(__name__)


class FrameCopies:
    """Copies members' states. `given`: uint8[pool's rows, bytes] an open input, what members were given, by slot."""

    def __init__(
        self, pool: StatePool, batcher: Batcher, metrics: ModelMetrics, given: Sequence[Bytes]
    ) -> None:
        self._pool = pool
        self._batcher = batcher
        self._metrics = metrics
        self._given = given

    def run(self, members: FrameSessions, copy: Callable[[], None]) -> None:
        """Call `copy`, which copies states of `members`. If that fails, the stream ends, not the engine thread."""
        try:
            copy()
        except Exception as error:  # the device's, or a bug
            _log.error("states of a stream of frames were not copied", exc_info=error)
            members.listener.fail(EngineFailed("the states of the stream's sessions could not be copied"))

    def restore(self, members: FrameSessions, frame: Frame, image: Image) -> None:
        """Give the stream the sessions of `image` in place of its own, or refuse that and change nothing."""
        before = members.members

        def change() -> None:
            try:
                members.replace(image.handles, self._batcher.capacity, time.monotonic())
            except (ModelUnloading, SessionLimit) as error:
                frame.refusals.append(Refusal("restore", 0, error))
                return
            self._metrics.session_ended("closed", before)
            self._metrics.session_opened(len(image.handles))
            frame.opened = image.handles
            frame.step_indices = image.step_indices

        if not self._batcher.change(members, change) or frame.opened is not image.handles:
            return
        slots, rows = members.slots[image.handles], members.rows[image.handles]
        stepped = image.step_indices > 0
        for place, row in enumerate(rows[stepped].tolist()):
            self._pool.write(row, image.states(place))
        for given, values in zip(self._given, image.given, strict=True):
            given[slots] = values
        members.applied[image.handles] = image.step_indices
        members.fresh_members[image.handles] = ~stepped
        members.count()
        self._metrics.state_copied("restore", len(image.handles))

    def after(self, members: FrameSessions, frame: Frame) -> None:
        """Make the forks and the snapshot that `frame` asks for; its rows have run."""
        if len(frame.fork):
            self._fork(members, frame)
        if frame.snapshot:
            frame.image = self._image(members)
            self._metrics.state_copied("snapshot", members.members)

    def _fork(self, members: FrameSessions, frame: Frame) -> None:
        sources = frame.fork
        lost = sources[members.status_of(sources) != LIVE]
        if len(lost):
            handle = int(lost[0])
            self._refuse(frame, UnknownHandle(f"no live session has handle {handle}", handle=handle))
            return

        def change() -> None:
            try:
                frame.forked = members.open(len(sources), self._batcher.capacity, time.monotonic())
            except (ModelUnloading, SessionLimit) as error:
                self._refuse(frame, error)
            else:
                self._metrics.session_opened(len(sources))

        if not self._batcher.change(members, change) or not len(frame.forked):
            return
        slots, targets = members.slots[sources], members.slots[frame.forked]
        fresh = members.fresh_members[sources]
        rows = members.rows[sources]
        for source, target in zip(rows[~fresh].tolist(), targets[~fresh].tolist(), strict=True):
            self._pool.copy(source, target)
        for given in self._given:
            given[targets] = given[slots]
        members.applied[frame.forked] = members.applied[sources]
        members.fresh_members[frame.forked] = fresh
        self._metrics.state_copied("fork", len(sources))

    @staticmethod
    def _refuse(frame: Frame, error: ServiceError) -> None:
        frame.refusals.append(Refusal("fork", 0, error))

    def _image(self, members: FrameSessions) -> Image:
        handles = np.flatnonzero(members.status == LIVE)
        slots, rows_now = members.slots[handles], members.rows[handles]
        rows = [self._pool.read(row) for row in rows_now[~members.fresh_members[handles]].tolist()]
        values = [
            np.frombuffer(b"".join([row[at].tobytes() for row in rows]), np.uint8)
            for at in range(self._pool.tensors)
        ]
        return Image(
            members.applied[handles],
            values,
            [given[slots] for given in self._given],
            handles=handles,
        )
