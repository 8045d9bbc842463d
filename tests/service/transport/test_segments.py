"""Which sockets are held back while replies go out, and that none stays so: real connections, asked by TCP_CORK."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from streamcell.service.transport.in_flight import InFlight
from streamcell.service.transport.segments import WORTH, Segments, Socket, cookie_of
from streamcell.service.transport.tcp_figures import TcpFigures, peer_name


class Pair:
    """A connection of this process with itself: a server's socket and a client's."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, 0), family=family) as listening:
            self.client = socket.create_connection(listening.getsockname()[:2])
            self.server, _ = listening.accept()
        self.port: int = self.server.getsockname()[1]
        self.peer = peer_name(self.server.getpeername())

    def known(self) -> Socket:
        return Socket(self.server.fileno(), cookie_of(self.server))

    def close(self) -> None:
        self.client.close()
        self.server.close()


@pytest.fixture
def pair() -> Iterator[Callable[..., Pair]]:
    made: list[Pair] = []

    def make(host: str = "127.0.0.1") -> Pair:
        made.append(Pair(host))
        return made[-1]

    yield make
    for each in made:
        each.close()


MakePair = Callable[..., Pair]


def held(seen: socket.socket) -> bool:
    return bool(seen.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK))


def knowing(*pairs: Pair, kind: type[Segments] = Segments) -> Segments:
    made = kind()
    made.learn((), {each.peer: each.known() for each in pairs})
    return made


def holds_and_releases(kind: type[Segments], first: Pair, second: Pair) -> None:
    """Two connections are held while their replies go out, and neither afterwards."""
    segments = knowing(first, second, kind=kind)
    holding = segments.hold([first.peer, second.peer] * WORTH)
    assert held(first.server)
    assert held(second.server)
    segments.release(holding)
    assert not held(first.server)
    assert not held(second.server)


def test_connections_are_held_while_their_replies_go_out(pair: MakePair) -> None:
    first, second = pair(), pair("::1")
    holds_and_releases(Segments, first, second)
    segments = knowing(first)
    holding = segments.hold([first.peer] * WORTH)
    for _ in range(WORTH):
        first.server.send(b"reply")
    segments.release(holding)
    assert first.client.recv(WORTH * 5, socket.MSG_WAITALL) == b"reply" * WORTH


class LeavesOne(Segments):
    """Forgets the last connection of a batch."""

    def release(self, held: list[Socket]) -> None:
        super().release(held[:-1])


def test_a_connection_left_held_would_be_seen(pair: MakePair) -> None:
    with pytest.raises(AssertionError):
        holds_and_releases(LeavesOne, pair(), pair())


def test_only_known_connections_with_enough_replies_are_held(pair: MakePair) -> None:
    busy, quiet, stranger = pair(), pair(), pair()
    segments = knowing(busy, quiet)
    peers = [busy.peer] * WORTH + [quiet.peer] * (WORTH - 1) + [stranger.peer] * WORTH + ["unix:", ""] * WORTH
    holding = segments.hold(peers)
    assert [held(each.server) for each in (busy, quiet, stranger)] == [True, False, False]
    segments.release(holding)
    segments.learn([busy.peer], {})  # it has gone
    assert segments.hold(peers) == []
    assert not held(busy.server)


@contextmanager
def taken_over(fd: int, other: int) -> Iterator[None]:
    """The descriptor `fd` names what `other` names, as after a close and an open elsewhere in the process."""
    kept = os.dup(fd)
    os.dup2(other, fd)
    try:
        yield
    finally:
        os.dup2(kept, fd)
        os.close(kept)


def leaves_strangers_alone(own: Pair, foreign: Pair, kind: type[Segments] = Segments) -> None:
    """A number that another socket has now is not used, whether its own was held or not."""
    segments = knowing(own, kind=kind)
    peers = [own.peer] * WORTH
    with taken_over(own.server.fileno(), foreign.server.fileno()):
        segments.release(segments.hold(peers))
        holding = segments.hold(peers)
        assert not held(foreign.server)
    segments.release(holding)
    holding = segments.hold(peers)
    foreign.server.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)  # its owner's own wish
    with taken_over(own.server.fileno(), foreign.server.fileno()):
        segments.release(holding)
        assert held(foreign.server)


def test_a_number_that_names_another_socket_now_is_not_used(pair: MakePair) -> None:
    leaves_strangers_alone(pair(), pair())


class Careless(Segments):
    """Takes every socket for the one that it was told."""

    told: bytes

    def _cookie(self, seen: socket.socket) -> bytes:
        return self.told


def test_a_number_used_without_its_cookie_would_be_seen(pair: MakePair) -> None:
    own, foreign = pair(), pair()
    Careless.told = cookie_of(own.server)
    with pytest.raises(AssertionError):
        leaves_strangers_alone(own, foreign, kind=Careless)


