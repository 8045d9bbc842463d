"""Where the streams of a resumable session go, and what their calls say to proxies between. Without transport."""

from __future__ import annotations

import re

from streamcell.client.address import is_place
from streamcell.client.errors import StreamCellError
from streamcell.proto import pb

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")
_DIRECT_FAILURES = 3  # then it stays with the client's target


class Way:
    """The way to the server that has a session. What servers say of it are hints: what is no name or address is left.

    Attributes:
        turn: how many of the client's targets to pass over; it grows if one has failed.
        address: where to go without a proxy, "host:port"; empty for the client's target.
        opening: its latest stream is not open yet.
        replica: the name of the one server that has the session; empty if a shared store has it, or there is no name.
        moves: how often a server said that the session goes on with another one.
    """

    def __init__(self, session: bytes, replica: str = "") -> None:
        self._session = session
        self.replica = _name(replica)
        self._targets: tuple[str, ...] = ()
        self._direct = False
        self._asked = ""  # a name for the next call alone
        self.turn = self.moves = 0
        self.address = ""
        self.opening = False
        self._chosen = False  # where to go next, by what the latest stream said
        self._failures = 0  # of direct streams, and where the last one was
        self._refused = ""
        self._moves = True  # another server may have the session
        self._untried = 0  # targets that may know a session which the others do not

    def set_out(self, targets: tuple[str, ...], *, direct: bool) -> None:
        """Take the client's targets, and, if `direct`, addresses that servers tell. Only the first call counts.

        Sessions are spread over the targets by their ids, so another process finds a session's target again.
        """
        if self._targets:
            return
        self._targets, self._direct = targets, direct
        self.turn = self._session[0] % len(targets)
        self._untried = len(targets) - 1

    def follow(self, other: Way) -> None:
        """Begin at the server that has another session."""
        self.replica, self.turn = other.replica, other.turn
        self._targets, self._direct, self._moves = other._targets, other._direct, other._moves

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What the next call says: proxies send it to the server that has the session."""
        said = (("streamcell-session", self._session.hex()),)
        name = self._asked or self.replica
        return (*said, ("streamcell-replica", name)) if name else said

    @property
    def is_trial(self) -> bool:
        """True while it is not known what is at `address`."""
        return self.opening and bool(self.address)

    def begin(self) -> None:
        """A stream has begun."""
        self.opening, self._chosen = True, False

    def opened(self, opened: pb.SessionOpened, *, stored: bool) -> bool:
        """The stream is open; False if the session should go on at `address` instead.

        `stored`: a shared store has the session, so another server may continue it.
        """
        self.opening = False
        self._asked = ""
        self._moves, self._untried = stored, 0
        self.replica = "" if stored else _name(opened.replica)
        self._chosen = self._go_to(opened.address)
        return not self._chosen

    def moved(self, moved: pb.Moved) -> None:
        """The session goes on with another server."""
        self.moves += 1
        self._leave()
        self._chosen = True
        self._asked = _name(moved.replica)
        self._go_to(moved.address)

    def failed(self, error: StreamCellError) -> None:
        """The latest stream has ended with `error`; it has no effect if that only says what the stream said before."""
        if self._chosen:
            return
        if self.is_trial:
            self._failures, self._refused = self._failures + 1, self.address
        self._leave()
        if error.reason == "SESSION_ELSEWHERE":
            self._asked = _name(error.metadata.get("replica", ""))
            self._go_to(error.metadata.get("address", ""))

    def refuse(self) -> None:
        """Go to the target: there is no room for a connection to `address`."""
        if self.address:
            self._failures += 1
            self.address = ""

    def is_unknown_here(self) -> bool:
        """True if the target does not know the session, and another one, which was not asked yet, may."""
        unknown = self.opening and self._moves and self._untried > 0
        self._untried -= unknown
        return unknown

    def _leave(self) -> None:
        self.opening = False
        self._asked = ""
        if not self.address and self._moves:
            self.turn += 1
        self.address = ""

    def _go_to(self, address: str) -> bool:
        """Go to `address` next, if that is wanted; True if it is another way than now."""
        if address in self._targets:
            now = self._targets[self.turn % len(self._targets)]
            self.turn, same = self._targets.index(address), now == address and not self.address
            self.address = ""
            return not same
        wanted = self._direct and self._failures < _DIRECT_FAILURES and is_place(address)
        if not wanted or address in (self.address, self._refused):
            return False
        self.address = address
        return True


def _name(text: str) -> str:
    return text if _NAME.fullmatch(text) else ""
