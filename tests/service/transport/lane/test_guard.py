"""Each call's caller is asked for once, before a handler or a message, and no call passes without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest

from streamcell.service.access.access_errors import NotAuthenticated
from streamcell.service.access.identity import ANYONE, NOBODY, Identity
from streamcell.service.errors import ServiceError
from streamcell.service.transport.calls import FAULT, ServerLane
from tests.support.lanes import Feed, Rig, status

WHO = Identity("acme", "feed", operator=False)


class Check:
    """A check that keeps what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def __call__(self, metadata: Any, peer: Any) -> Identity:
        given = dict(metadata)
        self.asked.append({**given, "peer": dict(peer())})
        if "bug" in given:
            raise RuntimeError("a secret of the server")
        if given.get("who") != "feed":
            raise NotAuthenticated("nobody")
        return WHO


@pytest.fixture
def guarded(lane: ServerLane, rig: Callable[..., Rig]) -> tuple[Rig, Check, list[ServiceError]]:
    check, errors = Check(), list[ServiceError]()
    started = rig(
        others={"Public": lane.unary(lambda call, data: call.answer(repr(call.caller).encode()), public=True)}
    )
    for guard in (lane.guard, lane.public_guard):
        guard.ask(check, errors.append)
    return started, check, errors


def test_a_call_is_asked_once_however_many_messages_it_has(
    guarded: tuple[Rig, Check, list[ServiceError]],
) -> None:
    rig, check, _ = guarded
    sent = [b"%d" % number for number in range(50)]
    assert list(rig.stream(sent, metadata=(("who", "feed"),))) == sent
    assert rig.handler().call.caller is WHO
    assert len(check.asked) == 1
    assert rig.channel is not None
    unary: Any = rig.channel.unary_unary("/t/Unary")
    assert unary(b"ab", metadata=(("who", "feed"),)) == b"ba"
    assert rig.requests.get(timeout=60)[0].caller is WHO
    assert len(check.asked) == 2


def test_a_refused_call_has_no_handler_and_its_messages_are_not_read(
    guarded: tuple[Rig, Check, list[ServiceError]],
) -> None:
    rig, _, errors = guarded
    feed = Feed(b"a", b"b")
    for call in (rig.stream(feed), rig.stream(Feed(None)), rig.stream([b"a"] * 40)):
        assert status(call) == (grpc.StatusCode.UNAUTHENTICATED, "nobody")
    unary = rig.unary(b"ab")
    assert (unary.code(), unary.details()) == (grpc.StatusCode.UNAUTHENTICATED, "nobody")
    feed.put(None)
    assert rig.opened.empty()
    assert rig.requests.empty()
    assert [error.reason for error in errors] == ["NOT_AUTHENTICATED"] * 4


def test_a_bug_in_the_check_refuses(guarded: tuple[Rig, Check, list[ServiceError]]) -> None:
    rig, _, _ = guarded
    call = rig.stream([b"a"], metadata=(("who", "feed"), ("bug", "1")))
    assert status(call) == (grpc.StatusCode.INTERNAL, FAULT)
    assert rig.opened.empty()


def test_public_methods_let_those_in_who_are_not_known_and_may_nothing(
    guarded: tuple[Rig, Check, list[ServiceError]],
) -> None:
    rig, check, errors = guarded
    assert rig.channel is not None
    public: Any = rig.channel.unary_unary("/t/Public")
    assert public(b"") == repr(NOBODY).encode()
    assert public(b"", metadata=(("who", "feed"),)) == repr(WHO).encode()
    assert len(check.asked) == 2
    assert not errors


def test_without_a_check_everybody_is_anyone(rig: Callable[..., Rig]) -> None:
    served = rig()
    assert list(served.stream([b"a"])) == [b"a"]
    assert served.handler().call.caller is ANYONE


def test_a_server_with_interceptors_asks_too(lane: ServerLane, rig: Callable[..., Rig]) -> None:
    class Idle(grpc.ServerInterceptor):  # type: ignore[misc]
        def intercept_service(self, continuation: Any, details: Any) -> Any:
            return continuation(details)

    served = rig(interceptors=(Idle(),))
    lane.guard.ask(Check(), lambda error: None)
    assert status(served.stream([b"a"])) == (grpc.StatusCode.UNAUTHENTICATED, "nobody")
    assert list(served.stream([b"a"], metadata=(("who", "feed"),))) == [b"a"]
