"""A running beam search: each hypothesis is a fork of the session's state, in its own slot.

A fork is a step that reads one row of the pool and writes another. All hypotheses of a search run in one batch: there,
all rows are read before any is written, so a hypothesis may write the row that another grows from.
"""

from __future__ import annotations

from streamcell.service.access.grant import Grant
from streamcell.service.sessions.capacity import Capacity, Ints
from streamcell.service.sessions.session import Group, Output, Session, Work

from .beam_search import BeamSearch
from .reply import GenerationListener, RankedSequence, Reply, StopReason


class BeamStep(Work):
    """One hypothesis' next step."""

    __slots__ = ("group", "search")

    generates = True

    def __init__(self, search: Search) -> None:
        super().__init__((), 1, Output.NONE, 0, 0.0)
        self.group = self.search = search


class Beam(Session):
    """A hypothesis' place: the slot that its step writes, and the row that it reads. Never in the batcher's queue."""

    __slots__ = ("step",)

    def __init__(self, search: Search, session: Session, slot: int, slot_version: int) -> None:
        super().__init__("", session.listener, slot, slot_version, session.opened_s)
        self.fresh = False  # the search sets `reads`
        self.opening = session.opening
        self.step = BeamStep(search)


class Search(Group):
    """A `generate` message with `beam`. Its session's own state and step index stay as they are."""

    __slots__ = (
        "_beams",
        "_slot_versions",
        "_slots",
        "_sources",
        "active",
        "listener",
        "owner",
        "reason",
        "search",
        "stopped",
    )

    generates = True

    def __init__(
        self,
        session: Session,
        listener: GenerationListener,
        first: tuple[bytes, ...],
        search: BeamSearch,
        capacity: Capacity,
        *,
        tag: int,
        arrived_s: float,
    ) -> None:
        """Take a slot for each hypothesis.

        Args:
            session: the search begins from its state.
            listener: gets the reply.
            first: the first input, or () to make it from the session's last output.
            search: the hypotheses. None has been extended yet.
            capacity: of the model.
            tag, arrived_s: as for all work.

        Raises:
            SessionLimit: there is not enough room.
        """
        super().__init__(first, 1, Output.NONE, tag, arrived_s)
        self.session = session
        self.listener = listener
        self.search = search
        self.stopped = False  # set by `stop_generation`; the engine thread sees it before the next step
        self.reason: StopReason | None = None  # why it has ended
        self.owner: Grant | None = None  # the tenant of whose generations it takes one, until it is dropped
        self._slots: Ints
        self._slot_versions: Ints
        self._slots, self._slot_versions = capacity.take_many(search.width)
        pairs = zip(self._slots.tolist(), self._slot_versions.tolist(), strict=True)
        self._beams = [Beam(self, session, slot, slot_version) for slot, slot_version in pairs]
        self._sources: list[int] = []  # the rows that hold the live hypotheses' states
        self.active: list[Beam] = []  # what runs next

    def take(self) -> list[tuple[Session, Work]]:
        """The rows of the batch that is being formed: one beam a live hypothesis."""
        if not self._sources:
            self._sources = [self.session.reads]
            self.grew([0], [self.payloads[0] if self.payloads else b""])
        return [(beam, beam.step) for beam in self.active]

    @property
    def rows(self) -> int:
        """How many rows `take` gives."""
        return len(self.active) or 1

    @property
    def begun(self) -> bool:
        """True if its first run was formed."""
        return bool(self._sources)

    @property
    def over(self) -> bool:
        """True once it has ended."""
        return self.reason is not None

    def ran(self) -> None:
        """Note that the active beams' steps were applied: each one's state is in its own slot now."""
        self._sources = [beam.slot for beam in self.active]

    def grew(self, parents: list[int], payloads: list[bytes]) -> None:
        """Continue with new hypotheses: each extends the one at its place in `parents`, with its payload."""
        sources = self._sources
        self.active = self._beams[: len(parents)]
        for beam, parent, payload in zip(self.active, parents, payloads, strict=True):
            beam.reads = sources[parent]
            beam.step.payloads = (payload,)
            beam.step.done = 0

    def drop(self, capacity: Capacity) -> None:
        """Give the slots and its tenant's room back, once."""
        slots, self._slots = self._slots, self._slots[:0]
        if len(slots):
            capacity.give_back_many(slots, self._slot_versions)
        owner, self.owner = self.owner, None
        if owner is not None:
            owner.give_generation()

    def reply(self, step_index: int) -> Reply:
        """The best hypotheses."""
        best = [
            RankedSequence(each.classes(), each.log_probability, self.search.score(each), each.stopped)
            for each in self.search.best()
        ]
        return Reply(self.tag, step_index, sequences=best, stop_reason=self.reason)
