"""The sessions of one model in a mapped file: two rows of state each, committed by one store.

A step reads the row that counts and writes the other. All that belongs to it (the number of messages, the kept reply)
is stored before the stamp of the row that it wrote, and the stamp is one aligned store of eight bytes. So whenever the
process is killed, the larger stamp's row is whole, and it and its replies belong together.

A start copies what it finds into a new file, so it may have other sizes, and a start that is killed changes nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from .found import Found, Ring, found_in
from .layout import Counts
from .mapped_file import JournalError, MappedFile, remove_if_left

_SUFFIX, _NEW, _ASIDE = ".journal", ".new", ".aside"
_KEPT_ASIDE = 3  # files that could not be used
_log = structlog.get_logger(__name__)


class Journal:
    """The file of one loaded model. Each session's calls come from one thread at a time.

    Attributes:
        counts: its sizes.
        states: the pool's arrays, dtype[rows, *shape] each.
        kept: sessions that end from now on stay in the file: the server stops, they do not.
    """

    def __init__(
        self,
        folder: Path,
        model: dict[str, str],
        counts: Counts,
        states: Sequence[tuple[np.dtype[Any], tuple[int, ...]]],
    ) -> None:
        """Make a new file beside those of earlier processes.

        Args:
            folder: of this model version; it is made.
            model: what the states belong to: name, version, hash of the file.
            counts: its sizes.
            states: dtype and shape of one row of each state.

        Raises:
            JournalError: the file cannot be made.
        """
        self._folder, self._model, self._shapes = folder, model, states
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise JournalError(f"{folder}: {error.strerror}") from error
        self._old: list[MappedFile] = []
        for each in folder.glob(f"*{_NEW}"):  # of starts that were killed
            remove_if_left(each)
        # Names in order of time: the newest of the files that are set aside stay.
        name = f"{time.time_ns():020}-{os.getpid()}{_NEW}"
        self._file = MappedFile.create(folder / name, model, counts, states)
        self.counts = counts
        self.states = self._file.states
        self.kept = False
        arrays = self._file.arrays
        self._slots, self._openings = arrays["slots"], arrays["openings"]
        self._stamps, self._numbers = arrays["stamps"].data, arrays["numbers"].data
        self._replies = arrays["replies"].view(np.int64).reshape(counts.slots, counts.window, 3)
        self._reply_fields = self._replies.reshape(-1).data
        self._ring_bytes = arrays["reply_bytes"]
        self._reply_bytes = self._ring_bytes.reshape(-1).data

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
            self._stamps[row] = self._numbers[row] = 0
        self._replies[at] = 0
        if len(found.opening) > self.counts.opening_bytes:
            raise JournalError(f"the opening has {len(found.opening)} bytes")
        self._openings[at, : len(found.opening)] = np.frombuffer(found.opening, np.uint8)
        entry = Entry(self, at, slot, found.window)
        if found.ring is not None:
            self._copy(found.ring, at)
        self._numbers[slot], self._stamps[slot] = found.number, found.stamp
        fields = (1, found.session, found.token_hash, found.attempt, found.window, len(found.opening))
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

    def ring(self, at: int, window: int, number: int) -> Ring:
        """The kept replies of the session at that place, with its window and the messages that it has applied."""
        return Ring(self._replies[at, :window], self._ring_bytes[at], number)

    # Files of other processes

    def recover(self) -> list[tuple[Found, MappedFile]]:
        """The sessions that earlier processes have left, with the file that has their state.

        A file that cannot be used is set aside, and the log says why. A file that a served model has is left alone.
        """
        found: dict[bytes, tuple[Found, MappedFile]] = {}
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            try:
                old = MappedFile.open_old(path, self._model, self._shapes)
            except BlockingIOError:
                continue
            except (JournalError, OSError) as error:
                self._set_aside(path, error)
                continue
            self._old.append(old)
            for at in np.flatnonzero(old.arrays["slots"]["live"]):
                session = found_in(old, int(at))
                if session is None or not self._fits(session):
                    _log.error("session in a journal is lost: it does not fit this server", path=str(path))
                    continue
                # A start that was killed before it had removed the files that it had copied leaves a session twice.
                twin = found.get(session.session)
                if twin is None or (twin[0].attempt, twin[0].number) < (session.attempt, session.number):
                    found[session.session] = session, old
        return list(found.values())

    def adopt(self, moved: Sequence[tuple[Found, MappedFile, int]]) -> None:
        """Copy the states of recovered sessions, each to the slot that it has now, and take the old files' place."""
        for old in self._old:
            stepped = [(found.row, slot) for found, file, slot in moved if file is old and found.row]
            if stepped:
                rows, slots = np.array(stepped, np.int64).T
                for to, source in zip(self.states, old.states, strict=True):
                    to[slots] = source[rows]
        # A start that is killed here leaves either the old file or the new one under this name.
        self._file.move(self._old[0].path if self._old else self._file.path.with_suffix(_SUFFIX))
        for old in self._old[1:]:
            old.remove()
        self._old.clear()

    def _set_aside(self, path: Path, error: Exception) -> None:
        aside = sorted(self._folder.glob(f"*{_ASIDE}"))
        for each in aside[: max(0, len(aside) + 1 - _KEPT_ASIDE)]:
            each.unlink()
        kept = path.with_suffix(_ASIDE)
        path.rename(kept)
        _log.error(
            "journal set aside: its sessions are lost", path=str(path), reason=str(error), kept=kept.name
        )

    def _fits(self, found: Found) -> bool:
        """True if this file has room for its replies and its opening."""
        counts = self.counts
        return (
            found.window <= counts.window
            and len(found.opening) <= counts.opening_bytes
            and (found.ring is None or found.ring.largest <= self.most_reply_bytes(found.window))
        )

    def end(self) -> None:
        """Nothing runs any more. Delete the file, unless it is to outlive this process and the machine's next start."""
        if self.kept:
            self._file.mark_clean()
        else:
            self._file.remove()


