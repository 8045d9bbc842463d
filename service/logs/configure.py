"""Structured logs on standard error: JSON lines for machines, colours for people.

No thread waits when it logs: the logging thread renders the line, and the log writer's thread (`writer.py`) writes it.
Python's own output on standard error (tracebacks of threads, warnings) goes the same way.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import io
import logging
import os
import stat
import sys
import threading
from collections import Counter
from collections.abc import MutableMapping
from typing import Any

import structlog

from .limits import Limits
from .writer import LIMITED, LogWriter

_EXIT_S = 1.0  # that a process waits at exit for its last lines
_MOST_TEXT = 8_000  # characters of one value in a line, such as a traceback
_MOST_LINE = 256_000  # characters of a line
_WARNING_BURST, _WARNING_EVERY_S = 30, 5.0
_INFO_BURST, _INFO_EVERY_S = 1_000, 1.0
# Output that is no log line, in bytes: tracebacks of threads, output of other libraries.
_RAW_BURST, _RAW_EVERY_S = 256 * 1024, 1 / 2048

_writer: LogWriter | None = None

_Entry = MutableMapping[str, Any]


def configure(level: str, form: str) -> None:
    """Set up logging for the process and redirect its standard error.

    `level`: "debug" … "error"; `form`: "json" or "console".
    """
    global _writer  # noqa: PLW0603  # a process has one standard error
    if _writer is None:
        fd = _own_stderr()
        _writer = LogWriter(fd)
        # Reports of a crash bypass the writer, whose thread does not run then.
        faulthandler.enable(fd)
        sys.stderr = _Stderr(_writer)
        atexit.register(flush)
    severity = getattr(logging, level.upper())
    logging.captureWarnings(True)
    logging.basicConfig(handlers=[_Forwarder()], level=max(severity, logging.WARNING), force=True)
    last: list[structlog.typing.Processor]
    if form == "json":
        last = [structlog.processors.format_exc_info, _clip, structlog.processors.JSONRenderer()]
    else:
        last = [_clip, structlog.dev.ConsoleRenderer(colors=_has_colours(2))]
    structlog.configure(
        processors=[
            _Limited(_writer),
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(severity),
        logger_factory=_Sinks(_writer),
        cache_logger_on_first_use=True,
    )


def flush(patience_s: float = _EXIT_S) -> None:
    """Wait until all logged lines are written, for at most `patience_s`."""
    if _writer is not None:
        sys.stderr.flush()
        _writer.flush(patience_s)


def lines_lost() -> Counter[str]:
    """The number of this process's lost log lines, by reason."""
    return Counter() if _writer is None else _writer.lost()


def _has_colours(fd: int) -> bool:
    """Whether `fd` is a terminal whose user wants colours (https://no-color.org)."""
    return os.isatty(fd) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _own_stderr() -> int:
    """Make descriptor 2 non-blocking; return a descriptor of standard error for the log writer.

    ONNX Runtime and grpc's core write to descriptor 2 from C++, at times with the GIL held. A pipe or terminal is
    reopened as non-blocking, which leaves the description that other processes share as it is. Output that does not
    fit is lost.
    """
    kind = os.fstat(2).st_mode
    if stat.S_ISFIFO(kind) or stat.S_ISCHR(kind):
        with contextlib.suppress(OSError):
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_APPEND
            anew = os.open("/proc/self/fd/2", flags)
            os.dup2(anew, 2)
            return anew
    if not stat.S_ISREG(kind):  # a socket, or a file of another user
        with contextlib.suppress(OSError):
            os.set_blocking(2, False)
            atexit.register(os.set_blocking, 2, True)
    return os.dup(2)


class _Stderr(io.TextIOBase):
    """Replaces `sys.stderr`: the log writer writes its lines too."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, writer: LogWriter) -> None:
        self._writer = writer
        self._begun = ""
        self._lock = threading.RLock()
        self._limits = Limits(_RAW_BURST, _RAW_EVERY_S)

    def write(self, text: str) -> int:
        """Queue the lines that end in `text`."""
        with self._lock:
            *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._put(line)
        if len(self._begun) > _MOST_TEXT:
            self.flush()
        return len(text)

    def flush(self) -> None:
        """Queue the text that has no line feed yet."""
        with self._lock:
            begun, self._begun = self._begun, ""
        if begun:
            self._put(begun)

    def _put(self, line: str) -> None:
        data = line.encode(errors="backslashreplace") + b"\n"
        if self._limits.take("", len(data)) is None:
            self._writer.lose(LIMITED)
        else:
            self._writer.put(data)

    def fileno(self) -> int:
        """The descriptor of standard error."""
        return 2

    def isatty(self) -> bool:
        """True if standard error is a terminal."""
        return os.isatty(2)

    def writable(self) -> bool:
        """True."""
        return True


class _Limited:
    """A processor that limits the rate of each kind of line, and counts the lines that it drops."""

    def __init__(self, writer: LogWriter) -> None:
        self._writer = writer
        self._information = Limits(_INFO_BURST, _INFO_EVERY_S)
        self._warnings = Limits(_WARNING_BURST, _WARNING_EVERY_S)

    def __call__(self, logger: object, method: str, entry: _Entry) -> _Entry:
        """Return `entry` with the number of lines left out before it, or drop it."""
        limits = self._information if method in ("debug", "info") else self._warnings
        left_out = limits.take(str(entry["event"])[:100])
        if left_out is None:
            self._writer.lose(LIMITED)
            raise structlog.DropEvent
        if left_out:
            entry["left_out"] = left_out
        return entry


def _clip(logger: object, method: str, entry: _Entry) -> _Entry:
    """Shorten long values, so that a client cannot decide the size of a line."""
    for key, value in entry.items():
        if isinstance(value, str) and len(value) > _MOST_TEXT:
            # Keep both ends: both matter in a traceback.
            half = _MOST_TEXT // 2
            entry[key] = f"{value[:half]} … {value[-half:]}"
    return entry


class _Sink:
    """A logger in structlog's sense: it takes rendered lines."""

    def __init__(self, writer: LogWriter) -> None:
        self._writer = writer

    def msg(self, line: str) -> None:
        """Queue a line."""
        self._writer.put(line[:_MOST_LINE].encode(errors="backslashreplace") + b"\n")

    debug = info = warning = warn = error = critical = fatal = exception = failure = err = log = msg


class _Sinks:
    """Makes loggers."""

    def __init__(self, writer: LogWriter) -> None:
        self._writer = writer

    def __call__(self, *args: object) -> _Sink:
        return _Sink(self._writer)


class _Forwarder(logging.Handler):
    """Makes log lines of other libraries' records, above all grpcio's."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log `record` under its logger's name."""
        with contextlib.suppress(Exception):
            structlog.get_logger().log(
                record.levelno, record.name, text=record.getMessage(), exc_info=record.exc_info or None
            )
