"""Admits a frame: closes, resets and opens members as it asks, and refuses the rows that cannot run."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from streamcell.service.batching.batcher import Batcher
from streamcell.service.errors import (
    DuplicateHandle,
    EngineFailed,
    ModelUnloading,
    SequenceGap,
    ServiceError,
    SessionExpired,
    SessionLimit,
    UnknownHandle,
)
from streamcell.service.metrics.model_metrics import ModelMetrics
from streamcell.service.sessions.capacity import Ints

from .copies import FrameCopies
from .frame import Fits, Frame, Part, Refusal
from .members import EXPIRED, FREE, LIVE, FrameSessions, Statuses

_OPENS = ("open", "restore")


def admit(
    members: FrameSessions, frame: Frame, batcher: Batcher, metrics: ModelMetrics, copies: FrameCopies
) -> bool:
    """Close, reset, open and restore what `frame` asks for, then refuse the rows that cannot run.

    Earlier frames have been answered. False if the stream has ended, because of its first frame's requests
    or for any other reason.
    """
    changes = len(frame.close) or len(frame.reset) or frame.open_count
    if changes and not batcher.change(members, lambda: _change(members, frame, batcher, metrics)):
        return False
    image = frame.restore
    if image is not None:
        copies.run(members, lambda: copies.restore(members, frame, image))
        if members.ended:
            return False
    if frame.number == 1 and (failed := [each for each in frame.refusals if each.part in _OPENS]):
        members.listener.fail(failed[0].error)
        return False
    if len(frame.handles):
        _refuse_rows(members, frame)
    return True


def _change(members: FrameSessions, frame: Frame, batcher: Batcher, metrics: ModelMetrics) -> None:
    if len(frame.close):
        handles = _known(members, frame, "close", frame.close, lambda status: status != FREE)
        metrics.session_ended("closed", members.drop(handles, FREE, batcher.capacity))
    if len(frame.reset):
        members.reset(_known(members, frame, "reset", frame.reset, lambda status: status == LIVE))
    if frame.open_count:
        try:
            frame.opened = members.open(frame.open_count, batcher.capacity, time.monotonic())
        except (ModelUnloading, SessionLimit) as error:
            frame.refusals.append(Refusal("open", 0, error))
        else:
            metrics.session_opened(frame.open_count)


def _known(
    members: FrameSessions, frame: Frame, part: Part, handles: Ints, fits: Callable[[Statuses], Fits]
) -> Ints:
    """The `handles` whose status fits, each once; the others are refused."""
    status = members.status_of(handles)
    fine = fits(status)
    places = np.flatnonzero(fine)
    again = members.repeated(handles[places])
    if fine.all() and not again.any():
        return handles
    for place in np.flatnonzero(~fine).tolist():
        error, ended = _status_error(members, int(handles[place]), int(status[place]))
        frame.refusals.append(Refusal(part, place, error, ended))
    for place in places[again].tolist():
        frame.refusals.append(Refusal(part, place, _duplicate(int(handles[place]))))
    kept: Ints = handles[places[~again]]
    return kept


def _refuse_rows(members: FrameSessions, frame: Frame) -> None:
    """Refuse rows without a live session, second rows of one session, and rows behind a gap."""
    handles = frame.handles
    status = members.status_of(handles)
    rows = np.flatnonzero(status == LIVE)
    for row in np.flatnonzero(status != LIVE).tolist() if len(rows) < len(handles) else ():
        error, ended = _status_error(members, int(handles[row]), int(status[row]))
        frame.refuse(row, error, session_ended=ended)
    live = handles if len(rows) == len(handles) else handles[rows]
    again = members.repeated(live)
    if again.any():
        for row in rows[again].tolist():
            frame.refuse(row, _duplicate(int(handles[row])))
    # A gap follows a refused row: the client sent these rows before it knew of the refusal. Rows refused for
    # a gap make no new gap: all of them are refused for the first one.
    refused = live[~frame.ok[rows]]
    if frame.answered is not None:
        behind = members.refused_in[live] > frame.answered
        if behind.any():
            for row in rows[behind].tolist():
                frame.refuse(row, _gap(int(handles[row]), int(members.refused_in[handles[row]])))
    members.refused_in[refused] = frame.number
    members.used_s[live] = time.monotonic()


def _status_error(members: FrameSessions, handle: int, status: int) -> tuple[ServiceError, bool]:
    """Why a handle without a live session cannot run, and whether it had one that has ended."""
    if status == FREE:
        return UnknownHandle(f"no session has handle {handle}", handle=handle), False
    facts = {"session_id": members.session_id, "handle": handle}
    if status == EXPIRED:
        return SessionExpired(f"session {handle} was idle for too long and expired", **facts), True
    return EngineFailed(f"session {handle} has ended because a run of the model failed", **facts), True


def _duplicate(handle: int) -> DuplicateHandle:
    return DuplicateHandle(
        f"handle {handle} comes twice in this frame: only the first row runs", handle=handle
    )


def _gap(handle: int, frame: int) -> SequenceGap:
    return SequenceGap(
        f"reply {frame} refused an earlier row of session {handle}; the client had not seen that reply when "
        f"it sent this row",
        handle=handle,
        refused_in=frame,
    )
