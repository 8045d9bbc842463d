"""The demo `cluster`: three replicas, their store and a proxy; it kills and restarts replicas at random."""

from __future__ import annotations

import asyncio
import random
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from .base import Demo, Options, Report
from .chorales import settings

if TYPE_CHECKING:
    from types import FrameType

    from streamcell.cli.demos.shared.outliving import Outliving, Streamed
    from streamcell.cli.demos.shared.prepare import Trained
    from streamcell.client.local_cluster import LocalCluster

KILLS, RESTARTS = 5, 4  # with SIGKILL, with SIGTERM
_LONGEST_PEACE_S = 1.0  # between two of them, once all sessions have gone on


def run(folder: Path, options: Options) -> Report:
    """Train an LSTM on Bach's chorales, export it, and stream held-out pieces through a cluster that loses replicas."""
    from streamcell.cli.demos.shared.outliving import Outliving
    from streamcell.cli.demos.shared.prepare import prepare
    from streamcell.client.local_cluster import LocalCluster

    console = options.console
    level = "store-sync" if options.sync else "store-async"
    room = ("--max-sessions", str(2 * options.sessions))
    # First: whoever lacks a program hears of it before a model is trained.
    cluster = LocalCluster(folder / "models", *room, durability=level, say=console.print)
    trained = prepare(settings(folder, options), "chorales", retrain=options.retrain, console=console)
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        console.print("starting three replicas, their store and a proxy …")
        with cluster:
            console.print(
                f"streaming held-out pieces through {options.sessions} sessions while replicas are killed "
                f"({KILLS} times) and restarted ({RESTARTS} times) …"
            )
            troubles = _Troubles(cluster, options.seed, console)
            streaming = Outliving(trained, options.sessions)
            streamed = asyncio.run(streaming.stream(cluster.target, troubles.all))
    finally:
        signal.signal(signal.SIGTERM, before)
    return _report(folder, trained, streamed, options, level)


def _leave(number: int, frame: FrameType | None) -> None:
    """End in order, so that no process is left."""
    raise SystemExit(128 + number)


class _Troubles:
    """Kills and restarts replicas, in an order and after pauses that depend on the seed alone."""

    def __init__(self, cluster: LocalCluster, seed: int, console: Console) -> None:
        self._cluster, self._console = cluster, console
        self._chance = random.Random(seed)
        self._due = [True] * KILLS + [False] * RESTARTS
        self._chance.shuffle(self._due)

    async def all(self, sessions: Outliving) -> None:
        """One after the other, each after all sessions have gone on."""
        cluster, chance = self._cluster, self._chance
        for kill in self._due:
            await sessions.all_go_on()
            await asyncio.sleep(chance.uniform(0, _LONGEST_PEACE_S))
            name = chance.choice(cluster.names)
            await asyncio.to_thread(cluster.kill if kill else cluster.terminate, name)
            took_s = await sessions.all_go_on()
            what = "was killed (-9)" if kill else "was stopped (SIGTERM)"
            self._console.print(
                f"replica {name} {what}; {took_s:.1f} s later each session had another output",
                highlight=False,
            )
            await asyncio.to_thread(cluster.begin(name).wait_until_up)


def _report(folder: Path, trained: Trained, streamed: Streamed, options: Options, level: str) -> Report:
    figures = {
        **streamed.figures(),
        "sessions": options.sessions,
        "durability": level,
        "kills": KILLS,
        "restarts": RESTARTS,
        "seed": options.seed,
    }
    rows = [
        *streamed.rows(options.sessions),
        ("replicas killed (-9), restarted (SIGTERM)", f"{KILLS}, {RESTARTS}"),
        ("sessions moved, resumed", f"{streamed.moves}, {streamed.resumes}"),
        ("longest pause", f"{streamed.longest_s:.2f} s"),
    ]
    files = {"loss curve": trained.loss_plot, "exported model": trained.path}
    title = f"Bach's chorales, served by three replicas that are killed and restarted ({level})"
    return Report(title, rows, figures, files, streamed.wrong()).save(folder)


DEMO = Demo(
    "cluster",
    "many-to-many, aligned",
    "Bach's chorales once more: 96 sessions on three replicas that are killed and restarted; nothing is lost",
    run,
    sessions=96,
)
