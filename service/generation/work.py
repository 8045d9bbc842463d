"""A running `generate` message: its options, its progress, and its next reply."""

from __future__ import annotations

from collections.abc import Sequence

from streamcell.service.sessions.session import Output, Work

from .reply import GenerationListener, Reply, StopReason
from .sampling import Recipe


class Generating(Work):
    """Steps of one session whose inputs the server makes. To the batcher it is one step of work after another.

    `payloads` is the next step's input. It is empty before a first step whose input is made from the last output.
    """

    __slots__ = (
        "_chosen", "_outputs", "_steps", "_tells", "applied", "first", "listener", "per_reply", "reason", "recipe",
        "stop", "stopped", "wanted",
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
        self._tells = tells
        self._steps = 0  # applied since the last reply
        self._chosen: list[bytes] = []
        self._outputs: list[list[bytes]] = []

    def begin(self, first: bytes, payload: bytes) -> None:
        """Set the first input, made from the last output: `first` for the client, `payload` for the model."""
        self.first = first
        self.payloads = (payload,)

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
