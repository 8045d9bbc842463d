"""What a connection is held to, look by look: calls that say what they hold, and figures such as the kernel gives."""

from __future__ import annotations

import threading
from collections.abc import Callable, Container

import grpc
import numpy as np
import pytest

from streamcell.service.errors import ServiceError
from streamcell.service.transport.in_flight import InFlight
from streamcell.service.transport.tcp_figures import ResidentMemory, memory_bytes

MIB = 1024 * 1024
BOUND = 48 * MIB
MESSAGE = 4 * MIB


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


class Machine:
    """What the kernel says, as the test sets it."""

    def __init__(self) -> None:
        self.received: dict[str, int] = {}
        self.memory = 100 * MIB
        self.meanwhile: Callable[[], None] = lambda: None  # what happens just after the kernel was asked

    def figures(self, peers: Container[str]) -> dict[str, tuple[int, int]]:
        figures = {peer: (received, 0) for peer, received in self.received.items() if peer in peers}
        self.meanwhile()
        return figures


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def in_flight(machine: Machine, errors: list[ServiceError]) -> InFlight:
    made = InFlight(machine.figures, lambda: machine.memory)
    made.bound(2 * BOUND, BOUND, MESSAGE, errors.append)
    return made


def connected(in_flight: InFlight, machine: Machine, count: int) -> list[Call]:
    """Calls of a connection that has been looked at once, before it brought anything."""
    calls = [Call(in_flight, peer="a") for _ in range(count)]
    machine.received["a"] = 0
    in_flight.look()
    return calls


def held_back(in_flight: InFlight) -> list[Call]:
    """The calls of a connection that has more in memory than it may."""
    calls = [Call(in_flight) for _ in range(6)]
    for call in calls:
        call.unanswered, call.messages = 9 * MIB, 4
    in_flight.look()
    return calls


def answered(calls: list[Call]) -> None:
    """The replies are smaller than the messages were, and nobody has read them yet."""
    for call in calls:
        call.unanswered, call.unsent = 0, 6 * MIB + 152


def test_a_connection_that_stays_just_under_its_bound_once_it_is_held_back_is_not_left_so(
    in_flight: InFlight, errors: list[ServiceError]
) -> None:
    calls = held_back(in_flight)
    assert in_flight.figures() == (54 * MIB, 1)
    answered(calls)
    for _ in range(60):
        in_flight.look()
    assert in_flight.held_back == 0
    assert 0 < len(errors) < len(calls)
    assert len(errors) == sum(call.ended == "memory_in_flight" for call in calls)


def test_a_connection_that_is_held_back_and_read_is_left_alone(
    in_flight: InFlight, errors: list[ServiceError]
) -> None:
    calls = held_back(in_flight)
    answered(calls)
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


@pytest.mark.parametrize("stuck", [True, False], ids=["never whole", "in windows"])
def test_unread_replies_and_bytes_in_the_core_that_are_too_much_only_together_do_not_stop_a_connection_for_good(
    in_flight: InFlight, machine: Machine, errors: list[ServiceError], stuck: bool
) -> None:
    calls = connected(in_flight, machine, 384)
    unread, others = calls[:16], calls[16:]
    for call in unread:
        call.unsent, call.messages = 2 * MIB, 2
    for call in others:
        call.half_open = stuck  # else it is not being read, and its window is full
    machine.received["a"] = 23 * MIB
    machine.memory += 100 * MIB
    in_flight.look()
    assert in_flight.held_back == 1
    for _ in range(60):
        in_flight.look()
    assert in_flight.held_back == 0
    assert {call.ended for call in others} == {None}
    assert 0 < len(errors) < len(unread)


def begin_and_reset(in_flight: InFlight, machine: Machine, count: int, peer: str = "a") -> None:
    """Calls whose messages come and are given to nobody."""
    for at in range(count):
        call = Call(in_flight, peer=peer)
        machine.received[peer] += 32 * 1024
        call.connection.leave(call)
        if at % 100 == 0:
            in_flight.look()
    in_flight.look()


