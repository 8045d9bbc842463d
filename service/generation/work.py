"""A running `generate` message: its options, its progress, and its next reply."""

from __future__ import annotations

from collections.abc import Sequence

from streamcell.service.access.grant import Grant
from streamcell.service.sessions.capacity import Capacity
from streamcell.service.sessions.session import Output, Work

from .outcome import Outcome
from .reply import GenerationListener, Reply, StopReason
from .sampling import Recipe


class Generating(Work):
    """Steps of one session whose inputs the server makes. To the batcher it is one step of work after another.

    `payloads` is the next step's input. It is empty before a first step whose input is made from the last output.
    """

    __slots__ = (
        "_chosen", "_outputs", "_steps", "_tells", "applied", "asked", "first", "listener", "outcome", "owner",
        "per_reply", "reason", "recipe", "stop", "stopped", "stops_as", "wanted",
    )  # fmt: skip

    generates = True

    def __init__(
        self,
        listener: GenerationListener,
        payloads: tuple[bytes, ...],
        *,
        steps: int,
        recipe: Recipe,
        stop: frozenset[int],
        per_reply: int,
        output: Output,
        tells: bool,
        tag: int,
        arrived_s: float,
    ) -> None:
        """Make work that has not run yet.

        Args:
            listener: gets the replies.
            payloads: the first input, or () to make it from the session's last output.
            steps: to run at most.
            recipe: how inputs are chosen.
            stop: classes that end it.
            per_reply: steps a reply.
            output: the steps whose outputs are sent.
            tells: whether replies report the choices. They do unless the choice is the output itself.
            tag, arrived_s: as for all work.
        """
        super().__init__(payloads, 1, output, tag, arrived_s)
        self.listener = listener
        self.wanted = steps
        self.recipe = recipe
        self.stop = stop
        self.per_reply = per_reply
        self.applied = 0
        self.stopped = False  # set by `stop_generation`; the engine thread sees it before the next step
        self.reason: StopReason | None = None  # why it has ended
        self.first = b""  # the first input, encoded for the client, if it was made here
        self.owner: Grant | None = None  # the tenant of whose generations it takes one, until it is dropped
        self.asked = b""  # what it was asked, if its session outlives the process
        self.outcome: Outcome | None = None  # what its client was told of it before it was lost
        self.stops_as = StopReason.REQUEST  # why it has ended, once it is `stopped`
        self._tells = tells
        self._steps = 0  # applied since the last reply
        self._chosen: list[bytes] = []
        self._outputs: list[list[bytes]] = []

    def drop(self, capacity: Capacity) -> None:
        """Give back its tenant's room, once."""
        owner, self.owner = self.owner, None
        if owner is not None:
            owner.give_generation()

    def begin(self, first: bytes, payload: bytes) -> None:
        """Set the first input, made from the last output: `first` for the client, `payload` for the model."""
        self.first = first
        self.payloads = (payload,)

    def go_on(self, applied: int) -> None:
        """Continue after this many applied and answered timesteps; the session has the last one's output."""
        self.applied = applied
        self.payloads = ()

    def repeat(self, outcome: Outcome) -> None:
        """Make the choices again that its client was told of, and end as it was told."""
        self.outcome = outcome
        if outcome.reason is not None and outcome.steps <= self.applied:
            self.stopped, self.stops_as = True, outcome.reason
            self.first = self.first if self.applied else outcome.first

    def repeats(self, step: int) -> tuple[bytes, StopReason | None] | None:
        """The choice after so many timesteps, empty if it is the output, and why it ends; None: it is free."""
        outcome = self.outcome
        if outcome is None or step > outcome.steps:
            return None
        reason = outcome.reason if step == outcome.steps else None
        if reason is StopReason.REQUEST:  # that is told before the next step
            self.stopped, reason = True, None
        return outcome.choice(step), reason

    @property
    def stops(self) -> bool:
        """True if it ends before its next step: it was stopped, and has repeated all that its client was told."""
        return self.stopped and (self.outcome is None or self.applied >= self.outcome.steps)

    @property
    def outcome_left(self) -> bytes:
        """What is to be added to its request if another process goes on with it: what it may have yet to repeat."""
        return b"" if self.outcome is None else self.outcome.data

    def took(self, outputs: Sequence[bytes], chosen: bytes) -> None:
        """Record one applied step: `outputs` has one step of each output, `chosen` the choice, for the client."""
        self.done = 0
        self.applied += 1
        self._steps += 1
        if self.output is Output.LAST:
            self._outputs.clear()
        if self.output is not Output.NONE:
            self._outputs.append(list(outputs))
        if self._tells:
            self._chosen.append(chosen)

    @property
    def begun(self) -> bool:
        """True if a step was applied."""
        return self.applied > 0

    @property
    def due(self) -> bool:
        """True if a reply is due."""
        return self._steps >= self.per_reply or self.reason is not None

    @property
    def replied(self) -> bool:
        """True if a reply has been given."""
        return self.applied > self._steps

    def reply(self, step_index: int) -> Reply:
        """The reply about the steps since the last reply."""
        outputs: list[bytes] = []
        output_steps = 0
        if self.output is not Output.LAST or self.reason is not None:
            outputs = [b"".join(steps) for steps in zip(*self._outputs, strict=True)]
            output_steps = len(self._outputs)
            self._outputs.clear()
        is_first = not self.replied
        reply = Reply(
            self.tag,
            step_index,
            self._steps,
            b"".join(self._chosen),
            self.first if is_first else b"",
            self.recipe.seed if is_first else 0,
            outputs,
            output_steps,
            stop_reason=self.reason,
        )
        self._chosen.clear()
        self._steps = 0
        return reply
