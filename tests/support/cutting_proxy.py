"""A TCP proxy that breaks connections: after so many bytes in either direction, when told, silently, or for a while."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from types import TracebackType

from streamcell.client import Client, connect

from .reconnecting import APART_AT_ONCE

TO_SERVER, TO_CLIENT = "to server", "to client"


class CuttingProxy:
    """Passes bytes on between clients and a server; a context manager.

    Attributes:
        target: its address.
        passed: bytes passed on so far, by direction.
        connections: how many there were.
    """

    def __init__(self, target: str) -> None:
        self._lead_to(target)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.target = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.passed = {TO_SERVER: 0, TO_CLIENT: 0}
        self.connections = 0
        self._cut_at: tuple[str, int] | None = None
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._stalled: set[socket.socket] = set()
        self._parted = False
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_after(self, direction: str, count: int) -> None:
        """Break all connections once, when `count` more bytes have been passed on in that direction."""
        with self._lock:
            self._cut_at = (direction, self.passed[direction] + count)

    def cut(self) -> None:
        """Break all connections."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    @contextlib.contextmanager
    def cutting(self) -> Iterator[Callable[[], None]]:
        """Break all connections again and again; the test calls what it is given after each answer.

        Before the next cut there is an answer, or a second without one: on a loaded machine no connection might live
        long enough.
        """
        stop, answered, chance = threading.Event(), threading.Event(), random.Random(1)

        def cut() -> None:
            while not stop.wait(chance.random() / 20):
                self.cut()
                answered.clear()
                if not stop.is_set():
                    answered.wait(1)

        breaker = threading.Thread(target=cut)
        breaker.start()
        try:
            yield answered.set
        finally:
            stop.set()
            answered.set()
            breaker.join()

    def stall(self) -> None:
        """Pass nothing on over the connections that there are: both ends believe that they live."""
        with self._lock:
            self._stalled.update(end for pair in self._pairs for end in pair)

    def part(self) -> None:
        """As a network that falls apart: pass nothing on, over new connections neither, until `heal`."""
        self._parted = True
        self.stall()

    def heal(self) -> None:
        """Pass on again, over new connections; those of before are broken."""
        self._parted = False
        self.cut()

    def lead_to(self, target: str) -> None:
        """Lead to another server from now on, as an address that moves; break all connections."""
        self._lead_to(target)
        self.cut()

    def _lead_to(self, target: str) -> None:
        host, port = target.split(":")
        self._server = (host, int(port))

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # the listener is closed
                return
            try:
                server = socket.create_connection(self._server)
            except OSError:
                client.close()
                continue
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self.connections += 1
                self._pairs.append((client, server))
                if self._parted:
                    self._stalled.update((client, server))
            for source, sink, direction in ((client, server, TO_SERVER), (server, client, TO_CLIENT)):
                threading.Thread(target=self._pass, args=(source, sink, direction), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, direction: str) -> None:
        try:
            while data := source.recv(65536):
                with self._lock:
                    if source in self._stalled:
                        continue
                    cut = self._cut_at is not None and self._cut_at[0] == direction
                    if cut and self._cut_at is not None:
                        left = self._cut_at[1] - self.passed[direction]
                        cut = left < len(data)
                        data = data[: max(left, 0)] if cut else data
                    if cut:
                        self._cut_at = None
                    self.passed[direction] += len(data)
                if data:
                    sink.sendall(data)
                if cut:
                    self.cut()
                    return
        except OSError:
            pass
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def __enter__(self) -> CuttingProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # ends `accept`
        self._listener.close()
        self.cut()


def client_of(proxy: CuttingProxy) -> Client:
    """A client by way of the proxy."""
    return connect(proxy.target, options=APART_AT_ONCE)
