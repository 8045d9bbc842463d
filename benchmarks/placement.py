"""Where proxies place sessions, and what moves if a replica is lost: `python -m streamcell.benchmarks.placement`.

Envoy and HAProxy hash the header `streamcell-session`. This module computes both hashes as the proxies do:

- Envoy, `RING_HASH` (source/extensions/load_balancing_policies/ring_hash/ring_hash_lb.cc): a replica's points on the
  ring are the xxHash64 of "ADDRESS_0", "ADDRESS_1", …; a session belongs to the first point at or after its own hash.
  All replicas have the same number of points, the smallest with which the ring has `minimum_ring_size` points.
- HAProxy, `hash-type consistent sdbm avalanche` (src/lb_chash.c): 16 points a replica for each unit of its `weight`,
  made from its `id`; a session belongs to the nearest point.

The command prints the table of docs/scale.md, and `--write docs/scale.md` puts it there.
tests/end_to_end/test_placement.py compares both with the proxies themselves.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import xxhash

from .report.parts import put

REPLICAS = (10, 100, 1_000)
SESSIONS_A_REPLICA = 1_000
RING_SIZES = (1_024, 65_536, 1_048_576)
WEIGHTS = (1, 16, 256)

Hashes = npt.NDArray[np.uint64]
Owners = npt.NDArray[np.int64]


class Placement(Protocol):
    """Which of some replicas a proxy sends each session to."""

    def owners(self, sessions: Sequence[str]) -> Owners:
        """The replica's number, int64[sessions], for each value of `streamcell-session`."""


class EnvoyRing:
    """Envoy's ring of these replicas, all healthy and of the same weight.

    Args:
        addresses: each replica's address, as "10.0.0.1:8500"; its name if `use_hostname_for_hashing` is set.
        minimum_ring_size: the cluster's setting; Envoy's default is 1,024.
    """

    def __init__(self, addresses: Sequence[str], minimum_ring_size: int = 1_024) -> None:
        weight = 1 / len(addresses)
        scale = math.ceil(weight * minimum_ring_size) / weight
        points: list[int] = []
        owners: list[int] = []
        target = 0.0
        for number, address in enumerate(addresses):
            target += scale * weight
            i = 0
            while len(points) < target:
                points.append(xxhash.xxh64_intdigest(f"{address}_{i}".encode()))
                owners.append(number)
                i += 1
        order = np.argsort(np.array(points, np.uint64), kind="stable")
        self._points: Hashes = np.array(points, np.uint64)[order]
        self._owners: Owners = np.array(owners, np.int64)[order]

    def owners(self, sessions: Sequence[str]) -> Owners:
        hashes = np.array([xxhash.xxh64_intdigest(each.encode()) for each in sessions], np.uint64)
        return self._owners[np.searchsorted(self._points, hashes) % len(self._points)]


def _avalanche(a: Hashes) -> Hashes:
    """Bob Jenkins' integer hash as HAProxy has it, uint64[n] of values below 2**32."""
    low = np.uint64(0xFFFFFFFF)

    def of(value: int) -> np.uint64:
        return np.uint64(value)

    a = (a + of(0x7ED55D16) + (a << of(12))) & low
    a = (a ^ of(0xC761C23C)) ^ (a >> of(19))
    a = (a + of(0x165667B1) + (a << of(5))) & low
    a = ((a + of(0xD3A2646C)) ^ (a << of(9))) & low
    a = (a + of(0xFD7046C5) + (a << of(3))) & low
    a = (a ^ of(0xB55A4F09)) ^ (a >> of(16))
    return (a * of(3_221_225_473)) & low


def _sdbm(texts: Sequence[str]) -> Hashes:
    """The hash sdbm of texts of the same length, uint64[texts] of values below 2**32."""
    value: Hashes = np.zeros(len(texts), np.uint64)
    letters: Hashes = (
        np.frombuffer("".join(texts).encode(), np.uint8).reshape(len(texts), -1).astype(np.uint64)
    )
    for column in letters.T:
        value = (column + value * np.uint64(65_599)) & np.uint64(0xFFFFFFFF)  # 2**16 + 2**6 - 1
    return value


