"""The demo `durable`: sessions that outlive their server, which is killed again and again while they stream."""

from __future__ import annotations

import asyncio
import random
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .base import Demo, Options, Report
from .chorales import EPOCHS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from streamcell.cli.demos.shared.prepare import Trained
    from streamcell.client import AsyncClient
    from streamcell.client.local_server import ServerProcess

KILLS = 10
_LONGEST_LIFE_S = 1.5  # of a server, once all sessions have gone on with it


def run(folder: Path, options: Options) -> Report:
    """Train an LSTM on Bach's chorales, export it, and stream held-out pieces while the server is killed ten times."""
    from streamcell.cli.demos.shared.prepare import prepare
    from streamcell.models.training import presets

    console = options.console
    config = presets.config(
        "chorales", out=folder, data_folder=options.data_folder, **options.training(EPOCHS)
    )
    trained = prepare(config, "chorales", retrain=options.retrain, console=console)
    console.print(
        f"streaming held-out pieces through {options.sessions} sessions, and killing the server {KILLS} times …"
    )
    with tempfile.TemporaryDirectory(prefix="streamcell-") as journal:
        streamed = asyncio.run(_Killed(trained, Path(journal), options).stream())
    return _report(folder, trained, streamed, options.sessions)


@dataclass
class _Streamed:
    """What the sessions have seen.

    Attributes:
        nats: the loss of all outputs.
        nats_torch: the loss of PyTorch's outputs for the same pieces.
        steps: outputs that have arrived.
        lost, doubled: steps that the server has not applied, or applied more than once, by its step index.
        difference: the largest, from PyTorch's outputs.
        resumes: how often a session was resumed.
        longest_s: the longest time that a step took.
        pieces: pieces streamed to their ends.
        down_s: from each kill until a server serves again.
    """

    nats: float = 0.0
    nats_torch: float = 0.0
    steps: int = 0
    lost: int = 0
    doubled: int = 0
    difference: float = 0.0
    resumes: int = 0
    longest_s: float = 0.0
    pieces: int = 0
    down_s: list[float] = field(default_factory=list)


class _Killed:
    """A server that is killed and started again while sessions stream."""

    def __init__(self, trained: Trained, journal: Path, options: Options) -> None:
        self._trained = trained
        self._sessions = options.sessions
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._flags = (
            "--port", str(self._port), "--durability", "process", "--journal-dir", str(journal),
            "--max-sessions", str(2 * options.sessions),
        )  # fmt: skip
        self._over = False
        self.streamed = _Streamed()
        self._steps = [0] * options.sessions
        self._expected = _outputs(trained)

    async def stream(self) -> _Streamed:
        """Stream until the server was killed `KILLS` times, and all pieces that have begun have ended."""
        from streamcell.client import connect_async

        server = await asyncio.to_thread(self._start)
        async with connect_async(f"127.0.0.1:{self._port}") as client:
            sessions = [asyncio.create_task(self._session(client, at)) for at in range(self._sessions)]
            try:
                for _ in range(KILLS):
                    await self._all_go_on(sessions)
                    await asyncio.sleep(random.uniform(0, _LONGEST_LIFE_S))
                    server.process.kill()
                    began_s = time.perf_counter()
                    await asyncio.to_thread(server.process.wait)
                    server = await asyncio.to_thread(self._start)
                    self.streamed.down_s.append(time.perf_counter() - began_s)
                await self._all_go_on(sessions)
                self._over = True
                await asyncio.gather(*sessions)
            finally:
                for task in sessions:
                    task.cancel()
                await asyncio.to_thread(server.stop)
        return self.streamed

    def _start(self) -> ServerProcess:
        from streamcell.client.local_server import ServerProcess

        return ServerProcess(self._trained.models, *self._flags).wait_until_up()

    async def _all_go_on(self, sessions: list[asyncio.Task[None]]) -> None:
        """Wait until each session has an output from the server that runs now."""
        before = list(self._steps)
        while any(now == was for now, was in zip(self._steps, before, strict=True)):
            for task in sessions:
                if task.done():
                    task.result()
            await asyncio.sleep(0.02)

    async def _session(self, client: AsyncClient, at: int) -> None:
        """Stream pieces, each through a session of its own, a step a message."""
        import numpy as np

        from streamcell.models import bernoulli_nll

        streamed, test = self.streamed, self._trained.test
        for index in self._pieces(at):
            outputs = []
            async with client.session(self._trained.name, resume=True, resume_s=120) as session:
                for x in test[index].x:
                    began_s = time.perf_counter()
                    outputs.append(await session.step(x))
                    streamed.longest_s = max(streamed.longest_s, time.perf_counter() - began_s)
                    self._steps[at] += 1
                applied, sent = session.step_index, len(test[index])
                streamed.resumes += session.resumes
            served = np.stack(outputs)
            expected = self._expected[index]
            streamed.nats += float(bernoulli_nll(served, test[index].y).sum())
            streamed.nats_torch += float(bernoulli_nll(expected, test[index].y).sum())
            streamed.steps += len(served)
            streamed.pieces += 1
            streamed.lost += max(0, sent - applied)
            streamed.doubled += max(0, applied - sent)
            streamed.difference = max(streamed.difference, float(np.abs(served - expected).max()))

    def _pieces(self, at: int) -> Iterator[int]:
        pieces = len(self._trained.test)
        while not self._over:
            yield at % pieces
            at += self._sessions


def _outputs(trained: Trained) -> list[NDArray[np.float32]]:
    """PyTorch's outputs, float32[time, 88] a piece."""
    import torch

    with torch.no_grad():
        return [trained.module(torch.from_numpy(series.x)[None])[0][0].numpy() for series in trained.test]


def _report(folder: Path, trained: Trained, streamed: _Streamed, sessions: int) -> Report:
    figures = {
        "loss_torch": streamed.nats_torch / streamed.steps,
        "loss_served": streamed.nats / streamed.steps,
        "largest_difference": streamed.difference,
        "sessions": sessions,
        "pieces": streamed.pieces,
        "steps": streamed.steps,
        "kills": KILLS,
        "resumes": streamed.resumes,
        "lost": streamed.lost,
        "doubled": streamed.doubled,
        "longest_pause_s": streamed.longest_s,
        "restart_s": statistics.median(streamed.down_s),
    }
    rows = [
        ("loss of these pieces in PyTorch", f"{figures['loss_torch']:.6f} nats per timestep"),
        ("loss, served", f"{figures['loss_served']:.6f} nats per timestep"),
        ("largest difference of an output", f"{figures['largest_difference']:.1e}"),
        ("sessions, pieces, timesteps", f"{sessions}, {streamed.pieces}, {streamed.steps}"),
        ("kills, sessions resumed", f"{KILLS}, {streamed.resumes}"),
        ("steps lost, doubled", f"{streamed.lost}, {streamed.doubled}"),
        ("longest pause", f"{streamed.longest_s:.2f} s, of it {figures['restart_s']:.2f} s for the restart"),
    ]
    files = {"loss curve": trained.loss_plot, "exported model": trained.path}
    return Report("Bach's chorales, served by a server that is killed", rows, figures, files).save(folder)


DEMO = Demo(
    "durable",
    "many-to-many, aligned",
    "Bach's chorales again: 64 sessions stream while the server is killed ten times; nothing is lost or doubled",
    run,
)
