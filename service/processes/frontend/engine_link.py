"""A front end's link to one engine process: the models over rings, and the tunnel for all other calls."""

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
    """The link to one engine process. Replies arrive on a thread of its own."""

    def __init__(
        self, pipe: Pipe, process_number: int, models: Sequence[tuple[Mapping[str, Any], Sequence[int]]],
        reports: Reports, queue_messages: int,
    ) -> None:  # fmt: skip
        """`models`: each model's description from the engine process, with its descriptors."""
        self.tunnel = Tunnel(pipe, reports.error)
        self._pipe = pipe
        self._reports = reports
        self._wakeup = EventWakeup()
        self._gone = threading.Event()
        self._asked: deque[int] = deque()  # numbers of `READ_ALL` messages to answer
        self._batchers: dict[int, RemoteBatcher] = {}  # by each of their descriptors
        self.models: list[RemoteModel] = [
            self._model(about, fds, process_number, reports, queue_messages) for about, fds in models
        ]
        self.table = Models(self.models)
        self._thread = threading.Thread(target=self._reply, name="replies", daemon=True)

    def _model(
        self,
        about: Mapping[str, Any],
        fds: Sequence[int],
        process_number: int,
        reports: Reports,
        queue_messages: int,
    ) -> RemoteModel:
        signature = Signature.model_validate_json(json.dumps(about["signature"]))
        inputs = Layout.of(signature.inputs, about["max_chunk"])
        outputs = Layout.of(signature.outputs, about["max_chunk"])
        entries, *rings = fds
        capacity = SharedCapacity(
            about["max_sessions"], about["first_slot"], stateful=bool(signature.states), process_number=process_number,
            memory=entries,
        )  # fmt: skip
        requests = Ring(inputs.capacity, inputs.record_bytes, *rings[:3])
        replies = Ring(outputs.capacity, outputs.record_bytes, *rings[3:])
        batcher = RemoteBatcher(
            capacity,
            MessageWriter(requests, inputs),
            Reader(replies),
            inputs,
            outputs,
            queue_messages,
            about["max_chunk"],
        )
        batcher.watch_room = lambda on: self._wakeup.watch(requests.freed, on)
        self._batchers[replies.written] = self._batchers[requests.freed] = batcher
        self._wakeup.watch(replies.written, True)
        name, version = about["name"], about["version"]
        return RemoteModel(
            RemoteFile(name, version, signature),
            batcher,
            RemoteMetrics(name, version, reports),
            about["max_sessions"],
            about["max_batch"],
            about["max_chunk"],
            about["unparsed"],
        )

    def whole(self, name: str, version: str) -> bool:
        """True if streams of that model are passed on unparsed: it may generate, is given values, or models change."""
        if not self.models:
            return True
        try:
            return self.table.find(name, version).unparsed
        except NotFound:  # the stream's handler reports it
            return False

    def start(
        self,
        lane: str,
        on_served: Callable[[str, bool], None],
        on_stalled: Callable[[str, bool], None],
        on_lost: Callable[[], None],
        when_read: Callable[[Callable[[], None]], None],
    ) -> None:
        """Begin to handle messages and replies.

        Args:
            lane: the name of the lane that drives the calls, for the engine process's metrics.
            on_served: called when a model becomes available or unavailable.
            on_stalled: called when a thread of the engine process makes no progress, or makes progress again.
            on_lost: called once the engine process has ended; then every call ends.
            when_read: calls a function once the sockets have been read.
        """
        stalled: set[str] = set()

        def on_message(kind: int, number: int, body: bytes, fds: list[int]) -> None:
            if kind == SERVED:
                on_served(body.decode(), bool(number))
            elif kind == STALLED:
                stalled.add(body.decode())
                on_stalled(body.decode(), bool(number))
            elif kind == READ_ALL:
                when_read(lambda: self._ask(number))
            else:
                self.tunnel.on_message(kind, number, body)

        def lost() -> None:
            on_lost()
            for thread in stalled:
                on_stalled(thread, False)
            self._reports.detach(self._pipe)
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
        self._pipe.start("engine", on_message, lost)

    def _ask(self, number: int) -> None:
        """Answer `READ_ALL`: the handlers have what the sockets held; the replying thread passes on what waits."""
        self._asked.append(number)
        self._wakeup.release()

    def _reply(self) -> None:
        while not self._gone.is_set():
            asked = [self._asked.popleft() for _ in range(len(self._asked))]
            if asked:  # the next `_take` must not sleep, so that the answer follows it
                self._wakeup.release()
            self._take()
            for number in asked:
                self._pipe.send(ALL_READ, number)

    def _take(self) -> None:
        """Sleep until a ring is readable or has room, and handle it."""
        for fd in self._wakeup.wait():
            batcher = self._batchers.get(fd)
            if batcher is None:
                continue
            if fd == batcher.replies.ring.written:
                batcher.deliver_replies()
            else:
                batcher.flush()
