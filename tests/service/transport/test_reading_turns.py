"""Turns in reading, in counts: a tenant's flood is not read before another's message, and nobody starves."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc._cython import cygrpc

from streamcell.service.access.identity import Identity
from streamcell.service.errors import ServiceError
from streamcell.service.settings import Settings
from streamcell.service.transport import completion_queue
from streamcell.service.transport.completion_queue import ServingQueue
from streamcell.service.transport.fast_lane import FastLane
from streamcell.service.transport.fast_stream import StreamCall
from streamcell.service.transport.grpc_server import Transport
from streamcell.service.transport.in_flight import FRAMING_BYTES
from streamcell.service.transport.reading_turns import ReadingTurns
from tests.support.lanes import WAIT_S, Echo, Feed, Rig
from tests.support.mutants import mutant
from tests.support.tokens import token_file

TURN = 16


class Event:
    """What the core hands out: a tag to be called, or nothing."""

    def __init__(self, tag: Callable[[], None] | None = None) -> None:
        types = cygrpc.CompletionType
        self.completion_type = types.queue_timeout if tag is None else types.operation_complete
        self.tag = tag


class Core:
    """A core that reads one socket a look, and none while it has events to hand out."""

    def __init__(self) -> None:
        self.events: deque[Event] = deque()
        self.sockets: deque[list[Event]] = deque()  # what each look finds
        self.looks = self.sleeps = 0

    def poll(self, deadline: float | None) -> Event:
        if not self.events:
            self.looks += 1
            self.sleeps += deadline is None
            if self.sockets:
                self.events.extend(self.sockets.popleft())
        return self.events.popleft() if self.events else Event()


class Stream:
    """A stream whose client has sent `messages` ahead: the core hands out the next one once it is asked to."""

    def __init__(self, bench: Bench, tenant: str, messages: int) -> None:
        self.bench, self.tenant, self.left = bench, tenant, messages
        self.line = bench.turns.line_of(tenant)
        self.taken = 0

    def read(self) -> None:
        if self.left:
            self.left -= 1
            self.bench.core.events.append(Event(self.on_read))

    def on_read(self) -> None:
        if self.line is None or self.line.admits(self.take, b"message"):
            self.take(b"message")

    def take(self, message: bytes) -> None:
        self.taken += 1
        self.bench.note(self.tenant)
        self.read()


class Bench:
    """The serving thread's loop over such a core."""

    def __init__(
        self, size: Callable[[str], int] | None = lambda tenant: TURN, kind: type[ReadingTurns] = ReadingTurns
    ) -> None:
        self.core = Core()
        self.turns = kind()
        if size is not None:
            self.turns.take(size)
        self.queue = ServingQueue()
        self.queue._plain = self.core.poll
        self.order: list[str] = []
        self.at: dict[int, Callable[[], None]] = {}  # what happens once so many messages are taken

    def note(self, tenant: str) -> None:
        self.order.append(tenant)
        if (happens := self.at.get(len(self.order))) is not None:
            happens()

    def streams(self, tenant: str, count: int, messages: int) -> list[Stream]:
        made = [Stream(self, tenant, messages) for _ in range(count)]
        for stream in made:
            stream.read()
        return made

    def serve(self, events: int = 1_000_000) -> None:
        """Until the thread would sleep, or for so many events."""
        for _ in range(events):
            event = self.queue.poll(None)
            if event.tag is None:
                return
            event.tag()


@pytest.fixture(autouse=True)
def no_queue_afterwards() -> Iterator[None]:
    yield
    completion_queue._serving.queue = None


def waits(bench: Bench, at: int, *, floods: int = 1, sockets: int = 0, streams: int = 64) -> int:
    """The messages of floods that are read before a calm tenant's, which reaches its socket after `at` messages.

    `sockets`: looks at other sockets come first, which find parts of messages. `streams`: of each flood.
    """
    (calm,) = bench.streams("calm", 1, 0)

    def calm_sends() -> None:
        bench.core.sockets.extend([[]] * sockets + [[Event(calm.on_read)]])

    bench.at[at] = calm_sends
    for number in range(floods):
        bench.streams(f"flood{number}", streams, 16)
    bench.serve()
    assert len(bench.order) == floods * streams * 16 + 1, "every message is read"
    return bench.order.index("calm") - at