def test_calls_that_ended_early_are_not_held_against_those_that_live(
    in_flight: InFlight, machine: Machine, errors: list[ServiceError]
) -> None:
    calls = connected(in_flight, machine, 24)
    machine.memory += 10 * MIB  # what malloc keeps
    begin_and_reset(in_flight, machine, 5000)
    for _ in range(100):
        in_flight.look()
    assert not errors
    assert not any(call.ended for call in calls)


def test_half_received_bytes_are_no_more_than_live_calls_can_hold(
    in_flight: InFlight, machine: Machine, errors: list[ServiceError]
) -> None:
    (call,) = connected(in_flight, machine, 1)
    machine.memory += 1000 * MIB  # a model that was loaded, so the process says nothing
    begin_and_reset(in_flight, machine, 5000)
    assert call.connection.half_bytes <= 2 * MESSAGE
    call.half_open = False
    for _ in range(2):
        in_flight.look()
    assert call.connection.half_bytes <= MIB
    assert not errors


def test_messages_that_are_never_whole_are_ended_though_calls_were_reset_before(
    in_flight: InFlight, machine: Machine, errors: list[ServiceError]
) -> None:
    calls = connected(in_flight, machine, 40)
    begin_and_reset(in_flight, machine, 5000)
    for _ in calls:
        machine.received["a"] += 3 * MIB
        machine.memory += 3 * MIB
        in_flight.look()
    assert errors
    assert any(call.ended for call in calls)


def test_what_malloc_gives_back_does_not_put_off_the_end_of_messages_that_are_never_whole(
    in_flight: InFlight, machine: Machine, errors: list[ServiceError], monkeypatch: pytest.MonkeyPatch
) -> None:
    def trim() -> None:
        machine.memory -= MIB // 2

    monkeypatch.setattr("streamcell.service.transport.in_flight.trim_memory", trim)
    connected(in_flight, machine, 40)
    while not errors and machine.received["a"] < 2 * BOUND:
        machine.received["a"] += 3 * MIB
        machine.memory += 3 * MIB
        in_flight.look()
    assert errors


