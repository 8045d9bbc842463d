"""One thread writes log lines from a bounded queue, so no thread that logs waits for a disk or a pipe's reader."""

from __future__ import annotations

import os
import select
import threading
from collections import Counter
from queue import Empty, SimpleQueue

# Reasons of lost lines: the queue was full, the write failed, or there were too many lines of one kind.
QUEUE_FULL, WRITE_FAILED, LIMITED = REASONS = ("queue_full", "write_failed", "limited")

_QUEUE_BYTES = 1024 * 1024
# POSIX writes this number of bytes into a pipe at once, so lines of several processes never mix.
_ATOMIC_BYTES = 4096


class LogWriter:
    """Writes lines to a file descriptor, which may block or fail for any time."""

    def __init__(self, fd: int, *, queue_bytes: int = _QUEUE_BYTES, name: str = "log-writer") -> None:
        """Start the thread, called `name`. `queue_bytes`: bytes that may wait to be written; lines beyond are lost."""
        self._fd = fd
        self._queue_bytes = queue_bytes
        # SimpleQueue.put is reentrant: a finalizer may log while its thread is in `put`.
        # Lines, events to set, and descriptors to write to from then on.
        self._queue: SimpleQueue[bytes | threading.Event | int] = SimpleQueue()
        self._lock = threading.RLock()
        self._waiting_bytes = 0
        self._lost = dict.fromkeys(REASONS, 0)
        self._cut = False  # True if the last line was written in part only
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def put(self, line: bytes, *, counted: bool = True) -> bool:
        """Queue `line`, which ends with a line feed. False: the queue was full; its loss is `counted` or not."""
        with self._lock:
            fits = self._waiting_bytes + len(line) <= self._queue_bytes
            if fits:
                self._waiting_bytes += len(line)
                self._queue.put(line)
        if not fits and counted:
            self.lose(QUEUE_FULL)
        return fits

    def move(self, fd: int) -> None:
        """Write lines queued from now on to `fd`, and close the previous descriptor."""
        self._queue.put(fd)

    def lose(self, reason: str, lines: int = 1) -> None:
        """Count `lines` as lost for one of `REASONS`."""
        with self._lock:
            self._lost[reason] += lines

    def lost(self) -> Counter[str]:
        """The number of lost lines, by reason."""
        with self._lock:
            return Counter(self._lost)

    def flush(self, patience_s: float) -> bool:
        """Wait for at most `patience_s`; True if all lines queued before have been written or lost."""
        done = threading.Event()
        self._queue.put(done)
        return done.wait(patience_s)

    def _run(self) -> None:
        after: bytes | threading.Event | int | None = None
        while True:
            item = self._queue.get() if after is None else after
            after = None
            if isinstance(item, threading.Event):
                item.set()
                continue
            if isinstance(item, int):
                os.close(self._fd)
                self._fd, self._cut = item, False
                continue
            lines, size = [item], len(item)
            while after is None:
                try:
                    after = self._queue.get_nowait()
                except Empty:
                    break
                if isinstance(after, bytes) and size + len(after) <= _ATOMIC_BYTES:
                    lines.append(after)
                    size += len(after)
                    after = None
            written = self._write(b"".join(lines))
            with self._lock:
                self._waiting_bytes -= size
            if not written:
                self.lose(WRITE_FAILED, len(lines))

    def _write(self, data: bytes) -> bool:
        """Write all of `data`, however long that takes; False if it failed."""
        rest = memoryview(b"\n" + data if self._cut else data)
        room = select.poll()
        room.register(self._fd, select.POLLOUT)
        while rest:
            try:
                written = os.write(self._fd, rest)
            except BlockingIOError:
                room.poll()
                continue
            except OSError:  # a full disk, a reader that has gone
                return False
            rest = rest[written:]
            self._cut = bool(rest)
        return True
