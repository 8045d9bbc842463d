"""Writes sessions to the store behind their steps: one call at a time; what changes during it joins the next."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import structlog

from . import functions
from .batch import MOST_SESSIONS, Batch
from .cipher import Cipher
from .connection import Connection
from .errors import FAILED, StoreFailure
from .figures import Figures
from .interface import Stored
from .lease import Hold, Lease

_log = structlog.get_logger(__name__)

BEHIND_S = 0.05  # that a change waits for others, unless somebody waits for it
MOST_BEHIND_S = 0.5  # that it waits because the thread has had its share
SHARE = 0.05  # of a core that writing behind takes, unless changes would wait for longer than that
MOST_DELETIONS = 100_000  # that wait; sweeping finds what was left out
_AT_A_STRETCH = 16  # sessions that are copied; then threads that serve have the interpreter
_GAP_S = 0.0005  # in between, unless somebody waits
_PAUSE_S = 0.1, 1.0  # after a failed call: at first, at most

_Done = Callable[[], None]


class Writer:
    """The sessions of this replica that are in the store, and the thread that writes them."""

    def __init__(
        self,
        connection: Connection,
        lease: Lease,
        cipher: Cipher,
        figures: Figures,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._connection = connection
        self._lease = lease
        self._cipher = cipher
        self._figures = figures
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._changes = threading.Condition()
        self._entered: dict[bytes, Stored] = {}
        self._dirty: OrderedDict[Stored, float] = OrderedDict()  # and since when; the oldest first
        self._writing_since_s: float | None = None
        self._leaving: dict[bytes, tuple[Stored, list[_Done]]] = {}
        self._deleting: dict[bytes, int] = {}  # id and fence
        self._freeing: dict[bytes, None] = {}
        self._urgent = False
        self._rested_s = 0.0  # when the thread has had no more than its share
        # Sessions whose clients lack how far the store is, and until when it may ride on a reply; for the thread alone.
        self._untold: deque[tuple[float, list[Stored]]] = deque()
        self._pause_s, self._not_before_s = 0.0, 0.0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)

    # What any thread asks.

    def enter(self, stored: Stored) -> bool:
        """Write the session, and its changes from now on; False if it was claimed under a lease that is lost."""
        with self._changes:
            hold = self._lease.hold
            if hold is None or stored.fence <= hold.floor:
                return False
            self._entered[stored.key] = stored
            self._dirty.setdefault(stored, self._clock())
            self._changes.notify()
            return True

    def entered(self, key: bytes) -> Stored | None:
        """The session of that id that is written; None: none."""
        return self._entered.get(key)

    def busy_with(self, key: bytes) -> bool:
        """True while the session of that id is being given away or deleted."""
        return key in self._leaving or key in self._deleting or key in self._freeing

    def changed(self, stored: Stored, sync: bool) -> None:
        """Write it soon; `sync`: as soon as the thread is free."""
        with self._changes:
            if stored not in self._dirty:
                self._dirty[stored] = self._clock()
                if sync:
                    self._urgent = True
                if sync or len(self._dirty) == 1:
                    self._changes.notify()
            elif sync and not self._urgent:
                self._urgent = True
                self._changes.notify()

    def all_changed(self) -> None:
        """Write all sessions again."""
        with self._changes:
            now_s = self._clock()
            for stored in self._entered.values():
                self._dirty.setdefault(stored, now_s)
            self._urgent = True
            self._changes.notify()

    def release(self, stored: Stored, done: _Done) -> None:
        """Write what is left of it and give it away, then call `done`; at once if it is not this replica's."""
        with self._changes:
            if self._entered.get(stored.key) is stored:
                del self._entered[stored.key]
            self._dirty.pop(stored, None)
            hold = self._lease.hold
            if hold is not None and stored.fence > hold.floor:
                before, waiting = self._leaving.get(stored.key, (stored, []))
                if before is stored:
                    self._leaving[stored.key] = stored, [*waiting, done]
                    self._changes.notify()
                    return
        done()

    def delete(self, stored: Stored) -> None:
        """Delete its record."""
        with self._changes:
            if self._entered.get(stored.key) is stored:
                del self._entered[stored.key]
            self._dirty.pop(stored, None)
            if len(self._deleting) >= MOST_DELETIONS:
                del self._deleting[next(iter(self._deleting))]
            self._deleting[stored.key] = stored.fence
            self._changes.notify()

    def free(self, key: bytes) -> None:
        """Give away a session that this replica has claimed and not entered."""
        with self._changes:
            if key not in self._entered and len(self._freeing) < MOST_DELETIONS:
                self._freeing[key] = None
                self._changes.notify()

    def lose(self) -> tuple[list[Stored], list[_Done]]:
        """Forget all sessions: they, and those that wait for one to be given away."""
        with self._changes:
            lost, self._entered = list(self._entered.values()), {}
            done = [each for _, waiting in self._leaving.values() for each in waiting]
            self._leaving, self._dirty = {}, OrderedDict()
            self._deleting, self._freeing = {}, {}
            return lost, done

    def lag_s(self) -> float:
        """Age of the oldest change that is not in the store; 0: all are."""
        with self._changes:
            oldest = [self._writing_since_s] if self._writing_since_s is not None else []
            if self._dirty:
                oldest.append(next(iter(self._dirty.values())))
            return max(0.0, self._clock() - min(oldest)) if oldest else 0.0

    def start(self) -> None:
        """Write from now on."""
        self._thread.start()

    def stop(self, most_s: float) -> None:
        """Write what is left, for `most_s` at most, and end."""
        with self._changes:
            self._stopping = True
            self._not_before_s = 0.0
            self._changes.notify()
        if self._thread.is_alive():
            self._thread.join(most_s)
        self._connection.close()

    # The thread.

    def _run(self) -> None:
        while True:
            if not self._wait():
                return
            if self._tell_untold():
                continue
            if self._lease.hold is None:
                if self._stopping:
                    return
                self._rest()
                continue
            try:
                self._write()
                self._pause_s = 0.0
            except StoreFailure as error:
                self._figures.failed(error, "writing sessions")
                if self._stopping:
                    return
                self._rest()
            except Exception as error:  # a bug must not end it
                _log.error("writing sessions failed", exc_info=error)
                self._rest()

    def _rest(self) -> None:
        first, most = _PAUSE_S
        self._pause_s = min(most, max(first, 2 * self._pause_s))
        self._not_before_s = self._clock() + self._pause_s

    def _wait(self) -> bool:
        """Wait until there is something to write or to tell; False: nothing is left, and the thread is to end."""
        with self._changes:
            while True:
                now_s = self._clock()
                due_s = self._due_s()
                if due_s is not None:
                    due_s = max(due_s, self._not_before_s)
                elif self._stopping:
                    return False
                if self._untold:
                    tell_s = self._untold[0][0]
                    due_s = tell_s if due_s is None else min(due_s, tell_s)
                if due_s is not None and due_s <= now_s:
                    return True
                self._changes.wait(None if due_s is None else due_s - now_s)

    def _tell_untold(self) -> bool:
        """Have those sessions tell their clients that have had no reply to do so; True if it was time for any."""
        if not self._untold or self._untold[0][0] > self._clock():
            return False
        for stored in self._untold.popleft()[1]:
            _told(stored.tell_durable)
        return True

    def _due_s(self) -> float | None:
        if self._leaving or self._deleting or self._freeing:
            return 0.0
        if not self._dirty:
            return None
        if self._urgent or self._stopping:
            return 0.0
        since_s = self._dirty[next(iter(self._dirty))]
        return max(since_s + BEHIND_S, min(self._rested_s, since_s + MOST_BEHIND_S))

    def _take(self, batch: Batch, most: int, urgent: bool) -> None:
        """Copy sessions into the batch until it is full; none twice, for `most` had changed when the call began.

        `urgent`: somebody waits. Whoever begins to wait meanwhile ends the rests, too.
        """
        for at in range(most):
            if not batch.room:
                return
            if at % _AT_A_STRETCH == _AT_A_STRETCH - 1:
                time.sleep(0 if urgent or self._urgent or self._stopping else _GAP_S)
            with self._changes:
                if not self._dirty:  # the lease was lost in the meantime
                    return
                stored, since_s = self._dirty.popitem(last=False)
                if self._entered.get(stored.key) is not stored:
                    continue
                if self._writing_since_s is None:
                    self._writing_since_s = since_s
            if (error := batch.add(stored, since_s)) is not None:
                _log.error("a session cannot be written to the store", exc_info=error)
                self._lose_one(stored)

    def _write(self) -> None:
        hold = self._lease.hold
        if hold is None:
            return
        began_s, cpu_s = self._clock(), self._cpu_clock()
        with self._changes:
            leaving = [stored for stored, _ in list(self._leaving.values())[:MOST_SESSIONS]]
            deleting = dict(list(self._deleting.items())[:MOST_SESSIONS])
            freeing = list(self._freeing)[:MOST_SESSIONS]
            most, urgent, self._urgent = len(self._dirty), self._urgent, False
        batch, gone = Batch(hold, self._cipher), Batch(hold, self._cipher)
        try:
            self._take(batch, most, urgent)
            if urgent and not batch.room:  # some may be left
                self._urgent = True
            for stored in leaving:
                if gone.room and gone.add(stored, 0.0) is not None:
                    freeing.append(stored.key)
            freeing += [stored.key for stored in gone.ended]
            self._send(hold, batch, gone, deleting, freeing)
        except BaseException:
            with self._changes:
                for stored, since_s in reversed(batch.taken):
                    self._dirty[stored] = since_s
                    self._dirty.move_to_end(stored, last=False)
                self._urgent |= urgent
            raise
        finally:
            self._writing_since_s = None
        given = {*freeing, *(stored.key for stored in gone.sessions)}
        done: list[_Done] = []
        with self._changes:
            for stored in batch.ended:  # before it was entered, or in between
                if self._entered.get(stored.key) is stored:
                    del self._entered[stored.key]
            for stored in leaving:
                if stored.key in given and self._leaving.get(stored.key, (None,))[0] is stored:
                    done += self._leaving.pop(stored.key)[1]
            for key, fence in deleting.items():
                if self._deleting.get(key) == fence:
                    del self._deleting[key]
            for key in freeing:
                self._freeing.pop(key, None)
        for each in done:
            _told(each)
        self._rested_s = began_s + (self._cpu_clock() - cpu_s) / SHARE

    def _send(
        self,
        hold: Hold,
        batch: Batch,
        gone: Batch,
        deleting: dict[bytes, int],
        freeing: list[bytes],
    ) -> None:
        boot = hold.boot.encode()
        commands = [each.put(leaves) for each, leaves in ((batch, b"0"), (gone, b"1")) if each.sessions]
        if deleting:
            keys = [functions.record_key(key) for key in deleting]
            commands.append(
                functions.call("delete", keys, [boot, *(b"%d" % each for each in deleting.values())])
            )
        if freeing:
            commands.append(functions.call("free", [functions.record_key(key) for key in freeing], [boot]))
        if not commands:
            return
        began_s = time.perf_counter()
        answers = self._connection.exchange(commands, confirmed=self._lease.replicas > 0)
        for answer in answers:
            if isinstance(answer, StoreFailure):
                raise answer
        if b"FENCED" in answers:
            self._lease.look_now()
            raise StoreFailure(FAILED, "the store does not know this replica's lease")
        if batch.sessions:
            self._figures.write_s.observe_one(time.perf_counter() - began_s)
            self._written(batch, answers.pop(0))
        if gone.sessions:
            self._written(gone, answers[0], leaves=True)

    def _written(self, batch: Batch, letters: Any, *, leaves: bool = False) -> None:
        if not isinstance(letters, bytes) or len(letters) != len(batch.sessions):
            raise StoreFailure(FAILED, "the store's answer is not of StreamCell's functions")
        untold: list[Stored] = []
        for stored, (number, steps), letter in zip(batch.sessions, batch.places, letters, strict=True):
            if letter == ord("1"):
                if not _told(stored.stored, number, steps):
                    untold.append(stored)
            elif not leaves:
                self._lose_one(stored)
        if untold and not leaves:
            self._untold.append((self._clock() + BEHIND_S, untold))

    def _lose_one(self, stored: Stored) -> None:
        with self._changes:
            if self._entered.get(stored.key) is stored:
                del self._entered[stored.key]
            self._dirty.pop(stored, None)
        self._figures.fenced += 1
        _told(stored.lost)


def _told(tell: Callable[..., object], *arguments: int) -> object:
    """What `tell` returns."""
    try:
        return tell(*arguments)
    except Exception as error:  # one session's bug must not hold up the others
        _log.error("telling a session about the store failed", exc_info=error)
        return None
