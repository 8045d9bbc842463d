"""One stream's conversation without its transport: what to send, and what a reply means. Both clients share it."""

from __future__ import annotations

from collections import deque
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from streamcell.client.errors import InvalidInput, ProtocolMisuse, ServerFault, SessionClosed, StreamCellError
from streamcell.client.values import GenerationInfo, Tensor, tensors
from streamcell.client.values import generation as generation_info
from streamcell.proto import pb

from .generation import Generation, ask, ask_beam, encode_token
from .signature import SignatureCodec, output_mode

STEP, CHUNK, EITHER = (0,), (1,), (0, 1)

_Pending = TypeVar("_Pending")


class Exchange(Generic[_Pending]):
    """What all conversations have in common; `_Pending` is what is noted of a message until it is answered.

    Not thread-safe.

    Attributes:
        opened: what the server said at the opening.
        error: why the conversation is over; None while it is not.
    """

    def __init__(self) -> None:
        self._pending: deque[_Pending] = deque()
        self._codec: SignatureCodec | None = None
        self.opened = pb.SessionOpened()
        self.error: StreamCellError | None = None

    def opening(self) -> Message:
        """The first message."""
        raise NotImplementedError

    def greet(self, reply: Any) -> None:
        """Take the reply to the first message.

        Raises:
            ServerFault: MALFORMED_REPLY or UNKNOWN_DTYPE.
        """
        if not reply.HasField("opened"):
            raise ServerFault("the first reply lacks the field `opened`", reason="MALFORMED_REPLY")
        self._codec = SignatureCodec(reply.opened.inputs, reply.opened.outputs)
        self.opened = reply.opened

    def answer(self, reply: Any) -> Any:
        """The result of the oldest unanswered message.

        Raises:
            ServerFault: MALFORMED_REPLY.
        """
        raise NotImplementedError

    @property
    def is_open(self) -> bool:
        """Whether the server has confirmed the opening."""
        return self._codec is not None

    @property
    def pending(self) -> int:
        """Messages sent and not answered yet."""
        return len(self._pending)

    def inputs(self) -> tuple[Tensor, ...]:
        """What one step takes."""
        return tensors(self.opened.inputs)

    def outputs(self) -> tuple[Tensor, ...]:
        """What one step gives."""
        return tensors(self.opened.outputs)

    def expect_idle(self) -> None:
        """Check that no reply is due: the next call would take it for its own.

        Raises:
            ProtocolMisuse: REPLIES_PENDING.
            StreamCellError: the conversation is over.
        """
        if self.error is not None:
            raise self.error.again()
        if self._pending:
            raise ProtocolMisuse(
                f"{len(self._pending)} messages are unanswered: receive() their replies first",
                reason="REPLIES_PENDING",
            )

    def expect_pending(self) -> None:
        """Check that a reply is due.

        Raises:
            ProtocolMisuse: NO_REPLY_PENDING.
            StreamCellError: the conversation is over.
        """
        if self.error is not None:
            raise self.error.again()
        if not self._pending:
            raise ProtocolMisuse("every message has been answered: there is no reply to receive",
                                 reason="NO_REPLY_PENDING")  # fmt: skip

    def end(self, error: StreamCellError | None = None) -> StreamCellError:
        """Note that the conversation is over; the first error is kept and returned."""
        if self.error is None:
            self.error = error or SessionClosed("the session is closed", reason="SESSION_CLOSED")
        return self.error

    def _ready(self) -> SignatureCodec:
        """The signature's codec.

        Raises:
            ProtocolMisuse: NOT_OPEN.
            StreamCellError: the conversation is over.
        """
        if self.error is not None:
            raise self.error.again()
        if self._codec is None:
            raise ProtocolMisuse("the session is not open yet", reason="NOT_OPEN")
        return self._codec

    def _check_steps(self, steps: int) -> None:
        limit = self.opened.max_steps_per_message
        if steps > limit > 0:
            raise InvalidInput(
                f"a message may carry {limit} timesteps, this one carries {steps}: send it in parts",
                reason="TOO_MANY_STEPS",
                metadata={"limit": str(limit), "got": str(steps)},
            )