@pytest.mark.parametrize(
    ("size", "floods", "sockets", "most"),
    [
        (lambda tenant: TURN, 1, 0, TURN - 1),
        (lambda tenant: TURN, 3, 0, TURN - 1),  # after each turn there is a look
        (lambda tenant: TURN, 1, 3, TURN - 1),
        (lambda tenant: TURN, 1, 4, 2 * TURN - 1),  # a few sockets a turn
        (None, 1, 0, 64 * 16 - 1),  # in the order of arrival it waits for the whole flood
    ],
)
def test_a_message_waits_for_one_turn_of_a_flood_and_not_for_all_of_it(
    size: Callable[[str], int] | None, floods: int, sockets: int, most: int
) -> None:
    assert max(waits(Bench(size), at, floods=floods, sockets=sockets) for at in range(1, 900, 13)) == most


_FULL = "        self._turn, self._left = self._of.given, self._size()\n        while"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("            if self._left > 0:\n", "            if True:\n"),  # in the order of arrival
        ("while waiting and self._left > 0:", "while waiting:"),  # in its turn, all that waits
        (
            _FULL,
            _FULL.replace("self._turn, self._left = self._of.given,", "self._left ="),
        ),  # and as much once more
    ],
)
def test_turns_with_a_mistake_let_it_wait_for_longer(old: str, new: str) -> None:
    kind: type[ReadingTurns] = mutant("service.transport.reading_turns", old, new).ReadingTurns

    def longest(kind: type[ReadingTurns]) -> int:
        return max(
            waits(Bench(kind=kind), at, streams=streams) for at in range(1, 200, 13) for streams in (TURN, 64)
        )

    assert longest(ReadingTurns) == TURN - 1
    assert longest(kind) > TURN - 1


def test_a_tenant_alone_is_read_at_once_with_a_look_or_two_a_turn() -> None:
    bench = Bench()
    bench.streams("flood", 64, 16)
    bench.serve()
    assert bench.order == ["flood"] * 64 * 16
    # It sleeps only when nothing is left.
    assert bench.core.sleeps == 1
    assert bench.core.looks <= 4 * (64 * 16 / TURN) + 2


def test_turns_are_shared_by_their_size_and_not_by_streams() -> None:
    sizes = {"few": 10, "many": 10, "dear": 30}
    bench = Bench(sizes.__getitem__)
    for tenant, streams in (("few", 2), ("many", 80), ("dear", 40)):
        bench.streams(tenant, streams, 1000)
    bench.serve(20_000)
    counted = Counter(bench.order[:4000])
    # Two streams have two messages a turn at most: nobody waits for a third.
    assert counted["dear"] / counted["many"] == pytest.approx(3, rel=0.05)
    assert bench.order.count("few") > 0


def test_a_tenants_streams_take_turns() -> None:
    bench = Bench()
    streams = bench.streams("flood", 50, 100)
    bench.serve(3000)
    taken = [stream.taken for stream in streams]
    assert min(taken) > 10
    assert max(taken) - min(taken) <= 1


def test_events_that_do_not_end_hold_up_no_turn() -> None:
    bench = Bench()
    bench.streams("flood", 64, 4)

    def again() -> None:
        bench.core.events.append(Event(again))

    again()
    bench.serve(10_000)
    assert len(bench.order) == 64 * 4


def test_what_waits_for_its_turn_counts_as_read_only_once_it_is_taken() -> None:
    bench = Bench()
    bench.streams("flood", 64, 2)
    bench.serve(40)
    assert len(bench.order) < 64
    read: list[int] = []
    bench.queue.when_read(lambda: read.append(len(bench.order)))
    bench.serve()
    assert read == [64 * 2]


def test_a_flood_that_does_not_end_holds_up_nobody_who_waits_until_all_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(completion_queue, "_ENOUGH", 1000)
    bench = Bench()
    bench.streams("flood", 64, 10_000)
    bench.serve(100)
    read: list[int] = []
    bench.queue.when_read(lambda: read.append(len(bench.order)))
    bench.serve(2000)
    assert len(read) == 1, "sessions end by their idle time-out only after that"


@pytest.mark.parametrize("enough", [1000, 10**9])
def test_what_waits_in_a_line_of_small_turns_counts_as_read_only_once_it_is_taken(
    monkeypatch: pytest.MonkeyPatch, enough: int
) -> None:
    """However many events of a flood come before, and though the flood does not end."""
    monkeypatch.setattr(completion_queue, "_ENOUGH", enough)
    bench = Bench({"slow": 1, "flood": 64}.__getitem__)
    bench.streams("flood", 200, 100_000)
    bench.streams("slow", 100, 1)
    bench.serve(400)
    assert bench.order.count("slow") < 10
    read: list[int] = []
    for _ in range(3):
        bench.queue.when_read(lambda: read.append(bench.order.count("slow")))
    bench.serve(100 * 65 * 2)
    assert read == [100] * 3