class Closing(Segments):
    """While it uses a number for the first time, the core closes that connection, and another one gets the number."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0
        self.close: Callable[[], object] = lambda: None

    def _cookie(self, seen: socket.socket) -> bytes:
        cookie = super()._cookie(seen)
        self.looks += 1
        if self.looks == 1:
            self.close()
        return cookie


def test_a_number_taken_over_while_it_is_used_is_put_right(pair: MakePair) -> None:
    own, foreign = pair(), pair()
    segments = knowing(own, kind=Closing)
    assert isinstance(segments, Closing)
    kept = os.dup(own.server.fileno())
    segments.close = lambda: os.dup2(foreign.server.fileno(), own.server.fileno())
    segments.release(segments.hold([own.peer] * WORTH))
    os.dup2(kept, own.server.fileno())
    os.close(kept)
    assert segments.looks == 3
    assert not held(foreign.server)
    assert not held(own.server)


def test_a_number_that_names_a_file_or_nothing_does_no_harm(pair: MakePair, tmp_path: Path) -> None:
    own = pair()
    segments = knowing(own)
    peers = [own.peer] * WORTH
    with open(tmp_path / "file", "wb") as file:
        file.write(b"kept")
        with taken_over(own.server.fileno(), file.fileno()):
            segments.release(segments.hold(peers))
            assert os.fstat(own.server.fileno()).st_ino == os.fstat(file.fileno()).st_ino  # still open
    holding = segments.hold(peers)
    own.close()
    segments.release(holding)
    segments.release(segments.hold(peers))


class Failing(Segments):
    """Fails once two are held."""

    holds = 0

    def _cork(self, found: Socket, on: int) -> None:
        super()._cork(found, on)
        self.holds += on
        if on and self.holds == 2:
            raise MemoryError


def test_whatever_fails_meanwhile_nothing_stays_held(pair: MakePair) -> None:
    first, second = pair(), pair()
    with pytest.raises(MemoryError):
        knowing(first, second, kind=Failing).hold([first.peer, second.peer] * WORTH)
    assert not held(first.server)
    assert not held(second.server)


def test_two_threads_that_hold_one_connection_leave_it_free(pair: MakePair) -> None:
    own = pair()
    segments = knowing(own)
    peers = [own.peer] * WORTH
    # One after the other in every order of two holds and two releases.
    first, second = segments.hold(peers), segments.hold(peers)
    segments.release(first)
    segments.release(second)
    assert not held(own.server)

    def batches() -> None:
        for _ in range(300):
            segments.release(segments.hold(peers))

    threads = [threading.Thread(target=batches) for _ in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not held(own.server)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_kernel_is_asked_which_sockets_are_the_servers_clients(pair: MakePair, host: str) -> None:
    own = pair(host)
    peers = {own.peer, peer_name(own.client.getpeername())}
    figures = TcpFigures()
    assert figures.of(peers).keys() == peers
    assert figures.sockets == {}  # which of the two is the server's is not known yet
    figures.port = own.port
    # The client's end, which is in this process as well, is not the server's.
    assert figures.of(peers).keys() == {own.peer}
    assert figures.sockets == {own.peer: own.known()}
    own.close()
    assert figures.of(peers) == {}
    assert figures.sockets == {}


class Call:
    """A call of a connection, of no further interest."""

    messages = sent = 0
    half_open = True

    def __init__(self, peer: str) -> None:
        self.peer = peer

    def held(self) -> tuple[int, int]:
        return 0, 0

    def read_again(self) -> None: ...

    def cut(self, *args: object) -> None: ...

    def drop(self) -> None: ...


@pytest.mark.parametrize("hold", [True, False])
def test_connections_are_known_from_a_look_on_until_they_go(pair: MakePair, hold: bool) -> None:
    own = pair()
    segments = Segments()
    in_flight = InFlight(segments=segments)
    in_flight.listens(own.port, hold=hold)
    peers = [own.peer] * WORTH
    call = Call(own.peer)
    connection = in_flight.join(call)
    assert segments.hold(peers) == []
    in_flight.look()
    holding = segments.hold(peers)
    assert holding == ([own.known()] if hold else [])
    segments.release(holding)
    if hold:
        connection.leave(call)
        in_flight.look()
        assert segments.hold(peers) == [own.known()]  # a connection without calls is still one
        segments.release([own.known()])
        own.client.close()
        own.server.close()
        in_flight.look()
        assert segments.hold(peers) == []


def test_a_look_that_ends_after_the_server_tells_nothing(pair: MakePair) -> None:
    own = pair()
    segments = Segments()
    in_flight = InFlight(segments=segments)
    in_flight.listens(own.port, hold=True)
    in_flight.join(Call(own.peer))
    in_flight.look()
    peers = [own.peer] * WORTH
    segments.release(segments.hold(peers))
    in_flight.stop()
    assert segments.hold(peers) == []
    in_flight.look()
    assert segments.hold(peers) == []
