"""A client's stream on a session in a journal: a front end keeps it open if the engine process dies.

The front end acts for the client: it counts messages and replies, keeps unanswered messages, and resumes the session
with the next engine process (docs/durable-sessions.md has the rules). The client sees a pause. The front end keeps at
most the session's window and one message more. These count as the client's bytes in flight: they are unanswered.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from streamcell.proto import pb
from streamcell.service.errors import EngineLost, MalformedMessage, ServiceError, as_status
from streamcell.service.processes.tunnel import BEGIN, BEGIN_AGAIN, WINDOW
from streamcell.service.protocols.native.generation_requests import check_stop
from streamcell.service.protocols.native.wire import only_input
from streamcell.service.transport.calls import Call, Metadata, Trailing

from .kept_streams import KeptStreams
from .tunnel_calls import PassedStream, Tunnel

# Engine processes that may die in a row on a stream's unanswered messages: one of these may be what kills them.
_MOST_DEATHS = 3


@dataclass(slots=True)
class Message:
    """A message without its last reply; `asks`: it asks for a copy, without a number, before message `number`."""

    number: int
    data: bytes
    asks: bool = False
    generates: int | None = None  # the tag of the generation that it asks for
    stop: bytes = b""  # the message that stops that


class _Leg(PassedStream):
    """The traffic between a stream and one engine process."""

    def __init__(self, stream: KeptStream, tunnel: Tunnel, method: str) -> None:
        super().__init__(stream, tunnel, method)
        self._stream = stream

    def lost(self, error: EngineLost) -> None:
        """Let the stream wait for another engine process."""
        self._stream.lost(self, error)


class KeptStream:
    """The handler of the client's call, and the call of its leg to each engine process (`PassingCall`).

    Its lock keeps the order of messages to the engine process. They go through a pipe, where sending never waits.
    """

    def __init__(
        self,
        call: Call,
        asked: pb.OpenSession | pb.OpenFrames,
        data: bytes,
        streams: KeptStreams,
        method: str,
    ) -> None:
        """`asked`: the stream's opening, which `streams` keeps; `data`: its first message as it came."""
        self.peer = call.peer
        self.caller = call.caller
        self._call = call
        self._metadata = call.metadata()
        self._streams = streams
        self._method = method
        self._lock = threading.Lock()
        self._asked: pb.OpenSession | pb.OpenFrames = asked
        self._data = data
        self._leg: _Leg | None = None
        self._greeted = False  # its engine process has answered the opening
        self._ready = False  # it takes messages
        self._expects = 0  # the lowest number of a message that it takes
        self._leg_full = False  # it has more messages than it has taken
        self._opened: pb.SessionOpened | None = None  # the client's opening was answered so
        self._window = min(asked.window, WINDOW)
        # The place of a client that has all replies so far: messages, and timesteps of the next one, a generation.
        self._received = asked.received
        self._steps = asked.received_steps if isinstance(asked, pb.OpenSession) else 0
        self._kept: deque[Message] = deque()
        # The number of the client's next message; without `first`, from its opening's reply on.
        self._next = asked.first
        self._told, self._told_number = b"", 0  # the client's latest `received`
        self._told_steps = self._steps  # that it has said to have of message `received` + 1
        self._again = 0  # timesteps of that message whose replies come again
        self._half_closed = self._paused = False
        self._over = False  # the call has ended, or its status is on its way
        self._gone = False  # it has ended
        self._lost_s: float | None = None  # when its pause began
        self._deaths = 0  # of engine processes, since the last reply

    # Engine processes come and go

    def begin(self, tunnel: Tunnel) -> None:
        """Continue with that engine process: by the client's opening, if that is unanswered, else by a resume."""
        leg = _Leg(self, tunnel, self._method)
        with self._lock:
            if self._over:
                return
            self._leg = leg
            opening = self._data if self._opened is None else self._resume()
            kind = BEGIN if self._lost_s is None else BEGIN_AGAIN
        leg.begin(kind)
        leg.on_message(opening)
        with self._lock:
            if self._leg is leg and self._opened is None:
                self._send_kept(leg, 0)
            gone = self._gone
        if gone:  # meanwhile: the engine process may not have known the call when it ended
            leg.on_end(cancelled=True)

    def _resume(self) -> bytes:
        asked = self._named()
        asked.resume = True
        asked.received = self._received
        asked.held = self._kept[0].number if self._kept else self._next
        return self._first(asked)

    def _send_kept(self, leg: _Leg, expects: int) -> None:
        """Send unanswered messages from `expects` on, with all that belongs to them; from now on messages pass."""
        if self._ready:
            return
        self._ready, self._expects = True, expects
        if self._told:
            leg.on_message(self._told)
        for message in self._kept:
            if message.number >= expects:
                self._leg_full = not leg.on_message(message.data)
                if message.stop:
                    leg.on_message(message.stop)
        if self._half_closed:
            leg.on_half_close()

    def lost(self, leg: _Leg, error: EngineLost) -> None:
        """The engine process of `leg` has died. Replies that it has sent have come before."""
        with self._lock:
            if self._over or leg is not self._leg:
                return
            self._leg = None
            self._greeted = self._ready = self._leg_full = False
            self._lost_s = time.monotonic() if self._lost_s is None else self._lost_s
            self._deaths += bool(self._kept) or self._opened is None
            kept = self._opened is None or self._opened.durability >= pb.DURABILITY_PROCESS
            read_on = self._reads_on()
        if not kept or self._deaths >= _MOST_DEATHS:
            self.give_up(error)
            return
        if read_on:
            self._call.resume()
        self._streams.wait(self, leg.tunnel)

    def give_up(self, error: ServiceError) -> None:
        """End the client's call: no engine process goes on with it."""
        self._streams.count(error)
        self.end(*as_status(error))

    # The client's side

    def on_message(self, data: bytes) -> bool:
        """Take a message; False, which stops reading, at the window's end or while the engine process is behind."""
        self._call.read_on()
        with self._lock:
            replied = self._take(data)
            self._paused = not self._has_room
            room = not self._paused
        if not replied:
            self._call.skip()
        return room

    def _take(self, data: bytes) -> bool:
        """Keep a message and pass it on; False if it gets no reply."""
        message = self._message(data)
        leg = self._leg if self._ready else None
        if message is None:
            if leg is not None:
                self._leg_full = not leg.on_message(data)
            return False
        self._next += not message.asks
        # A client that names its first message's number may send what has been answered.
        answered = self._opened is not None and message.number <= self._received and not message.asks
        if not answered:
            self._kept.append(message)
        if leg is not None and message.number >= self._expects:
            self._leg_full = not leg.on_message(data)
        return not answered

    @property
    def _has_room(self) -> bool:
        # As in the engine process, one message beyond the window: a full window lets stops and `received` through.
        return not self._leg_full and len(self._kept) <= self._window

    def _reads_on(self) -> bool:
        """True if the client's call is to be read again."""
        read_on = self._paused and self._has_room
        self._paused = self._paused and not read_on
        return read_on

    def on_half_close(self) -> None:
        """The client sends no more messages."""
        with self._lock:
            self._half_closed = True
            if self._leg is not None and self._ready:
                self._leg.on_half_close()

    def on_end(self, cancelled: bool) -> None:
        """The call is over. Without a leg, the session is left to the next engine process, detached."""
        with self._lock:
            self._over = self._gone = True
            leg, self._leg = self._leg, None
            self._kept.clear()
        self._streams.forget(self)
        if leg is not None:
            leg.on_end(cancelled)

    # The engine process's side

    def metadata(self) -> Metadata:
        """The metadata that the client sent."""
        return self._metadata

    def reply(self, data: bytes, *, last: bool = True) -> None:
        """Pass a reply on, except replies to openings that the client did not send."""
        pause_s, passed, late, unread = None, True, False, 0
        with self._lock:
            leg = self._leg
            if leg is None:
                return
            if self._greeted:
                counted = self._count(data, last)
                passed, last = counted is not None, bool(counted)
            else:
                self._greeted = True
                opened = self._answer(data)
                expects = opened.applied + 1 if self._opened is not None else 0
                late = any(each.asks and each.number < expects for each in self._kept)
                passed = self._opened is None
                if passed:
                    unread = self._open(opened)
                if self._lost_s is not None:
                    pause_s, self._lost_s = time.monotonic() - self._lost_s, None
                if not late:
                    self._send_kept(leg, expects)
            read_on = self._reads_on()
        if late:  # a copy's place is gone, for what stood behind it is applied: its client asks anew
            self.give_up(EngineLost("a copy of the state was not told: resume the session, and ask again"))
            return
        if passed:
            self._call.reply(data, last=last)
        for _ in range(unread):
            self._call.skip()
        if read_on:
            self._call.resume()
        if pause_s is not None and self._opened is not None:
            self._streams.resumed(self._opened.model, self._opened.version, pause_s)

    def _open(self, opened: pb.SessionOpened) -> int:
        """Take the answer to the client's opening; how many messages that came before it need none."""
        first = self._asked.first
        self._opened, self._window = opened, opened.window
        # Of an opening what a resume needs: it may have been as large as a message may be.
        self._asked, self._data = self._named(), b""
        if not first:  # what has come before was counted from 0
            for message in self._kept:
                message.number += opened.applied + 1
            self._next += opened.applied + 1
            return 0
        answered = 0
        while self._kept and self._kept[0].number <= self._received and not self._kept[0].asks:
            self._kept.popleft()
            answered += 1
        return answered

    def _count(self, data: bytes, last: bool) -> bool | None:
        """Count a reply; True if it is the last one to a message of this stream, None if the client has it."""
        self._deaths = 0
        # Kept replies, too, come as if more were to follow.
        steps = None if last else self._goes_on(data)
        if steps is not None:
            if self._again > 0:
                self._again -= steps
                return None
            self._steps += steps
            return False
        oldest = self._kept[0] if self._kept else None
        if oldest is None or not oldest.asks or oldest.number > self._received + 1:
            self._received += 1
            self._steps = self._told_steps = self._again = 0
            if oldest is None or oldest.asks or oldest.number > self._received:
                return False  # to a message of an earlier stream
        self._kept.popleft()
        return True

    def skip(self) -> None:
        """Nothing to do: `on_message` knows which messages have no reply."""

    def read_on(self) -> None:
        """Nothing to do: the client is always read ahead of the replies."""

    def has_room(self, wake: Callable[[], None]) -> bool:
        """As the client's call."""
        return self._call.has_room(wake)

    def resume(self) -> None:
        """The engine process has taken messages."""
        with self._lock:
            self._leg_full = False
            read_on = self._reads_on()
        if read_on:
            self._call.resume()

    def end(
        self, code: grpc.StatusCode = grpc.StatusCode.OK, details: str = "", trailing: Trailing = ()
    ) -> None:
        """End the client's call."""
        with self._lock:
            self._over = True
            resuming = self._opened is not None and not self._greeted
            finished = self._half_closed and not self._kept and self._told_number + 1 >= self._next
        if code is grpc.StatusCode.NOT_FOUND and resuming and finished:
            self._call.end()  # the engine process has died between the session's end and telling of it
        else:
            self._call.end(code, details, trailing)

    # What the messages of its kind say

    def _message(self, data: bytes) -> Message | None:
        """A message of the client; None if it has neither number nor reply."""
        request = None if only_input(data) is not None else _parsed(data)
        if request is None:
            return Message(self._next, data)
        # What is kept of the next two is made anew: nothing counts it, and a client may fill it with unknown fields.
        if request.HasField("received"):
            told = pb.StreamRequest(received=request.received, received_steps=request.received_steps)
            self._told, self._told_number = told.SerializeToString(), request.received
            if request.received == self._received:
                self._told_steps = min(request.received_steps, self._steps)
            return None
        if request.HasField("stop_generation"):
            stop = pb.StreamRequest(stop_generation=request.stop_generation).SerializeToString()
            for each in self._kept:
                if each.generates == request.stop_generation:
                    each.stop = stop
            return None
        # A snapshot and a fork have no number: they are made between two messages.
        asks = request.HasField("copy") and not request.copy.HasField("restore")
        return Message(self._next, data, asks, request.tag if request.HasField("generate") else None)

    def _named(self) -> Any:
        """An opening that identifies the session and the client."""
        return pb.OpenSession(**names(self._asked))

    def _first(self, asked: Any) -> bytes:
        """The message with which the stream resumes."""
        # No more than the client has said: the engine process keeps replies for it until it has. Others come again.
        asked.received_steps = self._told_steps
        self._again = self._steps - self._told_steps
        return pb.StreamRequest(open=asked).SerializeToString()

    def _answer(self, data: bytes) -> pb.SessionOpened:
        """What the reply to an opening says."""
        return pb.StreamResponse.FromString(data).opened

    def _goes_on(self, data: bytes) -> int | None:
        """The timesteps in a reply to a generation that goes on; None for any other reply."""
        response = pb.StreamResponse.FromString(data)
        goes_on = response.HasField("generated") and not response.generated.stop_reason
        return response.generated.steps if goes_on else None


def names(asked: pb.OpenSession | pb.OpenFrames) -> dict[str, Any]:
    """The fields of an opening that identify the session and the client."""
    kept = ("model", "version", "session", "token", "window", "attempt", "durability")
    return {name: getattr(asked, name) for name in kept}


def _parsed(data: bytes) -> pb.StreamRequest | None:
    """A message; None if it is malformed or combines fields that must stand alone: the engine process refuses it."""
    try:
        request = pb.StreamRequest.FromString(data)
        if request.HasField("stop_generation") or request.HasField("received"):
            check_stop(request)
    except (DecodeError, MalformedMessage):
        return None
    return request