def test_a_callback_that_waits_for_idle_sockets_is_called_between_turns() -> None:
    bench = Bench()
    bench.streams("flood", 64, 4)
    called: list[int] = []
    bench.at[TURN] = lambda: called.append(
        completion_queue.once_idle(lambda: called.append(len(bench.order))) - 1
    )
    bench.serve()
    assert len(called) == 2
    assert called[1] <= 2 * TURN


def test_a_call_whose_handling_fails_loses_nobodys_turn() -> None:
    bench = Bench()
    bench.streams("flood", 40, 2)

    def fail(message: bytes) -> None:
        raise RuntimeError("a bug")

    line = bench.turns.line_of("flood")
    assert line is not None
    bench.at[TURN] = lambda: bench.core.events.appendleft(Event(lambda: _wait(line, fail)))
    bench.serve()
    assert len(bench.order) == 80


def _wait(line: Any, take: Callable[[bytes], None]) -> None:
    assert not line.admits(take, b"x")


def test_nothing_waits_on_a_thread_that_looks_at_no_sockets() -> None:
    turns = ReadingTurns()
    turns.take(lambda tenant: 1)
    line = turns.line_of("a")
    assert line is not None
    assert [line.admits(lambda message: None, b"") for _ in range(5)] == [True] * 5


def test_tenants_without_calls_are_forgotten() -> None:
    turns = ReadingTurns()
    assert turns.line_of("a") is None
    turns.take(lambda tenant: 1)
    lines = [turns.line_of(f"tenant {number}") for number in range(100)]
    assert turns.line_of("tenant 1") is lines[1]
    lines.clear()
    assert not turns._lines


class CoreCall:
    """The core's call: it keeps the tags of the operations that are started."""

    def __init__(self) -> None:
        self.tags: list[Callable[[Any], Any]] = []

    def peer(self) -> bytes:
        return b"ipv4:127.0.0.1:1"

    def start_server_batch(self, operations: Any, tag: Callable[[Any], Any]) -> Any:
        self.tags.append(tag)
        return cygrpc.CallError.ok

    def cancel(self, code: int, details: str) -> None:
        """It ends when the test says so."""


def completed(message: bytes = b"", *, cancelled: bool = False) -> Any:
    """The event of an operation that has received a message, or a call's end."""
    return SimpleNamespace(
        batch_operations=[SimpleNamespace(message=lambda: message, cancelled=lambda: cancelled)]
    )


class Calls:
    """Calls of one tenant on a lane, with turns of one message, by a core that the test plays."""

    def __init__(self, kind: str, most_bytes: int | None = None) -> None:
        completion_queue._serving.queue = ServingQueue()
        self.lane = lane = FastLane()
        lane.guard.ask(lambda metadata, peer: Identity("acme", "", operator=False), lambda error: None)
        lane.take_turns(lambda tenant: 1, lambda tenant: most_bytes)
        taken: list[bytes] = []
        self.taken = taken
        self.ended: list[str] = []
        lane.first_messages.on_error = lambda error: self.ended.append(error.reason)

        class Noting(Echo):
            def on_message(self, data: bytes) -> bool:
                taken.append(data)
                return True

        self.handler: Any = (
            lane.stream(Noting) if kind == "stream" else lane.unary(lambda call, data: taken.append(data))
        )

    @property
    def line(self) -> Any:
        return self.lane._turns.line_of("acme")

    def begin(self) -> tuple[CoreCall, Any]:
        """The core's call, and the lane's."""
        core = CoreCall()
        return core, self.handler.stream_stream.begin(core, ())

    def send(self, data: bytes) -> tuple[CoreCall, Any]:
        """A new call, and its first message."""
        core, call = self.begin()
        _, on_read = core.tags
        on_read(completed(data))
        return core, call


@pytest.fixture(params=["stream", "unary"])
def calls(request: pytest.FixtureRequest) -> Calls:
    return Calls(request.param)


def test_a_call_that_ends_leaves_nothing_in_its_line(calls: Calls) -> None:
    gone = [calls.send(b"gone") for _ in range(50)]
    assert len(calls.line._waiting) == 50
    for core, _ in gone:
        on_close = core.tags[0]
        on_close(completed(cancelled=True))
    assert not calls.line._waiting
    for data in (b"second", b"third"):
        calls.send(data)
    assert calls.lane._turns.give()
    assert not calls.lane._turns.give()
    assert calls.taken == [b"second", b"third"]


