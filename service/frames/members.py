"""The sessions of one stream of frames, as arrays by handle. To the batcher the whole stream is one session."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from streamcell.service.durability.frame_entry import FrameEntry
from streamcell.service.durability.layout import Array
from streamcell.service.errors import SessionLimit
from streamcell.service.sessions.capacity import Capacity, Ints
from streamcell.service.sessions.session import Session, SessionListener

if TYPE_CHECKING:
    from .frame import Frame

Statuses: TypeAlias = np.ndarray[Any, np.dtype[np.int8]]

# A handle's status. An expired or failed session keeps its handle until the client closes it.
FREE, LIVE, EXPIRED, FAILED = range(4)


class FrameListener(SessionListener, Protocol):
    """Gets a frame stream's replies. The engine thread calls it."""

    def deliver_frame(self, frame: Frame) -> None:
        """`frame` is done: its outputs, step indices and errors are there to be sent."""


class FrameSessions(Session):
    """A stream's sessions. Arrays are indexed by handle; `status` says which of them count.

    The engine thread changes them, within `Batcher.change` if members come or go; other threads read counts only.
    """

    __slots__ = (
        "_fresh_count",
        "_schedule",
        "applied",
        "current",
        "expire_before_s",
        "frame_listener",
        "frames_kept",
        "fresh_members",
        "leaving",
        "refused_in",
        "rows",
        "rows_apart",
        "scratch",
        "slot_versions",
        "slots",
        "status",
        "used_s",
    )  # fmt: skip

    def __init__(
        self,
        session_id: str,
        listener: FrameListener,
        now_s: float,
        peer: str,
        schedule: Callable[[Session], None],
    ) -> None:
        """Make a stream that has no members yet. `schedule` makes it ready even if it has no frame."""
        super().__init__(session_id, listener, 0, 0, now_s, peer)
        self._schedule = schedule
        self.frame_listener = listener
        self.members = 0  # live ones
        self._fresh_count = 0
        self.current: Frame | None = None  # taken from the queue, not yet answered
        self.expire_before_s = 0.0  # when not 0: end members that were last used before
        self.status = np.zeros(0, np.int8)
        self.slots = np.zeros(0, np.int64)
        self.slot_versions = np.zeros(0, np.int64)
        self.applied = np.zeros(0, np.int64)  # timesteps since the opening or the last reset
        self.fresh_members = np.zeros(0, np.bool_)  # no step applied yet: the next reads the initial state
        self.used_s = np.zeros(0, np.float64)
        self.refused_in = np.zeros(0, np.int64)  # the number of the last frame in which a row was refused
        self.scratch = np.zeros(0, np.int64)
        # If it is in a journal: its entry there, how far the two rows of a member are apart, which row of each member
        # counts, and what members had that have gone: others get it once that is committed.
        self.frames_kept: FrameEntry | None = None
        self.rows_apart = 0
        self.rows = np.zeros(0, np.int64)
        self.leaving: list[tuple[Ints, Ints]] = []

    @property
    def fresh_count(self) -> int:
        """How many members have applied no step."""
        return self._fresh_count

    def has_idle_members(self, before_s: float) -> bool:
        """True if members seem idle since before that time, and no queued frame could have rows for them."""
        return not self.queued and len(self.idle(before_s)) > 0

    def expire_members(self, before_s: float) -> None:
        """End members that were last used before that time, in the next turn."""
        self.expire_before_s = before_s
        self._schedule(self)

    @property
    def busy(self) -> bool:
        """True if there is something to do in a turn."""
        return self.current is not None or bool(self.queue) or self.expire_before_s > 0

    def open(self, count: int, capacity: Capacity, now_s: float) -> Ints:
        """`count` new members at the initial state: int64[count] handles, the lowest that are free.

        Raises:
            SessionLimit: the model has too little room; none was opened.
            ModelUnloading: the model is being unloaded.
        """
        capacity.check_open()
        if self.frames_kept is not None:
            self._check_handles(self.frames_kept, count)
        slots, slot_versions = capacity.take_many(count)
        free = np.flatnonzero(self.status == FREE)
        if len(free) < count:
            self._grow(count - len(free))
            free = np.flatnonzero(self.status == FREE)
        handles = free[:count]
        self.status[handles] = LIVE
        self.slots[handles] = slots
        self.slot_versions[handles] = slot_versions
        self.rows[handles] = slots
        self.used_s[handles] = now_s
        self.reset(handles)
        self.members += count
        return handles

    def replace(self, handles: Ints, capacity: Capacity, now_s: float) -> None:
        """Take the members of `handles`, at the initial state, in place of those that the stream has.

        Raises:
            SessionLimit: the model has too little room; nothing has changed.
            ModelUnloading: the model is being unloaded.
        """
        top = int(handles.max(initial=-1)) + 1
        if self.frames_kept is not None and top > self.frames_kept.handles:
            raise SessionLimit(
                f"this stream may have {self.frames_kept.handles} handles",
                max_sessions=self.frames_kept.handles,
            )
        live = np.flatnonzero(self.status == LIVE)
        slots, versions = self.slots[live], self.slot_versions[live]
        # A state is written to the row that does not count: in a journal this is the other one of each.
        rows = self.rows_of(live, 1)[1]
        more = len(handles) - len(live)
        if more > 0:
            capacity.check_open()
            taken, taken_versions = capacity.take_many(more)
            slots, versions = np.concatenate((slots, taken)), np.concatenate((versions, taken_versions))
            rows = np.concatenate((rows, taken))
        elif more:
            if self.frames_kept is None:
                capacity.give_back_many(slots[more:], versions[more:])
            else:
                self.leaving.append((slots[more:], versions[more:]))
            slots, versions, rows = slots[:more], versions[:more], rows[:more]
        if top > len(self.status):
            self._grow(top - len(self.status))
        self.status[:] = FREE
        self.applied[:] = 0
        self.status[handles] = LIVE
        self.slots[handles] = slots
        self.slot_versions[handles] = versions
        self.rows[handles] = rows
        self.used_s[handles] = now_s
        self.reset(handles)
        self.members = len(handles)

    def _grow(self, more: int) -> None:
        more = max(more, len(self.status))
        for name in (
            "status", "slots", "slot_versions", "rows", "applied", "fresh_members", "used_s", "refused_in",
            "scratch",
        ):  # fmt: skip
            old = getattr(self, name)
            setattr(self, name, np.concatenate((old, np.zeros(more, old.dtype))))

    def reset(self, handles: Ints) -> None:
        """Put live members back to the initial state and to step index 0."""
        self.applied[handles] = 0
        self.fresh_members[handles] = True
        self.refused_in[handles] = 0

    def drop(self, handles: Ints, status: int, capacity: Capacity) -> int:
        """End the live sessions of `handles`, free their slots and note `status`; returns how many were live."""
        live = handles[self.status[handles] == LIVE]
        if self.frames_kept is None:
            capacity.give_back_many(self.slots[live], self.slot_versions[live])
        else:
            self.leaving.append((self.slots[live], self.slot_versions[live]))
        self.status[handles] = status
        self.applied[handles] = 0
        self.members -= len(live)
        return len(live)

    # In a journal

    def keep(self, entry: FrameEntry, rows_apart: int) -> None:
        """From now on each frame is committed to `entry`, and a member has two rows, so far apart."""
        self.frames_kept, self.rows_apart = entry, rows_apart

    def restore(self, found: Array, capacity: Capacity, now_s: float) -> Ints:
        """Take slots for members of an earlier process, MEMBER[handles]; the old rows of those that are live.

        Raises:
            SessionLimit: the model has too little room.
        """
        live = np.flatnonzero(found["status"] == LIVE)
        slots, slot_versions = capacity.take_many(len(live))
        self._grow(len(found))
        known = np.arange(len(found))
        self.status[known] = found["status"]
        self.applied[known], self.refused_in[known] = found["applied"], found["refused_in"]
        self.fresh_members[known] = found["applied"] == 0
        self.slots[live], self.slot_versions[live], self.rows[live] = slots, slot_versions, slots
        self.used_s[known] = now_s
        self.members = len(live)
        self.count()
        old: Ints = found["row"][live]
        return old

    def of(self, handles: Ints) -> dict[str, Array]:
        """These members, as a journal keeps them."""
        return {
            "status": self.status[handles],
            "slot": self.slots[handles],
            "row": self.rows[handles],
            "applied": self.applied[handles],
            "refused_in": self.refused_in[handles],
        }

    def rows_of(self, handles: Ints, start: int) -> tuple[Ints, Ints]:
        """The rows that steps of these members read and write, from step `start` of their frame on."""
        slots = self.slots[handles]
        if self.frames_kept is None:
            return slots, slots
        rows = self.rows[handles]
        writes = 2 * slots + self.rows_apart - rows
        return (writes if start else rows), writes

    def stepped(self, handles: Ints) -> None:
        """A frame has applied all steps of these members: its commit makes the rows that they wrote count."""
        if self.frames_kept is not None:
            self.rows[handles] = 2 * self.slots[handles] + self.rows_apart - self.rows[handles]

    def release(self, capacity: Capacity) -> None:
        """Give back the slots of closed members, whose end is committed now."""
        leaving, self.leaving = self.leaving, []
        for slots, slot_versions in leaving:
            capacity.give_back_many(slots, slot_versions)

    def _check_handles(self, entry: FrameEntry, count: int) -> None:
        """Raise SessionLimit if the journal has no room for so many more handles."""
        used = int(np.count_nonzero(self.status))
        if used + count > entry.handles:
            raise SessionLimit(
                f"{count} sessions asked for, and this stream may have {entry.handles} handles, expired ones included, "
                f"of which {used} are in use: close some",
                max_sessions=entry.handles,
            )

    def idle(self, before_s: float) -> Ints:
        """The live members last used before that time; on other threads an estimate."""
        status, used_s = self.status, self.used_s
        both = min(len(status), len(used_s))
        return np.flatnonzero((status[:both] == LIVE) & (used_s[:both] < before_s))

    def status_of(self, handles: Ints) -> Statuses:
        """int8[n]: each handle's status, FREE if it was never used."""
        inside = handles < len(self.status)
        if inside.all():
            return self.status[handles]
        status = np.zeros(len(handles), np.int8)
        status[inside] = self.status[handles[inside]]
        return status

    def repeated(self, handles: Ints) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """bool[n]: True if the handle is at an earlier place of `handles` too. The table knows all of them."""
        places = np.arange(len(handles))
        # The last of several writes to one place wins; in reverse order that is the first.
        self.scratch[handles[::-1]] = places[::-1]
        repeated: np.ndarray[Any, np.dtype[np.bool_]] = self.scratch[handles] != places
        return repeated

    def count(self) -> None:
        """Update the figures that other threads read: the sum of the step indices, and how many members are fresh."""
        live = self.status == LIVE
        self.step_index = int(self.applied.sum())
        self._fresh_count = int(np.count_nonzero(live & self.fresh_members))
        self.fresh = not self.step_index

    def free(self, capacity: Capacity) -> None:
        """Give back every live member's slot. The stream has ended and has no work in flight."""
        live = np.flatnonzero(self.status == LIVE)
        capacity.give_back_many(self.slots[live], self.slot_versions[live])
        self.release(capacity)
        self.status[live] = FREE
        self.current = None
