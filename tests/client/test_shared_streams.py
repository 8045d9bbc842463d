"""Many sessions on one stream of frames: each as if its stream were its own, whatever the others do."""

from __future__ import annotations

import asyncio
import gc
import math
import queue
import threading
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamcell.client import (
    InvalidInput,
    MessageTooLarge,
    ProtocolMisuse,
    SessionClosed,
    SessionExpired,
    SessionLimit,
    Unavailable,
    connect,
    connect_async,
)
from streamcell.client.blocking.shared_stream import SharedStream
from streamcell.client.protocol import shared_stream
from streamcell.client.protocol.frame_rows import FrameRows
from streamcell.client.protocol.members import FEW, SESSION_AHEAD_BYTES, Member, Row, Wish
from streamcell.client.protocol.shared_stream import SharedExchange
from streamcell.export import export_model
from streamcell.models import LSTM
from streamcell.proto import pb
from tests.support.arrays import noise, truth
from tests.support.waiting import waited

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
SLOTS = 6
CONFORMANCE = pytest.mark.conformance


@pytest.fixture(scope="module")
def server(start_server: Any, models_dir: Path) -> Any:
    sizes = {"--max-batch": 4, "--max-chunk": 4, "--max-steps-per-message": 16, "--max-message-bytes": 1024}
    return start_server(models_dir, *(str(each) for pair in sizes.items() for each in pair))


class Expected:
    """A session and what PyTorch says that it must give."""

    def __init__(self, module: torch.nn.Module, session: Any) -> None:
        self.module = module
        self.session = session
        self.fed = np.zeros((0, 3), np.float32)
        self.due: deque[np.ndarray[Any, Any] | None] = deque()

    async def send(self, x: np.ndarray[Any, Any], mode: Any) -> None:
        await self.session.send(x, output=mode)
        self.fed = np.concatenate((self.fed, x))
        y = truth(self.module, self.fed[None])[0][-len(x) :]
        self.due.append({"all": y, "last": y[-1:], "none": None}[mode])

    async def receive(self) -> None:
        expected = self.due.popleft()
        got = await self.session.receive()
        if expected is None:
            assert got is None
        else:
            np.testing.assert_allclose(got, expected, **TOLERANCE)

    async def receive_all(self) -> None:
        while self.due:
            await self.receive()
        assert self.session.step_index == len(self.fed)


ACTIONS = st.tuples(
    st.integers(0, SLOTS - 1),
    st.sampled_from(["send", "send", "send", "receive", "bad", "close", "cancel"]),
    st.integers(1, 9),
    st.sampled_from(["all", "last", "none"]),
)


async def play(target: str, module: torch.nn.Module, actions: list[Any]) -> None:
    """Do what `actions` say and compare all that comes with PyTorch. Sends in a row go into one frame."""
    rng = np.random.default_rng(5)
    async with connect_async(target) as client:
        slots: dict[int, Expected] = {}
        for slot, action, size, mode in actions:
            if slot not in slots:
                slots[slot] = Expected(module, await client.session("lstm", multiplex=True).open())
            it = slots[slot]
            x = rng.standard_normal((size, 3), np.float32)
            if action == "send":
                await it.send(x, mode)
            elif action == "receive" and it.due:
                await it.receive()
            elif action == "bad":
                x[-1, 0] = np.nan
                await it.session.send(x)
                await it.session.send(x[:1])  # must not be applied after the gap
                await it.receive_all()
                with pytest.raises(InvalidInput) as caught:
                    await it.session.receive()
                assert caught.value.reason == "NON_FINITE_INPUT"
                assert not it.session.alive
                del slots[slot]
            elif action == "close":
                await it.receive_all()
                await it.session.close()
                del slots[slot]
            elif action == "cancel":
                it.session.cancel()
                del slots[slot]
        streams = [each async for each in client.sessions("lstm")]
        while len(streams) > 1:  # they do share it; one that an earlier client has left may not have ended
            await asyncio.sleep(0.01)
            streams = [each async for each in client.sessions("lstm")]
        for it in slots.values():
            await it.send(rng.standard_normal((1, 3), np.float32), "all")  # whatever became of the others
        for it in slots.values():
            await it.receive_all()
            await it.session.close()


