"""A beam search at work: hypotheses whose states are forks, each in a slot of its own.

A fork is a step that reads one row of the pool and writes another. All hypotheses of a search run in one batch: there,
all rows are read before any is written, so a hypothesis may write the row that another grows from.
"""

from __future__ import annotations

from streamcell.proto import pb
from streamcell.service.sessions.capacity import Capacity, Ints
from streamcell.service.sessions.session import Output, Session, Work

from .beam_search import BeamSearch
from .work import Listener, generated_response


class BeamStep(Work):
    """One hypothesis' next step."""

    __slots__ = ("search",)

    generates = True

    def __init__(self, search: Search) -> None:
        super().__init__((), 1, Output.NONE, 0, 0.0)
        self.search = search


class Beam(Session):
    """A hypothesis' place: a slot, which its step writes, and the row that it reads. Never in the batcher's queue."""

    __slots__ = ("step",)

    def __init__(self, search: Search, session: Session, slot: int, generation: int) -> None:
        super().__init__("", session.owner, slot, generation, session.opened_s)
        self.fresh = False  # `reads` is the search's to set
        self.step = BeamStep(search)


class Search(Work):
    """A `generate` message with `beam`. Its session's own state and step index stay as they are."""

    __slots__ = ("_beams", "_generations", "_slots", "_sources", "active", "listener", "reason", "search", "session",
                 "stopped")  # fmt: skip

    generates = True

    def __init__(
        self,
        session: Session,
        listener: Listener,
        first: tuple[bytes, ...],
        search: BeamSearch,
        capacity: Capacity,
        *,
        tag: int,
        arrived_s: float,
    ) -> None:
        """Take a slot for each hypothesis.

        Args:
            session: it begins from this one's state.
            listener: gets the reply.
            first: the first input, or () for what the session's last output gives.
            search: nothing has grown yet.
            capacity: of the model.
            tag, arrived_s: as for all work.

        Raises:
            SessionLimit: there is no room for so many.
        """
        super().__init__(first, 1, Output.NONE, tag, arrived_s)
        self.session = session
        self.listener = listener
        self.search = search
        self.stopped = False  # by `stop_generation`: noticed before its next step
        self.reason = pb.STOP_REASON_UNSPECIFIED  # why it has ended, once it has
        self._slots: Ints
        self._generations: Ints
        self._slots, self._generations = capacity.take_many(search.width)
        pairs = zip(self._slots.tolist(), self._generations.tolist(), strict=True)
        self._beams = [Beam(self, session, slot, generation) for slot, generation in pairs]
        self._sources: list[int] = []  # the rows that hold the live hypotheses' states
        self.active: list[Beam] = []  # what runs next

    def take(self) -> list[Beam]:
        """What runs in the batch that is being formed: one beam a live hypothesis."""
        if not self._sources:
            self._sources = [self.session.reads]
            self.grew([0], [self.payloads[0] if self.payloads else b""])
        return self.active

    @property
    def rows(self) -> int:
        """How many `take` gives."""
        return len(self.active) or 1

    def ran(self) -> None:
        """The active beams' steps were applied: each one's state is in its own slot now."""
        self._sources = [beam.slot for beam in self.active]

    def grew(self, parents: list[int], payloads: list[bytes]) -> None:
        """The live hypotheses are others now: each goes on from the one at its place in `parents`, with its payload."""
        sources = self._sources
        self.active = self._beams[: len(parents)]
        for beam, parent, payload in zip(self.active, parents, payloads, strict=True):
            beam.reads = sources[parent]
            beam.step.payloads = (payload,)
            beam.step.done = 0

    def drop(self, capacity: Capacity) -> None:
        """Give the slots back, once."""
        slots, self._slots = self._slots, self._slots[:0]
        if len(slots):
            capacity.give_back_many(slots, self._generations)

    def reply(self, step_index: int) -> bytes:
        """The best hypotheses, as a serialised StreamResponse."""
        generated = pb.Generated(stop_reason=self.reason)
        for each in self.search.best():
            generated.hypotheses.add(
                classes=each.classes(),
                log_probability=each.log_probability,
                score=self.search.score(each),
                stopped=each.stopped,
            )
        return generated_response(generated, [], 0, step_index, self.tag)
