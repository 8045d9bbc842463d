"""Claims sessions for openings, many in one exchange, on a thread of its own."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import structlog

from streamcell.service.errors import ServiceError, SessionNotFound
from streamcell.service.sessions.resume_errors import SessionTakenOver

from . import functions
from .batch import MOST_IMAGE_BYTES
from .cipher import Cipher, ImageInvalid
from .connection import Connection
from .errors import (
    FAILED,
    SessionElsewhere,
    StoredStateInvalid,
    StoreFailure,
    StoreUnavailable,
)
from .figures import Figures
from .interface import Claim, Claimed
from .lease import Hold, Lease
from .writer import Writer

_log = structlog.get_logger(__name__)

MOST_CLAIMS = 10_000  # that wait
MOST_CLAIM_BYTES = 256 * 1024 * 1024  # of their images, unless a single one is larger
_TOGETHER = 32
_TOGETHER_BYTES = 1024 * 1024  # a larger image is claimed alone
PATIENCE_S = 2.0  # for the owner to give the session away, and for the store to answer
_ASK_S = 0.5  # between two times that the owner is asked
_ENTERED_S = 5.0  # until a session that was claimed is entered, at most
_AGAIN_S = 0.02, 0.1  # between two claims of one session: at first, at most
_MOST_A_SECOND = 2000  # claims that are made again

Done: TypeAlias = Callable[[Claimed | ServiceError], None]


@dataclass(slots=True)
class _Asked:
    claim: Claim
    done: Done
    until_s: float
    sent: bool = False  # before, perhaps
    alone: bool = False
    ask_s: float = 0.0
    pause_s: float = 0.0
    held: int = 0


class Claims:
    """The claims under way, and the thread that makes them. In between it does `idle`."""

    def __init__(
        self,
        connection: Connection,
        lease: Lease,
        writer: Writer,
        cipher: Cipher,
        figures: Figures,
        patience_s: float = PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self._patience_s = patience_s
        self._lease = lease
        self._writer = writer
        self._cipher = cipher
        self._figures = figures
        self._clock = clock
        # Done when no claim waits: (the connection) → seconds until it is to be done again.
        self.idle: Callable[[Connection], float] = lambda connection: 3600.0
        self._idle_s = 0.0
        self._waiting: list[tuple[float, int, _Asked]] = []
        self._count = self._bytes = 0
        self._under_way: dict[bytes, int] = {}
        self._fresh: dict[bytes, float] = {}  # claimed a moment ago, oldest first
        self._changes = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="store-claims", daemon=True)

    def claim(self, asked: Claim, done: Done) -> None:
        """Claim a session; `done` gets the answer on this thread, or at once if too many wait."""
        size = _size(asked)
        with self._changes:
            room = not self._stopping and len(self._waiting) < MOST_CLAIMS
            room = room and (not size or not self._bytes or self._bytes + size <= MOST_CLAIM_BYTES)
            if room:
                self._bytes += size
                self._under_way[asked.session] = self._under_way.get(asked.session, 0) + 1
                self._push(_Asked(asked, done, self._clock() + self._patience_s), 0.0)
        if not room:
            done(StoreUnavailable("too many openings wait for the store; resume in a moment"))

    def under_way(self, session: bytes) -> bool:
        """True if the session is being claimed here, or was claimed so lately that it may still be entered."""
        return (
            session in self._under_way or self._clock() - self._fresh.get(session, -_ENTERED_S) < _ENTERED_S
        )

    def start(self) -> None:
        """Claim from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Refuse what waits, and end."""
        with self._changes:
            self._stopping = True
            self._changes.notify()
        if self._thread.is_alive():
            self._thread.join()
        self._connection.close()

    # The thread.

    def _push(self, asked: _Asked, pause_s: float) -> None:
        self._count += 1
        heapq.heappush(self._waiting, (self._clock() + pause_s, self._count, asked))
        self._changes.notify()

    def _run(self) -> None:
        while True:
            due = self._take()
            if due is None:
                return
            try:
                if due:
                    self._claim(due)
                else:
                    self._idle_s = self._clock() + self.idle(self._connection)
            except StoreFailure as error:
                self._figures.failed(error, "claiming sessions" if due else "sweeping")
                self._idle_s = self._clock() + 1.0
                for asked in due:
                    self._later(asked, "the store does not answer: resume in a moment")
            except Exception as error:  # a bug must not end it
                _log.error("claiming sessions failed", exc_info=error)
                self._idle_s = self._clock() + 1.0
                for asked in due:
                    self._finish(asked, StoreUnavailable("the store could not be asked: resume in a moment"))

    def _take(self) -> list[_Asked] | None:
        """The claims that are due; none: it is time for `idle`."""
        with self._changes:
            while not self._stopping:
                now_s = self._clock()
                due: list[_Asked] = []
                while self._waiting and self._waiting[0][0] <= now_s and len(due) < _TOGETHER:
                    if self._waiting[0][2].alone and due:
                        break
                    due.append(heapq.heappop(self._waiting)[2])
                    if due[-1].alone:
                        break
                if due or self._idle_s <= now_s:
                    return due
                next_s = min(self._idle_s, self._waiting[0][0]) if self._waiting else self._idle_s
                self._changes.wait(next_s - now_s)
            left, self._waiting = self._waiting, []
        for _, _, asked in left:
            self._finish(asked, StoreUnavailable("this replica is stopping: resume in a moment"))
        return None

    def _claim(self, due: list[_Asked]) -> None:
        hold = self._lease.hold
        commands, sent = [], []
        for asked in due:
            if hold is None:
                self._later(asked, "this replica has no lease of the store: resume in a moment")
            elif self._writer.busy_with(asked.claim.session):
                self._later(asked, "the session is being written to the store: resume in a moment")
            else:
                commands.append(self._command(asked, hold))
                sent.append(asked)
        due[:] = sent  # what a failure concerns
        if hold is None or not commands:
            return
        answers = self._connection.exchange(commands, confirmed=self._lease.replicas > 0)
        now = self._lease.hold
        same = now is not None and now.boot == hold.boot
        for asked, answer in zip(sent, answers, strict=True):
            if isinstance(answer, StoreFailure):
                self._figures.failed(answer, "claiming a session")
                self._later(asked, "the store refuses: resume in a moment")
            elif not same:
                self._later(asked, "this replica has lost its lease of the store: resume in a moment")
            else:
                try:
                    self._answered(asked, answer)
                except Exception as error:  # what one answer has must not hold up the others
                    self._figures.failed(
                        StoreFailure(FAILED, f"an unknown answer: {error!r}"), "claiming a session"
                    )
                    self._finish(asked, StoreUnavailable("the store's answer is unknown: resume in a moment"))

    def _command(self, asked: _Asked, hold: Hold) -> bytes:
        claim, now_s = asked.claim, self._clock()
        held = self._writer.entered(claim.session)
        asked.held = 0 if held is None else held.fence
        asks = now_s >= asked.ask_s
        if asks:
            asked.ask_s = now_s + _ASK_S
        number, steps, content = claim.image or (0, 0, b"")
        at = functions.place(number, steps)
        image = b"" if claim.image is None else self._cipher.seal(claim.session, at, content)
        command = functions.call(
            "claim",
            [functions.lease_key(hold.boot), functions.record_key(claim.session), functions.FENCE],
            [
                hold.boot.encode(),
                claim.token_hash,
                b"%020d" % claim.attempt,
                b"%d" % asked.sent,
                claim.tenant.encode(),
                claim.model.encode(),
                b"%d" % claim.may_create,
                b"%d" % asked.held,
                b"%d" % asks,
                b"%d" % (MOST_IMAGE_BYTES + 64 if asked.alone else _TOGETHER_BYTES),
                at,
                image,
            ],
        )
        asked.sent = True
        return command

    def _answered(self, asked: _Asked, answer: Any) -> None:
        claim = asked.claim
        kind = answer[0] if isinstance(answer, list) and answer else b""
        if kind == b"OK":
            self._owned(asked, answer)
        elif kind == b"ELSEWHERE":
            replica = answer[1].decode(errors="replace").rpartition("-")[0]
            address = answer[2].decode(errors="replace")
            self._later(
                asked,
                f"replica {replica} has the session and has not given it away: resume it there",
                replica=replica,
                address=address,
            )
        elif kind == b"ABSENT":
            self._finish(asked, not_found(claim.session))
        elif kind == b"LATE":
            self._finish(
                asked, SessionTakenOver("a later opening has taken this session; this one changes nothing")
            )
        elif kind == b"LARGE" and not asked.alone:
            asked.alone = True
            with self._changes:
                self._push(asked, 0.0)
        elif kind == b"FENCED":
            self._lease.look_now()
            self._later(asked, "this replica has lost its lease of the store: resume in a moment")
        elif kind in (b"FOREIGN", b"LARGE"):
            self._finish(asked, _invalid(claim.session, "it was not written by StreamCell"))
        else:
            raise ValueError(f"not of StreamCell's functions: {kind!r}")

    def _owned(self, asked: _Asked, answer: Any) -> None:
        session = asked.claim.session
        _, fence, at, sealed, held = answer
        if held == b"1":
            live = self._writer.entered(session)
            if live is None or live.fence != asked.held:  # it has ended in the meantime
                self._later(asked, "the session is ending here: resume in a moment")
                return
        try:
            number, steps = functions.read_place(at)
            image = self._cipher.open(session, at, sealed) if sealed else b""
        except (ImageInvalid, ValueError) as error:
            self._writer.free(session)
            self._finish(asked, _invalid(session, str(error)))
            return
        new = not sealed and held != b"1"
        self._finish(asked, Claimed(int(fence), new, number, steps, image, held == b"1"))

    def _later(self, asked: _Asked, why: str, **elsewhere: str) -> None:
        """Claim again in a moment, or say why it could not be claimed in time."""
        first, most = _AGAIN_S
        with self._changes:
            most = max(most, len(self._waiting) / _MOST_A_SECOND)
            asked.pause_s = min(most, max(first, 2 * asked.pause_s))
            if not self._stopping and self._clock() + asked.pause_s <= asked.until_s:
                self._push(asked, asked.pause_s)
                return
        facts = {"session_id": asked.claim.session.hex(), **elsewhere}
        self._finish(asked, (SessionElsewhere if elsewhere else StoreUnavailable)(why, **facts))

    def _finish(self, asked: _Asked, answer: Claimed | ServiceError) -> None:
        session = asked.claim.session
        try:
            asked.done(answer)
        except Exception as error:  # one opening's bug must not hold up the others
            _log.error("answering an opening failed", exc_info=error)
        with self._changes:
            self._bytes -= _size(asked.claim)
            now_s = self._clock()
            if isinstance(answer, Claimed):
                self._fresh.pop(session, None)
                self._fresh[session] = now_s
            while self._fresh and now_s - next(iter(self._fresh.values())) > _ENTERED_S:
                del self._fresh[next(iter(self._fresh))]
            left = self._under_way.get(session, 1) - 1
            if left:
                self._under_way[session] = left
            else:
                self._under_way.pop(session, None)


def _size(claim: Claim) -> int:
    return 0 if claim.image is None else len(claim.image[2])


def not_found(session: bytes) -> SessionNotFound:
    """The same for a session that does not exist, and for another's."""
    return SessionNotFound(f"no live session '{session.hex()}'", session_id=session.hex())


def _invalid(session: bytes, why: str) -> StoredStateInvalid:
    return StoredStateInvalid(
        f"what the store has of the session cannot be used: {why}. Open a new session",
        session_id=session.hex(),
    )
