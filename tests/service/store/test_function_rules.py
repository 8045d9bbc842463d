"""The rules inside the store, on Valkey and on Redis 7: each with a trace that breaks without it.

A trace is what two replicas' messages may do in the order in which they arrive; `Calls` sends them by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from streamcell.service.store import functions
from streamcell.service.store.errors import StoreFailure
from tests.support.mutants import changed
from tests.support.store_calls import Calls
from tests.support.stores import new_id
from tests.support.valkey import ValkeyServer, valkey

NEVER_MS = 3_600_000


def wrong_token_and_tenant(calls: Calls) -> None:
    """28: also for a record that was deleted and put again, whose token would be nobody's."""
    calls.join("A")
    key = new_id()
    calls.owned("A", key, 1, create=True, tenant="t")
    for wrong in ({"token": b"x" * 32, "tenant": "t"}, {"tenant": "u"}):
        assert calls.claim("A", key, 2, create=True, **wrong) == [b"ABSENT"]


def an_opening_that_comes_late(calls: Calls) -> None:
    """1: opening 1 is on its way, opening 2 is answered, opening 1 arrives."""
    calls.join("A")
    key = new_id()
    fence = calls.owned("A", key, 2, create=True)
    assert calls.claim("A", key, 1, create=True) == [b"LATE"]
    assert calls.claim("A", key, 2, create=True) == [b"LATE"]
    assert calls.owned("A", key, 2, held=fence, again=True) == fence  # the same claim, whose answer was lost
    assert calls.claim("A", key, 2**63) != [b"LATE"]
    assert calls.claim("A", key, 2**63 - 1) == [b"LATE"]


def a_live_owner_keeps_its_session(calls: Calls) -> None:
    """A owns it and renews; B's claim is told where it is, and changes nothing."""
    calls.join("A"), calls.join("B")
    key = new_id()
    fence = calls.owned("A", key, 1, create=True)
    assert calls.claim("B", key, 2)[:2] == [b"ELSEWHERE", b"A"]
    assert calls.put("A", key, fence, 1) == b"1"
    calls.run_out("A")
    assert calls.owned("B", key, 2) > fence


def a_live_session_whose_lease_ran_out(calls: Calls) -> None:
    """9: A is stopped over its lease, B has gone on; the client's next resume lands on A, where the session lives."""
    calls.join("A"), calls.join("B")
    key = new_id()
    fence = calls.owned("A", key, 1, create=True)
    calls.run_out("A")
    calls.put("B", key, calls.owned("B", key, 2), 1)
    assert calls.claim("A", key, 3, held=fence) == [b"FENCED"]
    calls.join("A2")
    assert calls.claim("A2", key, 3, held=fence)[0] == b"ELSEWHERE"


def a_put_on_its_way_across_a_release(calls: Calls) -> None:
    """27: put of 1 on its way, 2 put and released, the first arrives; the same once B has claimed."""
    calls.join("A"), calls.join("B")
    key = new_id()
    fence = calls.owned("A", key, 1, create=True)
    calls.put("A", key, fence, 2, gives=True)
    assert calls.put("A", key, fence, 1) == b"0"
    assert calls.image(key) == b"A 2.0"
    calls.put("B", key, calls.owned("B", key, 2), 3)
    assert calls.put("A", key, fence, 9) == b"0"
    assert calls.image(key) == b"B 3.0"


def a_put_that_comes_late(calls: Calls) -> None:
    """27: an older copy of the same owner and fence, at an earlier message or an earlier step of a generation."""
    calls.join("A")
    key = new_id()
    fence = calls.owned("A", key, 1, create=True)
    calls.put("A", key, fence, 2, 7)
    for number, steps in ((1, 9), (2, 6)):
        assert calls.put("A", key, fence, number, steps) == b"1"  # the store has that and more
        assert calls.image(key) == b"A 2.7"


