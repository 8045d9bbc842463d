"""The sessions of one model in a mapped file: two rows of state each, committed by one store.

A step reads the row that counts and writes the other. All that belongs to it (the number of messages and of timesteps,
the kept reply) is stored before the stamp of the row that it wrote, and the stamp is one aligned store of eight bytes.
So whenever the process is killed, the larger stamp's row is whole, and it and its replies belong together. Stamps count
commits, not timesteps: a session that is put back to an earlier state has fewer timesteps than before.

At the start the server copies the sessions into a new file. So sizes may change, and a killed start changes nothing.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from .found import Committed, Found, Ring, committed_in, found_in, told_in
from .frame_entry import FoundStream, FrameEntry, found_stream
from .layout import PLACES, STORED, Array, Counts
from .mapped_file import JournalError, MappedFile, remove_if_left
from .told import Place, Told, ToldReply

_SUFFIX, _NEW, _ASIDE = ".journal", ".new", ".aside"
_KEPT_ASIDE = 3  # files that could not be used
_log = structlog.get_logger(__name__)


class Journal:
    """The file of one loaded model. Each session's calls come from one thread at a time.

    Attributes:
        counts: its sizes.
        states: the pool's arrays, dtype[rows, *shape] each.
        kept: sessions that end from now on stay in the file: the server stops, they do not.
        temporary: it is in memory, and gone with the process.
    """

    def __init__(
        self,
        folder: Path | None,
        model: dict[str, str],
        counts: Counts,
        states: Sequence[tuple[np.dtype[Any], tuple[int, ...]]],
    ) -> None:
        """Make a new file beside those of earlier processes.

        Args:
            folder: of this model version; it is made. None: the file is in memory, and nobody looks for it later.
            model: what the states belong to: name, version, hash of the file.
            counts: its sizes.
            states: dtype and shape of one row of each state.

        Raises:
            JournalError: the file cannot be made.
        """
        self.temporary = folder is None
        self._folder, self._model, self._shapes = folder, model, states
        self._old: list[MappedFile] = []
        self._found_streams: list[tuple[FoundStream, MappedFile]] = []
        self._file = MappedFile.in_memory(counts, states) if folder is None else self._create(folder, counts)
        self.counts = counts
        self.states = self._file.states
        self.kept = False
        self._lock = threading.Lock()  # guards the free places of streams
        arrays = self._file.arrays
        self._slots, self._openings = arrays["slots"], arrays["openings"]
        self._stamps, self._numbers, self._steps = (
            arrays[name].data for name in ("stamps", "numbers", "steps")
        )
        self._replies = arrays["replies"].view(np.int64).reshape(counts.slots, counts.window, 3)
        self._reply_fields = self._replies.reshape(-1).data
        self._ring_bytes = arrays["reply_bytes"]
        self._reply_bytes = self._ring_bytes.reshape(-1).data
        self._free_streams = list(range(counts.streams))
        self._lasts = arrays["lasts"].reshape(-1).data if counts.last_bytes else None

    def _create(self, folder: Path, counts: Counts) -> MappedFile:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise JournalError(f"{folder}: {error.strerror}") from error
        for each in folder.glob(f"*{_NEW}"):  # of starts that were killed
            remove_if_left(each)
        # Names in order of time: the newest of the files that are set aside stay.
        name = f"{time.time_ns():020}-{os.getpid()}{_NEW}"
        return MappedFile.create(folder / name, self._model, counts, self._shapes)

    # Sessions

    def second(self, slot: int) -> int:
        """The other row of the session at `slot`."""
        return slot + self.counts.slots

    def most_reply_bytes(self, window: int) -> int:
        """Bytes of the largest reply that a session with that window can keep."""
        return self.counts.reply_bytes // window

    def open(self, slot: int, found: Found) -> Entry:
        """Enter a session at `slot`, with what `found` says of it but its state. It counts once this returns."""
        at = slot - self.counts.first_slot
        self._slots["live"][at] = 0
        for row in (slot, self.second(slot)):
            self._stamps[row] = self._numbers[row] = self._steps[row] = 0
        self._replies[at] = 0
        if len(found.opening) > self.counts.opening_bytes:
            raise JournalError(f"the opening has {len(found.opening)} bytes")
        self._openings[at, : len(found.opening)] = np.frombuffer(found.opening, np.uint8)
        entry = Entry(self, at, slot, found.window)
        if found.ring is not None:
            self._copy(found.ring, at)
        if entry.told is not None:
            entry.told.enter(found.generations)
        # Without a step the session reads no row of its own, and its first step writes `slot`: so the other one counts.
        row = slot if found.steps else self.second(slot)
        if found.last and self._lasts is not None:
            size = self.counts.last_bytes
            self._lasts[row * size : (row + 1) * size] = found.last
        self._numbers[row], self._steps[row], self._stamps[row] = found.number, found.steps, 1
        fields = (
            1,
            found.session,
            found.token_hash,
            found.attempt,
            found.window,
            len(found.opening),
            found.kind,
        )
        for name, value in reversed(list(zip(self._slots.dtype.names or (), fields, strict=True))):
            self._slots[name][at] = np.void(value) if isinstance(value, bytes) else value
        return entry

    def _copy(self, ring: Ring, at: int) -> None:
        """Store the replies of another file's session, each at the place that it had."""
        window, size = len(ring.data), ring.largest
        self._replies[at, :window] = ring.fields
        most = self.most_reply_bytes(window)
        places = self._ring_bytes[at, : window * most].reshape(window, most)
        places[:, :size] = ring.data[:, :size]

    def open_stream(self, found: FoundStream, members: Array) -> FrameEntry | None:
        """Enter a stream of frames, with members as this process has them; None if there is no place for it."""
        with self._lock:
            if not self._free_streams or len(members) > self.counts.slots:
                return None
            at = self._free_streams.pop()
        entry = FrameEntry(self, self._file, at, found.window)
        entry.enter(found, self._file.arrays["stream_openings"][at], members)
        return entry

    def stream_ended(self, at: int) -> None:
        """The place of a stream of frames is free."""
        with self._lock:
            self._free_streams.append(at)

    def told(self, at: int) -> Told | None:
        """The generations of the session at that place; None if the model cannot generate."""
        return told_in(self._file, at) if self.counts.last_bytes else None

    def ring(self, at: int, window: int, number: int) -> Ring:
        """The kept replies of the session at that place, with its window and the messages that it has applied."""
        return Ring(self._replies[at, :window], self._ring_bytes[at], number)

    # Files of other processes

    def recover(self) -> list[tuple[Found, MappedFile]]:
        """The sessions that earlier processes have left, with the file that has their state.

        A file that cannot be used is set aside, and the log says why. A file that a served model has is left alone.
        """
        found: dict[bytes, tuple[Found, MappedFile]] = {}
        streams: dict[bytes, tuple[FoundStream, MappedFile]] = {}
        for path in () if self._folder is None else sorted(self._folder.glob(f"*{_SUFFIX}")):
            try:
                old = MappedFile.open_old(path, self._model, self._shapes)
            except BlockingIOError:
                continue
            except (JournalError, OSError) as error:
                self._set_aside(path, error)
                continue
            self._old.append(old)
            for at in np.flatnonzero(old.arrays["streams"]["live"]) if old.counts.streams else ():
                stream = found_stream(old, int(at))
                if stream is None or stream.window > self.counts.window or not self.counts.streams:
                    _log.error(
                        "stream of frames in a journal is lost: it does not fit this server", path=str(path)
                    )
                elif stream.session not in streams or streams[stream.session][0].attempt <= stream.attempt:
                    streams[stream.session] = stream, old
            for at in np.flatnonzero(old.arrays["slots"]["live"]):
                session = found_in(old, int(at))
                if session is not None and session.kind == STORED:
                    continue
                if session is None or not self.fits(session):
                    _log.error("session in a journal is lost: it does not fit this server", path=str(path))
                    continue
                # A start that was killed before it had removed the files that it had copied leaves a session twice.
                twin = found.get(session.session)
                if twin is None or (twin[0].attempt, twin[0].number) < (session.attempt, session.number):
                    found[session.session] = session, old
        self._found_streams = list(streams.values())
        return list(found.values())

    def recover_streams(self) -> list[tuple[FoundStream, MappedFile]]:
        """The streams of frames that `recover` has found."""
        return self._found_streams

    def adopt(
        self,
        moved: Sequence[tuple[Found, MappedFile, int]],
        members: Sequence[tuple[MappedFile, Array, Array]] = (),
    ) -> None:
        """Copy the states of recovered sessions, each to the slot that it has now, and take the old files' place.

        `members`: of streams of frames, the old rows in a file and the slots that they have now.
        """
        for file, old_rows, now in members:
            for to, source in zip(self.states, file.states, strict=True):
                to[now] = source[old_rows]
        self._found_streams = []
        for old in self._old:
            stepped = [(found.row, slot) for found, file, slot in moved if file is old and found.row]
            if stepped:
                rows, slots = np.array(stepped, np.int64).T
                for to, source in zip(self.states, old.states, strict=True):
                    to[slots] = source[rows]
        if self.temporary:
            return
        # A start that is killed here leaves either the old file or the new one under this name.
        self._file.move(self._old[0].path if self._old else self._file.path.with_suffix(_SUFFIX))
        for old in self._old[1:]:
            old.remove()
        self._old.clear()

    def _set_aside(self, path: Path, error: Exception) -> None:
        aside = sorted(path.parent.glob(f"*{_ASIDE}"))
        for each in aside[: max(0, len(aside) + 1 - _KEPT_ASIDE)]:
            each.unlink()
        kept = path.with_suffix(_ASIDE)
        path.rename(kept)
        _log.error(
            "journal set aside: its sessions are lost", path=str(path), reason=str(error), kept=kept.name
        )

    def fits(self, found: Found) -> bool:
        """True if this file has room for its replies and its opening."""
        counts = self.counts
        return (
            found.window <= counts.window
            and len(found.opening) <= counts.opening_bytes
            and len(found.last) in (0, counts.last_bytes)
            and len(found.generations.request) <= counts.request_bytes
            and all(len(reply.data) * PLACES <= counts.reply_bytes for reply in found.generations.replies)
            and (found.ring is None or found.ring.largest <= self.most_reply_bytes(found.window))
        )

    def end(self) -> None:
        """Nothing runs any more. Delete the file, unless it is to outlive this process and the machine's next start."""
        if self.kept and not self.temporary:
            self._file.mark_clean()
        else:
            self._file.remove()


