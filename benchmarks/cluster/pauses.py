"""How long sessions pause if their replica is stopped in order, or killed."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from streamcell.benchmarks.specimens import INPUT
from streamcell.client import AsyncClient, connect_async
from streamcell.client.local_cluster import LocalCluster, Proxy

_REST_S = 0.01  # of each session between two steps: what is measured is the pause, not the load
_RESUME_S = 120.0


@dataclass
class _Seen:
    """Seconds from a step's message to its reply.

    Attributes:
        steady: of steps of streams that were not broken.
        moved: of those in which the session was moved.
        resumed: of those in which it was resumed for another reason.
    """

    steady: list[float] = field(default_factory=list)
    moved: list[float] = field(default_factory=list)
    resumed: list[float] = field(default_factory=list)


def pauses(
    models: Path,
    model: str,
    *flags: str,
    durability: str,
    proxy: Proxy,
    sessions: int,
    stops: int,
    kills: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Stop replicas of three with SIGTERM `stops` times, and kill them `kills` times, in turn, under `sessions`.

    Returns:
        For "steady", "moved" and "resumed": the number of steps, and p50, p99 and the longest, in ms.
    """
    room = ("--max-sessions", str(2 * sessions))
    with LocalCluster(models, *room, *flags, durability=durability, proxy=proxy) as cluster:
        seen = asyncio.run(_Run(cluster, model, sessions).run(stops, kills, say))
    return {
        "durability": durability,
        "proxy": proxy,
        "sessions": sessions,
        "stops": stops,
        "kills": kills,
        **{name: _figures(getattr(seen, name)) for name in ("steady", "moved", "resumed")},
    }


def _figures(taken_s: list[float]) -> dict[str, float]:
    if not taken_s:
        return {"count": 0}
    p50, p99, most = (float(each) * 1e3 for each in np.percentile(taken_s, (50, 99, 100)))
    return {"count": len(taken_s), "p50_ms": p50, "p99_ms": p99, "longest_ms": most}


class _Run:
    def __init__(self, cluster: LocalCluster, model: str, sessions: int) -> None:
        self._cluster, self._model = cluster, model
        self._steps = [0] * sessions
        self._over = False
        self.seen = _Seen()

    async def run(self, stops: int, kills: int, say: Callable[[str], None]) -> _Seen:
        cluster, names = self._cluster, itertools.cycle(self._cluster.names)
        async with connect_async(cluster.target) as client:
            tasks = [asyncio.create_task(self._session(client, at)) for at in range(len(self._steps))]
            try:
                for name, end in zip(
                    names, [cluster.terminate] * stops + [cluster.kill] * kills, strict=False
                ):
                    await self._all_go_on(tasks)
                    await asyncio.to_thread(end, name)
                    await self._all_go_on(tasks)
                    await asyncio.to_thread(cluster.begin(name).wait_until_up)
                    say(
                        f"{end.__name__} {name}: {len(self.seen.moved)} moved, {len(self.seen.resumed)} resumed"
                    )
                self._over = True
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
        return self.seen

    async def _all_go_on(self, tasks: list[asyncio.Task[None]]) -> None:
        before = list(self._steps)
        while any(now == was for now, was in zip(self._steps, before, strict=True)):
            for task in tasks:
                if task.done():
                    task.result()
            await asyncio.sleep(0.01)

    async def _session(self, client: AsyncClient, at: int) -> None:
        x = np.ones(INPUT, np.float32)
        while not self._over:
            async with client.session(self._model, resume=True, resume_s=_RESUME_S) as session:
                for _ in range(500):  # the next one goes where proxies place new ones
                    if self._over:
                        break
                    moves, resumes = session.moves, session.resumes
                    began_s = time.perf_counter()
                    await session.step(x)
                    taken_s = time.perf_counter() - began_s
                    self._steps[at] += 1
                    if session.moves > moves:
                        self.seen.moved.append(taken_s)
                    elif session.resumes > resumes:
                        self.seen.resumed.append(taken_s)
                    else:
                        self.seen.steady.append(taken_s)
                    await asyncio.sleep(_REST_S)