def a_put_behind_the_deletion(calls: Calls) -> None:
    """28, 29: deleted, a late put; then made again under another fence, and another late put."""
    calls.join("A")
    key = new_id()
    fence = calls.owned("A", key, 1, create=True)
    calls.delete("A", key, fence)
    assert calls.put("A", key, fence, 1) == b"0"
    assert not calls.there(key)
    assert calls.owned("A", key, 2, create=True) > fence
    assert calls.put("A", key, fence, 1) == b"0"
    assert calls.image(key) == b""


def fences_after_the_stores_data_were_lost(calls: Calls) -> None:
    """8: the counter is gone with everything else; the next fence is above all before it."""
    calls.join("A")
    key = new_id()
    before = max(calls.owned("A", key, attempt, create=True) for attempt in (1, 2, 3))
    calls.connection.call(b"FLUSHALL")
    assert calls.join("A") > before


def a_deletion_of_a_former_owner(calls: Calls) -> None:
    """31: A is stopped over its lease, B claims, A wakes and its timer deletes the session."""
    calls.join("A"), calls.join("B")
    key = new_id()
    fence = calls.owned("A", key, 1, create=True)
    calls.run_out("A")
    calls.owned("B", key, 2)
    calls.delete("A", key, fence)
    assert calls.there(key)


def a_deletion_under_an_older_fence(calls: Calls) -> None:
    """31: A gave it away and took it again; the deletion of before arrives."""
    calls.join("A")
    key = new_id()
    fence = calls.owned("A", key, 1, create=True)
    calls.put("A", key, fence, 1, gives=True)
    calls.owned("A", key, 2)
    calls.delete("A", key, fence)
    assert calls.there(key)


def a_renewal_after_the_lease(calls: Calls) -> None:
    """32: A is stopped over its lease, B claims, A's renewal arrives, and A believes again."""
    calls.join("A"), calls.join("B")
    key = new_id()
    fence = calls.owned("A", key, 1, create=True)
    calls.run_out("A")
    calls.owned("B", key, 2)
    assert not calls.renew("A")
    assert calls.put("A", key, fence, 1) == b"FENCED"


def two_replicas_with_one_boot_id(calls: Calls) -> None:
    """A lease is taken only if nobody has it."""
    calls.join("A")
    assert calls.ask("join", [functions.lease_key("A"), functions.FENCE], "", 60_000) is None


def a_claim_of_what_is_held(calls: Calls) -> None:
    """9: the fence grows only with another owner, or if the owner does not know that it is one."""
    calls.join("A")
    key = new_id()
    fence = calls.owned("A", key, 1, create=True)
    assert calls.claim("A", key, 2, held=fence)[1:] == [b"%d" % fence, functions.place(0, 0), b"", b"1"]
    assert calls.owned("A", key, 3) > fence


def a_fork_is_stored_with_its_record(calls: Calls) -> None:
    """35: the record is made, the machine is lost before the first put, B opens it."""
    calls.join("A"), calls.join("B")
    key = new_id()
    calls.owned("A", key, 1, create=True, image=(3, b"fork"))
    calls.run_out("A")
    assert calls.claim("B", key, 2)[2:4] == [functions.place(3, 0), b"fork"]


def a_live_owners_record_is_not_swept(calls: Calls) -> None:
    """An attached session may be idle for longer than any linger."""
    calls.join("A"), calls.join("B")
    key = new_id()
    calls.owned("A", key, 1, create=True)
    assert calls.sweep("B", key, -1) == b"-"
    assert calls.sweep("A", key, -1) == b"m"
    assert calls.there(key)


def a_dead_owners_record_has_its_time(calls: Calls) -> None:
    """31: its client may have been idle for long when the owner died: its time begins when that is found."""
    calls.join("A"), calls.join("B")
    key = new_id()
    calls.owned("A", key, 1, create=True)
    calls.run_out("A")
    assert calls.sweep("B", key, -1) == b"f"
    assert calls.there(key)
    assert calls.sweep("B", key, NEVER_MS) == b"-"
    assert calls.sweep("B", key, -1) == b"d"
    assert not calls.there(key)