def test_the_time_that_a_first_message_waits_in_a_line_is_not_its_clients(calls: Calls) -> None:
    first = calls.lane.first_messages
    first.after_s = 20.0
    calls.begin()  # it sends nothing
    for _ in range(50):
        calls.send(b"waits")
    assert calls.taken == []
    for _ in range(100):
        first.tick(0.5)
    assert calls.ended == ["NO_MESSAGE"]
    while calls.lane._turns.give():
        pass
    assert calls.taken == [b"waits"] * 50


def test_a_call_that_the_server_does_not_read_has_its_time_from_when_it_does() -> None:
    """Its connection has more in memory than it may."""
    calls = Calls("stream")
    first = calls.lane.first_messages
    first.after_s = 20.0
    _, opened = calls.begin()
    connection = opened._connection
    connection.stop()
    core, _ = calls.begin()
    assert len(core.tags) == 1, "nothing is read"
    for _ in range(100):
        first.tick(0.5)
    assert calls.ended == ["NO_MESSAGE"], "the call that was read before has its time from its beginning"
    connection.go_on()
    assert len(core.tags) == 2
    for _ in range(30):
        first.tick(0.5)
    assert len(calls.ended) == 1
    for _ in range(30):
        first.tick(0.5)
    assert calls.ended == ["NO_MESSAGE"] * 2


MIB = 1024 * 1024


def test_messages_in_a_line_count_as_received_and_end_no_call(calls: Calls) -> None:
    """Of those that are half received beside them, the calls end as ever."""
    in_flight = calls.lane.in_flight
    received, memory = [0], [100 * MIB]
    in_flight._figures = lambda peers: {"ipv4:127.0.0.1:1": (received[0], 0)}
    in_flight._memory = lambda: memory[0]
    ended: list[ServiceError] = []
    in_flight.bound(96 * MIB, 48 * MIB, 4 * MIB, ended.append)
    waiting, half = ([calls.begin() for _ in range(40)] for _ in range(2))
    in_flight.look()
    message = bytes(3 * MIB)
    for core, _ in waiting:
        received[0] += len(message)
        memory[0] += len(message)
        core.tags[-1](completed(message))
        in_flight.look()
    for _ in range(100):
        in_flight.look()
    (connection,) = {call._connection for _, call in waiting}
    assert connection.held_bytes == pytest.approx(40 * 3 * MIB, rel=0.01)
    assert connection.half_bytes < MIB
    assert connection.stopped, "it has more than its bound, and is not read"
    assert ended == []
    for _ in half:
        received[0] += 3 * MIB
        memory[0] += 3 * MIB
        in_flight.look()
    over = [call._over if isinstance(call, StreamCall) else call._done for _, call in (*waiting, *half)]
    assert (sum(over[:40]), sum(over[40:]) > 0) == (0, True)
    calls.lane._turns.give()
    assert calls.taken == [message]


def test_what_has_waited_in_a_line_is_counted_once(calls: Calls) -> None:
    _, call = calls.send(bytes(1000))
    connection = call._connection
    assert connection.taken == 1000 + FRAMING_BYTES
    assert sum(call.held()) == pytest.approx(1000, abs=FRAMING_BYTES)
    assert not call.half_open
    calls.lane._turns.give()
    assert connection.taken == 1000 + FRAMING_BYTES
    assert sum(call.held()) == 1000


@pytest.mark.parametrize(("kind", "waits"), [("stream", 50), ("unary", 10)])
def test_of_a_tenants_requests_no_more_wait_than_it_may_have_unanswered(kind: str, waits: int) -> None:
    """A stream has one message there at most; what it may have unanswered decides whether it is read on."""
    calls = Calls(kind, most_bytes=10_500)
    made = [calls.send(bytes(1000)) for _ in range(50)]
    assert calls.line.bytes == waits * 1000
    assert len(calls.taken) == 50 - waits
    core, _ = made[0]
    core.tags[0](completed(cancelled=True))
    assert calls.line.bytes == (waits - 1) * 1000
    while calls.lane._turns.give():
        pass
    assert calls.line.bytes == 0
    assert len(calls.taken) == 49
    calls.send(bytes(20_000))  # a large one may wait alone
    assert (calls.line.bytes, len(calls.taken)) == (20_000, 49)


