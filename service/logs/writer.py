"""One thread that writes log lines from a bounded queue: whoever logs never waits for a disk or a pipe's reader."""

from __future__ import annotations

import os
import select
import threading
from collections import Counter
from queue import Empty, SimpleQueue

# Why lines are lost: the queue was full, the write failed, or there were too many of one kind.
QUEUE_FULL, WRITE_FAILED, LIMITED = REASONS = ("queue_full", "write_failed", "limited")

_QUEUE_BYTES = 1024 * 1024
# What POSIX lets a process write into a pipe at once, so that lines of several processes never mix.
_ATOMIC_BYTES = 4096


class LogWriter:
    """Writes lines to a file descriptor, which may block or fail for as long as it likes."""

    def __init__(self, fd: int, *, queue_bytes: int = _QUEUE_BYTES) -> None:
        """Start the thread. `queue_bytes`: how much may wait to be written; what is over it is lost."""
        self._fd = fd
        self._queue_bytes = queue_bytes
        # SimpleQueue.put may be called while the same thread is in it, as when a finalizer logs.
        self._queue: SimpleQueue[bytes | threading.Event] = SimpleQueue()
        self._lock = threading.RLock()
        self._waiting_bytes = 0
        self._lost = dict.fromkeys(REASONS, 0)
        self._cut = False  # whether the last line was written in part only
        threading.Thread(target=self._run, name="log-writer", daemon=True).start()

    def put(self, line: bytes) -> None:
        """Write `line`, which ends with a line feed, some time; it is lost if too much waits already."""
        with self._lock:
            fits = self._waiting_bytes + len(line) <= self._queue_bytes
            if fits:
                self._waiting_bytes += len(line)
                self._queue.put(line)
        if not fits:
            self.lose(QUEUE_FULL)

    def lose(self, reason: str, lines: int = 1) -> None:
        """Count `lines` as lost for one of `REASONS`."""
        with self._lock:
            self._lost[reason] += lines

    def lost(self) -> Counter[str]:
        """How many lines were lost, by reason."""
        with self._lock:
            return Counter(self._lost)

    def flush(self, patience_s: float) -> bool:
        """Whether what was put before has been written or lost, after at most `patience_s`."""
        done = threading.Event()
        self._queue.put(done)
        return done.wait(patience_s)

    def _run(self) -> None:
        after: bytes | threading.Event | None = None
        while True:
            item = self._queue.get() if after is None else after
            after = None
            if isinstance(item, threading.Event):
                item.set()
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
        """Write all of `data`, however long that takes; whether that went well."""
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
