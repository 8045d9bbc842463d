"""A front end's kept streams, and engine processes that die when the test says so.

The engine's side is the real one, in this process. A kill leaves the journal's files as they are at that moment, so a
death copies them for the next engine process, and closes the pipe.
"""

from __future__ import annotations

import queue
import shutil
import socket
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from streamcell.proto import pb
from streamcell.service.access.identity import ANYONE
from streamcell.service.durability.journal import Entry
from streamcell.service.errors import EngineLost
from streamcell.service.model_host import SERVICE, ModelHost
from streamcell.service.processes.engine.frontend_link import Link
from streamcell.service.processes.engine.tunnel_lane import TunnelLane
from streamcell.service.processes.frontend.kept_frames import KeptFrames
from streamcell.service.processes.frontend.kept_stream import KeptStream
from streamcell.service.processes.frontend.kept_streams import KeptStreams
from streamcell.service.processes.frontend.remote_model import Reports
from streamcell.service.processes.frontend.tunnel_calls import Tunnel
from streamcell.service.processes.pipe import Pipe
from streamcell.service.settings import Settings
from streamcell.service.transport.calls import Metadata

WAIT_S = 60
WINDOW = 4


class Engine:
    """One engine process: its host, and both ends of a front end's link to it."""

    def __init__(self, settings: Settings) -> None:
        self.host = ModelHost(settings, lambda name, served: None)
        lane = TunnelLane()
        methods = {
            f"/{service}/{name}": handler
            for service, handlers in self.host.services(lane).items()
            for name, handler in handlers.items()
        }
        ours, theirs = socket.socketpair()
        self._pipe = Pipe(ours.detach())
        link = Link(self._pipe, 2, self.host, {}, lane, methods)
        pipe = self.pipe = Pipe(theirs.detach())
        self.tunnel = Tunnel(pipe, lambda error: None)
        self.gone = threading.Event()
        self._seen_off = threading.Event()

        def lost() -> None:
            self.tunnel.lose(EngineLost("the engine process has died"))
            self._seen_off.set()

        link.start(self.gone.set)
        pipe.start("engine", lambda kind, number, body, fds: self.tunnel.on_message(kind, number, body), lost)
        self.host.start()

    def close(self) -> None:
        """Nothing passes any more; what has been sent still arrives."""
        self._pipe.close()

    def wait_until_lost(self) -> None:
        """Until the front end has noticed."""
        assert self._seen_off.wait(WAIT_S)

    def stop(self) -> None:
        self.close()
        assert self.gone.wait(WAIT_S)
        self.host.drain()
        self.host.stop()


class Engines:
    """A front end whose engine process is killed and started again.

    Attributes:
        errors: what the front end has counted as told to clients.
    """

    def __init__(self, models: Path, folder: Path, **changes: Any) -> None:
        self._folder, self._number = folder, 0
        self._settings = {
            "models": models, "port": 0, "metrics_port": 0, "max_sessions": 8, "max_chunk": 4, "grace_s": 0,
            "durability": "process", **changes,
        }  # fmt: skip
        self.reports = Reports()
        self.streams = KeptStreams(self._loaded(), self.reports)
        self.errors: Counter[str] = Counter()
        self.streams.count = lambda error: self.errors.update([error.reason])
        self._engines: list[Engine] = []
        self._others: list[KeptStreams] = []
        self._stopping = False
        self._dying = threading.RLock()  # the next one starts with what this one has left
        self._beginning: list[threading.Thread] = []
        self.begin()

    def _loaded(self) -> Settings:
        return Settings.load(journal_dir=self._folder / str(self._number), **self._settings)

    @property
    def host(self) -> ModelHost:
        return self._engines[-1].host

    def reported(self) -> None:
        """Let the front end's counts go to the engine process."""
        self.reports.attach(self._engines[-1].pipe)

    def front_end(self) -> KeptStreams:
        """Another front end, which must be attached by hand."""
        self._others.append(KeptStreams(self._loaded(), self.reports))
        return self._others[-1]

    @property
    def tunnel(self) -> Tunnel:
        return self._engines[-1].tunnel

    def begin(self) -> None:
        """Start an engine process, which finds what the last one has left."""
        with self._dying:
            self._engines.append(Engine(self._loaded()))
        self.streams.attach(self.tunnel)

    def kill(self) -> None:
        """Kill it at this moment; on any thread."""
        with self._dying:
            self._engines[-1].close()
            left = self._folder / str(self._number)
            self._number += 1
            shutil.copytree(left, self._folder / str(self._number))

    def lose(self) -> None:
        """Kill it, and wait until the front end knows."""
        self.kill()
        self._engines[-1].wait_until_lost()

    def again(self) -> None:
        """Kill it, and start another."""
        self.lose()
        self.begin()

    def kill_and_begin(self) -> None:
        """Kill it at this moment, and let another thread start one once the front end knows."""

        def begin(lost: Engine) -> None:
            lost.wait_until_lost()
            self.begin()

        with self._dying:
            if not self._stopping:
                self.kill()
                self._beginning.append(threading.Thread(target=begin, args=(self._engines[-1],)))
                self._beginning[-1].start()

    def wait_until_lost(self) -> None:
        """Until the front end knows that the latest engine process has died."""
        self._engines[-1].wait_until_lost()

    def stop(self) -> None:
        with self._dying:
            self._stopping = True
        for thread in self._beginning:
            thread.join()
        for streams in (self.streams, *self._others):
            streams.drain()  # none waits for a next one, and so for its time-out
        for engine in self._engines:
            self.reports.detach(engine.pipe)
            engine.stop()


