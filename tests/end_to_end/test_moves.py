"""Sessions in a shared store move when their server shuts down: no error, no lost and no doubled step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streamcell.proto import pb
from tests.support.replicas_behind import NAMES, Replicas, replicas_of
from tests.support.resumable import Owner, Raw, save_sum, step, sums
from tests.support.valkey import ValkeyServer, valkey
from tests.support.walkers import go_on, python_clients, walking

Eventually = Callable[[Callable[[], bool]], bool]
BOTH = (pb.DURABILITY_STORE_ASYNC, pb.DURABILITY_STORE_SYNC)


@pytest.fixture(scope="module")
def store() -> Iterator[ValkeyServer]:
    with valkey() as made:
        yield made


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory, store: ValkeyServer) -> Iterator[Replicas]:
    models = save_sum(tmp_path_factory.mktemp("models"))
    flags = ("--durability", "store-sync", "--store", store.url, "--max-sessions", "128")
    with replicas_of(models, *flags) as made:
        yield made


def test_a_rolling_restart_behind_envoy_shows_no_error(
    replicas: Replicas, program: Any, tmp_path: Path, eventually: Eventually
) -> None:
    with replicas.behind("envoy", program, tmp_path) as target, walking(lambda: target, 32, *BOTH) as walkers:
        go_on(walkers, eventually)
        assert {each.replica for each in walkers} == set(NAMES)
        for name in NAMES:
            assert replicas.servers[name].stop(60) == 0
            go_on(walkers, eventually)
            assert name not in {each.replica for each in walkers}
            replicas.begin(name).wait_until_up()
        assert sum(each.moves for each in walkers) >= 32


def test_a_replica_that_shuts_down_behind_haproxy_gives_its_sessions_away_while_others_end_in_peace(
    replicas: Replicas, store: ValkeyServer, program: Any, tmp_path: Path, eventually: Eventually
) -> None:
    with (
        replicas.behind("haproxy", program, tmp_path) as target,
        walking(lambda: target, 16, *BOTH) as walkers,
        python_clients(target, 16, *BOTH) as clients,
    ):
        everybody = [*walkers, *clients]
        server = replicas.servers["b"]
        # A session that ends with its server keeps that running.
        lower = Raw(server.target, pb.StreamRequest(open=pb.OpenSession(model="sum")), step(1))
        assert [len(lower.replies(2))] == [2]
        owner = Owner()
        left = Raw(server.target, owner.opening(first=1), step(5))
        left.replies(2)
        left.cut()
        go_on(everybody, eventually)
        server.ask_to_stop()
        assert eventually(lambda: any(line["event"] == "sessions moved" for line in server.log))
        go_on(everybody, eventually)
        assert "b" not in {each.replica for each in walkers}
        assert sum(each.moves for each in walkers) > 0
        # One without a stream has been given away, too: nobody waits for a lease.
        assert store.record(owner.session)["owner"] == b""
        resumed = Raw(replicas.servers["a"].target, owner.resume(1))
        assert resumed.opened().replica == "a"
        resumed.send(step(2))
        assert sums(resumed.reply()) == [7.0]
        resumed.close(2)
        assert server.process.poll() is None
        lower.send(step(2))
        assert sums(lower.reply()) == [3.0]
        assert lower.half_close() == []
        assert server.process.wait(60) == 0
        assert store.call("KEYS", "sc:l:b-*") == []
        replicas.begin("b").wait_until_up()
