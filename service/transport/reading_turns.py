"""Lets tenants take turns in reading: a message waits for at most one turn of each other tenant.

The core hands messages out in the order in which they reached the sockets, and while it has any it reads no socket. So
behind a tenant that sends far ahead, another tenant's message would wait until nothing of the flood is left. Here a
tenant's turn is a number of messages. What the core hands out beyond it waits in the tenant's line, and until then its
stream is not read further. Whenever the sockets have been read, the next tenant in the round has its turn. So a tenant
alone is read as fast as without turns: it waits for a look at the sockets, not for a time.

At most one message of each live call waits. Their calls count them as received and held (`in_flight.py`), so they take
part in the connection's bound. Of unary requests no more wait than the tenant may have unanswered: whatever is beyond
that is handed out at once, to be refused.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from itertools import islice

from .completion_queue import between_looks

# Gives a call what has arrived for it. It must not raise, whatever has become of the call.
Take = Callable[[bytes | None], object]


class Line:
    """One tenant's messages that wait for its turn: at most one of each of its live calls. For the serving thread."""

    __slots__ = ("__weakref__", "_left", "_most_bytes", "_of", "_size", "_turn", "_waiting", "bytes")

    def __init__(
        self, of: ReadingTurns, size: Callable[[], int], most_bytes: Callable[[], int | None]
    ) -> None:
        """`size`: messages of a turn now. `most_bytes`: that its tenant may have unanswered now; None: any number."""
        self._of = of
        self._size = size
        self._most_bytes = most_bytes
        self.bytes = 0  # that wait
        # The last turn of any tenant that it knows of, and the messages that it may still have.
        self._turn = self._left = 0
        # With the number of messages that had come to wait anywhere.
        self._waiting: OrderedDict[Take, tuple[int, bytes | None]] = OrderedDict()

    def admits(self, take: Take, arrived: bytes | None) -> bool:
        """True if a call may take what has arrived for it; if not, `take(arrived)` is called in its tenant's turn."""
        if self._turn != self._of.given:
            self._turn, self._left = self._of.given, self._size()
        if not self._waiting:
            if self._left > 0:
                self._left -= 1
                return True
            if not self._of.wait(self):
                return True
        self._waiting[take] = self._of.came, arrived
        self._of.came += 1
        self.bytes += len(arrived or b"")
        return False

    def is_full(self, size: int) -> bool:
        """True if a request of `size` bytes would be more than its tenant may have unanswered, with what waits."""
        most = self._most_bytes()
        return most is not None and self.bytes > 0 and self.bytes + size > most

    def leave(self, take: Take) -> None:
        """Drop what waits for a call that has ended: a client that ends calls at once would fill the line."""
        _, arrived = self._waiting.pop(take, (0, None))
        self.bytes -= len(arrived or b"")

    def waits(self, before: int) -> bool:
        """True if one of the first `before` messages that came to wait anywhere still waits here."""
        return any(number < before for number, _ in islice(self._waiting.values(), 1))

    def have_turn(self) -> bool:
        """Hand out the messages of one turn; True if others still wait."""
        waiting = self._waiting
        self._turn, self._left = self._of.given, self._size()
        while waiting and self._left > 0:
            self._left -= 1
            take, (_, arrived) = waiting.popitem(last=False)
            self.bytes -= len(arrived or b"")
            take(arrived)
        return bool(waiting)


class ReadingTurns:
    """The lines of a server's tenants; there are none until `take`. For the serving thread.

    Attributes:
        given: turns so far.
        came: messages that have come to wait so far.
    """

    def __init__(self) -> None:
        self.given = self.came = 0
        self._size: Callable[[str], int] | None = None
        self._most_bytes: Callable[[str], int | None] = lambda tenant: None
        # A tenant's line lives as long as its calls.
        self._lines: weakref.WeakValueDictionary[str, Line] = weakref.WeakValueDictionary()
        # Those in which messages wait, or waited; the first one's turn is next.
        self._round: OrderedDict[Line, None] = OrderedDict()

    def take(
        self, size: Callable[[str], int], most_bytes: Callable[[str], int | None] = lambda tenant: None
    ) -> None:
        """Have tenants take turns from now on. Call before the server starts.

        Args:
            size: messages of a tenant's turn.
            most_bytes: that a tenant may have unanswered; None: any number.
        """
        self._size, self._most_bytes = size, most_bytes

    def line_of(self, tenant: str) -> Line | None:
        """A tenant's line; None if tenants take no turns."""
        size = self._size
        if size is None:
            return None
        line = self._lines.get(tenant)
        if line is None:
            line = Line(self, lambda: size(tenant), lambda: self._most_bytes(tenant))
            self._lines[tenant] = line
        return line

    def wait(self, line: Line) -> bool:
        """Give `line` its turn in the round; False if this thread does not look at sockets, so nothing may wait."""
        if not between_looks(self):
            return False
        self._round[line] = None
        return True

    def waits(self, before: int) -> bool:
        """True if one of the first `before` messages that came to wait still does."""
        return any(line.waits(before) for line in self._round)

    def give(self) -> bool:
        """Give the next tenant its turn, because the sockets have been read; True if messages still wait."""
        self.given += 1
        line, _ = self._round.popitem(last=False)
        left = True
        try:
            left = line.have_turn()
        finally:
            if left:
                self._round[line] = None
        return bool(self._round)
