"""Sessions on shared streams of frames, in the blocking client."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import grpc

from streamcell.client.errors import (
    Cancelled,
    DeadlineExceeded,
    Explain,
    ServerFault,
    StreamCellError,
    Unavailable,
    from_rpc,
)
from streamcell.client.protocol.members import OPEN_ELSEWHERE, Asked, FewSessions, Member, Row, RowReply, Wish
from streamcell.client.protocol.session import SessionExchange
from streamcell.client.protocol.shared_stream import SharedExchange
from streamcell.proto import pb

from .grpc_stream import Requests

Key: TypeAlias = tuple[str, str]
_OTHER_STREAMS = 3
# Unanswered frames. Threads get the interpreter one after another: with a second frame both would be small.
_FRAMES_AHEAD = 1


class SharedStreams:
    """The shared streams of one client: one for each model and version, while sessions are on it."""

    def __init__(self, start: Callable[[Requests], Any], explain: Explain | None = None) -> None:
        """`start` starts a gRPC call for an iterator of frames; `explain`: as for `from_rpc`."""
        self._start = start
        self._explain = explain
        self._lock = threading.Lock()
        self._few = FewSessions()
        self._not_carried: set[Key] = set()
        self._streams: dict[Key, SharedStream] = {}

    def open(
        self, key: Key, exchange: SessionExchange, always: bool, timeout_s: float
    ) -> MemberStream | None:
        """What carries a new session of this model and version; None if it needs a stream of its own.

        Args:
            key: model and version.
            exchange: the session's; its messages go to the shared stream from now on.
            always: True to share even if few sessions are live, or if the model can generate.
            timeout_s: time limit of the first session, for the server's description of the model.

        Raises:
            DeadlineExceeded: the server did not answer in time.
        """
        if not always:
            with self._lock:
                if key in self._not_carried or self._few.take(key, exchange):
                    return None
        stream = MemberStream(self, key, exchange.output_mode, generates=not always)
        carried = stream.is_carried(timeout_s)
        if carried is False and not always:
            self._not_carried.add(key)
        if not carried:
            return None
        exchange.share()
        return stream

    def join(self, key: Key, member: Member, left: SharedStream | None = None) -> SharedStream:
        """Put a new session on the stream for `key`, on another one than `left`."""
        with self._lock:
            stream = self._streams.get(key)
            if stream is None or stream is left:
                stream = self._streams[key] = SharedStream(key, self._retire, self._explain)
                stream.begin(self._start)
            stream.ask((member, Wish.JOIN))
            return stream

    def _retire(self, stream: SharedStream, only_if: Callable[[], bool]) -> bool:
        """Put no more sessions on `stream`; False if `only_if`, called while none can be, does not hold."""
        with self._lock:
            if not only_if():
                return False
            if self._streams.get(stream.key) is stream:
                del self._streams[stream.key]
            return True


class SharedStream:
    """One stream of frames. gRPC's thread for requests writes it, and a thread of its own reads it.

    Sessions talk to the writer through a queue that may be used while objects are destroyed, so no lock is held then.

    Attributes:
        key: model and version.
        ask: brings something to the writer.
        described: set once the server has described the model, or the stream has ended.
    """

    def __init__(
        self,
        key: Key,
        retire: Callable[[SharedStream, Callable[[], bool]], bool],
        explain: Explain | None = None,
    ) -> None:
        self.key = key
        self._explain = explain
        self._asked: queue.SimpleQueue[Asked] = queue.SimpleQueue()
        self.ask: Callable[[Asked], None] = self._asked.put
        self.exchange = SharedExchange(*key, self.ask, _FRAMES_AHEAD)
        self.described = threading.Event()
        self._retire = retire
        self._turn = threading.Lock()  # held to change the exchange's list of sessions
        self._over = False
        self._error: StreamCellError | None = None
        self._call: Any = None

    def begin(self, start: Callable[[Requests], Any]) -> None:
        """Start the call and its reader."""
        self._call = start(self)
        threading.Thread(target=self._read, name="streamcell-frames", daemon=True).start()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        """The next frame, once there is one; gRPC's thread calls it when it is free to send."""
        asked = self._asked
        handle = self.exchange.handle
        while True:
            with self._turn:
                while not asked.empty():
                    handle(asked.get_nowait())
                frame = None if self._over else self.exchange.next_frame()
                if frame is not None:
                    return frame
                if not self._over and self.exchange.unused and self._retire(self, asked.empty):
                    self._over = True
                    if self.exchange.forsaken:
                        self._call.cancel()
                if self._over:
                    if self._error is not None:  # a session may have joined just before the end
                        self.exchange.end(self._error)
                    raise StopIteration
            what = asked.get()
            with self._turn:
                handle(what)

    def _read(self) -> None:
        error: StreamCellError = Unavailable(
            "the server ended the stream before it answered", reason="STREAM_ENDED"
        )
        try:
            for reply in self._call:
                self.exchange.deal(reply)
                self.described.set()
        except grpc.RpcError as failure:
            error = from_rpc(failure, self._explain)  # type: ignore[arg-type]  # every RpcError of a call is a Call
        except ServerFault as fault:
            error = fault
        finally:
            self._end(error)

    def _end(self, error: StreamCellError) -> None:
        with self._turn:
            self._over, self._error = True, error
            self._retire(self, lambda: True)
            while not self._asked.empty():  # sessions that have just joined
                self.exchange.handle(self._asked.get_nowait())
            self.exchange.end(error)
        self.described.set()
        self.ask((None, Wish.LOOK))  # ends the writer
        self._call.cancel()