@CONFORMANCE
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=st.lists(ACTIONS, max_size=40))
def test_whatever_sessions_do_each_gives_what_pytorch_gives(
    server: Any, modules: dict[str, torch.nn.Module], actions: list[Any]
) -> None:
    asyncio.run(play(server.target, modules["lstm"], actions))


# Three sessions, and then a frame of all three.
TOGETHER = [(slot, "send", 2, "all") for slot in (0, 1, 2, 0, 1, 2)]


def test_the_comparison_finds_replies_of_another_session(
    server: Any, modules: dict[str, torch.nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = SharedExchange._answer

    def wrong(self: SharedExchange, rows: Any, reply: Any, errors: Any) -> None:
        rows.members.reverse()
        right(self, rows, reply, errors)

    asyncio.run(play(server.target, modules["lstm"], TOGETHER))
    monkeypatch.setattr(SharedExchange, "_answer", wrong)
    with pytest.raises(AssertionError, match="Mismatch"):
        asyncio.run(play(server.target, modules["lstm"], TOGETHER))


def test_the_comparison_finds_an_error_that_ends_other_sessions(
    server: Any, modules: dict[str, torch.nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = SharedExchange._answer

    def wrong(self: SharedExchange, rows: Any, reply: Any, errors: Any) -> None:
        right(self, rows, reply, errors)
        for member in list(self._members) if errors else ():
            member.end(shared_stream._error(reply.errors[0]))

    monkeypatch.setattr(SharedExchange, "_answer", wrong)
    with pytest.raises(InvalidInput):
        asyncio.run(play(server.target, modules["lstm"], [*TOGETHER, (1, "bad", 1, "all")]))


@CONFORMANCE
def test_threads_step_their_sessions_over_one_stream(
    server: Any, modules: dict[str, torch.nn.Module]
) -> None:
    x = noise(24, 12, 3)
    expected = truth(modules["lstm"], x)
    found: dict[int, Any] = {}

    def run(row: int) -> None:
        with client.session("lstm", multiplex=True) as session:
            steps = [session.step(each) for each in x[row, :4]]
            chunk = session.run(x[row, 4:9])
            rest = list(session.stream(x[row, 9:]))
            found[row] = np.concatenate((steps, chunk, rest))

    with connect(server.target) as client, client.session("lstm", multiplex=True) as first:
        threads = [threading.Thread(target=run, args=(row,)) for row in range(len(x))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert waited(
            lambda: [(each.id, each.members) for each in client.sessions("lstm")] == [(first.id, 1)]
        )
    np.testing.assert_allclose(np.stack([found[row] for row in range(len(x))]), expected, **TOLERANCE)


def test_the_first_few_sessions_have_streams_of_their_own(server: Any) -> None:
    with connect(server.target, multiplex=True) as client:
        few = [client.session("gru") for _ in range(FEW)]
        more = [client.session("gru") for _ in range(3)]
        assert [each.members for each in client.sessions("gru")] == [1] * FEW + [3]
        few[0].close()
        again = client.session("gru")
        assert sorted(each.members for each in client.sessions("gru")) == [1] * FEW + [3]
        assert again.id not in {session.id for session in more}
        for session in (*few, *more, again):
            session.close()
        assert waited(
            lambda: not list(client.sessions("gru"))
        )  # the shared stream ends with its last session


def test_what_frames_do_not_carry_has_a_stream_of_its_own(server: Any) -> None:
    with connect(server.target) as client:
        shared = client.session("lstm", multiplex=True)
        own = [
            client.session("lstm", multiplex=True, lifetime_s=60),
            client.session("lstm", multiplex=True, metadata=(("a", "b"),)),
            client.session("lstm"),
            client.session("lstm", multiplex=False),
        ]
        assert len({session.id for session in (shared, *own)}) == 1 + len(own)


def test_a_model_that_generates_is_shared_only_if_a_session_asks_for_it(
    start_server: Any, tmp_path: Path, eventually: Any
) -> None:
    model = LSTM(2, 4, output_size=2, distribution="bernoulli_logits").eval()
    export_model(model, tmp_path / "chords.onnx", name="chords")
    server = start_server(tmp_path)
    with connect(server.target, multiplex=True) as client:
        sessions = [client.session("chords") for _ in range(FEW + 2)]
        assert eventually(lambda: not client._shared._streams)
        assert len({session.id for session in sessions}) == FEW + 2
        assert len(sessions[-1].generate(3, first=[1.0, 0.0]).all().outputs) == 3
        with client.session("chords", multiplex=True) as session:
            with pytest.raises(ProtocolMisuse, match="multiplex=False") as caught:
                session.generate(3)
            assert caught.value.reason == "GENERATION_UNSUPPORTED"
            assert session.generation is not None
            assert session.step([1.0, 0.0]).shape == (2,)


def test_as_many_sessions_open_as_there_is_room_for(start_server: Any, models_dir: Path) -> None:
    server = start_server(models_dir, "--max-sessions", "5")

    async def main() -> None:
        async with connect_async(server.target) as client:
            sessions = [client.session("lstm", multiplex=True) for _ in range(8)]
            opened = await asyncio.gather(*(each.open() for each in sessions), return_exceptions=True)
            refused = [each for each in opened if isinstance(each, SessionLimit)]
            live = [session for session in sessions if session.alive]
            assert (len(refused), len(live)) == (3, 5)
            await live[0].close()
            async with client.session("lstm", multiplex=True) as another:  # its room is free at once
                await asyncio.gather(*(each.step(np.zeros(3, np.float32)) for each in (another, *live[1:])))

    asyncio.run(main())


def test_an_idle_session_expires_while_others_of_its_stream_go_on(
    start_server: Any, models_dir: Path
) -> None:
    server = start_server(models_dir, "--idle-timeout-s", "3")
    x = np.zeros(3, np.float32)
    with connect(server.target) as client:
        idle, busy = (client.session("lstm", multiplex=True) for _ in range(2))
        idle.step(x)
        while server.metric("streamcell_slots_used", model="lstm") > 1:
            busy.step(x)
        with pytest.raises(SessionExpired) as caught:
            idle.step(x)
        assert caught.value.metadata["session_id"] == busy.id
        busy.step(x)
        busy.close()


def test_closing_the_stream_by_its_id_ends_its_sessions(server: Any) -> None:
    x = np.zeros(3, np.float32)
    with connect(server.target) as client:
        one, two = (client.session("lstm", multiplex=True) for _ in range(2))
        one.step(x)
        client.close_session(one.id)
        for session in (one, two):
            with pytest.raises(SessionClosed) as caught:
                session.step(x)
            assert caught.value.reason == "SESSION_CLOSED"
        with client.session("lstm", multiplex=True) as session:  # on a new stream
            session.step(x)


def test_a_lost_server_ends_all_sessions(start_server: Any, models_dir: Path) -> None:
    server = start_server(models_dir)
    x = np.zeros(3, np.float32)
    with connect(server.target) as client:
        sessions = [client.session("lstm", multiplex=True) for _ in range(3)]
        server.process.kill()
        for session in sessions:
            with pytest.raises(Unavailable):
                session.step(x)


def test_a_message_too_large_ends_its_session_alone(server: Any) -> None:
    with connect(server.target) as client:
        one, two = (client.session("lstm", multiplex=True) for _ in range(2))
        one._exchange.opened.max_steps_per_message = 0  # else the client would not make such a message
        with pytest.raises(MessageTooLarge) as caught:
            one.run(np.zeros((2000, 3), np.float32))
        assert caught.value.reason == "MESSAGE_TOO_LARGE"
        for rows in (1, 16):
            assert two.run(np.zeros((rows, 3), np.float32)).shape == (rows, 2)
        two.close()


def test_frames_stay_below_the_servers_limit(server: Any, modules: dict[str, torch.nn.Module]) -> None:
    x = noise(60, 16, 3)  # 60 rows of 192 bytes are far more than the 1,024 bytes that this server takes

    async def main() -> None:
        async with connect_async(server.target) as client:
            sessions = [client.session("gru", multiplex=True) for _ in x]
            await asyncio.gather(*(session.open() for session in sessions))
            y = await asyncio.gather(*(each.run(rows) for each, rows in zip(sessions, x, strict=True)))
            np.testing.assert_allclose(np.stack(y), truth(modules["gru"], x), **TOLERANCE)

    asyncio.run(main())


def test_more_sessions_end_at_once_than_one_frame_can_close(server: Any) -> None:
    async def main() -> None:
        async with connect_async(server.target) as client:
            sessions = [client.session("gru", multiplex=True) for _ in range(300)]  # 1,200 bytes of handles
            await asyncio.gather(*(session.open() for session in sessions))
            await asyncio.gather(*(session.close() for session in sessions))
            while [each async for each in client.sessions("gru")]:
                await asyncio.sleep(0.01)

    asyncio.run(main())


def test_a_frame_holds_messages_of_one_mode_and_similar_length() -> None:
    def member(*steps: int, mode: Any = pb.OUTPUT_MODE_ALL, size: int = 10) -> Member:
        made = Member(mode, False, lambda reply: None)
        made.waiting.extend(Row([bytes(size * each)], each, pb.OUTPUT_MODE_UNSPECIFIED) for each in steps)
        return made

    def lengths(message_bytes: int, *members: Member) -> list[int]:
        rows = FrameRows(message_bytes, closing=0)
        for each in members:
            rows.add(each)
        return [message.steps for message in rows.messages]

    last = partial(member, mode=pb.OUTPUT_MODE_LAST)
    assert lengths(4096, member(4), member(1), member(2), member(9), member(8, 1)) == [4, 2, 8]
    assert lengths(4096, member(1), last(1), last(2), member(2)) == [1, 1, 2]  # the last of one is all of it
    assert lengths(4096, last(2), member(2), last(2)) == [2, 2]
    assert lengths(1024, *[member(1, size=300) for _ in range(9)]) == [1, 1]
    big = member(1, size=900)
    assert not FrameRows(1050, closing=10).add(big)  # no room beside ten handles
    assert lengths(1050, big, member(1)) == [1]


def test_a_session_that_joins_while_the_stream_ends_is_told() -> None:
    class Call:
        def cancel(self) -> None: ...

    class Asked(queue.SimpleQueue[Any]):
        """Looks empty, and ends the stream just after it was read."""

        def empty(self) -> bool:
            return True

        def get(self, *args: Any, **kwargs: Any) -> Any:
            asked = super().get(*args, **kwargs)
            stream._end(Unavailable("gone", reason="UNAVAILABLE"))
            return asked

    stream = SharedStream(("lstm", ""), lambda stream, only_if: False)
    stream._call = Call()
    next(stream)  # the opening
    asked = stream._asked = Asked()
    told: list[Any] = []
    member = Member(pb.OUTPUT_MODE_ALL, False, told.append)
    asked.put((member, Wish.JOIN))
    with pytest.raises(StopIteration):
        next(stream)
    assert (told, str(member.error)) == ([None], "gone")


def test_a_dropped_session_leaves_its_stream(server: Any) -> None:
    async def main() -> None:
        async with connect_async(server.target) as client:
            kept = await client.session("tcn", multiplex=True).open()
            dropped = await client.session("tcn", multiplex=True, timeout_s=math.inf).open()
            assert await kept.step(np.zeros(3, np.float32)) is not None
            del dropped
            gc.collect()
            while [each.members async for each in client.sessions("tcn")] != [1]:
                await asyncio.sleep(0.01)
            await kept.close()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_session_that_reads_nothing_holds_up_itself_alone(server: Any) -> None:
    x = np.zeros((16, 3), np.float32)

    async def main() -> None:
        async with connect_async(server.target) as client:
            lazy, busy = (client.session("lstm", multiplex=True) for _ in range(2))
            await lazy.open()
            await busy.open()
            sent = 0

            async def flood() -> None:
                nonlocal sent
                for _ in range(3000):
                    await lazy.send(x)
                    sent += 1

            flooding = asyncio.create_task(flood())
            await asyncio.sleep(0)
            held = sent
            while True:  # until it is held up
                await busy.run(x)
                if sent == held < 3000:
                    break
                held = sent
            member = lazy._call._member  # type: ignore[union-attr]
            assert member.sent - member.read <= SESSION_AHEAD_BYTES + 1024
            for _ in range(3000):
                assert (await lazy.receive()).shape == (16, 2)
            await flooding
            assert lazy.step_index == 3000 * 16

    asyncio.run(main())
