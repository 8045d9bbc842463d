"""Shares of batches in counts: a tenant's flood takes no turn of another's, and nobody starves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from streamcell.service.access.grant import Grant
from streamcell.service.access.policy import Terms
from streamcell.service.batching.batch import Batch, BatchQueue
from streamcell.service.batching.fair_queue import FairQueue
from streamcell.service.sessions.session import ENDED, Aside, Output, Session, Work

MAX_BATCH, MAX_CHUNK = 8, 16
ALL = MAX_BATCH * MAX_CHUNK


class Bench:
    """A queue, and sessions whose work is put in by hand; time is the number of batches."""

    def __init__(
        self,
        kind: type[BatchQueue] = FairQueue,
        ragged: bool = True,
        max_chunk: int = MAX_CHUNK,
        **priorities: int,
    ) -> None:
        self.queue = kind(max_batch=MAX_BATCH, max_chunk=max_chunk, ragged=ragged, coalesce=True)
        self.grants = {
            name: Grant(name, lambda priority=priority: Terms(priority=priority, max_batch_steps=ALL))  # type: ignore[misc]
            for name, priority in priorities.items()
        }
        self.batches = 0
        self.waited: dict[str, list[int]] = {}
        self._since: dict[Session, int] = {}

    def sessions(self, tenant: str, count: int) -> list[Session]:
        made = [Session(f"{tenant}{number}", ENDED, 1, 1, 0.0) for number in range(count)]
        for session in made:
            session.owner = self.grants.get(tenant)
            session.source = self.queue
        return made

    def put(self, session: Session, steps: int = 1) -> None:
        session.queue.append(Work((b"",), steps, Output.ALL, 0, 0.0))
        if not session.ready and not session.in_flight:
            session.ready = True
            self._since[session] = self.batches
            self.queue.add(session)

    def run(self) -> Counter[str]:
        """Form a batch and complete it; timesteps by tenant."""
        batch: Batch | None = self.queue.form()
        self.batches += 1
        if batch is None:
            return Counter()
        assert len(batch.rows) <= MAX_BATCH
        assert len({row.session for row in batch.rows}) == len(batch.rows)
        for row in batch.rows:
            session = row.session
            session.in_flight = False
            self.waited.setdefault(session.tenant, []).append(self.batches - self._since.pop(session))
            if session.queue:
                session.ready = True
                self._since[session] = self.batches
                self.queue.add(session)
        steps: Counter[str] = Counter()
        for row in batch.rows:
            steps[row.session.tenant] += row.steps
        return steps


def flooded(bench: Bench, sessions: Sequence[Session], messages: int = 50) -> None:
    for session in sessions:
        for _ in range(messages):
            bench.put(session, 1)


@pytest.mark.parametrize(
    ("kind", "max_chunk", "most"),
    # A run has chunks of similar length: single steps may go in the run behind the long ones'.
    [(FairQueue, 1, 1), (FairQueue, MAX_CHUNK, 2), (BatchQueue, 1, 126)],
)
def test_a_flood_lets_another_tenants_session_wait_for_no_more_than_the_next_batch(
    kind: type[BatchQueue], max_chunk: int, most: int
) -> None:
    bench = Bench(kind, max_chunk=max_chunk, flood=1, calm=1)
    flooded(bench, bench.sessions("flood", 1000))
    (calm,) = bench.sessions("calm", 1)
    for _ in range(20):
        bench.put(calm)
        while calm.ready:
            bench.run()
    # Without fair shares it waits for all sessions of the flood.
    assert max(bench.waited["calm"]) == most


def test_a_tenant_that_rests_between_its_messages_waits_for_no_other_batch_than_the_running_one() -> None:
    bench = Bench(flood=1, calm=1)
    flooded(bench, bench.sessions("flood", 1000))
    (calm,) = bench.sessions("calm", 1)
    for _ in range(20):
        bench.put(calm)
        # Its row is not as long as the flood's: it leads a batch of its own.
        assert bench.run() == {"calm": 1}
        assert bench.run() == {"flood": ALL}
    assert set(bench.waited["calm"]) == {1}


@pytest.mark.parametrize(("calm", "least"), [(1, 20), (7, 20), (20, 2)])
def test_tenants_that_come_again_and_again_do_not_hold_up_the_others(calm: int, least: int) -> None:
    bench = Bench(flood=1, **{f"calm{number}": 1 for number in range(calm)})
    flooded(bench, bench.sessions("flood", 1000))
    sessions = [bench.sessions(f"calm{number}", 1)[0] for number in range(calm)]
    batches = []
    for _ in range(40):
        for session in sessions:
            if not session.queue and not session.ready:
                bench.put(session)
        batches.append(bench.run())
    assert sum("flood" in batch for batch in batches) >= least


def test_the_tenant_with_the_least_of_a_batch_is_answered_first() -> None:
    bench = Bench(flood=1, calm=1)
    bench.queue = FairQueue(max_batch=MAX_BATCH, max_chunk=1, ragged=True, coalesce=True)
    flooded(bench, bench.sessions("flood", 20))
    assert bench.queue.form() is not None
    for session in bench.sessions("calm", 2):
        bench.put(session)
    batch = bench.queue.form()
    assert batch is not None
    tenants = [row.session.tenant for row in batch.rows]
    assert tenants == ["calm"] * 2 + ["flood"] * 6
    assert [row.work for row in batch.rows] == [row.parts[0].work for row in batch.rows]


def test_tenants_share_by_priority_and_not_by_sessions() -> None:
    bench = Bench(many=1, few=1, dear=2)
    for name, count in (("many", 200), ("few", 8), ("dear", 50)):
        flooded(bench, bench.sessions(name, count), 400)
    total: Counter[str] = Counter()
    for _ in range(60):
        total += bench.run()
    assert sum(total.values()) == 60 * MAX_BATCH * MAX_CHUNK
    assert total["dear"] == pytest.approx(2 * total["many"], abs=MAX_BATCH * MAX_CHUNK)
    assert total["few"] == pytest.approx(total["many"], abs=MAX_BATCH * MAX_CHUNK)


def test_shares_are_counted_in_timesteps_so_long_chunks_buy_nothing() -> None:
    bench = Bench(long=1, short=1)
    for session in bench.sessions("long", 30):
        for _ in range(40):
            bench.put(session, MAX_CHUNK)
    short = bench.sessions("short", 30)
    total: Counter[str] = Counter()
    for _ in range(400):
        for session in short:
            if not session.queue:
                bench.put(session, 5)
        total += bench.run()
    assert total["long"] / total["short"] == pytest.approx(1, abs=0.1)


def test_each_tenant_is_told_how_long_its_oldest_message_has_waited() -> None:
    bench = Bench(a=1, b=1)
    bench.queue = FairQueue(max_batch=MAX_BATCH, max_chunk=1, ragged=True, coalesce=True, clock=lambda: 10.0)
    for arrived_s, tenant in ((4.0, "a"), (7.0, "a"), (9.0, "b")):
        (session,) = bench.sessions(tenant, 1)
        bench.put(session)
        session.queue[0].arrived_s = arrived_s
    bench.run()
    assert {name: grant._waited[0] for name, grant in bench.grants.items()} == {"a": 6.0, "b": 1.0}


def test_an_idle_tenant_saves_nothing_up_and_a_lone_one_gets_everything() -> None:
    bench = Bench(a=1, b=1)
    flooded(bench, bench.sessions("a", 20), 200)
    for _ in range(10):
        assert bench.run() == {"a": MAX_BATCH * MAX_CHUNK}
    flooded(bench, bench.sessions("b", 20), 200)
    total: Counter[str] = Counter()
    for _ in range(20):
        total += bench.run()
    assert abs(total["a"] - total["b"]) <= MAX_BATCH * MAX_CHUNK


@pytest.mark.parametrize("ragged", [True, False])
def test_every_message_runs_once_and_in_order_whatever_comes(ragged: bool) -> None:
    rng = np.random.default_rng(3)
    bench = Bench(ragged=ragged, a=1, b=3, c=10)
    sessions = [session for name in ("a", "b", "c", "") for session in bench.sessions(name, 6)]
    sent: Counter[str] = Counter()
    ran: Counter[str] = Counter()
    for _ in range(400):
        for session in rng.choice(np.array(sessions, object), 5):
            steps = int(rng.choice([1, 1, 1, 2, 5, MAX_CHUNK, 40]))
            if session.ended:
                continue
            bench.put(session, steps)
            sent[session.tenant] += steps
        victim = sessions[int(rng.integers(len(sessions)))]
        if rng.random() < 0.02 and victim.ready:
            bench.queue.remove(victim)
            sent[victim.tenant] -= sum(work.steps - work.done for work in victim.queue)
            victim.queue.clear()
        elif rng.random() < 0.01 and not victim.ended:
            sent[victim.tenant] -= sum(work.steps - work.done for work in victim.queue)
            victim.ended = True
        ran += bench.run()
    while bench.queue.any:
        before = sum(ran.values())
        ran += bench.run()
        assert sum(ran.values()) > before or not bench.queue.any
    assert ran == sent
    assert bench.queue.unary_rows == 0


@pytest.mark.parametrize(("most", "waits"), [(1, 1), (20, 2), (ALL, MAX_BATCH)])
def test_a_batch_that_another_tenant_may_come_to_wait_for_is_short(most: int, waits: int) -> None:
    now_s = [0.0]
    bench = Bench(flood=1, calm=1)
    bench.queue = FairQueue(
        max_batch=MAX_BATCH, max_chunk=MAX_CHUNK, ragged=True, coalesce=True, clock=lambda: now_s[0]
    )
    bench.grants["flood"] = Grant("flood", lambda: Terms(max_batch_steps=most))
    flooded(bench, bench.sessions("flood", 100), 400)
    (calm,) = bench.sessions("calm", 1)
    for _ in range(20):
        bench.put(calm)
        while calm.ready:
            bench.run()
        now_s[0] += 0.5
        # The calm tenant rests: it may come back while this batch runs.
        assert bench.run() == {"flood": waits * MAX_CHUNK}
    # It has been away for so long that nothing is kept free for it.
    now_s[0] += 1.5
    assert bench.run() == {"flood": ALL}


def test_short_batches_are_shared_by_priority_too() -> None:
    bench = Bench(few=1, many=3)
    bench.queue = FairQueue(max_batch=64, max_chunk=1, ragged=True, coalesce=True)
    for name, priority in (("few", 1), ("many", 3)):
        terms = Terms(priority=priority, max_batch_steps=8)
        bench.grants[name] = Grant(name, lambda terms=terms: terms)  # type: ignore[misc]
        flooded(bench, bench.sessions(name, 200))
    assert bench.queue.form() is not None
    batch = bench.queue.form()
    assert batch is not None
    assert Counter(row.session.tenant for row in batch.rows) == {"few": 8, "many": 24}


def test_what_is_done_beside_a_run_has_its_turn_too() -> None:
    bench = Bench(a=1, b=1)
    flooded(bench, bench.sessions("a", 20))
    (session,) = bench.sessions("b", 1)
    aside = Aside(session, lambda: None, lambda: None)
    session.queue.append(aside)
    session.ready = True
    bench.queue.add(session)
    batch = bench.queue.form()
    assert batch is not None
    assert list(batch.groups) == [aside]
    assert not session.ready
