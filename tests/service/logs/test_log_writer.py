"""The log's thread, its bounded queue and the limits on lines of one kind, without a server."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from multiprocessing.connection import wait

import pytest

from streamcell.service.logs.limits import Limits
from streamcell.service.logs.writer import LogWriter

PIPE_BYTES = 4096


class Clock:
    """Time by hand."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """The two ends of a small pipe, of which the writing end does not block."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    os.set_blocking(writing, False)
    yield reading, writing
    os.close(reading)


def read(fd: int, size: int) -> bytes:
    """Exactly `size` bytes."""
    data = b""
    while len(data) < size:
        data += os.read(fd, size - len(data))
    return data


def test_lines_come_whole_and_in_order(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    writer = LogWriter(writing)
    lines = [b"%d " % i + b"x" * (i % 600) + b"\n" for i in range(2_000)]
    for line in lines:
        writer.put(line)
    assert read(reading, sum(map(len, lines))) == b"".join(lines)
    assert writer.flush(60)
    assert sum(writer.lost().values()) == 0


def test_a_pipe_that_nobody_reads_holds_up_nobody_and_is_written_to_when_somebody_does(
    pipe: tuple[int, int],
) -> None:
    reading, writing = pipe
    writer = LogWriter(writing, queue_bytes=10_000)
    for i in range(1_000):
        writer.put(b"%03d" % i + b"x" * 96 + b"\n")
    assert not writer.flush(0)
    lost = writer.lost()
    assert 1_000 - (10_000 + PIPE_BYTES) // 100 - 1 <= lost["queue_full"] <= 1_000 - 10_000 // 100
    kept = (1_000 - lost["queue_full"]) * 100
    data = read(reading, kept)
    assert [int(line[:3]) for line in data.splitlines()] == sorted(int(x[:3]) for x in data.splitlines())
    assert writer.flush(60)
    writer.put(b"again\n")
    assert read(reading, 6) == b"again\n"


def test_a_reader_that_has_gone_is_counted(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, reading)
    os.close(null)
    writer = LogWriter(writing)
    for _ in range(10):
        writer.put(b"nobody\n")
    assert writer.flush(60)
    assert writer.lost()["write_failed"] == 10


def test_a_line_that_was_cut_off_ends_before_the_next_begins(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = pipe
    whole, calls = os.write, []

    def write(fd: int, data: bytes) -> int:
        calls.append(len(data))
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return whole(fd, data[:3])

    monkeypatch.setattr(os, "write", write)
    writer = LogWriter(writing)
    writer.put(b"first\n")
    assert writer.flush(60)
    writer.put(b"next\n")
    assert writer.flush(60)
    assert read(reading, 9) == b"fir\nnext\n"
    assert writer.lost()["write_failed"] == 1
    assert not wait([reading], 0)


def test_of_one_kind_there_is_a_burst_and_then_one_each_few_seconds_with_a_count() -> None:
    clock = Clock()
    limits = Limits(3, 5.0, clock)
    assert [limits.take("a") for _ in range(5)] == [0, 0, 0, None, None]
    assert limits.take("b") == 0
    clock.now_s += 4.9
    assert limits.take("a") is None
    clock.now_s += 0.2
    assert [limits.take("a"), limits.take("a")] == [3, None]
    clock.now_s += 1e6
    assert [limits.take("a") for _ in range(4)] == [1, 0, 0, None]


def test_the_kinds_themselves_are_bounded() -> None:
    limits = Limits(1, 5.0, Clock())
    taken = [limits.take(f"kind {i}") for i in range(100_000)]
    assert taken.count(0) <= 1_001
    assert len(limits._buckets) <= 1_001
