"""How batches form: order, fairness, bounded padding, whole messages, and slots that are never freed too early."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from streamcell.service.batching.batch import Batch
from streamcell.service.batching.batcher import Batcher
from streamcell.service.errors import ServerDraining, ServiceError, SessionLimit
from streamcell.service.sessions.capacity import Capacity, SlotAllocator
from streamcell.service.sessions.session import Output, Session, Work


class Listener:
    """Keeps what a session tells its listener."""

    def __init__(self) -> None:
        self.resumed = 0

    def deliver(self, work: Work, outputs: list[bytes], steps: int, step_index: int) -> None:
        raise AssertionError("the batcher delivers nothing")

    def resume(self) -> None:
        self.resumed += 1

    def fail(self, error: ServiceError) -> None:
        raise AssertionError("the batcher fails nothing")


def batcher(**changes: object) -> Batcher:
    settings: dict[str, object] = {"max_sessions": 512, "max_batch": 256, "max_chunk": 64, "ragged": True}
    settings |= {"queue_messages": 4} | changes
    most = int(str(settings.pop("max_sessions")))
    return Batcher(Capacity(SlotAllocator(1, most), most), **settings)  # type: ignore[arg-type]


def work(steps: int, tag: int = 0) -> Work:
    return Work((bytes(steps),), steps, Output.ALL, tag, 0.0)


def sessions(on: Batcher, *lengths: int) -> list[Session]:
    """One session a length, each with one message of so many steps queued."""
    made = []
    for number, steps in enumerate(lengths):
        session = on.open(str(number), Listener())
        on.submit(session, work(steps))
        made.append(session)
    return made


def taken(on: Batcher) -> list[tuple[str, int]]:
    """The next batch as (session, steps), landed at once."""
    batch = on.take()
    assert batch is not None
    on.complete(batch, applied=True)
    return [(row.session.session_id, row.steps) for row in batch.rows]


def test_every_ready_session_joins_once_in_order_of_arrival() -> None:
    on = batcher()
    made = sessions(on, 1, 1, 1)
    on.submit(made[0], work(1))
    batch = on.take()
    assert batch is not None
    assert [row.session for row in batch.rows] == made
    assert [row.steps for row in batch.rows] == [2, 1, 1]  # the second message of the first rides along


def test_a_batch_has_at_most_max_batch_rows_and_the_rest_come_next() -> None:
    on = batcher(max_batch=2)
    sessions(on, 1, 1, 1)
    assert taken(on) == [("0", 1), ("1", 1)]
    assert taken(on) == [("2", 1)]


def test_a_long_chunk_does_not_drag_single_steps_along() -> None:
    on = batcher()
    sessions(on, 64, *[1] * 200)
    assert taken(on) == [("0", 64)]
    assert taken(on) == [(str(number), 1) for number in range(1, 201)]


@pytest.mark.parametrize("lengths", [(1, 2, 3, 5, 8, 13, 21, 34, 55), (64, 1, 32, 2, 33, 17), (3, 6, 2, 12)])
def test_padding_is_less_than_half_of_every_run(lengths: tuple[int, ...]) -> None:
    on = batcher()
    sessions(on, *lengths)
    seen = []
    while len(seen) < len(lengths):
        steps = [steps for _, steps in taken(on)]
        assert len(steps) * max(steps) <= 2 * sum(steps)
        seen += steps
    assert sorted(seen) == sorted(lengths)


def test_where_the_model_takes_no_lengths_only_equal_chunks_share_a_run() -> None:
    on = batcher(ragged=False)
    sessions(on, 2, 3, 2, 3)
    assert taken(on) == [("0", 2), ("2", 2)]
    assert taken(on) == [("1", 3), ("3", 3)]


def test_long_messages_are_cut_and_take_turns() -> None:
    on = batcher(max_chunk=8, max_batch=1)
    sessions(on, 20, 8)
    assert [taken(on)[0] for _ in range(4)] == [("0", 8), ("1", 8), ("0", 8), ("0", 4)]


def test_a_message_that_fits_in_a_chunk_is_never_cut() -> None:
    on = batcher(max_chunk=8)
    session = on.open("s", Listener())
    for steps in (5, 5, 3):
        on.submit(session, work(steps))
    assert [taken(on) for _ in range(2)] == [[("s", 5)], [("s", 8)]]


def test_messages_of_a_stateless_model_are_not_joined() -> None:
    on = batcher(coalesce=False)
    session = on.open("s", Listener())
    for steps in (2, 3):
        on.submit(session, work(steps))
    assert [taken(on) for _ in range(2)] == [[("s", 2)], [("s", 3)]]


def test_a_full_queue_stops_reading_until_a_batch_takes_from_it() -> None:
    on = batcher(queue_messages=2, max_chunk=1)
    listener = Listener()
    session = on.open("s", listener)
    assert on.submit(session, work(1))
    assert not on.submit(session, work(1))
    assert listener.resumed == 0
    taken(on)
    assert listener.resumed == 1


def test_ended_sessions_are_skipped_and_their_messages_counted() -> None:
    cancelled: list[int] = []
    on = batcher(on_cancelled=cancelled.append)
    made = sessions(on, 1, 1)
    on.submit(made[0], work(1))
    assert on.end(made[0])
    assert not on.end(made[0])
    assert taken(on) == [("1", 1)]
    assert cancelled == [2]


def test_a_slot_is_freed_only_after_its_work_in_flight_has_landed() -> None:
    on = batcher(max_sessions=1)
    (session,) = sessions(on, 1)
    batch = on.take()
    assert batch is not None
    on.end(session)
    with pytest.raises(SessionLimit, match="all 1 sessions"):
        on.open("next", Listener())
    on.complete(batch, applied=True)
    again = on.open("next", Listener())
    assert again.slot == session.slot
    assert again.slot_version == session.slot_version + 1
    assert again.fresh


def test_a_failed_run_leaves_step_index_and_freshness_as_they_were() -> None:
    on = batcher()
    (session,) = sessions(on, 3)
    batch = on.take()
    assert batch is not None
    on.complete(batch, applied=False)
    assert session.step_index == 0
    assert session.fresh


def test_work_for_an_ended_session_is_dropped() -> None:
    on = batcher()
    session = on.open("s", Listener())
    on.end(session)
    assert not on.submit(session, work(1))
    assert on.live == 0


def test_stop_wakes_the_engine_and_refuses_new_sessions() -> None:
    on = batcher()
    got: list[object] = []
    waiting = threading.Thread(target=lambda: got.append(on.take()))
    waiting.start()
    on.stop()
    waiting.join(60)
    assert got == [None]
    with pytest.raises(ServerDraining):
        on.open("s", Listener())


def test_a_slot_cannot_be_freed_twice() -> None:
    slots = SlotAllocator(5, 2)
    slot, slot_version = slots.take()
    assert slot == 5
    slots.give_back(slot, slot_version)
    with pytest.raises(RuntimeError, match="freed twice"):
        slots.give_back(slot, slot_version)
    again, later = slots.take()
    assert again == slot
    with pytest.raises(RuntimeError, match="freed twice"):
        slots.give_back(slot, slot_version)
    slots.give_back(again, later)
    assert slots.used == 0
    slots.take()
    slots.take()
    with pytest.raises(RuntimeError, match="all 2 slots"):
        slots.take()


def run_inline(on: Batcher, ran: list[str]) -> None:
    """Have batches run on the thread that submits, and note them."""

    def run(batch: Batch) -> None:
        ran.append(",".join(row.session.session_id for row in batch.rows))
        on.complete(batch, applied=True)

    on.inline.policy.short = True
    on.inline.serve(run)


def asleep(on: Batcher) -> threading.Thread:
    """The engine's thread, once it sleeps."""
    thread = threading.Thread(target=on.take, daemon=True)
    thread.start()
    while not on.inline.asleep:
        threading.Event().wait(0.001)
    return thread


