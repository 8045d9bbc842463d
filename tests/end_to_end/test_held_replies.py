"""A batch's replies reach a client in a few segments, by the client's own kernel; and none of them waits."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from streamcell.benchmarks.load.raw_http2 import DATA, WINDOW_UPDATE, RawConnection, frame, message
from streamcell.client.local_server import ServerProcess
from streamcell.proto import pb

STREAM = "/streamcell.v1.StreamCell/Stream"
SESSIONS = 32
STEP = bytes(12)
# struct tcp_info of linux/tcp.h: tcpi_data_segs_in, present since Linux 4.6.
DATA_SEGMENTS_IN_AT = 152
Serve = Callable[..., ServerProcess]
Eventually = Callable[[Callable[[], bool]], bool]


class Sessions(RawConnection):
    """A client whose sessions step together: their messages leave in one segment."""

    def __init__(self, target: str) -> None:
        self.replies = 0
        super().__init__(target, window=1 << 24)
        self.socket.sendall(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1 << 24)))
        self.streams = self.open_many(STREAM, SESSIONS)
        self.send_all(pb.StreamRequest(open=pb.OpenSession(model="lstm"), inputs=[STEP]))

    def _came(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        self.replies += kind == DATA
        super()._came(kind, flags, stream, payload)

    def send_all(self, request: pb.StreamRequest) -> None:
        """Send `request` on every stream, and wait for the replies."""
        due = self.replies + SESSIONS
        data = message(request.SerializeToString())
        self.socket.sendall(b"".join(frame(DATA, 0, each, data) for each in self.streams))
        with self._changed:
            assert self._changed.wait_for(lambda: self.replies >= due or self.gone.is_set(), 60)
        assert self.replies == due

    def segments(self) -> int:
        info = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 200)
        return int(struct.unpack_from("I", info, DATA_SEGMENTS_IN_AT)[0])

    def segments_a_reply(self, rounds: int = 10) -> float:
        before = self.segments()
        for _ in range(rounds):
            self.send_all(pb.StreamRequest(inputs=[STEP]))
        return (self.segments() - before) / (rounds * SESSIONS)


@pytest.mark.conformance
def test_replies_of_a_batch_come_in_few_segments(
    start_server: Serve, models_dir: Path, eventually: Eventually
) -> None:
    server = start_server(models_dir)
    with Sessions(server.target) as client:
        # The server asks the kernel for its clients' sockets about once a second.
        assert eventually(lambda: client.segments_a_reply() < 0.5)
