"""Sessions that one call writes to the store: their images, sealed and packed."""

from __future__ import annotations

from . import functions
from .cipher import Cipher
from .interface import Stored
from .lease import Hold

MOST_SESSIONS = 256  # of a call
MOST_BYTES = 8 * 1024 * 1024  # of a call, unless a single session is larger
MOST_IMAGE_BYTES = 64 * 1024 * 1024


class Batch:
    """Sessions that are written by one call.

    Attributes:
        sessions: in the order of the call.
        places: of each, the messages and the timesteps of a generation that the store then has.
        taken: those sessions that were added, and since when they wait.
        ended: those that had ended when they were to be added.
    """

    def __init__(self, hold: Hold, cipher: Cipher) -> None:
        self._hold = hold
        self._cipher = cipher
        self._bytes = 0
        self._arguments: list[bytes] = []
        self.sessions: list[Stored] = []
        self.places: list[tuple[int, int]] = []
        self.taken: list[tuple[Stored, float]] = []  # and since when they wait
        self.ended: list[Stored] = []

    @property
    def room(self) -> bool:
        """Whether another session fits."""
        return len(self.sessions) < MOST_SESSIONS and self._bytes < MOST_BYTES

    def add(self, stored: Stored, since_s: float) -> Exception | None:
        """Add the session as it is now, unless it has ended; what is wrong with it if it cannot be written."""
        try:
            image = stored.image()
            if image is None:
                self.ended.append(stored)
                return None
            number, steps, content = image
            if len(content) > MOST_IMAGE_BYTES:
                raise ValueError(f"{len(content)} bytes are more than {MOST_IMAGE_BYTES}")
            at = functions.place(number, steps)
            sealed = self._cipher.seal(stored.key, at, content)
        except Exception as error:  # one session's bug must not hold up the others
            return error
        self.taken.append((stored, since_s))
        self._arguments += (b"%d" % stored.fence, at, sealed)
        self.sessions.append(stored)
        self.places.append((number, steps))
        self._bytes += len(sealed)
        return None

    def put(self, leaves: bytes) -> bytes:
        """The call that writes them; `leaves`: 1 to give them away."""
        keys = [functions.lease_key(self._hold.boot)]
        keys += [functions.record_key(stored.key) for stored in self.sessions]
        return functions.call("put", keys, [self._hold.boot.encode(), leaves, *self._arguments])