def a_record_of_another_kind(calls: Calls) -> None:
    """Another program's: what else the call writes is written all the same."""
    calls.join("A")
    good, foreign, strange = new_id(), new_id(), new_id()
    fence = calls.owned("A", good, 1, create=True)
    calls.connection.call(b"SET", functions.record_key(foreign), b"mine")
    calls.connection.call(b"HSET", functions.record_key(strange), b"owner", b"A", b"fence", b"%d" % fence)
    keys = [functions.lease_key("A"), *map(functions.record_key, (foreign, good))]
    place = functions.place(1, 0)
    assert calls.ask("put", keys, "A", 0, fence, place, b"a", fence, place, b"b") == b"01"
    assert calls.image(good) == b"b"
    assert calls.claim("A", foreign, 1, create=True) == [b"FOREIGN"]
    assert calls.claim("A", strange, 1, create=True) == [b"FOREIGN"]
    assert calls.sweep("A", foreign, -1) == b"-"
    calls.delete("A", foreign, fence)
    assert calls.there(foreign)


def an_image_that_is_too_large(calls: Calls) -> None:
    """It is not sent, and the session stays whose it is."""
    calls.join("A"), calls.join("B")
    key = new_id()
    calls.owned("A", key, 1, create=True, image=(1, b"x" * 1001))
    calls.run_out("A")
    assert calls.claim("B", key, 2) == [b"LARGE"]
    assert calls.connection.call(b"HGET", functions.record_key(key), b"owner") == b"A"


TRACES: list[Callable[[Calls], None]] = [
    wrong_token_and_tenant, an_opening_that_comes_late, a_live_owner_keeps_its_session,
    a_live_session_whose_lease_ran_out, a_put_on_its_way_across_a_release, a_put_that_comes_late,
    a_put_behind_the_deletion, fences_after_the_stores_data_were_lost, a_deletion_of_a_former_owner,
    a_deletion_under_an_older_fence, a_renewal_after_the_lease, two_replicas_with_one_boot_id,
    a_claim_of_what_is_held, a_fork_is_stored_with_its_record, a_live_owners_record_is_not_swept,
    a_dead_owners_record_has_its_time, a_record_of_another_kind, an_image_that_is_too_large,
]  # fmt: skip

