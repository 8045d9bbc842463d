"""Two servers in this process: an operator moves a part of the sessions, and a server that forgets a rule is seen."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from streamcell.cli import app
from streamcell.client import Unavailable, connect
from streamcell.proto import pb
from streamcell.service.protocols.native.leaving import LeavingSession
from streamcell.service.server import Server
from streamcell.service.settings import Settings
from streamcell.service.store.writer import Writer
from tests.support.resumable import Owner, Raw, reason_of, save_sum, step, sums
from tests.support.valkey import ValkeyServer, valkey
from tests.support.walkers import Walker, go_on, walking

Mutate = Callable[[pytest.MonkeyPatch], None]
ASYNC, SYNC = pb.DURABILITY_STORE_ASYNC, pb.DURABILITY_STORE_SYNC

pytestmark = pytest.mark.interpreted("its mutants replace what compiled code calls directly")


class Pair:
    """Two servers with one store. Sessions begin on the first, and go on with the second."""

    def __init__(self, models: Path, store: ValkeyServer) -> None:
        self.servers = [self._begin(models, store.url, name) for name in "ab"]
        self.a, self.b = (f"127.0.0.1:{server.port}" for server in self.servers)
        self.store = store

    def _begin(self, models: Path, store: str, name: str) -> Server:
        flags = {"durability": "store-sync", "store": store, "replica": name, "remote_drain": True}
        settings = Settings.load(models=models, port=0, metrics_port=0, settle_s=0, grace_s=0, **flags)
        server = Server(settings)
        server.start()
        return server

    def drill(self, eventually: Any, *levels: int) -> None:
        """Move all sessions, at these levels in turn, while their clients step."""
        with connect(self.a) as client, self.walking(16, *levels) as walkers:
            go_on(walkers, eventually)
            assert client.drain_replica(1) == 16
            assert eventually(lambda: all(each.checked().replica == "b" for each in walkers))
            go_on(walkers, eventually)

    def walking(self, count: int, *levels: int) -> AbstractContextManager[list[Walker]]:
        """Clients that open their sessions on the first server, and go to the second one."""
        first = iter([self.a] * count)
        return walking(lambda: next(first, self.b), count, *levels)

    def stop(self) -> None:
        for server in self.servers:
            server.stop()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sum(tmp_path_factory.mktemp("models"))


@pytest.fixture
def pair(models: Path) -> Iterator[Pair]:
    with ExitStack() as stack:
        made = Pair(models, stack.enter_context(valkey()))
        stack.callback(made.stop)
        yield made


def releases_before_the_put(patch: pytest.MonkeyPatch) -> None:
    def release(self: Writer, stored: Any, done: Callable[[], None]) -> None:
        with self._changes:
            self._entered.pop(stored.key, None)
            self._dirty.pop(stored, None)
        self.free(stored.key)
        done()

    patch.setattr(Writer, "release", release)


def takes_messages_while_it_leaves(patch: pytest.MonkeyPatch) -> None:
    leave = LeavingSession._leave

    def later(self: LeavingSession) -> None:
        if self._final is None:
            self._final = final = self._image()
            self._leaving = False
            self._image = lambda: final  # type: ignore[method-assign]
            self._store.release(self, lambda: threading.Timer(0.1, leave, (self,)).start())

    patch.setattr(LeavingSession, "_leave", later)


def is_moved_before_its_last_replies(patch: pytest.MonkeyPatch) -> None:
    write, written = Writer._write, Writer._written

    def slowly(self: Writer) -> None:
        time.sleep(0.02)  # replies wait for longer
        write(self)

    def silently(self: Writer, batch: Any, letters: Any, *, leaves: bool = False) -> None:
        if not leaves:
            written(self, batch, letters)

    patch.setattr(Writer, "_write", slowly)
    patch.setattr(Writer, "_written", silently)


def test_a_part_of_the_sessions_moves_when_an_operator_asks(pair: Pair, eventually: Any) -> None:
    with connect(pair.a) as client, pair.walking(8, ASYNC, SYNC) as walkers:
        go_on(walkers, eventually)
        found = client.replica()
        assert (found.name, found.store) == ("a", f"127.0.0.1:{pair.store.port}")
        assert 0 < found.lease_s <= 4
        assert client.drain_replica(0.5) == 4
        assert eventually(lambda: [each.checked().replica for each in walkers].count("b") == 4)
        go_on(walkers, eventually)
        assert client.ready()
        assert client.drain_replica(1) == 4
        assert eventually(lambda: all(each.checked().replica == "b" for each in walkers))
        go_on(walkers, eventually)
        assert [each.moves for each in walkers] == [1] * 8
        assert not client.ready()
        # With a store the refusal says that another replica has room: the client asks again for as long as it may.
        with connect(pair.a, timeout_s=2) as hasty, pytest.raises(Unavailable):
            hasty.session("sum")
        assert (
            CliRunner()
            .invoke(app, ["status", "--target", pair.a])
            .stdout.splitlines()[1]
            .startswith(f"replica a, store {found.store}, lease valid for ")
        )


def test_a_session_that_is_not_done_when_the_grace_is_over_is_given_away_as_it_is(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = Owner()
    raw = Raw(pair.a, owner.opening(first=1), step(1))
    assert raw.opened().replica == "a"
    assert sums(raw.reply()) == [1.0]
    monkeypatch.setattr(LeavingSession, "_at_rest", False)  # as if a message took long
    pair.servers.pop(0).stop()
    assert raw.error()[0] == "SESSION_MOVED"
    assert pair.store.record(owner.session)["owner"] == b""
    again = Raw(pair.b, owner.resume(1))
    assert again.opened().replica == "b"
    again.send(step(2))
    assert sums(again.reply()) == [3.0]
    again.close(2)
    again.channel.close()


def test_sessions_that_move_while_they_step_lose_nothing(pair: Pair, eventually: Any) -> None:
    pair.drill(eventually, ASYNC, SYNC)


@pytest.mark.parametrize("mutate", [releases_before_the_put, takes_messages_while_it_leaves])
def test_a_server_that_loses_an_answered_step_is_seen(
    pair: Pair, mutate: Mutate, monkeypatch: pytest.MonkeyPatch, eventually: Any
) -> None:
    mutate(monkeypatch)
    with pytest.raises(AssertionError) as raised:
        pair.drill(eventually, ASYNC)
    cause = raised.value.__cause__
    # Some learn that a step is lost, others before that by what comes behind `moved`.
    assert isinstance(cause, AssertionError) or reason_of(cause)[0] == "STATE_BEHIND"


def test_a_server_that_leaves_replies_to_the_next_one_is_seen(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, eventually: Any
) -> None:
    is_moved_before_its_last_replies(monkeypatch)
    with pytest.raises(AssertionError) as raised:
        pair.drill(eventually, SYNC)
    assert "applied" in str(raised.value.__cause__)
