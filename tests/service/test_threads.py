"""On a machine that gives no more threads, what needs one is refused in words, and works once there are some again."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from streamcell.service.access.access_errors import AccessConfigError
from streamcell.service.access.key_set import KeySet, _Fetch
from streamcell.service.access.pacing import Later, Pace
from streamcell.service.engine.time_limit import TimeLimit, _Watch
from streamcell.service.errors import EngineLost, ServiceError
from streamcell.service.lifecycle.load_thread import within
from streamcell.service.processes.engine.main import EngineProcess
from streamcell.service.processes.frontend.kept_streams import KeptStreams
from streamcell.service.processes.frontend.remote_model import Reports
from streamcell.service.processes.pipe import Pipe
from streamcell.service.settings import Settings
from streamcell.service.threads import NoThread, started
from streamcell.service.transport.control_thread import ControlThread
from streamcell.service.watchdog import EXIT_CODE, Watchdog
from tests.support.no_threads import no_threads
from tests.support.waiting import waited

WAIT_S = 60


def test_a_thread_that_the_machine_does_not_give_is_told_in_words() -> None:
    with no_threads(), pytest.raises(NoThread, match=r"no thread for 'moves'.*ulimit -u") as raised:
        started("moves", print)
    assert raised.value.reason == "NO_THREAD"
    ran = threading.Event()
    thread = started("moves", ran.set)
    assert ran.wait(WAIT_S)
    assert (thread.name, thread.daemon) == ("moves", True)


def test_a_control_call_without_a_thread_is_refused_and_later_ones_are_answered() -> None:
    done: list[str] = []

    def job(name: str) -> Iterator[None]:
        done.append(name)
        yield

    control = ControlThread()
    with no_threads():
        for _ in range(100):
            with pytest.raises(NoThread):
                control.submit(job("refused"))
    control.submit(job("first"))
    assert waited(lambda: done == ["first"])
    control.stop()


def test_a_stream_is_not_left_paced_by_a_thread_that_never_ran() -> None:
    later, resumed = Later(), threading.Event()
    pace = Pace(lambda steps: 0.001, resumed.set, later)
    with no_threads(), pytest.raises(NoThread):
        pace.after(1, True)
    assert pace.may_resume()
    assert not pace.after(1, True)
    assert resumed.wait(WAIT_S)


def test_a_started_pacer_needs_no_thread_later() -> None:
    later, resumed = Later(), threading.Event()
    later.start()
    with no_threads():
        assert not Pace(lambda steps: 0.001, resumed.set, later).after(1, True)
    assert resumed.wait(WAIT_S)


def test_time_limits_are_kept_though_the_first_of_them_had_no_thread() -> None:
    watch, limit, ended = _Watch(), TimeLimit(), threading.Event()
    limit._cancel_by(lambda on: ended.set() if on else None)
    with no_threads(), pytest.raises(NoThread):
        watch.add(limit, 0.1)
    limit.due_s = 0.0
    watch.add(limit, 0.1)
    assert ended.wait(WAIT_S)


def test_a_load_without_a_thread_fails_and_leaves_no_limit_running() -> None:
    limit = TimeLimit()
    with no_threads(), pytest.raises(NoThread):
        within(3600.0, limit, lambda: 1, lambda made: None, "model")
    assert limit.due_s == float("inf")
    assert within(3600.0, limit, lambda: 1, lambda made: None, "model") == 1


def test_a_pipe_sends_on_without_another_thread() -> None:
    ours, theirs = socket.socketpair()
    sender, reader = Pipe(ours.detach()), Pipe(theirs.detach())
    sender.start("one", lambda *message: None, lambda: None)
    came: list[int] = []
    with no_threads():
        for _ in range(8):
            sender.send(1, 0, bytes(1 << 20))
        assert sender.behind
    reader.start("other", lambda kind, number, body, fds: came.append(len(body)), lambda: None)
    assert waited(lambda: came == [1 << 20] * 8)
    for each in (sender, reader):
        each.close()


class Stream:
    """A stream that waits for an engine process."""

    def __init__(self) -> None:
        self.told: list[ServiceError] = []

    def begin(self, tunnel: Any) -> None:
        """There is none."""

    def give_up(self, error: ServiceError) -> None:
        self.told.append(error)


def test_a_stream_whose_wait_nobody_would_end_is_not_kept(tmp_path: Any) -> None:
    settings = Settings(models=tmp_path, durability="process", journal_dir=tmp_path, linger_s=3600.0)
    streams = KeptStreams(settings, Reports())
    lost: Any = object()
    alone, kept = Stream(), Stream()
    with no_threads():
        streams.wait(alone, lost)
    assert [type(error) for error in alone.told] == [EngineLost]
    assert streams.waiting == 0
    streams.wait(kept, lost)
    assert streams.waiting == 1
    streams.give_up()
    assert [type(error) for error in kept.told] == [EngineLost]


def test_a_process_that_hangs_is_ended_though_no_thread_can_log_it() -> None:
    ended: list[int] = []
    watchdog = Watchdog(lambda: {"serving": 1}, 5.0, lambda name, stalled: None, ends=True, end=ended.append)
    with no_threads():
        for _ in range(7):
            watchdog.look(1.0)
    assert ended == [EXIT_CODE]


def test_keys_that_no_thread_can_fetch_leave_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = KeySet.__new__(KeySet)
    keys._source, keys._fetch = "https://127.0.0.1:1/keys", None
    with no_threads(), pytest.raises(AccessConfigError, match="no thread for 'keys'"):
        keys._fetched()
    assert keys._fetch is None
    monkeypatch.setattr(_Fetch, "answer", lambda self: b"{}")
    assert keys._fetched() == b"{}"


def test_a_scrape_without_a_thread_does_not_end_the_engine_process() -> None:
    ours, theirs = socket.socketpair()
    pipe, supervisor = Pipe(ours.detach()), Pipe(theirs.detach())
    process = EngineProcess(pipe)
    answered: list[int] = []
    supervisor.start("engine", lambda kind, number, body, fds: answered.append(number), lambda: None)
    with no_threads():
        process._scrape(1)
    process._scrape(2)
    assert waited(lambda: answered == [2])
    for each in (pipe, supervisor):
        each.close()
