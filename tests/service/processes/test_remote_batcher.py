"""A front end's end of the rings: what sessions send arrives whole and in order, though the ring is full at times."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import count

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamcell.card import Tensor
from streamcell.service.errors import EngineLost, ServiceError
from streamcell.service.processes.event_wakeup import EventWakeup
from streamcell.service.processes.frontend.message_writer import MessageWriter
from streamcell.service.processes.frontend.remote_batcher import RemoteBatcher, RemoteSession
from streamcell.service.processes.ring import Reader, Ring, Writer
from streamcell.service.processes.ring_records import END, FIELDS, OPEN, STEP, Layout, head_of, text_at
from streamcell.service.sessions.session import Output, Work
from streamcell.service.sessions.shared_capacity import SharedCapacity

X = Tensor(name="x", dtype="float32", step_shape=(3,))
QUEUE, CHUNK = 6, 16


@dataclass
class Client:
    """Whose session it is."""

    may_send: bool = True
    sent: list[bytes] = field(default_factory=list)
    answers: list[bytes] = field(default_factory=list)
    error: ServiceError | None = None

    def resume(self) -> None:
        assert not self.may_send
        self.may_send = True

    def deliver(self, work: Work, outputs: list[bytes], steps: int, step_index: int) -> None:
        assert steps == work.steps
        self.answers += outputs

    def fail(self, error: ServiceError) -> None:
        self.error = error


class Rig:
    """A front end's batcher, and its engine as far as reading goes."""

    def __init__(self, records: int) -> None:
        whole = Layout.of([X], 64)
        self.layout = Layout(whole.places, whole.record_bytes, records)
        requests, replies = (Ring.make(records, self.layout.record_bytes) for _ in range(2))
        capacity = SharedCapacity(64, 1, stateful=True, process_number=2)
        writer = MessageWriter(requests, self.layout)
        self.batcher = RemoteBatcher(
            capacity, writer, Reader(replies), self.layout, self.layout, QUEUE, CHUNK
        )
        self.replies = Writer(replies)
        self.applied: Counter[tuple[int, int]] = Counter()
        self.bell = EventWakeup()
        self.watching = False
        self.batcher.watch_room = self._watch
        self.reader = Reader(requests)
        self.arrived: dict[tuple[int, int], list[bytes]] = defaultdict(list)
        self.dropped: dict[tuple[int, int], int] = {}
        self.clients: dict[RemoteSession, Client] = {}
        self.names = count(1)
        self.later: list[object] = []
        self.most = 0  # timesteps of one session that were on their way at a time

    def _on_the_way(self, key: tuple[int, int]) -> int:
        return sum(
            session.sent - session.applied
            for session in self.clients
            if (session.slot, session.slot_version) == key
        )

    def close(self) -> None:
        self.batcher.close()
        self.bell.close()

    def _watch(self, on: bool) -> None:
        assert on != self.watching
        self.watching = on
        self.bell.watch(self.batcher.requests.ring.freed, on)

    def open(self) -> RemoteSession:
        client = Client()
        session = self.batcher.open(f"s{next(self.names)}", client, "peer")  # type: ignore[arg-type]
        self.clients[session] = client
        return session

    def send(self, session: RemoteSession, steps: int, after_arrivals: bool) -> None:
        client = self.clients[session]
        payload = np.random.default_rng(len(client.sent)).standard_normal((steps, 3)).astype("<f4").tobytes()
        client.sent.append(payload)
        later = (lambda callback: self.later.append(callback) or True) if after_arrivals else None  # type: ignore[func-returns-value]
        client.may_send = self.batcher.submit(session, Work((payload,), steps, Output.ALL, 0, 1.0), later)

    def behind(self) -> None:
        """What was put off happens behind what has arrived."""
        todo, self.later = self.later, []
        for callback in todo:
            callback()  # type: ignore[operator]

    def read(self) -> None:
        """The engine reads and sends back what it got; the front end's replying thread takes it and goes on."""
        records = self.reader.read()
        if records is not None:
            self._take(records)
            self._answer(records)
            self.batcher.deliver_replies()
        if self.watching:
            self.batcher.flush()

    def _answer(self, records: np.ndarray) -> None:
        replies = records[head_of(records)["kind"] == STEP].copy()
        fields = np.ndarray(len(replies), FIELDS, replies, strides=(self.layout.record_bytes,))
        for at, (entry, slot_version) in enumerate(zip(fields["entry"], fields["slot_version"], strict=True)):
            self.applied[int(entry), int(slot_version)] += 1
            fields["index"][at] = self.applied[int(entry), int(slot_version)]
        while len(replies):
            room = self.replies.room(len(replies))
            assert room
            self.replies.write(replies[:room])
            self.batcher.deliver_replies()
            replies = replies[room:]

    def _take(self, records: np.ndarray) -> None:
        head, at = head_of(records), 0
        ((begin, end),) = self.layout.places
        while at < len(head):
            key = int(head["entry"][at]), int(head["slot_version"][at])
            if head["kind"][at] == OPEN:
                text, number = text_at(records, at, int(head["steps"][at]))
                assert text.startswith(b"s")
                at += number
                continue
            if head["kind"][at] == END:
                self.dropped[key] = int(head["index"][at])
            else:
                assert head["kind"][at] == STEP
                assert key not in self.dropped
                self.most = max(self.most, self._on_the_way(key))
                if head["first"][at]:
                    self.arrived[key].append(b"")
                place = len(self.arrived[key][-1]) // X.step_bytes
                assert place == head["index"][at]
                self.arrived[key][-1] += records[at, begin:end].tobytes()
                assert bool(head["last"][at]) == (place + 1 == head["steps"][at])
            at += 1


