"""Servers of this process that share a real store, and streams whose replies show when they come."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from streamcell.proto import pb
from streamcell.service.protocols.native.stored_session import StoredSession
from streamcell.service.server import Server

from .resumable import Owner, Raw, reason_of
from .valkey import ValkeyServer
from .waiting import waited

# Starts a server with a shared store: its level, its name, and settings.
Start = Callable[..., Server]
mutant = pytest.mark.interpreted("its mutants replace what compiled code calls directly")


class Reading(Raw):
    """A stream whose replies are read as they come."""

    def __init__(self, server: Server, *messages: Any, **more: Any) -> None:
        super().__init__(f"127.0.0.1:{server.port}", *messages, **more)
        self.came: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.steps = 0  # of a generation that has not ended, as far as they have come
        self._all = iter(self.call)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            for reply in self._all:
                generated = reply.generated if reply.HasField("generated") else None
                if generated is not None:
                    self.steps = 0 if generated.stop_reason else self.steps + generated.steps
                self.came.put(reply)
        except Exception as error:
            self.came.put(error)
        else:
            self.came.put(None)

    def reply(self) -> Any:
        """The next one."""
        came = self.came.get(timeout=60)
        if isinstance(came, Exception):
            raise came
        return came

    def outputs(self) -> Any:
        """The next one that answers a message."""
        while not (reply := self.reply()).outputs:
            assert reply == pb.StreamResponse(durable=reply.durable), reply
        return reply

    def error(self) -> Any:
        """As `Raw.error`."""
        return reason_of(self.end())

    def end(self) -> Any:
        """What the call ended with, behind all replies: an error, or None."""
        while not ((came := self.came.get(timeout=60)) is None or isinstance(came, Exception)):
            pass
        return came


def opened(server: Server, owner: Owner, **fields: Any) -> Reading:
    """A stream whose opening is answered."""
    made = Reading(server, owner.opening(**fields))
    made.opened()
    return made


def ends_with_moved(raw: Reading) -> None:
    """The stream is told that its session goes on elsewhere, and ends with OK once its client has half-closed it."""
    while not raw.reply().HasField("moved"):
        pass
    raw.send(None)
    assert raw.end() is None


def take_away(shared: ValkeyServer, owner: Owner) -> None:
    """The record has no owner any more, as after a lease that ran out, and who had the session does not know."""
    shared.call("HSET", f"sc:s:{owner.id}", "owner", "")


def stored(server: Server, owner: Owner) -> StoredSession:
    """The session as the server has it."""
    listener = server.host.sessions.find(owner.id).session.listener
    assert isinstance(listener, StoredSession)
    return listener


def has_applied(server: Server, owner: Owner, messages: int) -> bool:
    """Wait until the session has applied so many messages, whatever was told of them."""
    return waited(lambda: stored(server, owner).applied >= messages)


def waits_for_client(raw: Reading, session: StoredSession, received: int = 0) -> int:
    """Wait until a generation waits for its client to acknowledge replies; returns the timesteps it has told.

    Before that it may wait a moment for its stream, whose client reads more slowly than it steps. `received`: timesteps
    of it that its client had when it opened the stream.
    """

    def waits() -> bool:
        steps, full = session._steps, session.place.is_full(session._kept)
        return bool(full and session.live.session.gate and received + raw.steps == steps == session._steps)

    assert waited(waits)
    return session._steps


class Gate:
    """While it is closed a server's writer, or who else uses a connection, does not get to the store."""

    def __init__(self, of: Any) -> None:
        """`of`: a server, or another connection of its store."""
        connection = of.host.store._writer._connection if isinstance(of, Server) else of
        exchange: Callable[..., Any] = connection.exchange
        self._open = threading.Event()
        self._open.set()

        def held(*commands: Any, **more: Any) -> Any:
            self._open.wait()
            return exchange(*commands, **more)

        connection.exchange = held

    @contextmanager
    def closed(self) -> Iterator[None]:
        self._open.clear()
        try:
            yield
        finally:
            self._open.set()