class MemberStream:
    """A session's part of a shared stream: the `SessionStream` of its `Session`."""

    def __init__(self, streams: SharedStreams, key: Key, mode: pb.OutputMode, generates: bool) -> None:
        self._streams = streams
        self._key = key
        self._mode = mode
        self._generates = generates
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._others = _OTHER_STREAMS
        self._open = False
        self._join(None)

    def _join(self, left: SharedStream | None) -> None:
        self._member = Member(self._mode, self._generates, self._inbox.put)
        self._stream = self._streams.join(self._key, self._member, left)

    def is_carried(self, timeout_s: float) -> bool | None:
        """Whether the shared stream carries this session; None if it has ended. Waits for the model's description.

        Raises:
            DeadlineExceeded: the server did not answer in time.
        """
        described = False
        try:
            described = self._stream.described.wait(min(timeout_s, threading.TIMEOUT_MAX))
        finally:
            if not described:
                self.cancel()
        if not described:
            raise DeadlineExceeded(f"no answer within {timeout_s:g} s: the session is over")
        exchange = self._stream.exchange
        return None if exchange.opened is None else exchange.carries(self._member)

    def write(self, message: Any) -> None:
        """Send a message, without waiting. The opening has been sent."""
        if type(message) is Row:
            self._stream.ask((self._member, message))

    def done_writing(self) -> None:
        """Close the session once its messages have been sent."""
        self._stream.ask((self._member, Wish.FINISH))

    def read(self) -> Any:
        """Wait for the next reply; None if the session has ended and all replies were read."""
        reply = self._inbox.get()
        if type(reply) is RowReply:
            member = self._member
            member.read += reply.cost
            if member.stalled:
                self._stream.ask((member, Wish.LOOK))
        elif reply is not None:
            self._open = True
        elif self._may_open_elsewhere():
            self._others -= 1
            self._join(self._stream)
            return self.read()
        else:
            self._inbox.put(None)
        return reply

    def _may_open_elsewhere(self) -> bool:
        error = self._member.error
        return not self._open and error is not None and error.reason in OPEN_ELSEWHERE and self._others > 0

    def error(self) -> StreamCellError | None:
        """The error that the session ended with; None if it was closed."""
        return self._member.error

    def cancel(self) -> None:
        """End the session at once."""
        member = self._member
        member.end(Cancelled("the session was cancelled"))
        self._stream.ask((member, Wish.LEAVE))
