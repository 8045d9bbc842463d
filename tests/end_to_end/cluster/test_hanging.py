"""A replica that hangs: its kernel takes connections, and nobody answers on them."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamcell.client import StreamCellError, connect
from streamcell.client.local_cluster import Proxy
from tests.support.chain import NAME
from tests.support.cluster import Cluster, Eventually


@pytest.mark.parametrize("proxy", ["envoy", "haproxy"])
def test_a_replica_that_hangs_gets_no_new_sessions(
    chain: Path, program: Any, eventually: Eventually, proxy: Proxy
) -> None:
    with (
        Cluster(chain, durability="none", names=("a", "b"), proxy=proxy) as cluster,
        connect(cluster.target, timeout_s=1) as client,
    ):

        def all_open() -> bool:
            with suppress(StreamCellError):
                for _ in range(10):  # half of them would be the first replica's
                    with client.session(NAME, resume=True, resume_s=0) as session:
                        session.step(np.ones(1, np.float32))
                return True
            return False

        assert eventually(all_open)
        cluster.pause("a")
        assert eventually(all_open)


def test_haproxy_ends_the_streams_of_a_replica_that_hangs(chain: Path, program: Any) -> None:
    flags = ("--lease-s", "1.5", "--max-sessions", "64")
    with (
        Cluster(chain, *flags, names=("a", "b"), proxy="haproxy") as cluster,
        connect(cluster.target, timeout_s=60) as client,
        ExitStack() as stack,
    ):
        sessions = [stack.enter_context(client.session(NAME, resume=True)) for _ in range(8)]
        for session in sessions:
            session.step(np.ones(1, np.float32))
        cluster.pause(
            max(cluster.names, key=lambda name: cluster.replicas[name].metric("streamcell_sessions"))
        )
        for session in sessions:
            assert session.step(np.ones(1, np.float32)).tolist() == [32, 2]
        assert any(session.resumes for session in sessions)
