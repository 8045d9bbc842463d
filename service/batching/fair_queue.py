"""Batches that tenants share: no tenant waits longer because another has more sessions ready."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable

from streamcell.service.access.grant import Grant
from streamcell.service.access.policy import Terms
from streamcell.service.sessions.session import Session, Work

from .batch import Batch, BatchQueue, Row

_BUSY_S = 1.0  # a tenant is busy that had a message in a batch within so many seconds
_STEPS = Terms().turn  # for sessions without a tenant


class _Line:
    """One tenant's ready sessions in order, and the timesteps that it may still run before the next one's turn."""

    __slots__ = ("deficit", "owner", "sessions")

    def __init__(self, owner: Grant | None) -> None:
        self.owner = owner
        self.sessions: deque[Session] = deque()
        self.deficit = 0

    @property
    def share(self) -> int:
        """Its priority."""
        return 1 if self.owner is None else self.owner.terms.priority

    @property
    def most(self) -> int:
        """After this many timesteps, a batch takes no more of its sessions while other tenants are busy."""
        return _STEPS if self.owner is None else self.owner.terms.turn


class FairQueue(BatchQueue):
    """A `BatchQueue` whose batches are filled by deficit round robin over tenants, then over each one's sessions.

    Shreedhar and Varghese, Efficient Fair Queuing using Deficit Round Robin, 1995. The cost of a session's turn is its
    timesteps, or the rows of its group. A round gives each tenant its priority times the least cost of any that waits:
    a batch holds sessions of as many tenants as it can. Sessions without a tenant are one tenant's.

    A message that arrives during a run waits for its end, however fair the next batch is. So while several tenants are
    busy, each gets at most `max_batch_steps` times its priority of a batch, and one turn more. A tenant alone gets all.

    Rows that do not fit the leading one wait for another batch. So a tenant that had nothing ready leads the next batch
    before those that always have something (RFC 8290's new queues), unless the last batch has passed a tenant over.
    The rows of the tenants with the least of a batch come first: a reply waits for the replies before it.
    """

    def __init__(
        self,
        *,
        max_batch: int,
        max_chunk: int,
        ragged: bool,
        coalesce: bool,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Make an empty queue; see `BatchQueue`. `clock`: that of `Work.arrived_s`."""
        super().__init__(max_batch=max_batch, max_chunk=max_chunk, ragged=ragged, coalesce=coalesce)
        self._lines: dict[str, _Line] = {}  # of tenants with ready sessions; the first one's turn is next
        self._busy: dict[str, float] = {}  # when each tenant last had a message in a batch
        self._new: dict[str, None] = {}  # tenants that had nothing ready at the last batch, in order
        self._passed_over = False  # a tenant that was ready has no row in the last batch
        self._clock = clock

    def add(self, session: Session) -> None:
        """Queue a session that has work and none in the engine."""
        if session.tenant not in self._lines:
            self._new[session.tenant] = None
        self._line(session).sessions.append(session)

    def _line(self, session: Session) -> _Line:
        line = self._lines.get(session.tenant)
        if line is None:
            line = self._lines[session.tenant] = _Line(session.owner)
        return line

    def remove(self, session: Session) -> None:
        """Remove a ready session that has no work any more."""
        line = self._lines[session.tenant]
        line.sessions.remove(session)
        session.ready = False
        if not line.sessions:
            del self._lines[session.tenant]

    @property
    def any(self) -> bool:
        """True if a session is ready."""
        return bool(self._lines)

    @property
    def unary_rows(self) -> int:
        """How many of the ready sessions are rows of unary calls."""
        return sum(not session.session_id for line in self._lines.values() for session in line.sessions)

    def form(self) -> Batch | None:
        """As `BatchQueue.form`, from the sessions whose turn it is."""
        new, self._new = self._new, {}
        if not self._passed_over and 0 < len(new) < len(self._lines):
            self._lines = {each: self._lines[each] for each in (*new, *self._lines) if each in self._lines}
        costs = self._pick()
        if not costs:
            return None
        self._note_waits(costs)
        self.ready = deque(costs)
        batch = super().form()
        left, self.ready = self.ready, deque()
        # Those too long or short for this batch: their turn is next, and cost nothing.
        for session in reversed(left):
            line = self._line(session)
            line.sessions.appendleft(session)
            line.deficit += costs[session]
        if left:
            self._begin_with(left[0].tenant)
        if batch is not None:
            served = self._order(batch.rows)
            self._passed_over = False in [tenant in served for tenant in self._lines]
        return batch

    @staticmethod
    def _order(rows: list[Row]) -> dict[str, int]:
        """Put the rows of the tenants with the fewest timesteps first; the timesteps of each tenant."""
        steps: dict[str, int] = {}
        for row in rows:
            tenant = row.session.tenant
            steps[tenant] = steps.get(tenant, 0) + row.steps
        if len(steps) > 1:
            rows.sort(key=lambda row: steps[row.session.tenant])
        return steps

    def _note_waits(self, sessions: Iterable[Session]) -> None:
        """Tell each tenant how long the first of its sessions has waited."""
        noted: set[str] = set()
        now_s = self._clock()
        for session in sessions:
            tenant = session.tenant
            if tenant in noted:
                continue
            noted.add(tenant)
            self._busy[tenant] = now_s
            if session.owner is not None:
                session.owner.waited(now_s - session.queue[0].arrived_s)

    def _several(self) -> bool:
        """True if more than one tenant is busy."""
        since_s = self._clock() - _BUSY_S
        self._busy = {tenant: last_s for tenant, last_s in self._busy.items() if last_s >= since_s}
        return len(self._busy.keys() | self._lines.keys()) > 1

    def _pick(self) -> dict[Session, int]:
        """The next sessions in order, with what each costs."""
        most = self._max_batch
        picked: dict[Session, int] = {}
        several = self._several()
        left: dict[str, int] = {}  # timesteps that each tenant may still have, if several are busy
        while len(picked) < most:
            heads = {
                tenant: self._head(line) for tenant, line in self._lines.items() if left.get(tenant, 1) > 0
            }
            for tenant in [tenant for tenant, cost in heads.items() if not cost]:
                del self._lines[tenant], heads[tenant]
            if not heads:
                break
            least = min(heads.values())
            for tenant in heads:
                line = self._lines[tenant]
                line.deficit += line.share * least
                room = left.get(tenant, line.most)
                while len(picked) < most and room > 0 and (cost := self._head(line)) and cost <= line.deficit:
                    line.deficit -= cost
                    room -= cost if several else 0
                    picked[line.sessions.popleft()] = cost
                left[tenant] = room
                if not line.sessions:  # who has nothing ready saves nothing up
                    del self._lines[tenant]
                if len(picked) >= most:
                    self._begin_behind(tenant)
                    break
        return picked

    def _head(self, line: _Line) -> int:
        """What the line's first session costs; 0 if none is left. Those that have ended are dropped."""
        while line.sessions:
            session = line.sessions[0]
            if not session.ended:
                first: Work = session.queue[0]
                # What is done beside a run, such as a copy of a state, has no timestep, and is a turn all the same.
                return max(1, first.group.rows if first.group is not None else self._chunk(session))
            session.ready = False
            line.sessions.popleft()
        return 0

    def _begin_with(self, tenant: str) -> None:
        """Give the next turn to that tenant."""
        order = list(self._lines)
        at = order.index(tenant)
        self._lines = {each: self._lines[each] for each in (*order[at:], *order[:at])}

    def _begin_behind(self, tenant: str) -> None:
        """Give the next turn to the tenant after that one."""
        if tenant in self._lines:
            self._lines[tenant] = self._lines.pop(tenant)
