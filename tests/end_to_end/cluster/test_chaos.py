"""Everything that a cluster loses, at random: no step is lost, doubled or swapped, and no client sees an error."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.chain import Chained
from tests.support.chaos import KINDS, Chaos
from tests.support.cluster import Cluster, Eventually

pytestmark = pytest.mark.alone

LASTS_S = float(os.environ.get("CLUSTER_S", "0"))  # `make chaos` takes longer; 0: each kind once
SEED = int(os.environ.get("CHAOS_SEED", "1"))
LEASE_S = 2.0
SESSIONS = 24
WAYS = (("store-async", "envoy"), ("store-sync", "haproxy"))


@pytest.fixture(params=WAYS if LASTS_S else WAYS[:1], ids="-".join)
def cluster(request: pytest.FixtureRequest, chain: Path) -> Iterator[Cluster]:
    """Three replicas with a store, its standby, and a proxy before them."""
    durability, proxy = request.param
    flags = ("--lease-s", str(LEASE_S), "--settle-s", "1", "--max-sessions", "128", "--max-chunk", "4")
    with Cluster(chain, *flags, durability=durability, proxy=proxy, standby=True) as made:
        yield made


def test_nothing_is_lost_or_doubled_whatever_breaks(
    cluster: Cluster, eventually: Eventually, capsys: pytest.CaptureFixture[str]
) -> None:
    with Chained(cluster.target, SESSIONS, SEED) as clients:
        chaos = Chaos(cluster, clients, eventually, LEASE_S, SEED)
        if LASTS_S:
            with capsys.disabled():
                chaos.until(time.monotonic() + LASTS_S / len(WAYS), KINDS, print)
        else:
            chaos.all_of(
                [kind for kind in KINDS if kind != "stop a replica"]
            )  # a rolling restart does that thrice
    counts = ", ".join(f"{kind} {count}" for kind, count in sorted(chaos.counts.items()))
    print(
        f"{counts}; {clients.sessions} sessions, {clients.steps:,} steps, {clients.moves} moves, "
        f"{clients.resumes} resumes, {len(clients.errors)} errors, {len(clients.violations)} violations"
    )