@settings(max_examples=150, deadline=None)
@given(
    records=st.sampled_from([8, 16, 64]),
    moves=st.lists(
        st.tuples(st.sampled_from("oossssssserrb"), st.integers(0, 3), st.integers(1, 40), st.booleans()),
        max_size=80,
    ),
)
def test_messages_arrive_whole_and_in_order_and_none_is_lost(
    records: int, moves: list[tuple[str, int, int, bool]]
) -> None:
    rig = Rig(records)
    live: list[RemoteSession] = []
    ended: list[RemoteSession] = []
    for move, which, steps, after_arrivals in moves:
        if move == "o" and len(live) < 4:
            live.append(rig.open())
        elif move == "r":
            rig.read()
        elif move == "b":
            rig.behind()
        elif live:
            session = live[which % len(live)]
            if move == "s" and rig.clients[session].may_send:
                rig.send(session, steps if steps > 20 else 1, after_arrivals)
            elif move == "e":
                assert rig.batcher.end(session)
                assert not rig.batcher.end(session)
                live.remove(session)
                ended.append(session)
    rig.behind()
    for _ in range(2000):
        rig.read()
        if not rig.watching and not any(session.unwritten for session in live):
            break
    rig.read()
    assert not rig.watching
    rig.close()
    assert rig.most <= 2 * CHUNK
    for session in live:
        assert rig.arrived[session.slot, session.slot_version] == rig.clients[session].sent
        assert rig.clients[session].answers == rig.clients[session].sent
    for session in ended:
        sent, came = rig.clients[session].sent, rig.arrived[session.slot, session.slot_version]
        dropped = rig.dropped[session.slot, session.slot_version]
        whole = [each for each, asked in zip(came, sent, strict=False) if each == asked]
        assert len(whole) == len(sent) - dropped
        assert came[: len(whole)] == sent[: len(whole)]
        assert all(asked.startswith(each) for each, asked in zip(came, sent, strict=False))


def test_a_session_whose_message_waits_for_room_may_end_and_another_may_wait_then() -> None:
    rig = Rig(16)
    for _ in range(3):
        session = rig.open()
        while rig.clients[session].may_send:
            rig.send(session, 40, False)
        assert rig.watching
        rig.batcher.end(session)
    for _ in range(20):
        rig.read()
    assert not rig.watching
    assert len(rig.dropped) == 3
    rig.close()


def test_a_lost_engine_ends_every_session_and_takes_no_new_one() -> None:
    rig = Rig(16)
    sessions = [rig.open() for _ in range(3)]
    rig.send(sessions[0], 40, False)
    rig.batcher.lose()
    assert all(isinstance(rig.clients[session].error, EngineLost) for session in sessions)
    for session in sessions:
        assert rig.batcher.end(session)
    with pytest.raises(EngineLost):
        rig.open()
    rig.close()


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("by", [-12, -1, 1, 12])
def test_a_message_that_is_not_as_long_as_its_steps_say_is_never_written(steps: int, by: int) -> None:
    rig = Rig(64)
    client = Client()
    session = rig.batcher.open("a", client)
    rig.reader.read()
    whole = bytes(12 * steps)
    bad = whole[:by] if by < 0 else whole + bytes(by)
    assert not rig.batcher.submit(session, Work((bad,), steps, Output.ALL, 0, 0.0))
    assert client.error is not None
    assert client.error.reason == "WRONG_BYTE_COUNT"
    assert rig.reader.read() is None
    assert not session.queue
    rig.close()
