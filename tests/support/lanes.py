"""A server on one lane and its client, without a model: handlers that echo, count or answer late."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc

from streamcell.service.transport.calls import Call, ServerLane, UnaryCall

WAIT_S = 60.0


CANCELLED = grpc.StatusCode.CANCELLED


class Echo:
    """Answers each message with itself, at once; obeys a few commands; keeps what happened to it."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.messages: list[bytes] = []
        self.half_closed = threading.Event()
        self.ended = threading.Event()
        self.ends: list[bool] = []
        self.got: queue.Queue[bytes] = queue.Queue()

    def on_message(self, data: bytes) -> bool:
        self.messages.append(data)
        self.got.put(data)
        return self.take(data)

    def take(self, data: bytes) -> bool:
        if data == b"raise":
            raise RuntimeError("a secret of the server")
        if data == b"fail":
            self.call.end(grpc.StatusCode.ABORTED, "asked to", (("why", "test"), ("why-bin", b"\x00\xff")))
        elif data == b"reply and end":
            self.call.reply(data)
            self.call.end(grpc.StatusCode.ABORTED, "after the reply")
        elif data != b"hold":
            self.call.reply(data)
        return True

    def on_half_close(self) -> None:
        self.half_closed.set()
        self.call.end()

    def on_end(self, cancelled: bool) -> None:
        self.ends.append(cancelled)
        self.ended.set()


class Engine(Echo):
    """Answers from a thread of its own, as the engine does."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.work: queue.Queue[bytes | None] = queue.Queue()
        self.unfinished = 0
        self.lock = threading.Lock()
        self.thread = threading.Thread(target=self.answer_all, daemon=True)
        self.thread.start()

    def take(self, data: bytes) -> bool:
        with self.lock:
            self.unfinished += 1
        self.work.put(data)
        return True

    def answer_all(self) -> None:
        while (data := self.work.get()) is not None:
            self.call.reply(data)
            with self.lock:
                self.unfinished -= 1
                done = self.half_closed.is_set() and not self.unfinished
            if done:
                self.call.end()

    def on_half_close(self) -> None:
        with self.lock:
            self.half_closed.set()
            done = not self.unfinished
        if done:
            self.call.end()

    def on_end(self, cancelled: bool) -> None:
        self.work.put(None)
        super().on_end(cancelled)


class Feed:
    """A client's messages, put in one by one; `None` half-closes."""

    def __init__(self, *messages: bytes | None) -> None:
        self.queue: queue.Queue[bytes | None] = queue.Queue()
        self.put(*messages)

    def put(self, *messages: bytes | None) -> None:
        for message in messages:
            self.queue.put(message)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.queue.get, None)


class Rig:
    """One server on one lane, and its client."""

    def __init__(self, lane: ServerLane, open_: Callable[[Call], Any] = Echo, **server: Any) -> None:
        self.opened: queue.Queue[Any] = queue.Queue()
        self.requests: queue.Queue[tuple[UnaryCall, bytes]] = queue.Queue()
        self.on_request: Callable[[UnaryCall, bytes], None] = lambda call, data: call.answer(data[::-1])
        credentials = server.pop("credentials", None)
        others = server.pop("others", {})

        def open_and_note(call: Call) -> Any:
            handler = open_(call)
            self.opened.put(handler)
            return handler

        def request(call: UnaryCall, data: bytes) -> None:
            self.requests.put((call, data))
            self.on_request(call, data)

        if "interceptors" in server:
            self.server = grpc.server(futures.ThreadPoolExecutor(64), **server)
        else:
            self.server = lane.server(**server, spin_s=100e-6)
        methods = {"Stream": lane.stream(open_and_note), "Unary": lane.unary(request), **others}
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t", methods),))
        if credentials is None:
            self.port = self.server.add_insecure_port("127.0.0.1:0")
        else:
            self.port = self.server.add_secure_port("localhost:0", credentials)
        self.server.start()
        self.channels: list[grpc.Channel] = []
        self.channel = self.connect() if credentials is None else None

    def connect(self) -> grpc.Channel:
        options = (
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.enable_http_proxy", 0),
        )
        channel = grpc.insecure_channel(f"127.0.0.1:{self.port}", options=options)
        self.channels.append(channel)
        return channel

    def stream(self, messages: Any, channel: grpc.Channel | None = None, **call: Any) -> Any:
        call.setdefault("timeout", WAIT_S)
        method: Any = (channel or self.channel).stream_stream("/t/Stream")  # type: ignore[union-attr]
        return method(iter(messages), **call)

    def unary(self, data: bytes, timeout: float = WAIT_S) -> Any:
        assert self.channel is not None
        return self.channel.unary_unary("/t/Unary").future(data, timeout=timeout)

    def handler(self) -> Any:
        return self.opened.get(timeout=WAIT_S)

    def close(self) -> None:
        for channel in self.channels:
            channel.close()
        assert self.server.stop(0).wait(WAIT_S)


Start = Callable[..., Rig]


def status(call: Any) -> tuple[grpc.StatusCode, str]:
    """How a call ended; its remaining replies are dropped."""
    try:
        for _ in call:
            pass
    except grpc.RpcError:
        pass
    return call.code(), call.details()
