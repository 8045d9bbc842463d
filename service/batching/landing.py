"""What becomes of sessions once the engine is done with a batch or a turn. Under the batcher's lock."""

from __future__ import annotations

from collections.abc import Callable

from streamcell.service.frames.turns import Turn
from streamcell.service.generation.search_work import Search
from streamcell.service.sessions.capacity import Capacity
from streamcell.service.sessions.session import Session

from .batch import Batch


def land(batch: Batch, capacity: Capacity, make_ready: Callable[[Session], None], *, applied: bool) -> None:
    """Advance the sessions of `batch`, where it was applied; ended ones free their slots, busy ones are ready again."""
    for row in batch.rows:
        session = row.session
        session.in_flight = False
        if applied:
            if session.fresh:
                session.fresh = False
                session.reads = session.slot
            session.step_index += row.steps
        if session.ended:
            session.free(capacity)
            continue
        if row.again is not None:
            session.queue.appendleft(row.again)
            session.held = row.hold if row.hold != session.released else 0
        if session.queue:
            make_ready(session)
    for search in batch.searches:
        _land_search(search, capacity, make_ready)


def _land_search(search: Search, capacity: Capacity, make_ready: Callable[[Session], None]) -> None:
    session = search.session
    session.in_flight = False
    if session.ended or search.reason:
        search.drop(capacity)
    if session.ended:
        session.free(capacity)
        return
    if not search.reason:
        session.queue.appendleft(search)
    if session.queue:
        make_ready(session)


def land_turn(turn: Turn, capacity: Capacity, make_ready: Callable[[Session], None]) -> None:
    """Ended streams of `turn` free their slots, those with more to do are ready again."""
    for members in turn.sessions:
        members.in_flight = False
        if members.ended:
            members.free(capacity)
        elif members.busy:
            make_ready(members)
