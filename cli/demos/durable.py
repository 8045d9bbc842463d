"""The demo `durable`: sessions that outlive their server, which is killed again and again while they stream."""

from __future__ import annotations

import asyncio
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .base import Demo, Options, Report
from .chorales import settings

if TYPE_CHECKING:
    from streamcell.cli.demos.shared.outliving import Outliving, Streamed
    from streamcell.cli.demos.shared.prepare import Trained
    from streamcell.client.local_server import ServerProcess

KILLS = 10
_LONGEST_LIFE_S = 1.5  # of a server, once all sessions have gone on with it


def run(folder: Path, options: Options) -> Report:
    """Train an LSTM on Bach's chorales, export it, and stream held-out pieces while the server is killed ten times."""
    from streamcell.cli.demos.shared.outliving import Outliving
    from streamcell.cli.demos.shared.prepare import prepare

    console = options.console
    trained = prepare(settings(folder, options), "chorales", retrain=options.retrain, console=console)
    console.print(
        f"streaming held-out pieces through {options.sessions} sessions, and killing the server {KILLS} times …"
    )
    with (
        tempfile.TemporaryDirectory(prefix="streamcell-") as journal,
        _Killed(trained, Path(journal), options.sessions) as killed,
    ):
        streamed = asyncio.run(Outliving(trained, options.sessions).stream(killed.target, killed.again))
    return _report(folder, trained, streamed, options.sessions, statistics.median(killed.down_s))


class _Killed:
    """A server that is killed and started again, on one port and one journal.

    Attributes:
        target: its address.
        down_s: from each kill until a server serves again.
    """

    def __init__(self, trained: Trained, journal: Path, sessions: int) -> None:
        from streamcell.client.local_programs import free_port

        self._trained = trained
        self._port = free_port()
        self._flags = (
            "--port", str(self._port), "--durability", "process", "--journal-dir", str(journal),
            "--max-sessions", str(2 * sessions),
        )  # fmt: skip
        self.target = f"127.0.0.1:{self._port}"
        self.down_s: list[float] = []

    def __enter__(self) -> _Killed:
        self._server = self._start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._server.stop()

    async def again(self, sessions: Outliving) -> None:
        """Kill it `KILLS` times, each time after all sessions have gone on."""
        for _ in range(KILLS):
            await sessions.all_go_on()
            await asyncio.sleep(random.uniform(0, _LONGEST_LIFE_S))
            self._server.process.kill()
            began_s = time.perf_counter()
            await asyncio.to_thread(self._server.process.wait)
            self._server = await asyncio.to_thread(self._start)
            self.down_s.append(time.perf_counter() - began_s)

    def _start(self) -> ServerProcess:
        from streamcell.client.local_server import ServerProcess

        return ServerProcess(self._trained.models, *self._flags).wait_until_up()


def _report(folder: Path, trained: Trained, streamed: Streamed, sessions: int, restart_s: float) -> Report:
    figures = {**streamed.figures(), "sessions": sessions, "kills": KILLS, "restart_s": restart_s}
    rows = [
        *streamed.rows(sessions),
        ("kills, sessions resumed", f"{KILLS}, {streamed.resumes}"),
        ("longest pause", f"{streamed.longest_s:.2f} s, of it {restart_s:.2f} s for the restart"),
    ]
    files = {"loss curve": trained.loss_plot, "exported model": trained.path}
    return Report(
        "Bach's chorales, served by a server that is killed", rows, figures, files, streamed.wrong()
    ).save(folder)


DEMO = Demo(
    "durable",
    "many-to-many, aligned",
    "Bach's chorales again: 64 sessions stream while the server is killed ten times; nothing is lost or doubled",
    run,
)
