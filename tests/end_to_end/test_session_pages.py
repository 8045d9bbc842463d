"""`ListSessions` costs what its page holds, however many sessions there are, and never much at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from streamcell.proto import pb
from streamcell.service.access.identity import ANYONE, Identity
from streamcell.service.errors import ControlBusy, InvalidArgument, ServiceError
from streamcell.service.protocols.common.scopes import Scopes
from streamcell.service.protocols.native import management
from streamcell.service.protocols.native.management import Management
from streamcell.service.sessions.opening_order import OpeningOrder
from streamcell.service.sessions.table import SessionTable
from streamcell.service.transport.answering import Answering
from streamcell.service.transport.control_thread import _MOST_WAITING, ControlThread

WAIT_S = 60.0


class Models:
    """A table that has every model."""

    def find(self, name: str, version: str = "") -> None:
        pass


class Rig:
    """Many listed sessions and no engine; what is written down of each is its id."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.table = SessionTable(idle_timeout_s=0)
        service: Any = SimpleNamespace(models=Models(), sessions=self.table, limits=None)
        self.control = Management(Scopes(service), 0.0, None)
        self.written = 0
        self.slices: list[int] = []
        monkeypatch.setattr(management, "session_message", self._write)

    def _write(self, live: Any) -> pb.Session:
        self.written += 1
        return pb.Session(session_id=live.session.session_id)

    def open(self, session_id: str, model: str = "m") -> Any:
        metrics = SimpleNamespace(session_opened=lambda: None)
        loaded: Any = SimpleNamespace(file=SimpleNamespace(name=model), metrics=metrics)
        listener = SimpleNamespace(fail=lambda error: None)
        session: Any = SimpleNamespace(session_id=session_id, listener=listener, step_index=3, owner=None)
        return self.table.adopt(session, loaded)

    def page(self, **request: Any) -> pb.ListSessionsResponse:
        """One call's answer; how many sessions each slice has written down is kept."""
        self.slices = []
        slices = self.control.list_sessions(pb.ListSessionsRequest(**request), ANYONE)
        while True:
            before = self.written
            try:
                next(slices)
            except StopIteration as done:
                answer: pb.ListSessionsResponse = done.value
                return answer
            finally:
                self.slices.append(self.written - before)

    def pages(self, **request: Any) -> Iterator[list[str]]:
        token = ""
        while True:
            page = self.page(page_token=token, **request)
            yield [session.session_id for session in page.sessions]
            token = page.next_page_token
            if not token:
                return


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(monkeypatch)


@pytest.mark.interpreted("its stand-ins for sessions are no sessions of compiled code")
def test_a_page_touches_its_own_sessions_only_and_few_at_a_time(rig: Rig) -> None:
    for number in range(10_000):
        rig.open(str(number))
    for live in rig.table.all()[::2]:
        rig.table.forget(live)
    left = [str(number) for number in range(1, 10_000, 2)]
    got: list[str] = []
    token = ""
    for _ in range(5):
        rig.written = 0
        page = rig.page(page_token=token)
        got += [session.session_id for session in page.sessions]
        token = page.next_page_token
        assert rig.written == len(page.sessions) == 1000
        assert max(rig.slices) <= 64
    assert not token
    assert got == left


@pytest.mark.interpreted("its stand-ins for sessions are no sessions of compiled code")
@pytest.mark.parametrize("asked", [1001, 2**32 - 1, 0])
def test_no_page_is_larger_than_a_thousand(rig: Rig, asked: int) -> None:
    for number in range(1500):
        rig.open(str(number))
    assert len(rig.page(page_size=asked).sessions) == 1000


@pytest.mark.interpreted("its stand-ins for sessions are no sessions of compiled code")
def test_one_model_s_sessions_are_found_without_a_look_at_the_others(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5000):
        rig.open(str(number), "rare" if number % 1000 == 500 else "m")
    places: list[int] = []
    after = OpeningOrder.after

    def counting(order: OpeningOrder[Any], number: int, most: int) -> Any:
        found = after(order, number, most)
        places.append(len(found[0]))
        return found

    monkeypatch.setattr(OpeningOrder, "after", counting)
    assert list(rig.pages(model="rare", page_size=2)) == [["500", "1500"], ["2500", "3500"], ["4500"]]
    assert rig.written == sum(places) == 5
    assert list(rig.pages(model="none")) == [[]]


@pytest.mark.interpreted("its stand-ins for sessions are no sessions of compiled code")
def test_pages_miss_none_that_stays_while_others_come_and_go(rig: Rig) -> None:
    live = {str(number): rig.open(str(number)) for number in range(300)}
    stay = [name for name in live if int(name) % 3]
    got: list[str] = []
    for page in rig.pages(page_size=20):
        got += page
        for name in page:
            if int(name) < 300 and not int(name) % 3:
                rig.table.forget(live[name])
        if len(got) < 100:
            rig.open(str(1000 + len(got)))
    assert [name for name in got if name in stay] == stay
    assert len(set(got)) == len(got)