class SessionExchange(Exchange["bool | Generation"]):
    """A session's; noted of a message is whether it is a single timestep, or the generation that it asked for.

    Attributes:
        step_index: timesteps applied since the session opened, as of the last reply.
        generation: the latest, until it has ended.
    """

    def __init__(self, model: str, version: str, output: str | None) -> None:
        super().__init__()
        self._open = pb.OpenSession(model=model, version=version, output_mode=output_mode(output))
        self.step_index = 0
        self.generation: Generation | None = None
        self._generations = 0

    def opening(self) -> pb.StreamRequest:
        """The first message."""
        return pb.StreamRequest(open=self._open)

    def request(self, x: Any, ranks: tuple[int, ...], output: str | None) -> pb.StreamRequest:
        """The message that carries `x`.

        Raises:
            InvalidInput: x does not fit; the session is as it was.
            StreamCellError: the session is not open.
        """
        payloads, leading = self._ready().encode(x, ranks)
        steps = leading[0] if leading else 1
        self._check_steps(steps)
        mode = output_mode(output)
        self._pending.append(not leading)
        return pb.StreamRequest(inputs=payloads, steps=steps, output_mode=mode)

    def answer(self, reply: pb.StreamResponse) -> Any:
        """The outputs of the oldest unanswered message: no leading axis if it was a single timestep."""
        if self._codec is None or not self._pending:
            raise ServerFault("the server sent a reply that belongs to no message", reason="MALFORMED_REPLY")
        if isinstance(self._pending[0], Generation):
            raise ServerFault(
                "the server sent an unexpected reply to a generation",
                reason="MALFORMED_REPLY",
            )
        single = self._pending.popleft()
        self.step_index = reply.step_index
        return self._codec.decode(reply.outputs, () if single else (reply.steps,))

    def info(self) -> GenerationInfo | None:
        """How the model generates; None if it does not."""
        return generation_info(self.opened)

    def generate(self, steps: int, first: Any, output: str | None, **asked: Any) -> pb.StreamRequest:
        """The message that asks for a generation; `asked` as for `generation.ask`.

        An InvalidInput or ProtocolMisuse raised here leaves the session as it was.
        """
        self._ready()
        return self._generating(ask(self.info(), steps, **asked), first, output)

    def beam_search(self, steps: int, first: Any, **asked: Any) -> pb.StreamRequest:
        """The message that asks for a beam search; `asked` as for `generation.ask_beam`. Raises as `generate`."""
        self._ready()
        return self._generating(ask_beam(self.info(), steps, **asked), first, None)

    def _generating(self, wanted: pb.Generate, first: Any, output: str | None) -> pb.StreamRequest:
        codec, info = self._ready(), self.info()
        assert info is not None
        payloads: list[bytes] = []
        if first is not None:
            if isinstance(first, int) and info.head == "categorical":
                first = encode_token(info, codec.the_input, first)
            payloads, _ = codec.encode(first, STEP)
            first = codec.the_input.decode(payloads[0], ())
        elif info.start is not None and not wanted.from_output:
            first = encode_token(info, codec.the_input, info.start)
        mode = output_mode(output)
        value = info.head == "real" and wanted.feedback != pb.FEEDBACK_SAMPLE
        self._generations += 1
        self.generation = Generation(codec, info, self._generations, first, value)
        self._pending.append(self.generation)
        return pb.StreamRequest(inputs=payloads, generate=wanted, output_mode=mode, tag=self.generation.tag)

    def stop(self, generation: Generation) -> pb.StreamRequest | None:
        """The message that stops `generation`; None if it has ended or was asked to stop."""
        if generation.finished or generation.stopping or self.error is not None:
            return None
        generation.stopping = True
        return pb.StreamRequest(stop_generation=generation.tag)

    def generated(self, reply: pb.StreamResponse, generation: Generation) -> None:
        """Give a reply to the generation that awaits it.

        Raises:
            ServerFault: MALFORMED_REPLY.
        """
        if not self._pending or self._pending[0] is not generation:
            raise ServerFault(
                "the server sent a reply that belongs to no generation", reason="MALFORMED_REPLY"
            )
        generation.take(reply)
        self.step_index = reply.step_index
        if generation.finished:
            self._pending.popleft()
            self.generation = None
