"""What a front end has of one engine's process: its models over rings, and the tunnel for all other calls."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from streamcell.card import Signature
from streamcell.service.errors import EngineLost, NotFound
from streamcell.service.lifecycle.table import Models
from streamcell.service.processes.event_wakeup import EventWakeup
from streamcell.service.processes.pipe import Pipe
from streamcell.service.processes.ring import Reader, Ring
from streamcell.service.processes.ring_records import Layout
from streamcell.service.processes.tunnel import ALL_READ, LANE, READ_ALL, SERVED, STALLED
from streamcell.service.sessions.shared_capacity import SharedCapacity

from .message_writer import MessageWriter
from .remote_batcher import LOST, RemoteBatcher
from .remote_model import RemoteFile, RemoteMetrics, RemoteModel, Reports
from .tunnel_calls import Tunnel


class FrontendLink:
    """One engine's process. Replies come on a thread of its own."""

    def __init__(
        self, pipe: Pipe, holder: int, models: Sequence[tuple[Mapping[str, Any], Sequence[int]]],
        reports: Reports, queue_messages: int,
    ) -> None:  # fmt: skip
        """`models`: what the engine says of each, and its descriptors."""
        self.tunnel = Tunnel(pipe, reports.error)
        self._pipe = pipe
        self._reports = reports
        self._wakeup = EventWakeup()
        self._gone = threading.Event()
        self._asked: deque[int] = deque()  # questions of the engine's whether all has been read
        self._batchers: dict[int, RemoteBatcher] = {}  # by each of their descriptors
        self.models: list[RemoteModel] = [
            self._model(about, fds, holder, reports, queue_messages) for about, fds in models
        ]
        self.table = Models(self.models)
        self._thread = threading.Thread(target=self._reply, name="replies", daemon=True)

    def _model(
        self, about: Mapping[str, Any], fds: Sequence[int], holder: int, reports: Reports, queue_messages: int
    ) -> RemoteModel:
        signature = Signature.model_validate_json(json.dumps(about["signature"]))
        inputs = Layout.of(signature.inputs, about["max_chunk"])
        outputs = Layout.of(signature.outputs, about["max_chunk"])
        seats, *rings = fds
        capacity = SharedCapacity(
            about["max_sessions"], about["first_slot"], stateful=bool(signature.states), holder=holder,
            memory=seats,
        )  # fmt: skip
        asks = Ring(inputs.capacity, inputs.record_bytes, *rings[:3])
        replies = Ring(outputs.capacity, outputs.record_bytes, *rings[3:])
        batcher = RemoteBatcher(
            capacity,
            MessageWriter(asks, inputs),
            Reader(replies),
            inputs,
            outputs,
            queue_messages,
            about["max_chunk"],
        )
        batcher.watch_room = lambda on: self._wakeup.watch(asks.freed, on)
        self._batchers[replies.written] = self._batchers[asks.freed] = batcher
        self._wakeup.watch(replies.written, True)
        name, version = about["name"], about["version"]
        return RemoteModel(
            RemoteFile(name, version, signature),
            batcher,
            RemoteMetrics(name, version, reports),
            about["max_sessions"],
            about["max_batch"],
            about["max_chunk"],
            about["generates"],
        )

    def whole(self, name: str, version: str) -> bool:
        """Whether a stream of that model is passed on whole: where it may generate, or models come and go."""
        if not self.models:
            return True
        try:
            return self.table.find(name, version).generates
        except NotFound:  # the stream will be told
            return False

    def start(
        self,
        lane: str,
        on_served: Callable[[str, bool], None],
        on_stalled: Callable[[str, bool], None],
        on_lost: Callable[[], None],
        when_read: Callable[[Callable[[], None]], None],
    ) -> None:
        """Begin to take replies, and tell the engine which `lane` drives the calls.

        `on_served` is told when a model begins or ceases to be served, `on_stalled` when a thread of the engine's makes
        no progress or does again; `on_lost` is called once the engine's process has gone, and then every call ends.
        `when_read` has a function called once the sockets have been read.
        """
        stalled: set[str] = set()

        def came(kind: int, number: int, body: bytes, fds: list[int]) -> None:
            if kind == SERVED:
                on_served(body.decode(), bool(number))
            elif kind == STALLED:
                stalled.add(body.decode())
                on_stalled(body.decode(), bool(number))
            elif kind == READ_ALL:
                when_read(lambda: self._ask(number))
            else:
                self.tunnel.came(kind, number, body)

        def lost() -> None:
            on_lost()
            for thread in stalled:
                on_stalled(thread, False)
            self._reports.attach(None)
            self._gone.set()
            self._wakeup.release()
            self._thread.join()
            for model in self.models:
                model.batcher.lose()
            self.tunnel.lose(EngineLost(LOST))
            for model in self.models:
                model.batcher.close()
            self._wakeup.close()

        self._thread.start()
        self._pipe.send(LANE, 0, lane.encode())
        self._reports.attach(self._pipe)
        self._pipe.start("engine", came, lost)

    def _ask(self, number: int) -> None:
        """What the sockets held is with the handlers: have the replying thread pass on what waits for replies."""
        self._asked.append(number)
        self._wakeup.release()

    def _reply(self) -> None:
        while not self._gone.is_set():
            asked = [self._asked.popleft() for _ in range(len(self._asked))]
            if asked:  # they were asked before the look that follows, which must not sleep
                self._wakeup.release()
            self._take()
            for number in asked:
                self._pipe.send(ALL_READ, number)

    def _take(self) -> None:
        """Sleep until something has come, and deal with it."""
        for fd in self._wakeup.wait():
            batcher = self._batchers.get(fd)
            if batcher is None:
                continue
            if fd == batcher.replies.ring.written:
                batcher.came()
            else:
                batcher.flush()