def test_a_batch_is_booked_once_and_takes_all_that_came_meanwhile() -> None:
    on = batcher(max_batch=2)
    thread = asleep(on)
    ran: list[str] = []
    run_inline(on, ran)
    later: list[Callable[[], None]] = []

    def after_arrivals(callback: Callable[[], None]) -> bool:
        later.append(callback)
        return True

    for name in ("a", "b", "c"):
        on.submit(on.open(name, Listener()), work(1), after_arrivals)
    assert len(later) == 1
    later.pop()()
    assert ran == ["a,b"]
    later.pop()()  # what did not fit is reserved again
    assert ran == ["a,b", "c"]
    assert not later
    assert thread.is_alive()  # it was not needed
    on.stop()
    thread.join(60)


def test_where_nothing_can_be_put_off_the_engine_s_thread_is_woken() -> None:
    on = batcher()
    thread = asleep(on)
    run_inline(on, [])
    on.submit(on.open("a", Listener()), work(1), lambda callback: False)
    thread.join(60)
    assert not thread.is_alive()


def test_stopping_waits_for_a_booked_batch() -> None:
    on = batcher()
    thread = asleep(on)
    ran: list[str] = []
    run_inline(on, ran)
    later: list[Callable[[], None]] = []
    on.submit(on.open("a", Listener()), work(1), lambda callback: later.append(callback) is None)
    on.stop()
    assert thread.is_alive()
    later.pop()()
    thread.join(60)
    assert not thread.is_alive()
    assert ran == []  # a stopped engine runs nothing
