"""Health on the lane: what `Check` and `Watch` say, and that no client of theirs can stop or swell the server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from streamcell.proto import pb, rpc
from streamcell.service.access.identity import ANYONE
from streamcell.service.errors import ServiceError
from streamcell.service.transport.calls import Call, ServerLane
from streamcell.service.transport.fast_lane import FastLane
from streamcell.service.transport.health import SERVICE, Health, Watch
from streamcell.service.transport.read_pacing import PAUSE_REPLIES
from streamcell.service.transport.threaded_lane import ThreadedLane

WAIT_S = 60.0
Status = health_pb2.HealthCheckResponse
SERVING, NOT_SERVING, UNKNOWN = Status.SERVING, Status.NOT_SERVING, Status.SERVICE_UNKNOWN


@pytest.fixture(params=["fast", "threaded"])
def lane(request: pytest.FixtureRequest) -> ServerLane:
    return FastLane() if request.param == "fast" else ThreadedLane()


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture
def channel(lane: ServerLane, health: Health) -> Iterator[grpc.Channel]:
    server = lane.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, health.handlers(lane)),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield channel
    assert server.stop(0).wait(WAIT_S)


def check(channel: grpc.Channel, service: str = "") -> int:
    status: int = (
        health_pb2_grpc.HealthStub(channel)
        .Check(health_pb2.HealthCheckRequest(service=service), timeout=WAIT_S)
        .status
    )
    return status


def watch(channel: grpc.Channel, service: str = "") -> Any:
    """A `Watch` call; its replies are statuses."""
    call: Any = channel.unary_stream(
        f"/{SERVICE}/Watch",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=Status.FromString,
    )
    return call(health_pb2.HealthCheckRequest(service=service), timeout=WAIT_S)


def test_check_says_what_is_served(channel: grpc.Channel, health: Health) -> None:
    assert check(channel) == NOT_SERVING  # until something is reported
    health.report(["", "a"], serving=True)
    assert (check(channel), check(channel, "a")) == (SERVING, SERVING)
    health.report(["a"], serving=False)
    assert (check(channel), check(channel, "a")) == (SERVING, NOT_SERVING)
    with pytest.raises(grpc.RpcError) as caught:
        check(channel, "b" * 10_000)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]
    assert len(caught.value.details()) < 200  # type: ignore[attr-defined]


def test_a_watch_says_what_holds_and_then_every_change(channel: grpc.Channel, health: Health) -> None:
    call = watch(channel, "a")
    assert next(call).status == UNKNOWN
    for served in (True, False, True):
        health.report(["a"], serving=served)
        health.report(["a", "other"], serving=served)  # nothing new
        assert next(call).status == (SERVING if served else NOT_SERVING)
    health.drain()
    assert next(call).status == NOT_SERVING
    health.report(["a"], serving=True)  # whatever is reported
    assert check(channel, "a") == NOT_SERVING
    call.cancel()


def test_a_stall_is_told_and_taken_back(channel: grpc.Channel, health: Health) -> None:
    health.report([""], serving=True)
    call = watch(channel)
    assert next(call).status == SERVING
    health.stall("serving", True)
    health.stall("engine", True)
    assert next(call).status == NOT_SERVING
    assert check(channel) == NOT_SERVING
    health.stall("serving", False)
    assert check(channel) == NOT_SERVING
    health.stall("engine", False)
    assert next(call).status == SERVING
    call.cancel()


def test_a_watch_that_is_over_leaves_nothing_behind(
    channel: grpc.Channel, health: Health, eventually: Callable[[Callable[[], bool]], bool]
) -> None:
    calls = [watch(channel, f"name {number}") for number in range(20)]
    for call in calls:
        next(call)
    assert health.watches == 20
    for call in calls:
        call.cancel()
    assert eventually(lambda: health.watches == 0)
    assert not health._watches


class Wire:
    """A call of a client that reads nothing until it is told to."""

    caller = ANYONE

    def __init__(self) -> None:
        self.replies: list[bytes] = []
        self.wake: Callable[[], None] | None = None
        self.reading = False

    def reply(self, data: bytes, *, last: bool = True) -> None:
        self.replies.append(data)

    def has_room(self, wake: Callable[[], None]) -> bool:
        if self.reading or len(self.replies) < PAUSE_REPLIES:
            return True
        self.wake = wake
        return False


def a_watch(wire: Any, health: Health, name: str = "") -> Watch:
    made = Watch(wire, health, lambda error: None)
    made.on_message(health_pb2.HealthCheckRequest(service=name).SerializeToString())
    return made


def test_for_a_client_that_does_not_read_only_the_newest_status_is_kept(health: Health) -> None:
    wire = Wire()
    a_watch(wire, health)
    for number in range(1, 10_002):
        health.report([""], serving=bool(number % 2))
    assert len(wire.replies) == PAUSE_REPLIES
    assert wire.wake is not None
    wire.reading = True
    wire.wake()
    assert Status.FromString(wire.replies[-1]).status == SERVING
    assert len(wire.replies) <= PAUSE_REPLIES + 1


def test_nothing_is_sent_under_a_lock(health: Health) -> None:
    """Whatever another thread asks of health while a reply is being sent, it gets."""

    class Slow(Wire):
        def reply(self, data: bytes, *, last: bool = True) -> None:
            super().reply(data)
            other = threading.Thread(target=self.other, daemon=True)
            other.start()
            other.join(WAIT_S)
            assert not other.is_alive()

        def other(self) -> None:
            """As another call does that begins and ends, and as the server does that reports."""
            a_watch(Wire(), health).on_end(True)
            health.report(["other"], serving=True)
            health.check(health_pb2.HealthCheckRequest(), ANYONE)
            watches[0].notify()

    watches: list[Watch] = []
    wire = Slow()
    first = Watch(wire, health, lambda error: None)  # type: ignore[arg-type]
    watches.append(first)
    first.on_message(b"")
    health.report([""], serving=True)
    assert [Status.FromString(reply).status for reply in wire.replies] == [NOT_SERVING, SERVING]
    first.on_end(True)
    assert health.watches == 0


def test_a_change_in_the_moment_of_a_reply_is_not_lost(health: Health) -> None:
    class Changing(Wire):
        def reply(self, data: bytes, *, last: bool = True) -> None:
            super().reply(data)
            if len(self.replies) == 1:
                health.report([""], serving=True)

    wire = Changing()
    a_watch(wire, health)
    assert [Status.FromString(reply).status for reply in wire.replies] == [NOT_SERVING, SERVING]


def test_a_watch_takes_one_good_message() -> None:
    errors: list[ServiceError] = []
    ends: list[grpc.StatusCode] = []

    class Ended(Wire):
        def end(
            self, code: grpc.StatusCode = grpc.StatusCode.OK, details: str = "", trailing: Any = ()
        ) -> None:
            ends.append(code)

    health = Health(errors.append)
    bad: Call = Ended()  # type: ignore[assignment]
    Watch(bad, health, errors.append).on_message(b"\xff")
    Watch(bad, health, errors.append).on_half_close()
    assert ends == [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED]
    assert [error.reason for error in errors] == ["MALFORMED_MESSAGE"]
    long = a_watch(Ended(), health, "n" * 60_000)
    assert max(map(len, health._watches)) < 2000  # a client's text is not kept
    long.on_end(True)
    assert not health._watches


@pytest.mark.conformance
def test_watches_opened_and_cancelled_stop_nothing(served: Any) -> None:
    """Many at once, on few connections: where sending waits under a lock, the server freezes for good."""

    def attack(number: int) -> None:
        with grpc.insecure_channel(served.target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            for turn in range(60):
                call = watch(channel, f"name{turn % 3}")
                next(call)
                call.cancel()

    unread = grpc.insecure_channel(served.target, [("grpc.use_local_subchannel_pool", 1)])
    calls = [watch(unread) for _ in range(20)]
    threads = [threading.Thread(target=attack, args=(number,), daemon=True) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    with grpc.insecure_channel(served.target) as channel:
        request = pb.PredictRequest(model="mlp", inputs=[bytes(12)])
        assert rpc.StreamCellStub(channel).Predict(request, timeout=WAIT_S).steps == 1
        assert check(channel, "mlp") == SERVING
    for call in calls:
        call.cancel()
    unread.close()
