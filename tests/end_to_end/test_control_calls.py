"""Every call that the server answers, by its descriptors: bytes that are no message, and calls that send none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from streamcell.client import SessionClosed, SessionNotFound, connect
from streamcell.proto.inference import oip
from streamcell.service.transport.first_messages import FirstMessages
from tests.support import every_method
from tests.support.every_method import METHODS, WAIT_S, begin, ended, path
from tests.support.valid_messages import VALID, answers_a_valid_message

REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
LIST_SERVICES = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()


@pytest.fixture(scope="module")
def quick(start_server: Any, models_dir: Path) -> Any:
    """A server whose calls have four seconds for their first message, and whose limits are no core's."""
    return start_server(models_dir, *every_method.FLAGS)


@pytest.fixture
def connected(quick: Any) -> Iterator[grpc.Channel]:
    with every_method.apart(quick.target) as channel:
        yield channel


@pytest.mark.conformance
def test_every_method_answers_a_valid_message(connected: grpc.Channel) -> None:
    assert {method.full_name for method in METHODS} == VALID.keys()
    for method in METHODS:
        answers_a_valid_message(connected, method)


@pytest.mark.conformance
def test_bytes_that_are_no_message_are_told_as_such(connected: grpc.Channel) -> None:
    for method in METHODS:
        every_method.tells_of_bytes_that_are_no_message(connected, method)


@pytest.mark.conformance
def test_each_method_has_its_own_limit_on_a_message(connected: grpc.Channel) -> None:
    for method in METHODS:
        every_method.has_its_own_limit(connected, method)


@pytest.mark.conformance
def test_a_call_that_sends_nothing_is_ended_whatever_it_is(
    quick: Any, connected: grpc.Channel, eventually: Callable[[Callable[[], bool]], bool]
) -> None:
    def late() -> float:
        count: float = quick.metric("streamcell_errors_total", reason="NO_MESSAGE")
        return count

    before = late()
    every_method.all_are_ended_if_they_send_nothing(connected)
    assert eventually(lambda: late() == before + len(METHODS))


def test_calls_that_send_nothing_hold_nobody_up(served: Any) -> None:
    with ExitStack() as stack:
        idle = stack.enter_context(every_method.apart(served.target))
        calls = [begin(idle, path(method)) for method in METHODS for _ in range(5)]
        with connect(served.target) as client:
            assert client.models()
            assert list(client.sessions()) == []
        channel = stack.enter_context(grpc.insecure_channel(served.target))
        for service, name in (("grpc.health.v1.Health", "Check"), (pb_oip(), "ServerReady")):
            assert channel.unary_unary(f"/{service}/{name}")(b"", timeout=WAIT_S)  # type: ignore[attr-defined]
        for call in calls:
            call.cancel()


def pb_oip() -> str:
    return str(oip.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name)


def test_reflection_is_bounded(served: Any) -> None:
    with every_method.apart(served.target) as channel:
        calls = []
        for _ in range(16):
            call = begin(channel, REFLECTION, LIST_SERVICES)
            names = reflection_pb2.ServerReflectionResponse.FromString(next(call))
            assert "streamcell.v1.StreamCell" in {each.name for each in names.list_services_response.service}
            calls.append(call)
        over = begin(channel, REFLECTION, LIST_SERVICES)
        assert ended(over) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "REFLECTION_LIMIT")
        for call in calls:
            call.cancel()


def test_a_reflection_call_owes_each_message_and_makes_room_when_it_ends(connected: grpc.Channel) -> None:
    for _ in range(3):
        calls = [begin(connected, REFLECTION, LIST_SERVICES) for _ in range(16)]
        for call in calls:
            next(call)
        for call in calls:
            assert ended(call) == (grpc.StatusCode.DEADLINE_EXCEEDED, "NO_MESSAGE")
    again = begin(connected, REFLECTION, LIST_SERVICES, LIST_SERVICES, half_close=True)
    assert len(list(again)) == 2


def test_reflection_can_be_switched_off(start_server: Any, models_dir: Path) -> None:
    server = start_server(models_dir, "--no-reflection")
    with grpc.insecure_channel(server.target) as channel:
        call = begin(channel, REFLECTION, LIST_SERVICES)
        with pytest.raises(grpc.RpcError):
            list(call)
        assert call.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.conformance
def test_a_session_that_was_closed_is_gone_at_once(served: Any) -> None:
    """With front ends too, of which one has yet to hear that its session has ended."""
    with connect(served.target) as client:
        for _ in range(20):
            session = client.session("lstm")
            client.close_session(session.id)
            assert session.id not in {each.id for each in client.sessions()}
            with pytest.raises(SessionNotFound):
                client.close_session(session.id)
            with pytest.raises(SessionClosed):
                session.step([0.0, 0.0, 0.0])


class Waiting:
    """Counts passes in place of a clock."""

    def __init__(self, after_s: float) -> None:
        self.first = FirstMessages()
        self.first.after_s = after_s
        self.late: list[str] = []
        self.told: list[str] = []
        self.first.on_error = lambda error: self.told.append(error.reason)

    def begin(self, name: str) -> None:
        self.first.watch(name, lambda code, details, trailing: self.late.append(name))


def test_a_call_has_its_time_from_when_it_began() -> None:
    waiting = Waiting(after_s=2)
    waiting.begin("a")
    waiting.begin("b")
    waiting.first.tick(1)
    waiting.begin("c")
    waiting.first.unwatch("b")
    waiting.first.tick(1)
    assert waiting.late == []
    waiting.first.tick(1)
    assert waiting.late == ["a"]
    waiting.first.tick(1)
    assert waiting.late == ["a", "c"]
    assert waiting.told == ["NO_MESSAGE"] * 2
    assert not len(waiting.first)


def test_a_pass_looks_at_those_that_are_late_and_one_more() -> None:
    waiting = Waiting(after_s=2)
    for number in range(300):
        waiting.begin(f"old {number}")
    waiting.first.tick(1.5)
    for number in range(10_000):
        waiting.begin(f"new {number}")
    assert waiting.first.tick(0.5) == 1
    assert waiting.first.tick(0.5) == 301
    assert len(waiting.late) == 300


def test_before_a_late_call_ends_all_that_has_arrived_is_read() -> None:
    waiting = Waiting(after_s=2)
    for name in "abc":
        waiting.begin(name)
    asked: list[int] = []

    def all_read(done: bool) -> bool:
        asked.append(len(waiting.first))
        waiting.first.unwatch("b")
        return done

    waiting.first.tick(2, lambda: all_read(True))
    assert asked == [], "none is late"
    waiting.first.tick(1, lambda: all_read(False))
    assert (asked, waiting.late) == ([3], []), "reading takes too long"
    waiting.begin("b")
    waiting.first.tick(1, lambda: all_read(True))
    assert (asked, waiting.late) == ([3, 3], ["a", "c"]), "once a pass"
    assert not len(waiting.first)


def test_without_a_limit_a_call_waits_for_ever() -> None:
    waiting = Waiting(after_s=0)
    waiting.begin("a")
    assert waiting.first.tick(1e9) == 0
    assert waiting.late == []
