"""What a front end reports is added up while the engine process is not there or does not keep up."""

from __future__ import annotations

import socket
import threading
from collections import Counter

from streamcell.service.errors import ModelNotFound, WrongByteCount
from streamcell.service.processes.frontend.remote_model import RemoteMetrics, Reports
from streamcell.service.processes.pipe import Pipe, unpack
from streamcell.service.processes.ring_records import unpack_error
from streamcell.service.processes.tunnel import ENDED, ERROR, FAILED

MANY = 20_000


class Engine:
    """The other end of a pipe, which counts what comes."""

    def __init__(self, fd: int) -> None:
        self.counts: Counter[tuple[int, str]] = Counter()
        self.pipe = Pipe(fd)
        self.done = threading.Event()

    def start(self) -> None:
        self.pipe.start("engine", self._came, self.done.set)

    def _came(self, kind: int, number: int, body: bytes, fds: list[int]) -> None:
        if kind == ERROR:
            self.counts[kind, unpack_error(body).reason] += number
        elif kind == ENDED:
            self.counts[kind, unpack(body)[2].decode()] += number
        elif kind == FAILED:
            self.counts[kind, unpack_error(unpack(body)[2]).reason] += number
        if sum(self.counts.values()) == 4 * MANY:
            self.done.set()


def report(reports: Reports) -> None:
    """Errors with texts that clients chose, all of them different."""
    metrics = RemoteMetrics("model", "1", reports)
    for i in range(MANY):
        text = f"{i} " + "x" * 1_000
        reports.error(ModelNotFound(text, model=text))
        reports.error(WrongByteCount(text))
        metrics.request_failed(WrongByteCount(text))
        metrics.session_ended("closed")


def right(counts: Counter[tuple[int, str]]) -> bool:
    return counts == {
        (ERROR, "MODEL_NOT_FOUND"): MANY, (ERROR, "WRONG_BYTE_COUNT"): MANY,
        (FAILED, "WRONG_BYTE_COUNT"): MANY, (ENDED, "closed"): MANY,
    }  # fmt: skip


def test_what_comes_while_there_is_no_engine_is_a_number_of_each_kind() -> None:
    reports = Reports()
    report(reports)
    assert len(reports._kept) == 4
    ours, theirs = socket.socketpair()
    engine = Engine(theirs.detach())
    engine.start()
    pipe = Pipe(ours.detach())
    pipe.start("front end", lambda *message: None, lambda: None)
    reports.attach(pipe)
    assert engine.done.wait(60)
    assert right(engine.counts)


def test_an_engine_that_does_not_read_makes_nothing_grow_and_misses_nothing() -> None:
    reports = Reports()
    ours, theirs = socket.socketpair()
    pipe = Pipe(ours.detach())
    pipe.start("front end", lambda *message: None, lambda: None)
    reports.attach(pipe)
    report(reports)
    assert pipe.behind
    assert len(reports._kept) == 4
    assert len(pipe._unsent) == 1
    engine = Engine(theirs.detach())
    engine.start()
    assert engine.done.wait(60)
    assert right(engine.counts)


def test_an_engine_that_is_lost_late_takes_no_pipe_from_its_successor() -> None:
    """A link's reader may see the end of its pipe only once the next link is there."""
    reports = Reports()
    pipes, engines = [], []
    for _ in range(2):
        ours, theirs = socket.socketpair()
        pipes.append(Pipe(ours.detach()))
        pipes[-1].start("front end", lambda *message: None, lambda: None)
        engines.append(Engine(theirs.detach()))
        engines[-1].start()
        reports.attach(pipes[-1])
    reports.detach(pipes[0])
    report(reports)
    assert engines[1].done.wait(60)
    assert right(engines[1].counts)
    assert not engines[0].counts