class Entry:
    """One session in a journal, and the only place where its replies are kept.

    It has no lock: its owner keeps replies and commits under its own lock, and never once it has closed the entry,
    whose place may be another session's by then.

    Attributes:
        rows: the sum of its two rows: less one of them it is the other.
        told: its generations; None if the model cannot generate.
    """

    __slots__ = (
        "_at", "_bytes", "_closed", "_field", "_fields", "_journal", "_last_bytes", "_lasts", "_most", "_numbers",
        "_ring", "_stamp", "_stamps", "_start", "_steps", "_window", "rows", "told",
    )  # fmt: skip

    def __init__(self, journal: Journal, at: int, slot: int, window: int) -> None:
        self._journal = journal
        self._at, self._window = at, window
        self._most = journal.most_reply_bytes(window)
        self._field = 3 * journal.counts.window * at
        self._start = journal.counts.reply_bytes * at
        self._fields, self._bytes = journal._reply_fields, journal._reply_bytes
        self._numbers, self._steps, self._stamps = journal._numbers, journal._steps, journal._stamps
        self._stamp = 1  # the one that the journal has stored
        self._lasts, self._last_bytes = journal._lasts, journal.counts.last_bytes
        fields = self._fields[self._field : self._field + 3 * window]
        self._ring = fields, journal._ring_bytes[at, : window * self._most].reshape(window, self._most)
        self.rows = slot + journal.second(slot)
        self.told = journal.told(at)
        self._closed = False

    def attempt(self, attempt: int) -> None:
        """Another opening has taken the session."""
        self._journal._slots["attempt"][self._at] = attempt

    def keep(self, number: int, steps: int, data: bytes) -> None:
        """Store the reply to message `number`, in place of the one a window earlier. It counts with the commit.

        Raises:
            ValueError: it is too large; what the caller checked before it ran the message.
        """
        size, most = len(data), self._most
        if size > most:
            raise ValueError(f"a reply of {size} bytes; {most} can be kept")
        if self._closed:
            return
        place = number % self._window
        start = self._start + place * most
        at = self._field + 3 * place
        fields = self._fields
        fields[at] = 0  # until it is whole it has no number
        self._bytes[start : start + size] = data
        fields[at + 1] = steps
        fields[at + 2] = size
        fields[at] = number

    def commit(self, row: int, number: int, steps: int, last: bytes = b"") -> None:
        """From now on `row` is the session's state: `number` messages and `steps` timesteps were applied.

        It is the row that counts already if the message has changed no state. `last`: the last output's timestep that a
        generation goes on from, if the model can generate and has one.
        """
        if not self._closed:
            if last and self._lasts is not None:
                at = row * self._last_bytes
                self._lasts[at : at + self._last_bytes] = last
            self._stamp = stamp = self._stamp + 1
            self._numbers[row] = number
            self._steps[row] = steps
            self._stamps[row] = stamp

    def committed(self) -> Committed:
        """A copy of what counts now. Call with the owner's lock held: nothing of it changes before the next commit."""
        row = self._journal.counts.first_slot + self._at
        if self._stamps[self.rows - row] > self._stamps[row]:
            row = self.rows - row
        return committed_in(self._journal._file, row, self._ring, self.told)

    def reply(self, number: int) -> bytes | None:
        """The reply to that message; None if it is not kept."""
        place = number % self._window
        at = self._field + 3 * place
        if self._fields[at] != number:
            return None
        start = self._start + place * self._most
        return bytes(self._bytes[start : start + self._fields[at + 2]])

    def tell(self, reply: ToldReply, steps: int, request: bytes) -> None:
        """Store a reply to some steps of a generation, with what it was asked if it is the first. As `keep`.

        `steps`: timesteps applied with them. Raises ValueError as `keep`.
        """
        if self._closed or self.told is None:
            return
        if not reply.begin:
            self.told.begin(reply.number, steps - reply.end, request)
        self.told.tell(reply)

    def since(self, place: Place, number: int, told: int) -> list[bytes] | None:
        """The replies that a client at `place` lacks; None if one of them is gone.

        Args:
            place: what it has.
            number: messages applied.
            told: timesteps told of the next one, a generation.
        """
        received, steps = place
        lacked: list[bytes] = []
        kept = {reply.number: reply for reply in self._journal.ring(self._at, self._window, number)}
        for message in range(received + 1, number + 2):
            reply = kept.get(message)
            if reply is None and message <= number:
                return None
            parts = self._told_between(message, steps, told if reply is None else reply.steps)
            if parts is None:
                return None
            lacked += parts
            if reply is not None:
                lacked.append(reply.data)
            steps = 0
        return lacked

    def _told_between(self, message: int, received: int, told: int) -> list[bytes] | None:
        return [] if self.told is None else self.told.between(message, received, told)

    def close(self) -> None:
        """The session has ended, unless the journal is to outlive this process with its sessions."""
        closed, self._closed = self._closed, True
        if not closed and not self._journal.kept:  # a closed one's place may be another session's
            self._journal._slots["live"][self._at] = 0