def test_what_malloc_keeps_from_the_start_does_not_hide_messages_that_are_never_whole(
    in_flight: InFlight, machine: Machine, errors: list[ServiceError], monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [60 * MIB]  # in the process's memory, after its models have been loaded

    def trim() -> None:
        machine.memory -= free.pop() if free else 0

    monkeypatch.setattr("streamcell.service.transport.in_flight.trim_memory", trim)
    in_flight.watch()
    in_flight.stop()
    calls = connected(in_flight, machine, 16)
    machine.received["a"] = 16 * 3 * MIB + MIB
    machine.memory += 16 * 3 * MIB + MIB
    in_flight.look()
    assert {call.ended for call in calls} == {"memory_in_flight"}


def test_what_the_process_has_grown_by_for_another_reason_is_not_held_against_a_connection(
    in_flight: InFlight, machine: Machine, errors: list[ServiceError]
) -> None:
    calls = connected(in_flight, machine, 24)
    calls[0].unanswered = 40 * MIB
    machine.memory += 70 * MIB
    in_flight.look()
    calls[0].unanswered = 0
    machine.memory -= 20 * MIB  # the rest are the engine's buffers for such messages
    in_flight.look()
    for _ in range(4):
        begin_and_reset(in_flight, machine, 500)
        in_flight.look()
    for _ in range(60):
        in_flight.look()
    assert not errors


def test_extra_looks_shorten_nobody_s_patience(in_flight: InFlight, errors: list[ServiceError]) -> None:
    calls = held_back(in_flight)
    answered(calls)
    for _ in range(200):
        in_flight.look(regular=False)
    assert not errors
    for _ in range(60):
        in_flight.look()
    assert errors


def test_messages_that_are_read_while_the_kernel_is_asked_do_not_count_as_half_received(
    in_flight: InFlight, machine: Machine, errors: list[ServiceError]
) -> None:
    calls = connected(in_flight, machine, 24)
    machine.memory += 1000 * MIB  # so that it says nothing of the connection

    def read() -> None:
        machine.received["a"] += 60 * MIB
        calls[0].connection.taken += 60 * MIB
        machine.meanwhile = lambda: None

    for _ in range(4):
        machine.meanwhile = read
        for _ in range(4):
            in_flight.look()
            assert calls[0].connection.half_bytes < 2 * MIB
    assert not errors


def test_a_connection_is_not_read_once_it_has_brought_what_it_had_room_for(in_flight: InFlight) -> None:
    call = Call(in_flight)
    in_flight.look()
    while not call.connection.stopped:
        call.unanswered += MIB
        call.connection.take(MIB)
        assert call.unanswered <= BOUND + MIB
    in_flight.look()
    assert call.connection.stopped
    call.unanswered = 0
    in_flight.look()
    assert not call.connection.stopped


def test_many_connections_together_bring_no_more_than_the_server_has_room_for(in_flight: InFlight) -> None:
    calls = [Call(in_flight, peer=f"unix:{at}") for at in range(20)]
    in_flight.look()
    for call in calls:
        while not call.connection.stopped:
            call.unanswered += MIB // 4
            call.connection.take(MIB // 4)
    assert sum(call.unanswered for call in calls) <= 2 * BOUND + 20 * MIB // 4


def test_large_messages_on_their_way_are_not_cut_while_others_become_whole(
    in_flight: InFlight, machine: Machine, errors: list[ServiceError]
) -> None:
    calls = connected(in_flight, machine, 24)
    machine.memory += 1000 * MIB  # so that it says nothing of the connection
    machine.received["a"] += 50 * MIB
    for at in range(20):
        machine.received["a"] += 24 * MIB
        calls[at].connection.take(24 * MIB)
        in_flight.look()
    assert not errors
    # More than their client can have on their way while it completes messages.
    machine.received["a"] += 100 * MIB
    calls[0].connection.take(24 * MIB)
    in_flight.look()
    assert errors


def test_figures_that_are_not_of_one_moment_do_not_make_a_connection_another(
    in_flight: InFlight, machine: Machine, errors: list[ServiceError]
) -> None:
    calls = connected(in_flight, machine, 24)
    machine.memory += 1000 * MIB  # so that it says nothing of the connection
    for less in (0, MIB, 0):
        machine.received["a"] += 350 * MIB
        calls[0].connection.take(350 * MIB)
        in_flight.look()
        machine.received["a"] -= less
        in_flight.look()
        assert calls[0].connection.half_bytes < 2 * MIB
    assert not errors


def test_resident_memory_follows_the_memory_that_looks_read() -> None:
    resident = ResidentMemory()

    def follows() -> bool:
        """True if it does; not where another of this process's threads takes or gives memory meanwhile."""
        before = resident(), memory_bytes()
        taken = np.ones(64 * MIB, np.uint8)
        grown = resident() - before[0], memory_bytes() - before[1]
        return taken.nbytes <= grown[0] <= taken.nbytes + 8 * MIB and abs(grown[0] - grown[1]) <= 4 * MIB

    assert any(follows() for _ in range(10))
    resident.close()
    assert resident() == 0


class Waits(threading.Event):
    """Records how long the watch waits, and ends it after a number of waits."""

    def __init__(self, in_flight: InFlight, count: int) -> None:
        super().__init__()
        self.in_flight, self.count, self.each = in_flight, count, []

    def wait(self, timeout: float | None = None) -> bool:
        self.each.append(timeout)
        if len(self.each) == self.count:
            self.in_flight.stop()
        return False


@pytest.mark.parametrize(("client", "longest_s"), [(False, 0.1), (True, 0.02)])
@pytest.mark.interpreted("replaces an event of a compiled class")
def test_the_watch_reads_memory_seldom_unless_a_client_is_connected(
    in_flight: InFlight, machine: Machine, client: bool, longest_s: float
) -> None:
    if client:
        connected(in_flight, machine, 1)
    in_flight._wake = waits = Waits(in_flight, 5)
    in_flight._watch()
    assert set(waits.each) == {longest_s}
