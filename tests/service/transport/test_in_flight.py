"""What a connection is held to, look by look: calls that say what they hold, and figures such as the kernel gives."""

from __future__ import annotations

import grpc
import pytest

from streamcell.service.errors import ServiceError
from streamcell.service.transport.in_flight import InFlight

MIB = 1024 * 1024
BOUND = 48 * MIB


class Call:
    """A call whose figures the test sets."""

    def __init__(self, in_flight: InFlight, *, peer: str = "unix:a") -> None:
        self.peer = peer
        self.messages = self.sent = self.unanswered = self.unsent = 0
        self.half_open = True
        self.ended: str | None = None
        self.connection = in_flight.join(self)

    def held(self) -> tuple[int, int]:
        return self.unanswered, self.unsent

    def read_again(self) -> None:
        """Nothing waits here."""

    def cut(
        self, code: grpc.StatusCode, details: str, trailing: tuple[tuple[str, str | bytes], ...], reason: str
    ) -> None:
        self.ended = reason
        self.connection.leave(self)

    def drop(self) -> None:
        """It is cut already."""


@pytest.fixture
def errors() -> list[ServiceError]:
    return []


@pytest.fixture
def in_flight(errors: list[ServiceError]) -> InFlight:
    made = InFlight()
    made.bound(2 * BOUND, BOUND, errors.append)
    return made


def test_a_connection_that_stays_just_under_its_bound_once_it_is_held_back_is_not_left_so(
    in_flight: InFlight, errors: list[ServiceError]
) -> None:
    calls = [Call(in_flight) for _ in range(6)]
    for call in calls:
        call.unanswered, call.messages = 9 * MIB, 4
    in_flight.look()
    assert in_flight.held_back == 1
    for call in calls:  # the replies are smaller than the messages were, and nobody reads them
        call.unanswered, call.unsent = 0, 6 * MIB + 152
    for _ in range(60):
        in_flight.look()
    assert in_flight.held_back == 0
    assert 0 < len(errors) < len(calls)
    assert len(errors) == sum(call.ended == "memory_in_flight" for call in calls)


def test_a_connection_that_is_held_back_and_read_is_left_alone(
    in_flight: InFlight, errors: list[ServiceError]
) -> None:
    calls = [Call(in_flight) for _ in range(6)]
    for call in calls:
        call.unanswered, call.messages = 9 * MIB, 4
    in_flight.look()
    for call in calls:
        call.unanswered, call.unsent = 0, 6 * MIB + 152
    for at in range(600):
        calls[at % 6].sent += 1
        in_flight.look()
    assert not errors


def test_what_only_reading_can_bring_out_of_the_core_does_not_keep_a_connection_from_being_read(
    in_flight: InFlight, errors: list[ServiceError]
) -> None:
    call = Call(in_flight)
    call.unanswered, call.messages = 30 * MIB, 30
    call.connection.half_bytes = 40 * MIB  # the windows of streams that are not read
    in_flight.look()
    assert in_flight.held_back == 1
    call.unanswered = 0
    in_flight.look()
    assert in_flight.held_back == 0
    assert not errors
