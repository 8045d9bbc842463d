"""A replica that drains, and a proxy that has not noticed yet."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np

from streamcell.client import connect
from tests.support.chain import NAME
from tests.support.cluster import Cluster, Eventually


def test_new_sessions_of_a_replica_that_drains_open_elsewhere(chain: Path, eventually: Eventually) -> None:
    flags = ("--settle-s", "0", "--grace-s", "30", "--max-sessions", "64")
    with Cluster(chain, *flags, names=("a", "b")) as cluster, ExitStack() as stack:
        drained = cluster.replicas["a"]
        direct = stack.enter_context(connect(drained.target))
        usual = stack.enter_context(direct.session(NAME))  # it cannot move, so the replica stays for its sake
        client = stack.enter_context(connect(cluster.target))
        drained.ask_to_stop()
        assert eventually(lambda: any(entry.get("event") == "draining" for entry in drained.log))
        for _ in range(20):
            with client.session(NAME, resume=True) as session:
                assert session.step(np.ones(1, np.float32)).tolist() == [1, 1]
        assert usual.step(np.ones(1, np.float32)).tolist() == [1, 1]
