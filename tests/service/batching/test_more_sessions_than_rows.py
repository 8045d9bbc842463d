"""More sessions than the pool has rows, on the real engine: each is served as if it had never left the device."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamcell.proto import pb
from streamcell.service.engine.cuda_copies import CudaError
from streamcell.service.engine.device import Device
from streamcell.service.engine.spilling import Ints
from streamcell.service.errors import ServiceError, SessionLimit
from streamcell.service.lifecycle.loaded_model import LoadedModel, load
from streamcell.service.protocols.native.stream import StreamSession
from streamcell.service.repository.model_file import open_model
from streamcell.service.sessions.expiry import expiry
from streamcell.service.sessions.session import Output, Work
from streamcell.service.settings import Settings
from tests.support.inline_rig import Rig, Wire
from tests.support.resumable import save_sum, step, sums

ROWS, SESSIONS = 4, 80
BATCH = ROWS // 2  # the model can generate, and a step of a search reads one row and writes another


class Summing:
    """A session of the model that adds up its inputs, which are whole numbers: each sum is exact in any batch."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.total = 0
        self.expected: list[int] = []
        self.found: list[int] = []
        self.error: ServiceError | None = None
        self.changed = threading.Condition()
        self.session = model.batcher.open("test", self)

    def send(self, *x: int) -> None:
        for each in x:
            self.total += each
            self.expected.append(self.total)
        payload = np.array(x, np.float32).tobytes()
        self.model.batcher.submit(self.session, Work((payload,), len(x), Output.ALL, 0, 0.0))

    def deliver(self, work: Work, outputs: list[bytes], steps: int, step_index: int) -> None:
        with self.changed:
            self.found += np.frombuffer(outputs[0], np.float32).astype(int).tolist()
            assert step_index == len(self.found)
            self.changed.notify_all()

    def resume(self) -> None: ...

    def fail(self, error: ServiceError) -> None:
        self.error = error
        self.model.batcher.end(self.session)

    def check(self) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.error or len(self.found) == len(self.expected), 30)
        assert self.error is None
        assert self.found == self.expected

    def end(self) -> None:
        self.model.batcher.end(self.session)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return save_sum(tmp_path)


@pytest.mark.parametrize("device", [Device(), Device(apart=True)], ids=["cpu", "apart"])
@pytest.mark.parametrize("seed", range(3))
def test_in_any_order_each_session_has_its_own_sum(models: Path, device: Device, seed: int) -> None:
    settings = Settings.load(models=models, max_sessions=SESSIONS, slots=ROWS, max_chunk=4)
    model = load(open_model(models / "sum.onnx", "sum"), settings, device)
    assert model.engine.max_batch == BATCH
    rng = np.random.default_rng(seed)
    live = [Summing(model) for _ in range(SESSIONS)]
    with pytest.raises(SessionLimit):
        Summing(model)
    for _ in range(1500):
        place = min(int(rng.integers(SESSIONS)), int(rng.integers(SESSIONS)))  # some are busier than others
        act = rng.random()
        if act < 0.05:
            live[place].check()
            live[place].end()
            live[place] = Summing(model)
        elif act < 0.2:
            live[place].check()
        else:
            live[place].send(*rng.integers(1, 9, rng.integers(1, 7)).tolist())
    for each in live:
        each.check()
    spilled = model.pool.spilled()
    assert sum(bool(each.expected) for each in live) - ROWS <= spilled <= SESSIONS
    assert model.metrics.spills >= model.metrics.spill_returns > 300
    counts, _ = model.metrics.spill_return_s.snapshot()
    assert 0 < counts[-1][1] <= model.metrics.spill_returns
    for each in live:
        each.end()
    assert model.pool.spilled() == model.batcher.live == 0
    model.runner.stop()


@pytest.fixture
def rig(models: Path) -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def make(**changes: Any) -> Rig:
        made.append(Rig(models, "sum", **{"max_sessions": SESSIONS, "slots": ROWS, **changes}))
        return made[-1]

    yield make
    for each in made:
        each.stop()


Streams = list[tuple[Wire, StreamSession]]


def opened(on: Rig, count: int) -> Streams:
    made = []
    for _ in range(count):
        wire = Wire(on.later)
        made.append((wire, StreamSession(wire, on.context)))  # type: ignore[arg-type]
    send(made, pb.StreamRequest(open=pb.OpenSession(model="sum")))
    return made


def send(streams: Streams, *messages: pb.StreamRequest) -> None:
    for message in messages:
        for _, stream in streams:
            assert stream.on_message(message.SerializeToString())


def last(wire: Wire) -> float:
    return sums(pb.StreamResponse.FromString(wire.replies[-1]))[-1]


