"""Replies that follow one another on a stream leave together, and are counted while the core keeps them."""

from __future__ import annotations

import socket
import struct
import threading

from streamcell.benchmarks.load.raw_http2 import DATA, RawConnection, message
from streamcell.service.transport.calls import Call
from streamcell.service.transport.fast_lane import FastLane
from tests.support.lanes import WAIT_S, Echo, Rig

REPLIES = 16
SIZE = 1000
PREFIX = 5  # of a message
# struct tcp_info of linux/tcp.h: tcpi_data_segs_in, present since Linux 4.6.
DATA_SEGMENTS_IN_AT = 152


class Many(Echo):
    """Answers each message with many replies, as a generation does."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.replied = threading.Event()

    def take(self, data: bytes) -> bool:
        for number in range(1, REPLIES + 1):
            self.call.reply(bytes([number]) * SIZE, last=number == REPLIES)
        self.replied.set()
        return True


class Client(RawConnection):
    """Keeps what it is sent."""

    def __init__(self, target: str, **options: int) -> None:
        self.data = b""
        super().__init__(target, **options)

    def _came(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == DATA:
            self.data += payload
        super()._came(kind, flags, stream, payload)

    def wait(self, size: int) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: len(self.data) >= size or self.gone.is_set(), WAIT_S)

    def segments(self) -> int:
        info = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 200)
        return int(struct.unpack_from("I", info, DATA_SEGMENTS_IN_AT)[0])


def test_replies_to_one_message_come_whole_in_order_and_in_few_segments() -> None:
    rig = Rig(FastLane(), Many)
    whole = b"".join(message(bytes([number]) * SIZE) for number in range(1, REPLIES + 1))
    rounds = 3  # as many as the windows allow
    with Client(f"127.0.0.1:{rig.port}") as client:
        stream = client.open("/t/Stream")
        before = client.segments()
        for done in range(1, rounds + 1):
            client.send(stream, message(b"go"))
            assert client.wait(done * len(whole))
        assert client.data == whole * rounds
        assert client.segments() - before < rounds * REPLIES / 2
    rig.close()


def test_replies_that_the_core_keeps_count_as_unsent() -> None:
    rig = Rig(FastLane(), Many)
    with Client(f"127.0.0.1:{rig.port}", window=SIZE + PREFIX) as client:  # for the first reply
        client.send(client.open("/t/Stream"), message(b"go"))
        handler = rig.handler()
        assert handler.replied.wait(WAIT_S)
        for _ in range(2):  # what had happened to the replies has been seen then
            assert rig.unary(b"abc").result() == b"cba"
        assert handler.call.held()[1] >= (REPLIES - 1) * SIZE
    rig.close()