class Entry:
    """One session in a journal, and the only place where its replies are kept.

    It has no lock: its owner keeps replies and commits under its own lock, and never once it has closed the entry,
    whose place may be another session's by then.
    """

    __slots__ = (
        "_at", "_bytes", "_closed", "_field", "_fields", "_journal", "_most", "_numbers", "_stamps", "_start",
        "_window", "rows",
    )  # fmt: skip

    def __init__(self, journal: Journal, at: int, slot: int, window: int) -> None:
        self._journal = journal
        self._at = at
        self._window = window
        self._most = journal.most_reply_bytes(window)
        self._field = 3 * journal.counts.window * at
        self._start = journal.counts.reply_bytes * at
        self._fields, self._bytes = journal._reply_fields, journal._reply_bytes
        self._numbers, self._stamps = journal._numbers, journal._stamps
        self.rows = slot + journal.second(slot)  # the sum of both: less one of them it is the other
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

    def commit(self, row: int, number: int, stamp: int) -> None:
        """From now on `row` is the session's state: `number` messages and `stamp` timesteps were applied."""
        if not self._closed:
            self._numbers[row] = number
            self._stamps[row] = stamp

    def since(self, received: int, number: int) -> list[bytes] | None:
        """The replies to the messages behind `received`, up to `number`, the last one; None if one of them is gone."""
        kept = self._journal.ring(self._at, self._window, number)
        lacked = [reply.data for reply in kept if reply.number > received]
        return lacked if len(lacked) >= number - received else None

    def close(self) -> None:
        """The session has ended, unless the journal is to outlive this process with its sessions."""
        closed, self._closed = self._closed, True
        if not closed and not self._journal.kept:  # a closed one's place may be another session's
            self._journal._slots["live"][self._at] = 0
