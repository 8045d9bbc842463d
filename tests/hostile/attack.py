"""An attacker who sends mutated messages of every method, and what it may get for them."""

from __future__ import annotations

import random
import threading
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import DecodeError

from streamcell.proto.inference import oip

from .honest import ECHO, MARK
from .mutations import mutated
from .recorded import THEIRS, Recorded, recorded

_PATIENCE_S = 60
# What a broken message may be answered with. INTERNAL is the server's own fault, and UNKNOWN nobody's.
_FINE = {
    grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.ABORTED,
    grpc.StatusCode.UNAVAILABLE,
}  # fmt: skip
_TYPED = "grpc-status-details-bin"
_MOST_TRAILER = 8192


class Attacker(threading.Thread):
    """Sends `count` broken messages, seeded; `found` says what it should not have been given."""

    def __init__(self, target: str, seed: int, count: int) -> None:
        super().__init__(daemon=True)
        self._channel = grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)])
        self._rng = random.Random(seed)
        self._seed = seed
        self._count = count
        self._stopped = False
        self.sent = self.accepted = self.refused = 0
        self.found: list[str] = []

    def run(self) -> None:
        """Send them all."""
        methods = recorded()
        busy = [
            each for each in methods if each.method.endswith(("Infer", "Predict", "Stream", "StreamFrames"))
        ]
        try:
            self._warm(busy)
            while self.sent < self._count and not self.found and not self._stopped:
                each = self._rng.choice(busy if self._rng.random() < 0.9 else methods)
                (self._stream if each.streams else self._unary)(each)
        except Exception as error:
            self.found.append(f"the attacker itself failed: {error!r}")
        finally:
            self._channel.close()

    def stop(self) -> None:
        """Send no more."""
        self._stopped = True

    def _warm(self, busy: list[Recorded]) -> None:
        """Have the server know the valid messages: it may know broken ones again by them."""
        for each in busy:
            if not each.streams:
                call = self._channel.unary_unary(each.method)
                for message in each.messages:
                    self._try(
                        lambda call=call, message=message: call(message, timeout=_PATIENCE_S), each, message
                    )

    def _unary(self, each: Recorded) -> None:
        call = self._channel.unary_unary(each.method)
        messages = [
            mutated(self._rng, self._rng.choice(each.messages), each.messages)
            for _ in range(self._rng.choice([1, 4]))
        ]
        self.sent += len(messages)
        futures = [call.future(message, timeout=_PATIENCE_S) for message in messages]
        for future, message in zip(futures, messages, strict=True):
            reply = self._try(future.result, each, message)
            if reply is not None and each.method == THEIRS + "ModelInfer":
                self._compare(message, reply)

    def _compare(self, message: bytes, reply: bytes) -> None:
        """An accepted request of the echo's is answered with its own bytes."""
        try:
            request = oip.ModelInferRequest.FromString(message)
        except DecodeError:
            self._note("what no parser can read was accepted", message)
            return
        answer = oip.ModelInferResponse.FromString(reply)
        if request.model_name != "echo" or not request.raw_input_contents:
            return
        sent, came = request.raw_input_contents[0], answer.raw_output_contents[0]
        shape = [*request.inputs[0].shape]
        steps = int(np.prod(shape, dtype=np.int64)) // ECHO
        if came != sent or len(sent) != 4 * ECHO * steps:
            self._note(f"echoed {len(came)} bytes for {len(sent)} of shape {shape}", message)

    def _stream(self, each: Recorded) -> None:
        rng = self._rng
        first = [*each.first]
        if first and rng.random() < 0.1:
            first = [mutated(rng, first[0], each.messages)]
        good = [rng.choice(each.messages)] if rng.random() < 0.3 else []
        broken = [
            mutated(rng, rng.choice(each.messages), each.messages) for _ in range(rng.choice([1, 1, 3]))
        ]
        self.sent += len(broken)
        call: Any = self._channel.stream_stream(each.method)(
            iter([*first, *good, *broken]), timeout=_PATIENCE_S
        )
        self._try(lambda: b"".join(call), each, b"|".join(broken))

    def _try(self, ask: Any, each: Recorded, message: bytes) -> bytes | None:
        try:
            reply: bytes = ask()
        except grpc.RpcError as error:
            self.refused += 1
            self._check_error(error, each, message)
            return None
        self.accepted += 1
        if MARK in reply:
            self._note("a neighbour's input", message)
        return reply

    def _check_error(self, error: Any, each: Recorded, message: bytes) -> None:
        code, trailer = error.code(), dict(error.trailing_metadata() or ())
        details = trailer.get(_TYPED, b"")
        runs = each.method.endswith(("Infer", "Predict", "Stream", "StreamFrames"))
        if runs and (code not in _FINE or not details):
            self._note(f"{code} {error.details()!r}, typed: {bool(details)}", message)
        if len(details) + 3 * len(error.details() or "") > _MOST_TRAILER:
            self._note(f"a trailer of {len(details)} bytes", message)
        if MARK in details:
            self._note("a neighbour's input in an error", message)

    def _note(self, what: str, message: bytes) -> None:
        self.found.append(f"seed {self._seed}, after {self.sent}: {what}, for {message[:400]!r}")
