"""Three replicas, messages that are held up and arrive in any order: what holds in each of many random runs.

The traces of `test_function_rules.py` are the orders that somebody thought of; these are others.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from streamcell.service.store import functions
from tests.support.mutants import changed
from tests.support.store_calls import Calls
from tests.support.stores import new_id
from tests.support.valkey import ValkeyServer, valkey

RUNS, STEPS = 40, 60


class Run:
    """One session, three replicas with leases that run out, and calls on their way."""

    def __init__(self, calls: Calls, seed: int) -> None:
        self.calls = calls
        self.chance = random.Random(seed)
        self.key = new_id()
        self.attempt = 0
        self.boots = [f"{name}-{seed}-0" for name in "abc"]
        for boot in self.boots:
            calls.join(boot)
        # What a replica believes it has: fence and messages applied.
        self.has: dict[str, tuple[int, int]] = {}
        self.late: list[Callable[[], None]] = []
        self.durable = 0  # messages that a client was told are stored
        self.fences: list[int] = []
        self.owner: tuple[str, int] | None = None  # of the latest claim

    def step(self) -> None:
        chance = self.chance
        act = chance.choice(
            [
                self.claim,
                self.claim,
                self.put,
                self.put,
                self.put,
                self.run_out,
                self.release,
                self.delete,
                self.arrive,
            ]
        )
        act(chance.choice(self.boots))
        self.check()

    def send(self, call: Callable[[], None]) -> None:
        """The call arrives now, or some time later."""
        if self.chance.random() < 0.3:
            self.late.append(call)
        else:
            call()

    def arrive(self, boot: str) -> None:
        if self.late:
            self.late.pop(self.chance.randrange(len(self.late)))()

    def claim(self, boot: str) -> None:
        self.attempt += 1
        held, _ = self.has.get(boot, (0, 0))
        alive = self.owner is not None and self.calls.lives(self.owner[0])
        kind, *answer = self.calls.claim(boot, self.key, self.attempt, create=True, held=held)
        if kind == b"FENCED":
            assert not self.calls.lives(boot)
            return
        if kind == b"ELSEWHERE":
            assert alive
            assert self.owner is not None
            assert answer[0].decode() == self.owner[0] != boot
            return
        assert kind == b"OK"
        fence, (stored, _) = int(answer[0]), functions.read_place(answer[1])
        if answer[3] == b"1":
            assert (boot, fence) == self.owner == (boot, held)
            return
        assert not alive or self.owner is None or self.owner[0] == boot, "a live owner was robbed"
        assert fence > max(self.fences, default=0), "a fence came twice"
        assert stored >= self.durable, "what a client was told is gone"
        self.fences.append(fence)
        self.owner, self.has[boot] = (boot, fence), (fence, stored)

    def put(self, boot: str) -> None:
        if boot not in self.has:
            return
        fence, number = self.has[boot]
        self.has[boot] = fence, number + 1
        self.send(lambda: self.put_arrives(boot, fence, number + 1, gives=False))

    def release(self, boot: str) -> None:
        if boot in self.has:
            fence, number = self.has.pop(boot)
            self.send(lambda: self.put_arrives(boot, fence, number, gives=True))

    def put_arrives(self, boot: str, fence: int, number: int, *, gives: bool) -> None:
        current = self.owner == (boot, fence)
        told = self.calls.put(boot, self.key, fence, number, gives=gives)
        if told != b"1":
            assert not current or not self.calls.lives(boot), "the owner could not write"
            return
        assert current, "somebody else has written"
        self.durable = max(self.durable, number)
        if gives:
            self.owner = None

    def delete(self, boot: str) -> None:
        if boot in self.has and self.chance.random() < 0.3:
            fence, _ = self.has.pop(boot)
            self.send(lambda: self.delete_arrives(boot, fence))

    def delete_arrives(self, boot: str, fence: int) -> None:
        current = self.owner == (boot, fence)
        was_there = self.calls.there(self.key)
        self.calls.delete(boot, self.key, fence)
        gone = was_there and not self.calls.there(self.key)
        assert gone == (was_there and current), "somebody else has deleted it"
        if gone:
            self.durable, self.owner, self.attempt = 0, None, 0

    def run_out(self, boot: str) -> None:
        """The replica stands still over its lease; later it renews, if it may, or takes another under another name."""
        if self.chance.random() < 0.5:
            self.calls.run_out(boot)
            self.late.append(lambda: self.wakes(boot))

    def wakes(self, boot: str) -> None:
        assert not self.calls.renew(boot), "a lease came back"
        self.has.pop(boot, None)
        if boot not in self.boots:  # woken before
            return
        at = self.boots.index(boot)
        name, seed, count = boot.split("-")
        self.boots[at] = f"{name}-{seed}-{int(count) + 1}"
        self.calls.join(self.boots[at])

    def check(self) -> None:
        at = self.calls.at(self.key)
        if at is None:
            assert self.durable == 0, "what a client was told is gone"
        else:
            number, _ = functions.read_place(at)
            assert number >= self.durable, "the record went back"
            image = self.calls.image(self.key)
            assert not image or image.endswith(b" %d.0" % number), "an image of another place"


def runs(calls: Calls, count: int = RUNS) -> None:
    for seed in range(count):
        calls.connection.call(b"FLUSHALL")
        run = Run(calls, seed)
        for _ in range(STEPS):
            run.step()


MUTANTS = {
    "a put looks at the lease only": (
        "if h['err'] or h[1] ~= boot or h[2] ~= a[at] then", "if h['err'] or not h[1] then"
    ),
    "a put looks at the owner only": ("if h['err'] or h[1] ~= boot or h[2] ~= a[at] then", "if h[1] ~= boot then"),
    "a put goes back": ("if (h[3] or '') <= a[at + 1] then", "if true then"),
    "anybody deletes": ("if not h['err'] and h[1] == a[1] and h[2] == a[i + 1] then", "if not h['err'] then"),
    "fences begin again": ("math.max(last + 1, now_us())", "1"),
    "a renewal brings a lease back": (
        "redis.call('SET', keys[1], a[1], 'XX', 'PX', a[2])", "redis.call('SET', keys[1], a[1], 'PX', a[2])"
    ),
    "a live owner is robbed": ("    if address then\n", "    if false then\n"),
}  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    with valkey() as started:
        yield started


def test_no_order_of_messages_takes_a_session_from_its_owner_or_goes_back(server: ValkeyServer) -> None:
    runs(Calls(server, functions.TEXT))


@pytest.mark.parametrize("mistake", MUTANTS)
def test_some_order_notices_the_mistake(server: ValkeyServer, mistake: str) -> None:
    with pytest.raises(AssertionError):
        runs(Calls(server, changed(functions.TEXT, *MUTANTS[mistake])), 4 * RUNS)