PUT = "if h['err'] or h[1] ~= boot or h[2] ~= a[at] then"
DELETE = "if not h['err'] and h[1] == a[1] and h[2] == a[i + 1] then"
# A mistake each: the trace that must notice it, what the text has, and what it has then.
MUTANTS: dict[str, tuple[Callable[[Calls], None], str, str]] = {
    "any token": (wrong_token_and_tenant, "if h[4] ~= a[2] or h[6]", "if h[6]"),
    "any tenant": (wrong_token_and_tenant, "or h[6] ~= a[5] then", "then"),
    "late openings count": (an_opening_that_comes_late, "if a[3] < h[5] or", "if false and"),
    "attempts as numbers": (
        an_opening_that_comes_late, "if a[3] < h[5] or", "if tonumber(a[3]) < tonumber(h[5]) or"
    ),
    "a live owner is robbed": (a_live_owner_keeps_its_session, "    if address then\n", "    if false then\n"),
    "a dead owner is not": (a_live_owner_keeps_its_session, "    if address then\n", "    if true then\n"),
    "memory is believed": (
        a_live_session_whose_lease_ran_out,
        "  local kind = redis.call('TYPE', keys[2])['ok']",
        "  if a[8] ~= '0' then return {'OK', a[8], '', '', '1'} end\n"
        "  local kind = redis.call('TYPE', keys[2])['ok']",
    ),
    "a put looks at the lease only": (
        a_put_on_its_way_across_a_release, PUT, "if h['err'] or h[2] ~= a[at] then"
    ),
    "a put creates": (a_put_behind_the_deletion, PUT, "if h['err'] then"),
    "a put looks at the owner only": (a_put_behind_the_deletion, PUT, "if h['err'] or h[1] ~= boot then"),
    "a put goes back": (a_put_that_comes_late, "if (h[3] or '') <= a[at + 1] then", "if true then"),
    "a put compares messages only": (
        a_put_that_comes_late,
        "if (h[3] or '') <= a[at + 1] then",
        "if string.sub(h[3], 1, 20) <= string.sub(a[at + 1], 1, 20) then",
    ),
    "fences begin again": (a_put_behind_the_deletion, "math.max(last + 1, now_us())", "1"),
    "fences are in the store alone": (
        fences_after_the_stores_data_were_lost, "math.max(last + 1, now_us())", "last + 1"
    ),
    "anybody deletes": (a_deletion_of_a_former_owner, DELETE, "if not h['err'] then"),
    "deleting looks at the owner only": (
        a_deletion_under_an_older_fence, DELETE, "if not h['err'] and h[1] == a[1] then"
    ),
    "a renewal brings a lease back": (
        a_renewal_after_the_lease, "redis.call('SET', keys[1], a[1], 'XX', 'PX', a[2])",
        "redis.call('SET', keys[1], a[1], 'PX', a[2])",
    ),
    "a put looks at no lease": (
        a_renewal_after_the_lease, "if redis.call('EXISTS', keys[1]) == 0 then return 'FENCED' end", ""
    ),
    "a lease is taken from its owner": (two_replicas_with_one_boot_id, "'NX', 'PX'", "'PX'"),
    "each claim has a fence": (
        a_claim_of_what_is_held, "if h[1] == a[1] and h[2] == a[8] then", "if false then"
    ),
    "an owner has one fence": (
        a_claim_of_what_is_held, "if h[1] == a[1] and h[2] == a[8] then", "if h[1] == a[1] then"
    ),
    "a fork without its image": (
        a_fork_is_stored_with_its_record, "'at', a[11], 'image', a[12], 'token'", "'at', a[11], 'image', '', 'token'"
    ),
    "the living are swept": (
        a_live_owners_record_is_not_swept, "if alive[owner] == 0 then", "if alive[owner] ~= nil then"
    ),
    "the dead are swept at once": (
        a_dead_owners_record_has_its_time,
        "          redis.call('HSET', keys[i], 'owner', '', 'freed', now)\n          told[i] = 'f'",
        "          redis.call('DEL', keys[i])\n          told[i] = 'f'",
    ),
    "one bad record spoils the call": (
        a_record_of_another_kind, "local h = redis.pcall('HMGET', keys[i], 'owner', 'fence', 'at')",
        "local h = redis.call('HMGET', keys[i], 'owner', 'fence', 'at')",
    ),
    "strange records are taken": (
        a_record_of_another_kind, "for i = 1, 6 do if not h[i] then return {'FOREIGN'} end end", ""
    ),
    "any size": (an_image_that_is_too_large, "then return {'LARGE'} end", "then end"),
}  # fmt: skip


@pytest.fixture(scope="module", params=["valkey", "redis"])
def server(request: pytest.FixtureRequest, program: Callable[[str], str]) -> Iterator[ValkeyServer]:
    with valkey(server=program("redis-server") if request.param == "redis" else None) as started:
        yield started


@pytest.fixture(autouse=True)
def nothing_there(server: ValkeyServer) -> None:
    server.call("FLUSHALL")


@pytest.mark.parametrize("trace", TRACES, ids=lambda trace: trace.__name__)
def test_the_functions_hold(server: ValkeyServer, trace: Callable[[Calls], None]) -> None:
    trace(Calls(server, functions.TEXT))


@pytest.mark.parametrize("mistake", MUTANTS)
def test_the_trace_notices_the_mistake(server: ValkeyServer, mistake: str) -> None:
    trace, old, new = MUTANTS[mistake]
    calls = Calls(server, changed(functions.TEXT, old, new))
    with pytest.raises((AssertionError, StoreFailure)):
        trace(calls)
