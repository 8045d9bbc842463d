"""One stream's exchange of messages, without transport: makes requests and reads replies. Both clients share it."""

from __future__ import annotations

import math
from collections import deque
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from streamcell.client.errors import (
    InvalidInput,
    ProtocolMisuse,
    ServerFault,
    SessionClosed,
    StreamCellError,
    from_number,
)
from streamcell.client.values import GenerationInfo, Tensor, tensors
from streamcell.client.values import generation as generation_of
from streamcell.proto import pb

from .durability import durability_asked
from .generation import Generation, beam_search_message, encode_token, generate_message
from .members import Row
from .opening import OpenInputs, open_inputs
from .resume import Resumption
from .signature import SignatureCodec, output_mode
from .ticket import Ticket

STEP, CHUNK, EITHER = (0,), (1,), (0, 1)

_Pending = TypeVar("_Pending")


class Exchange(Generic[_Pending]):
    """The common part of sessions' and pools' exchanges; `_Pending` is what is kept of a message until its reply.

    Not thread-safe.

    Attributes:
        opened: the server's reply to the opening.
        error: why the exchange has ended; None while it continues.
        resumption: what it needs to go on with another stream if its own breaks; None: it ends with its stream.
        others: servers besides the first one that may open it.
    """

    def __init__(self, resumption: Resumption | None = None) -> None:
        self.resumption = resumption
        self.others = 0
        self._pending: deque[_Pending] = deque()
        self._codec: SignatureCodec | None = None
        self.opened = pb.SessionOpened()
        self.error: StreamCellError | None = None

    def opening(self) -> Message:
        """The first message."""
        raise NotImplementedError

    def accept_opening(self, reply: Any) -> None:
        """Handle the reply to the first message.

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
        """True once the server has confirmed the opening."""
        return self._codec is not None

    @property
    def pending(self) -> int:
        """The number of unanswered messages."""
        return len(self._pending)

    @property
    def joining(self) -> bool:
        """True if the reply to the first message behind the opening is part of opening, and has not come yet."""
        return False

    @property
    def most_pending(self) -> float:
        """The most messages that may be unanswered."""
        return math.inf if self.resumption is None else self.resumption.window

    def reopened(self, reply: Any) -> None:
        """Handle the reply to an opening of a session that can be resumed; `resumption.due` has what to send now.

        Raises:
            StreamCellError: as `accept_opening` and `Resumption.reopened`.
        """
        raise NotImplementedError

    def inputs(self) -> tuple[Tensor, ...]:
        """The inputs of one step."""
        return tensors(self.opened.inputs)

    def outputs(self) -> tuple[Tensor, ...]:
        """The outputs of one step."""
        return tensors(self.opened.outputs)

    def expect_idle(self) -> None:
        """Check that no reply is due, which the next call would take for its own.

        Raises:
            ProtocolMisuse: REPLIES_PENDING.
            StreamCellError: the exchange has ended.
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
            StreamCellError: the exchange has ended.
        """
        if self.error is not None:
            raise self.error.again()
        if not self._pending:
            raise ProtocolMisuse("every message has been answered: there is no reply to receive",
                                 reason="NO_REPLY_PENDING")  # fmt: skip

    def end(self, error: StreamCellError | None = None) -> StreamCellError:
        """End the exchange; the first error is kept and returned."""
        if self.error is None:
            self.error = error or SessionClosed("the session is closed", reason="SESSION_CLOSED")
        return self.error

    def _ready(self) -> SignatureCodec:
        """The signature's codec.

        Raises:
            ProtocolMisuse: NOT_OPEN.
            StreamCellError: the exchange has ended.
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
    """A session's exchange. Kept of a message is True for a single timestep, False for a chunk, or its generation.

    Attributes:
        step_index: timesteps applied since the session opened, as of the last reply.
        generation: the latest generation, until it has ended.
    """

    def __init__(
        self,
        model: str,
        version: str,
        output: str | None,
        inputs: OpenInputs = None,
        resumption: Resumption | None = None,
        snapshot: bytes = b"",
        durability: str | None = None,
    ) -> None:
        super().__init__(resumption)
        if durability is not None:
            self._resumable("a durability")
        self._open = pb.OpenSession(
            model=model,
            version=version,
            durability=durability_asked(durability),
            output_mode=output_mode(output),
            inputs=open_inputs(inputs),
            snapshot=snapshot,
        )
        self.step_index = 0
        self.generation: Generation | None = None
        self._generations = 0
        self._message: Any = pb.StreamRequest

    @property
    def output_mode(self) -> pb.OutputMode:
        """The session's output mode, `pb.OUTPUT_MODE_…`."""
        return self._open.output_mode

    def share(self) -> None:
        """Make messages for a shared stream from now on."""
        self._message = Row

    def opening(self) -> pb.StreamRequest:
        """The first message of a stream."""
        if self.resumption is not None:
            return pb.StreamRequest(open=self.resumption.opening(self._open))
        return pb.StreamRequest(open=self._open)

    def reopened(self, reply: pb.StreamResponse) -> None:
        """Handle the reply to an opening of a session that can be resumed."""
        assert self.resumption is not None
        self.resumption.greeted(reply)
        first = not self.is_open
        self.accept_opening(reply)
        opened = reply.opened
        strange = self.resumption.reopened(opened)
        if first:
            self.step_index = opened.step_index
            # Replies to messages of an earlier process: whether they were single timesteps is not known.
            self._pending.extend([False] * strange)
            if opened.HasField("generating"):
                self._adopt_generation(opened.generating)
        elif self.generation is not None and self.generation.stopping:
            self.resumption.put(pb.StreamRequest(stop_generation=self.generation.tag))

    def _adopt_generation(self, tag: int) -> None:
        """Take over a generation of an earlier process. The message stands for the one that requested it."""
        codec, info = self._ready(), self.generation_info()
        assert info is not None
        assert self.resumption is not None
        self._generations = tag
        self.generation = Generation(codec, info, tag, None, info.head == "real")
        self._pending.append(self.generation)
        self.resumption.adopt(pb.StreamRequest(generate=pb.Generate(steps=1), tag=tag))

    def request(self, x: Any, ranks: tuple[int, ...], output: str | None) -> Any:
        """The message that carries `x`: a `pb.StreamRequest`, or a `Row` on a shared stream.

        Raises:
            InvalidInput: x does not fit; the session is unchanged.
            StreamCellError: the session is not open.
        """
        payloads, leading = self._ready().encode(x, ranks)
        steps = leading[0] if leading else 1
        self._check_steps(steps)
        request = self._message(inputs=payloads, steps=steps, output_mode=output_mode(output))
        self._check_kept(request)
        self._pending.append(not leading)
        return request

    def answer(self, reply: pb.StreamResponse) -> Any:
        """The outputs of the oldest unanswered message; without leading axis if it was a single timestep."""
        if self._codec is None or not self._pending:
            raise ServerFault("the server sent a reply that belongs to no message", reason="MALFORMED_REPLY")
        if isinstance(self._pending[0], Generation):
            raise ServerFault(
                "the server sent an unexpected reply to a generation",
                reason="MALFORMED_REPLY",
            )
        single = self._pending.popleft()
        self.step_index = reply.step_index
        # The reply to a message of an earlier process, which put the session back.
        if self.resumption is not None and reply.HasField("copied"):
            return None
        return self._codec.decode(reply.outputs, () if single else (reply.steps,))

    def ticket(self) -> Ticket:
        """What another process needs to go on. Raises ProtocolMisuse: NOT_RESUMABLE."""
        return self._resumable("a ticket").ticket()

    def _check_kept(self, request: Any) -> None:
        """Raise MessageTooLarge if the session cannot keep a message until its store has it."""
        if self.resumption is not None:
            self.resumption.check(request)

    def _resumable(self, what: str) -> Resumption:
        if self.resumption is None:
            raise ProtocolMisuse(f"{what} needs a session opened with resume=True", reason="NOT_RESUMABLE")
        return self.resumption

    def copying(self, **kind: Any) -> pb.StreamRequest:
        """The message that copies the session's state; `kind` is a field of `pb.StateCopy`.

        Raises:
            ProtocolMisuse: NOT_RESUMABLE, REPLIES_PENDING; the session is unchanged.
            StreamCellError: the session is not open.
        """
        self._resumable(f"a {next(iter(kind))}")
        self._ready()
        self.expect_idle()
        request = pb.StreamRequest(copy=pb.StateCopy(**kind))
        self._check_kept(request)
        self._pending.append(False)
        return request

    def copied(self, reply: pb.StreamResponse) -> bytes:
        """The snapshot in a reply; b"" in the reply to another kind of copy.

        Raises:
            ServerFault: MALFORMED_REPLY.
            StreamCellError: it was refused; the session is unchanged.
        """
        if not reply.HasField("copied") or not self._pending:
            raise ServerFault("the server did not answer a copy", reason="MALFORMED_REPLY")
        self._pending.popleft()
        self.step_index = reply.step_index
        error = reply.copied.error
        if error.reason:
            raise from_number(error.code, error.reason, error.text, error.metadata)
        return reply.copied.snapshot

    def fork(self) -> tuple[SessionExchange, pb.StreamRequest]:
        """The exchange of a fork, which is to be opened once the message beside it is answered.

        Raises:
            ProtocolMisuse, StreamCellError: as `copying`.
        """
        resumption, asked = self._resumable("a fork").fork(self._open.durability)
        exchange = SessionExchange("", "", None, None, resumption)
        return exchange, self.copying(fork=asked)

    def generation_info(self) -> GenerationInfo | None:
        """How the model generates; None if it does not."""
        return generation_of(self.opened)

    def generate(self, steps: int, first: Any, output: str | None, **asked: Any) -> pb.StreamRequest:
        """The message that requests a generation; `asked` as for `generation.generate_message`.

        If this raises InvalidInput or ProtocolMisuse, the session is unchanged.
        """
        self._ready()
        return self._generating(generate_message(self.generation_info(), steps, **asked), first, output)

    def beam_search(self, steps: int, first: Any, **asked: Any) -> pb.StreamRequest:
        """The message that requests a beam search; `asked` as for `beam_search_message`. Raises like `generate`."""
        self._ready()
        return self._generating(beam_search_message(self.generation_info(), steps, **asked), first, None)

    def _generating(self, wanted: pb.Generate, first: Any, output: str | None) -> pb.StreamRequest:
        codec, info = self._ready(), self.generation_info()
        assert info is not None
        if self._message is not pb.StreamRequest:
            raise ProtocolMisuse(
                "this session shares its stream with others, and such a stream carries no generation: open the "
                "session with multiplex=False",
                reason="GENERATION_UNSUPPORTED",
            )
        payloads: list[bytes] = []
        if first is not None:
            if isinstance(first, int) and info.head == "categorical":
                first = encode_token(info, codec.the_input, first)
            payloads, _ = codec.encode(first, STEP)
            first = codec.the_input.decode(payloads[0], ())
        elif info.start is not None and not wanted.from_output:
            first = encode_token(info, codec.the_input, info.start)
        mode, tag = output_mode(output), self._generations + 1
        request = pb.StreamRequest(inputs=payloads, generate=wanted, output_mode=mode, tag=tag)
        self._check_kept(request)
        value = info.head == "real" and wanted.feedback != pb.FEEDBACK_SAMPLE
        self._generations = tag
        self.generation = Generation(codec, info, tag, first, value)
        self._pending.append(self.generation)
        return request

    def stop(self, generation: Generation) -> pb.StreamRequest | None:
        """The message that stops `generation`; None if it has ended or was asked to stop."""
        if generation.finished or generation.stopping or self.error is not None:
            return None
        generation.stopping = True
        return pb.StreamRequest(stop_generation=generation.tag)

    def generated(self, reply: pb.StreamResponse, generation: Generation) -> None:
        """Give a reply to its generation.

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
