"""The chorales demo's second half: streams held-out pieces to a live server in concurrent sessions and measures it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from streamcell.client.local_server import ServerProcess

from .prepare import Trained
from .sessions import counters

if TYPE_CHECKING:
    from streamcell.client import AsyncClient
    from streamcell.models import Series

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Measured:
    """The served outputs and the measurements.

    Attributes:
        logits: float32[time, 88] of each held-out piece, as served, one step a message.
        figures: the report's measured entries.
    """

    logits: list[Floats]
    figures: dict[str, Any]


def measure(trained: Trained, *, sessions: int, passes: int) -> Measured:
    """Serve the model and stream every held-out piece `passes` times, step by step, `sessions` at a time.

    Raises:
        ServerProcessError: the server did not come up.
        StreamCellError: a session failed.
    """
    from streamcell.models import bernoulli_nll

    with ServerProcess(trained.models) as server:
        streamed = asyncio.run(_measure(server, trained, sessions, passes))
    logits, latencies_s, counted = streamed.logits, streamed.latencies_s, streamed.counted
    served = [piece for piece in logits if piece is not None]
    nats = sum(
        float(bernoulli_nll(piece, series.y).sum())
        for piece, series in zip(served, trained.test, strict=True)
    )
    p50_s, p99_s = np.quantile(latencies_s, [0.5, 0.99])
    figures = {
        "loss_served": nats / sum(map(len, served)),
        "sessions": sessions,
        "pieces": len(served),
        "steps": len(latencies_s),
        "steps_per_s": len(latencies_s) / streamed.elapsed_s,
        "p50_ms": float(p50_s) * 1e3,
        "p99_ms": float(p99_s) * 1e3,
        "mean_batch": counted["rows"] / counted["runs"],
        "server_cpu_us_per_step": counted["cpu_s"] / counted["steps"] * 1e6,
    }
    return Measured(served, figures)


@dataclass
class _Streamed:
    logits: list[Floats | None]
    latencies_s: list[float] = field(default_factory=list)
    elapsed_s: float = 0.0
    counted: dict[str, float] = field(default_factory=dict)


async def _measure(server: ServerProcess, trained: Trained, sessions: int, passes: int) -> _Streamed:
    from streamcell.client import connect_async

    pieces = trained.test
    streamed = _Streamed([None] * len(pieces))
    async with connect_async(server.target) as client:
        # Warm up: the first use of client and server is not measured.
        await _player(client, trained.name, iter([0]), pieces, _Streamed([None]))
        before = counters(server)
        began_s = time.perf_counter()
        waiting = (index for _ in range(passes) for index in range(len(pieces)))
        await asyncio.gather(
            *(_player(client, trained.name, waiting, pieces, streamed) for _ in range(sessions))
        )
        streamed.elapsed_s = time.perf_counter() - began_s
        streamed.counted = {name: value - before[name] for name, value in counters(server).items()}
    return streamed


async def _player(
    client: AsyncClient, model: str, waiting: Iterator[int], pieces: Sequence[Series], streamed: _Streamed
) -> None:
    """Take the next piece, stream it through a session of its own, until none is left."""
    for index in waiting:
        outputs = []
        async with client.session(model) as session:
            for x in pieces[index].x:
                began_s = time.perf_counter()
                outputs.append(await session.step(x))
                streamed.latencies_s.append(time.perf_counter() - began_s)
        streamed.logits[index] = np.stack(outputs)
