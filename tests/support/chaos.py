"""What may happen to a cluster, at random: each thing is over when all sessions have gone on."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence

from .chain import Chained
from .cluster import Cluster, Eventually

KINDS = (
    "kill a replica",
    "stop a replica",
    "rolling restart",
    "pause a replica",
    "cut a replica off the store",
    "kill the proxy",
    "kill the store",
    "pause the store",
    "pause the store for long",
    "fail the store over",
)


class Chaos:
    """Troubles of one cluster, drawn from a seed.

    Attributes:
        counts: how often each kind has happened.
    """

    def __init__(
        self, cluster: Cluster, clients: Chained, eventually: Eventually, lease_s: float, seed: int
    ) -> None:
        """`lease_s`: of the replicas."""
        self._cluster, self._clients, self._eventually = cluster, clients, eventually
        self._lease_s, self._chance = lease_s, random.Random(seed)
        self.counts: Counter[str] = Counter()

    def all_of(self, kinds: Sequence[str]) -> None:
        """Each of `kinds` once, in an order that the seed gives."""
        for kind in self._chance.sample(kinds, len(kinds)):
            self.happen(kind)

    def until(self, end_s: float, kinds: Sequence[str], say: Callable[[str], None]) -> None:
        """Some of `kinds` until `time.monotonic()` is `end_s`."""
        while time.monotonic() < end_s:
            kind = self._chance.choice(kinds)
            began_s = time.monotonic()
            self.happen(kind)
            say(
                f"{kind}: over after {time.monotonic() - began_s:.1f} s; {self._clients.steps:,} steps so far"
            )

    def happen(self, kind: str) -> None:
        """One of `KINDS`."""
        self._clients.go_on(self._eventually)
        time.sleep(self._chance.uniform(0, 0.3))  # at any moment of a step, a put, a renewal
        self.counts[kind] += 1
        getattr(self, "_" + kind.replace(" ", "_"))()
        self._clients.go_on(self._eventually)

    def _name(self) -> str:
        return self._chance.choice(self._cluster.names)

    def _kill_a_replica(self) -> None:
        name = self._name()
        self._cluster.kill(name)
        if self._chance.random() < 0.5:  # the others take its sessions
            self._clients.go_on(self._eventually)
        self._cluster.restart(name)

    def _stop_a_replica(self) -> None:
        name = self._name()
        self._cluster.terminate(name)
        self._cluster.restart(name)

    def _rolling_restart(self) -> None:
        for name in self._cluster.names:
            self._cluster.terminate(name)
            self._cluster.restart(name)

    def _pause_a_replica(self) -> None:
        name = self._name()
        self._cluster.pause(name)
        if self._chance.random() < 0.5:  # its clients lose their streams, and go on elsewhere
            self._cluster.restart_proxy()
            self._clients.go_on(self._eventually)
        else:  # their streams hang until it wakes up
            time.sleep(self._chance.uniform(1.2, 2) * self._lease_s)
        self._cluster.go_on(name)

    def _cut_a_replica_off_the_store(self) -> None:
        wire = self._cluster.wires[self._name()]
        wire.part()
        time.sleep(self._chance.uniform(1.2, 2) * self._lease_s)
        wire.heal()

    def _kill_the_proxy(self) -> None:
        self._cluster.restart_proxy()

    def _kill_the_store(self) -> None:
        self._cluster.restart_store()

    def _pause_the_store(self) -> None:
        self._pause_store(self._chance.uniform(0.2, 0.5) * self._lease_s)

    def _pause_the_store_for_long(self) -> None:
        self._pause_store(self._chance.uniform(1.2, 2) * self._lease_s)

    def _pause_store(self, for_s: float) -> None:
        assert self._cluster.store is not None
        self._cluster.store.pause()
        time.sleep(for_s)
        self._cluster.store.go_on()

    def _fail_the_store_over(self) -> None:
        self._cluster.fail_over(self._eventually)