# On a real server


STREAMS, AHEAD = 32, 20


def unread_bytes(port: int) -> list[int]:
    """Bytes in the sockets of a server's connections that it has not read: `rx_queue` of proc(5)'s net/tcp."""
    tables = [Path("/proc/self/net", name).read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    lines = [line.split() for table in tables for line in table]
    established = [line for line in lines if line[3] == "01" and line[1].endswith(f":{port:04X}")]
    return [int(line[4].split(":")[1], 16) for line in established]


@pytest.mark.parametrize(("size", "least", "most"), [(8, 0, 3 * 8), (0, 300, STREAMS * AHEAD)])
def test_a_server_reads_a_message_after_few_of_a_flood_that_is_in_its_sockets(
    size: int, least: int, most: int, eventually: Callable[[Callable[[], bool]], bool]
) -> None:
    command = [sys.executable, "-m", "tests.support.held_lane", str(size)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as server, ExitStack() as closing:  # type: ignore[call-overload]
        closing.callback(server.kill)
        port = int(server.stdout.readline())

        def stream(tenant: str, feed: Feed, channel: grpc.Channel) -> Any:
            method: Any = channel.stream_stream("/t/Stream")
            return method(iter(feed), metadata=(("tenant", tenant),), timeout=2 * WAIT_S)

        def connect() -> grpc.Channel:
            options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))
            return closing.enter_context(grpc.insecure_channel(f"127.0.0.1:{port}", options))

        channel = connect()
        feeds = [Feed(b"first") for _ in range(STREAMS)]
        flood = [stream("flood", feed, channel) for feed in feeds]
        calm_feed, third_feed = Feed(b"first"), Feed(b"wait")
        calm = stream("calm", calm_feed, connect())
        assert [next(call) for call in (*flood, calm)] == [b"first"] * (STREAMS + 1)
        third = stream("third", third_feed, connect())
        assert server.stdout.readline() == "held\n"
        # Nobody reads the sockets now: all of the flood has arrived before the calm tenant sends.
        for feed in feeds:
            feed.put(*[b"x"] * AHEAD, None)
        assert eventually(lambda: max(unread_bytes(port)) > STREAMS * AHEAD * 12)
        before = sum(unread_bytes(port))
        calm_feed.put(b"x", None)
        assert eventually(lambda: sum(unread_bytes(port)) > before)
        server.stdin.write("\n")
        server.stdin.flush()
        assert [len(list(call)) for call in (*flood, calm)] == [AHEAD] * STREAMS + [1]
        third_feed.put(b"order", None)
        _, order = (reply.decode() for reply in third)
        first, then = (part.split() for part in order.split(" third "))
        assert sorted(first) == ["calm"] + ["flood"] * STREAMS
        assert then.count("flood") == STREAMS * AHEAD
        assert least <= then.index("calm") <= most


def test_unary_calls_take_turns_too() -> None:
    lane = FastLane()
    lane.guard.ask(lambda metadata, peer: Identity("acme", "", operator=False), lambda error: None)
    lane.take_turns(lambda tenant: 2)
    rig = Rig(lane)
    try:
        assert rig.channel is not None
        method: Any = rig.channel.unary_unary("/t/Unary")
        futures = [method.future(b"ab", timeout=WAIT_S) for _ in range(50)]
        assert [future.result() for future in futures] == [b"ba"] * 50
        assert lane._turns.given > 0
    finally:
        rig.close()


def test_tenants_of_a_policy_take_turns_of_their_batches_size(tmp_path: Path) -> None:
    tokens = token_file(tmp_path / "t.toml", ("acme", "feed"), ("bank", "ops"), operators=("ops",))
    policy = tmp_path / "policy.toml"
    policy.write_text("[tenants.acme]\npriority = 3\nmax_batch_steps = 5\nmax_bytes_in_flight = 7000\n")
    for settings, turn in (({}, None), ({"policy_file": policy}, 15)):
        lane = FastLane()
        made = Settings.load(models=tmp_path, port=0, token_file=tokens, **settings)
        transport = Transport(made, {}, lane, lambda error: None)
        line = lane._turns.line_of("acme")
        assert turn == (None if line is None else line._size())
        assert line is None or (line.is_full(7001), lane._turns._most_bytes("acme")) == (False, 7000)
        operators = lane._turns.line_of("ops")
        assert (None if turn is None else 64) == (None if operators is None else operators._size())
        transport._grpc.stop(None)
