"""The audit log: one JSON line for each action of a client or operator, in a separate file.

Lines are ASCII with everything else escaped, so no text of a client can begin another line. A separate thread writes
them from a bounded queue, so no request waits for the disk. A metric counts lost lines at once, and the log itself
reports them as soon as there is room.
"""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeAlias

import structlog

from .limits import Limits
from .writer import LogWriter

_log = structlog.get_logger(__name__)

Fact: TypeAlias = str | int | float | bool | tuple[str, ...] | None
_MOST_TEXT = 256  # characters of one value
_QUEUE_BYTES = 4 * 1024 * 1024
STDOUT = "-"
# Lines of refusals for one reason.
_REFUSALS, _REFUSALS_EVERY_S = 1000, 0.1


class Audit:
    """Writes to a file, or to standard output. Thread-safe."""

    def __init__(
        self,
        place: str,
        *,
        queue_bytes: int = _QUEUE_BYTES,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`place`: the file's path, or "-" for standard output; `queue_bytes`: bytes that may wait to be written.

        Raises:
            OSError: the file cannot be opened for writing.
        """
        self._place = place
        self._now = now
        self._lock = threading.Lock()
        self._told = 0  # lost lines of which the log tells
        self.lines = 0
        self._limits = Limits(_REFUSALS, _REFUSALS_EVERY_S)
        self._writer = LogWriter(self._open(), queue_bytes=queue_bytes, name="audit-writer")

    def _open(self) -> int:
        if self._place == STDOUT:
            return os.dup(1)
        # Nonblocking: a named pipe without a reader is an error, and does not wait for one.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        return os.open(self._place, flags, 0o600)

    def tell(self, event: str, **facts: Fact) -> None:
        """Queue a line: what happened, and the known facts, without empty ones."""
        known = {key: _bounded(value) for key, value in facts.items() if value not in ("", None, ())}
        with self._lock:
            lost = sum(self._writer.lost().values())
            if lost > self._told:
                told = self._line("lines_lost", {"lines": lost - self._told})
                if self._writer.put(told, counted=False):
                    self._told = lost
            self.lines += self._writer.put(self._line(event, known))

    def asked(self, event: str, **facts: Fact) -> None:
        """Queue a line for a control call; limited as refusals are, because it may be refused."""
        left_out = self._limits.take(event)
        if left_out is not None:
            self.tell(event, left_out=left_out or None, **facts)

    def refused(self, code: str, reason: str, *, times: int = 1, **facts: Fact) -> None:
        """Queue a line for `times` errors sent to a client; of one reason at most a thousand at once and ten a second.

        A line says how many of its reason were left out before it, because refused clients may ask at any rate.
        """
        left_out = self._limits.take(reason)
        if left_out is not None:
            more = {"times": times} if times > 1 else {}
            self.tell("refused", code=code, reason=reason, left_out=left_out or None, **more, **facts)

    def _line(self, event: str, facts: dict[str, Fact]) -> bytes:
        time = self._now().isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return json.dumps({"time": time, "event": event, **facts}, allow_nan=False).encode("ascii") + b"\n"

    def reopen(self) -> None:
        """Write to the file that has the name now; for programs that rotate logs. Earlier lines go to the old file."""
        try:
            descriptor = self._open()
        except OSError as error:
            _log.error("audit log not reopened: the old file is used on", path=self._place, error=str(error))
            return
        self._writer.move(descriptor)

    def lost(self) -> Counter[str]:
        """The number of lines that were not written, by reason."""
        return self._writer.lost()

    def flush(self, patience_s: float = 1.0) -> bool:
        """Wait at most `patience_s` until all lines are written or lost; False if that took longer."""
        return self._writer.flush(patience_s)


def _bounded(value: Fact) -> Fact:
    if isinstance(value, str) and len(value) > _MOST_TEXT:
        return f"{value[:_MOST_TEXT]}…"
    if isinstance(value, float):
        return round(value, 3)
    return value