@pytest.mark.parametrize("token", ["x", "-1", "1.5", "9" * 19, "١", "1 a"])
def test_a_token_from_elsewhere_is_told_as_such(rig: Rig, token: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        rig.page(page_token=token)
    assert caught.value.reason == "BAD_PAGE_TOKEN"


def test_an_order_keeps_no_more_places_than_twice_its_items() -> None:
    order: OpeningOrder[int] = OpeningOrder()
    for number in range(1, 10_001):
        order.add(number, number)
    for number in range(1, 10_001):
        if number % 100:
            order.remove(number)
            order.remove(number)  # once more does nothing
    assert list(order) == list(range(100, 10_001, 100))
    assert len(order) == 100
    assert len(order._items) <= 2 * 100 + 64
    for number in range(100, 10_001, 100):
        order.remove(number)
    assert not order
    assert not order._items


class Call:
    """A unary call whose end is kept."""

    peer = "test"
    caller = ANYONE

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.answered: bytes | None = None
        self.failed: tuple[Any, ...] = ()
        self.cancelled = False
        self.callback: Callable[[], None] = lambda: None

    def answer(self, data: bytes) -> None:
        self.answered = data
        self.ended.set()

    def fail(self, *status: Any) -> None:
        self.failed = status
        self.ended.set()

    def on_cancel(self, callback: Callable[[], None]) -> None:
        self.callback = callback
        if self.cancelled:
            callback()

    def cancel(self) -> None:
        self.cancelled = True
        self.callback()

    def run_after_arrivals(self, callback: Callable[[], None]) -> bool:
        return False


@pytest.fixture
def thread() -> Iterator[ControlThread]:
    made = ControlThread()
    yield made
    made.stop()


def test_the_control_thread_rests_longer_than_it_works_and_takes_turns(
    thread: ControlThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    rests: list[float] = []
    sleep = time.sleep

    def rest(seconds: float) -> None:
        rests.append(seconds)
        sleep(seconds)

    monkeypatch.setattr("streamcell.service.transport.control_thread.time.sleep", rest)
    order: list[str] = []
    done = threading.Event()
    both = threading.Event()

    def job(name: str, slices: int) -> Iterator[None]:
        both.wait(WAIT_S)
        for _ in range(slices):
            order.append(name)
            yield
        if name == "long":
            done.set()

    thread.submit(job("long", 40))
    thread.submit(job("short", 2))
    both.set()
    assert done.wait(WAIT_S)
    assert order.index("short") <= 1
    assert order[:4].count("short") == 2
    assert len(rests) >= 42
    assert min(rests) >= 0.0005


def test_too_many_jobs_are_refused_and_a_bad_one_ends_alone(thread: ControlThread) -> None:
    begun, hold, ran = threading.Event(), threading.Event(), threading.Event()

    def bad() -> Iterator[None]:
        begun.set()
        hold.wait(WAIT_S)
        raise RuntimeError("a bug")
        yield

    def good() -> Iterator[None]:
        ran.set()
        yield

    thread.submit(bad())
    assert begun.wait(WAIT_S)
    for _ in range(_MOST_WAITING):
        thread.submit(good())
    with pytest.raises(ControlBusy):
        thread.submit(good())
    hold.set()
    assert ran.wait(WAIT_S)


def test_a_sliced_call_is_answered_refused_or_dropped(thread: ControlThread) -> None:
    errors: list[ServiceError] = []
    answering = Answering(errors.append, thread)
    hold = threading.Event()
    slices: list[str] = []

    def method(request: pb.ListSessionsRequest, caller: Identity) -> Any:
        for _ in range(3):
            slices.append(request.model)
            yield
            hold.wait(WAIT_S)
        if request.model == "bad":
            raise InvalidArgument("no")
        if request.model == "bug":
            raise RuntimeError("a secret")
        return pb.ListSessionsResponse(next_page_token="7")

    handler = answering.sliced(pb.ListSessionsRequest, method)
    calls = {name: Call() for name in ("gone", "good", "bad", "bug")}
    for name, call in calls.items():
        handler(call, pb.ListSessionsRequest(model=name).SerializeToString())
    calls["gone"].cancel()
    hold.set()
    for name in ("good", "bad", "bug"):
        assert calls[name].ended.wait(WAIT_S)
    assert calls["good"].answered == pb.ListSessionsResponse(next_page_token="7").SerializeToString()
    assert calls["bad"].failed[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "no")
    assert calls["bug"].failed[:2] == (grpc.StatusCode.INTERNAL, "internal error")
    assert [error.reason for error in errors] == [InvalidArgument.reason]
    assert not calls["gone"].ended.is_set()
    assert slices.count("gone") < 3
