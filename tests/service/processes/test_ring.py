"""Rings between processes: what is written is read once, in order, whatever the sizes; and entries taken by several."""

from __future__ import annotations

import os
import subprocess
import sys
from multiprocessing.connection import wait

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamcell.service.errors import SessionExpired, SessionLimit
from streamcell.service.processes.ring import Reader, Ring, Writer
from streamcell.service.processes.ring_records import (
    FAIL,
    Layout,
    head_of,
    pack_error,
    text_at,
    text_records,
    unpack_error,
)
from streamcell.service.sessions.shared_capacity import SharedCapacity

WIDTH = 16


def numbered(first: int, count: int) -> np.ndarray:
    records = np.zeros((count, WIDTH // 8), np.uint64)
    records[:, 0] = np.arange(first, first + count)
    records[:, 1] = records[:, 0] * 3 + 1
    return records.view(np.uint8)


def numbers(records: np.ndarray | None) -> list[int]:
    if records is None:
        return []
    words = records.view(np.uint64)
    assert (words[:, 1] == words[:, 0] * 3 + 1).all()
    found: list[int] = words[:, 0].tolist()
    return found


@settings(max_examples=200, deadline=None)
@given(
    capacity=st.integers(4, 40),
    moves=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(1, 10)), max_size=120),
)
def test_rings_of_two_writers_keep_order_lose_nothing_and_never_overflow(
    capacity: int, moves: list[tuple[int, int, int]]
) -> None:
    """Random writes of one or many records and reads, over and over the end of the memory."""
    rings = [Ring.make(capacity, WIDTH) for _ in range(2)]
    writers, readers = [Writer(ring) for ring in rings], [Reader(ring) for ring in rings]
    written, read = [0, 0], [0, 0]

    def drain(at: int) -> None:
        writers[at].publish()
        got = numbers(readers[at].read())
        assert got == list(range(read[at], written[at]))
        read[at] = written[at]

    for move, at, size in moves:
        writer = writers[at]
        if move == 2:
            drain(at)
        elif move == 1:
            size = min(size, capacity // 4)
            if writer.room(size) < size:
                drain(at)
                assert writer.room(size) >= size  # a part of a quarter always fits once the reader has read
            writer.write(numbered(written[at], size))
            written[at] += size
        elif writer.room(1):
            place = writer.place()
            writer.bytes[place : place + WIDTH] = numbered(written[at], 1).tobytes()
            writer.wrote()
            if size % 2:  # or with the next, or with the last
                writer.publish()
            written[at] += 1
        assert written[at] - read[at] <= capacity
    for at in range(2):
        drain(at)
        rings[at].close()


def test_a_full_ring_has_no_room_until_it_is_read() -> None:
    ring = Ring.make(8, WIDTH)
    writer, reader = Writer(ring), Reader(ring)
    writer.write(numbered(0, 8))
    assert writer.room(1) == 0
    assert not wait([ring.freed], 0)
    assert numbers(reader.read()) == list(range(8))
    assert wait([ring.freed], 0)
    assert writer.room(1) == 8
    ring.close()


WRITER = """
import select, sys
import numpy as np
from streamcell.service.processes.ring import Ring, Writer
capacity, width, total, *fds = map(int, sys.argv[1:])
ring = Ring(capacity, width, *fds)
writer, at = Writer(ring), 0
freed = select.poll()  # takes any number of a descriptor
freed.register(ring.freed, select.POLLIN)
while at < total:
    size = min(1 + at % 7, total - at)
    while writer.room(size) < size:
        freed.poll(30_000)
    records = np.zeros((size, width // 8), np.uint64)
    records[:, 0] = np.arange(at, at + size)
    records[:, 1] = records[:, 0] * 3 + 1
    writer.write(records.view(np.uint8))
    at += size
"""


def test_another_process_writes_and_nothing_is_lost() -> None:
    total = 20_000
    ring = Ring.make(64, WIDTH)
    reader = Reader(ring)
    arguments = [str(each) for each in (64, WIDTH, total, *ring.fds)]
    writer = subprocess.Popen([sys.executable, "-c", WRITER, *arguments], pass_fds=ring.fds)
    got: list[int] = []
    while len(got) < total and wait([ring.written], 60):
        got += numbers(reader.read())
    assert writer.wait(60) == 0
    assert got == list(range(total))
    ring.close()


def test_a_text_takes_as_many_records_as_it_needs() -> None:
    layout = Layout.of((), 1)
    error = SessionExpired("gone: " + "ü" * 100, idle_timeout_s=3, step_index=7)
    records = text_records(layout, FAIL, 5, 9, pack_error(error))
    head = head_of(records)
    assert (head["entry"] == 5).all()
    assert (head["slot_version"] == 9).all()
    text, count = text_at(records, 0, int(head["steps"][0]))
    assert count == len(records) > 2
    again = unpack_error(text)
    assert (type(again), str(again), again.facts) == (SessionExpired, str(error), error.facts)


@pytest.mark.parametrize("stateful", [True, False])
def test_entries_are_one_bound_for_all_processes_and_a_lost_ones_come_back(stateful: bool) -> None:
    engine = SharedCapacity(4, 1, stateful=stateful)
    ends = [
        SharedCapacity(4, 1, stateful=stateful, process_number=process_number, memory=os.dup(engine.memory))
        for process_number in (2, 3)
    ]
    taken = [ends[0].take_entry(), ends[0].take_entry(), ends[1].take_entry()]
    own = engine.take()
    assert len({entry for entry, _ in taken}) == 3
    assert engine.live == 4
    for each in (engine, *ends):
        with pytest.raises(SessionLimit, match="all 4 sessions"):
            each.take_entry()
    engine.give_back(*own)
    assert ends[0].reclaim(2) == 2
    assert engine.live == 1
    (entry, slot_version), _, third = taken
    again, later = ends[1].take_entry()
    assert again == entry
    assert later == slot_version + 1
    engine.give_back_entries(np.array([again, third[0]]), np.array([later, third[1]]))
    assert engine.live == 0
    with pytest.raises(RuntimeError, match="freed twice"):
        engine.give_back_entries(np.array([third[0]]), np.array([third[1]]))
    for each in (engine, *ends):
        each.close()