def test_batches_take_turns_over_all_sessions_that_wait(rig: Callable[..., Rig]) -> None:
    on = rig(max_chunk=1)
    streams = opened(on, SESSIONS)
    send(streams, *[step(1)] * 5)
    runs = 0
    while on.later:
        on.later.pop(0)()
        runs += 1
        replies = [len(wire.replies) for wire, _ in streams]
        assert max(replies) - min(replies) <= 1  # nobody is two messages ahead of another
    assert runs == on.runs()[0] == 5 * SESSIONS / BATCH
    assert {last(wire) for wire, _ in streams} == {5.0}


class Broken:
    """What moves rows, except that one session's cannot be copied to the device."""

    def __init__(self, mover: Any, place: int) -> None:
        self.mover, self.place = mover, place
        self.out, self.read, self.close = mover.out, mover.read, mover.close

    def back(self, places: Ints, rows: Ints) -> None:
        if self.place in places:
            raise CudaError("cudaMemcpyAsync failed")
        self.mover.back(places, rows)


def test_a_session_that_cannot_come_back_ends_alone(rig: Callable[..., Rig]) -> None:
    on = rig()
    streams = opened(on, 2 * ROWS)
    send(streams, step(1))
    on.flush()
    spilling = on.model.engine.pool.spilling
    assert spilling is not None
    spilling._mover = Broken(spilling._mover, 1)
    send(streams, step(1))
    on.flush()
    (lost, _), *others = streams[1], streams[0], *streams[2:]
    ((code, details, _),) = lost.ends
    assert code.name == "INTERNAL"
    assert details == "the session's state could not be brought back to the device; open another session"
    assert [last(wire) for wire, _ in others] == [2.0] * 7
    assert on.model.batcher.live == 7
    send(others, step(1))
    on.flush()
    assert [last(wire) for wire, _ in others] == [3.0] * 7
    assert not any(wire.ends for wire, _ in others)


@pytest.mark.parametrize("way", ["half-close", "cancel", "CloseSession", "expiry"])
def test_a_spilled_session_that_ends_leaves_nothing_behind(rig: Callable[..., Rig], way: str) -> None:
    on = rig(max_sessions=8)
    streams = opened(on, 8)
    send(streams, step(1))
    on.flush()
    assert on.model.pool.spilled() == 4
    live = on.context.sessions.all()
    for (_, stream), each in zip(streams[:4], live, strict=False):
        if way == "CloseSession":
            on.context.sessions.close(each.session.session_id)
        elif way == "expiry":
            each.session.listener.fail(expiry(each.session, 1.0, 1.0))
        elif way == "half-close":
            stream.on_half_close()
        stream.on_end(way == "cancel")
    assert on.model.pool.spilled() == 0
    assert on.model.batcher.live == 4
    others = opened(on, 4)
    send(others, step(7))
    on.flush()
    # They begin at the initial state, and the older ones have left for them.
    assert [last(wire) for wire, _ in others] == [7.0] * 4
    assert on.model.pool.spilled() == 4
    send(streams[4:], step(1))
    on.flush()
    assert [last(wire) for wire, _ in streams[4:]] == [2.0] * 4


def test_a_pool_in_a_file_has_rows_for_all(rig: Callable[..., Rig], tmp_path: Path) -> None:
    on = rig(durability="process", journal_dir=tmp_path / "journals")
    assert not on.model.engine.spills
    streams = opened(on, SESSIONS)
    send(streams, step(1), step(2))
    on.flush()
    assert {last(wire) for wire, _ in streams} == {3.0}
    assert on.model.metrics.spills == on.model.pool.spilled() == 0


def test_rows_for_all_are_not_shared(rig: Callable[..., Rig]) -> None:
    assert not rig(slots=None).model.engine.spills
    assert not rig(slots=SESSIONS).model.engine.spills
    assert not rig(slots=2 * SESSIONS).model.engine.spills


def test_looking_up_rows_takes_two_calls_a_run_and_none_if_each_session_has_its_own(
    rig: Callable[..., Rig], counted: Callable[[Callable[[], object]], Counter[str]]
) -> None:
    def calls(slots: int) -> Counter[str]:
        on = rig(slots=slots, max_batch=8)
        streams = opened(on, 8)

        def step_all() -> None:
            send(streams, step(1))
            on.flush()

        step_all()  # what is done once is done now
        found = counted(step_all)
        assert on.runs() == (2, 16)
        return Counter({name: count for name, count in found.items() if not name.startswith("C:")})

    own, shared = calls(SESSIONS), calls(16)
    assert shared - own == {"Engine.place": 1, "Spilling.place": 1}
    assert not own - shared
