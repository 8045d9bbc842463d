"""The load generator's messages for each kind of server, and the checks of the replies."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from streamcell.proto import pb

_STREAM = "/streamcell.v1.StreamCell/Stream"
_PREDICT = "/streamcell.v1.StreamCell/Predict"
_DURABLE = pb.StreamResponse(durable=1).SerializeToString()[:1]
_WINDOW = 32  # what `streamcell.client` asks for
ECHO_STREAM, ECHO_UNARY = "/benchmark.Echo/Stream", "/benchmark.Echo/Unary"


class WrongReply(RuntimeError):
    """A server's answer is wrong."""


@dataclass(frozen=True)
class Dialect:
    """Messages and checks of one session.

    Attributes:
        method: the gRPC method.
        unary: a call a message, instead of a stream.
        first: session number → the message that opens it, which carries steps like any other.
        then: session number → every later message.
        check: (last reply, replies, steps a message) → None, or WrongReply if they do not add up.
        last: session number → what ends it, if half-closing the stream does not.
        metadata: the message that opens a session → the call's metadata.
        counts: False for a reply that belongs to no message; None: all do.
        nth: (session number, n, messages a session) → message n of a client whose sessions follow each other.
    """

    method: str
    unary: bool
    first: Callable[[int], bytes]
    then: Callable[[int], bytes]
    check: Callable[[bytes, int, int], None]
    last: Callable[[int], bytes] | None = None
    nth: Callable[[int, int, int], bytes] | None = None
    metadata: Callable[[bytes], tuple[tuple[str, str], ...]] = lambda first: ()
    counts: Callable[[bytes], bool] | None = None


def payload(step_bytes: int, steps: int) -> bytes:
    """float32[steps, step_bytes / 4], small and finite."""
    import numpy as np

    values = np.random.default_rng(5).standard_normal(steps * step_bytes // 4, np.float32)
    return values.tobytes()


def streamcell(model: str, step_bytes: int, output_bytes: int, steps: int) -> Dialect:
    """`Stream`: one session a stream."""
    inputs = [payload(step_bytes, steps)]
    first = pb.StreamRequest(open=pb.OpenSession(model=model), inputs=inputs).SerializeToString()
    then = pb.StreamRequest(inputs=inputs).SerializeToString()

    def check(reply: bytes, replies: int, steps: int) -> None:
        answer = pb.StreamResponse.FromString(reply)
        sizes = [len(output) for output in answer.outputs]
        if answer.step_index != replies * steps or sizes != [steps * output_bytes]:
            raise WrongReply(
                f"expected step {replies * steps} and {[steps * output_bytes]} bytes; "
                f"got step {answer.step_index} and {sizes}"
            )

    return Dialect(
        _STREAM,
        False,
        lambda session: first,
        lambda session: then,
        check,
        nth=lambda session, n, messages: then if n % messages else first,
    )


def resumable(model: str, step_bytes: int, output_bytes: int, steps: int) -> Dialect:
    """`Stream` with sessions that can be resumed: the opening carries no steps, and has a reply of its own."""
    like = streamcell(model, step_bytes, output_bytes, steps)

    def first(session: int) -> bytes:
        opening = pb.OpenSession(
            model=model, session=secrets.token_bytes(16), token=secrets.token_bytes(32), window=_WINDOW,
            attempt=time.time_ns() // 1_000_000,
        )  # fmt: skip
        return pb.StreamRequest(open=opening).SerializeToString()

    def check(reply: bytes, replies: int, steps: int) -> None:
        if replies > 1:
            like.check(reply, replies - 1, steps)

    # It has all replies; without that the session would wait to be resumed.
    received = pb.StreamRequest(received=1 << 40).SerializeToString()
    return Dialect(
        _STREAM,
        False,
        first,
        like.then,
        check,
        last=lambda session: received,
        metadata=_hashed,
        counts=_counts,
    )


def _hashed(first: bytes) -> tuple[tuple[str, str], ...]:
    """What proxies hash."""
    return (("streamcell-session", pb.StreamRequest.FromString(first).open.session.hex()),)


def _counts(reply: bytes) -> bool:
    """False if the reply says only how far the store is: then it begins with `durable`, as no other reply does."""
    return reply[:1] != _DURABLE


def predict(model: str, step_bytes: int, output_bytes: int, steps: int) -> Dialect:
    """`Predict`: one row a call."""
    message = pb.PredictRequest(model=model, inputs=[payload(step_bytes, steps)]).SerializeToString()

    def check(reply: bytes, replies: int, steps: int) -> None:
        sizes = [len(output) for output in pb.PredictResponse.FromString(reply).outputs]
        if sizes != [steps * output_bytes]:
            raise WrongReply(f"expected {[steps * output_bytes]} bytes; got {sizes}")

    return Dialect(_PREDICT, True, lambda session: message, lambda session: message, check)


def echo(like: Dialect) -> Dialect:
    """A raw echo of messages as large as those of `like`."""
    size = len(like.then(0))
    message = os.urandom(size)

    def check(reply: bytes, replies: int, steps: int) -> None:
        if reply != message:
            raise WrongReply(f"expected an echo of {size} bytes; got {len(reply)} others")

    method = ECHO_UNARY if like.unary else ECHO_STREAM
    return Dialect(
        method,
        like.unary,
        lambda session: message,
        lambda session: message,
        check,
        nth=lambda session, n, messages: message,
    )