class Client:
    """A client's call in a front end (a `calls.Call`), whose messages the test brings.

    Attributes:
        unanswered: messages that count as the client's bytes in flight.
        reading: whether the front end reads its messages.
    """

    peer = "test"
    gone = "cancelled"
    caller = ANYONE
    again = False

    def __init__(self, engines: Engines, opening: Any, streams: KeptStreams | None = None) -> None:
        """`opening`: a `StreamRequest` or a `FrameRequest`; `streams`: whose, if not those that `engines` attaches."""
        self._came: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self.unanswered = 1
        self.reading = True
        self.resumed = threading.Event()
        self.told_end = threading.Event()
        streams = streams or engines.streams
        assert streams.keeps(opening.open)
        data = opening.SerializeToString()
        frames = isinstance(opening, pb.FrameRequest)
        self._response: Any = pb.FrameResponse if frames else pb.StreamResponse
        kind = KeptFrames if frames else KeptStream
        method = f"/{SERVICE}/StreamFrames" if frames else f"/{SERVICE}/Stream"
        self.stream = kind(self, opening.open, data, streams, method)
        self.stream.begin(engines.tunnel)

    # The test's side

    def send(self, *messages: Any) -> None:
        for message in messages:
            with self._lock:
                self.unanswered += 1
            self.resumed.clear()
            self.reading = self.stream.on_message(message.SerializeToString()) or self.resumed.is_set()

    def next(self) -> Any:
        came = self._came.get(timeout=WAIT_S)
        assert isinstance(came, self._response), came
        return came

    def opened(self) -> pb.SessionOpened:
        reply = self.next()
        assert reply.HasField("opened")
        told: pb.SessionOpened = reply.opened
        return told

    def ended(self) -> str:
        """The reason of the error that has ended it, "" for none; the call is then over."""
        came = self._came.get(timeout=WAIT_S)
        assert isinstance(came, tuple), came
        code, trailing = came
        self.stream.on_end(cancelled=False)
        if code is grpc.StatusCode.OK:
            return ""
        status, info = status_pb2.Status(), error_details_pb2.ErrorInfo()
        status.ParseFromString(dict(trailing)["grpc-status-details-bin"])  # type: ignore[arg-type]
        status.details[0].Unpack(info)
        return info.reason

    @property
    def waits(self) -> bool:
        """True if nothing has come that the test has not taken."""
        return self._came.empty()

    def leave(self) -> None:
        """The client goes away."""
        self.stream.on_end(cancelled=True)

    # The front end's side

    def metadata(self) -> Metadata:
        return ()

    def hand_to(self, handler: Any) -> None: ...

    def reply(self, data: bytes, *, last: bool = True) -> None:
        with self._lock:
            self.unanswered -= last
        self._came.put(self._response.FromString(data))

    def skip(self) -> None:
        with self._lock:
            self.unanswered -= 1

    def read_on(self) -> None: ...

    def has_room(self, wake: Any) -> bool:
        return True

    def resume(self) -> None:
        self.reading = True
        self.resumed.set()

    def run_after_arrivals(self, callback: Any) -> bool:
        return False

    def end(
        self, code: grpc.StatusCode = grpc.StatusCode.OK, details: str = "", trailing: Metadata = ()
    ) -> None:
        self._came.put((code, trailing))
        self.told_end.set()


def received(count: int) -> pb.StreamRequest:
    """What says that the client has so many replies."""
    return pb.StreamRequest(received=count)


def kills(engines: Engines, monkeypatch: pytest.MonkeyPatch, due: list[tuple[int, str]]) -> None:
    """Kill the engine process at each of the (message's number, moment) in `due`, and start another one."""
    keep, commit = Entry.keep, Entry.commit
    dead: set[int] = set()  # journals of processes that have been killed

    def at(entry: Any, number: int, moment: str) -> None:
        if due and due[0] == (number, moment) and id(entry._journal) not in dead:
            due.pop(0)
            dead.add(id(entry._journal))
            engines.kill_and_begin()

    def kept(self: Entry, number: int, *arguments: Any) -> None:
        at(self, number, "ran")
        keep(self, number, *arguments)
        at(self, number, "kept")

    def committed(self: Entry, reads: int, number: int, *arguments: Any) -> None:
        commit(self, reads, number, *arguments)
        at(self, number, "committed")

    monkeypatch.setattr(Entry, "keep", kept)
    monkeypatch.setattr(Entry, "commit", committed)