class HAProxyTree:
    """HAProxy's tree of these replicas.

    Args:
        ids: each server's `id`; by default HAProxy counts a backend's servers from 1.
        weight: each server's `weight`, 1 to 256; HAProxy's default is 1.
    """

    _POINTS_A_WEIGHT = 16
    _IDS_APART = 4_096

    def __init__(self, ids: Sequence[int], weight: int = 1) -> None:
        count = weight * self._POINTS_A_WEIGHT
        seeds = np.array(ids, np.uint64)[:, None] * np.uint64(self._IDS_APART) + np.arange(
            count, dtype=np.uint64
        )
        points = _avalanche(seeds.ravel().astype(np.uint64))
        order = np.argsort(points, kind="stable")
        self._points: Hashes = points[order]
        self._owners: Owners = np.repeat(np.arange(len(ids)), count)[order]

    def owners(self, sessions: Sequence[str]) -> Owners:
        hashes = _avalanche(_sdbm(sessions))
        after = np.searchsorted(self._points, hashes) % len(self._points)
        before = (after - 1) % len(self._points)
        circle = np.uint64(1 << 32)
        forward = (self._points[after] - hashes) % circle
        back = (hashes - self._points[before]) % circle
        return self._owners[np.where(back <= forward, before, after)]


@dataclass(frozen=True)
class Figures:
    """How evenly sessions lie, and what moves if one replica is lost.

    Attributes:
        proxy: the proxy and the setting that decides how many points a replica has.
        replicas: how many there are before one is lost.
        busiest, idlest: sessions of the replica that has the most and the fewest, relative to the mean.
        moved: share of all sessions that are on another replica afterwards; 1 / replicas cannot be avoided.
        needless: share that moved although their replica is still there.
        heir: sessions of the replica that then has the most, relative to the mean before.
    """

    proxy: str
    replicas: int
    busiest: float
    idlest: float
    moved: float
    needless: float
    heir: float


def session_ids(count: int, seed: int = 1) -> list[str]:
    """`count` values of `streamcell-session`: 16 random bytes each, as 32 hexadecimal digits."""
    drawn = np.random.default_rng(seed).bytes(16 * count)
    return [drawn[i : i + 16].hex() for i in range(0, len(drawn), 16)]


def figures(
    proxy: str, before: Placement, after: Placement, kept: Owners, sessions: Sequence[str]
) -> Figures:
    """Compare a placement with the one after a loss.

    Args:
        kept: int64[replicas after the loss], each one's number in `before`.
    """
    replicas = len(kept) + 1
    mean = len(sessions) / replicas
    old, new = before.owners(sessions), kept[after.owners(sessions)]
    counts = np.bincount(old, minlength=replicas)
    left = np.bincount(new, minlength=replicas)
    moved = old != new
    return Figures(
        proxy=proxy,
        replicas=replicas,
        busiest=float(counts.max() / mean),
        idlest=float(counts.min() / mean),
        moved=float(moved.mean()),
        needless=float((moved & np.isin(old, kept)).mean()),
        heir=float(left.max() / mean),
    )


def simulate(
    replicas: int,
    sessions: Sequence[str],
    ring_sizes: Iterable[int] = RING_SIZES,
    weights: Iterable[int] = WEIGHTS,
) -> Iterator[Figures]:
    """The figures of both proxies with that many replicas, when the middle one is lost."""
    lost = replicas // 2
    kept = np.delete(np.arange(replicas, dtype=np.int64), lost)
    addresses = [f"10.0.{number // 250}.{number % 250 + 1}:8500" for number in range(replicas)]
    ids = [number + 1 for number in range(replicas)]
    for size in ring_sizes:
        if size >= replicas:
            yield figures(
                f"Envoy, `minimum_ring_size` {size:,}",
                EnvoyRing(addresses, size),
                EnvoyRing([addresses[each] for each in kept], size),
                kept,
                sessions,
            )
    for weight in weights:
        yield figures(
            f"HAProxy, `weight` {weight}",
            HAProxyTree(ids, weight),
            HAProxyTree([ids[each] for each in kept], weight),
            kept,
            sessions,
        )


def table(lines: Iterable[Figures]) -> str:
    """The figures as the page's table."""
    text = [
        "| replicas | proxy | busiest | idlest | busiest after the loss | moved | moved needlessly |",
        "|---|---|---|---|---|---|---|",
    ]
    text.extend(
        f"| {each.replicas:,} | {each.proxy} | {each.busiest:.2f} | {each.idlest:.2f} | {each.heir:.2f} "
        f"| {each.moved:.2%} | {each.needless:.2%} |"
        for each in lines
    )
    return "\n".join(text)


def main() -> None:
    """Print the table, or write it into docs/scale.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--replicas", type=int, nargs="+", default=list(REPLICAS), help="Numbers of replicas."
    )
    parser.add_argument("--sessions", type=int, default=SESSIONS_A_REPLICA, help="Sessions a replica.")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="Write the table into docs/scale.md.")
    asked = parser.parse_args()
    lines = [
        line
        for replicas in asked.replicas
        for line in simulate(replicas, session_ids(replicas * asked.sessions))
    ]
    if asked.write:
        put(asked.write, "placement", table(lines))
    else:
        print(table(lines))


if __name__ == "__main__":
    main()
