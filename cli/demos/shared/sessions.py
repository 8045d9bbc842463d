"""Streams many sequences through a number of sessions at a time, and measures it. The demos share it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from streamcell.client.local_server import ServerProcess

if TYPE_CHECKING:
    from streamcell.client import AsyncClient, AsyncSession

Floats = NDArray[np.float32]
# Streams a sequence [time, *step] through its own session and returns the outputs.
Through = Callable[["AsyncSession", Floats], Awaitable[Floats]]


def counters(server: ServerProcess) -> dict[str, float]:
    """The server's counters, now."""
    return {
        "rows": server.metric("streamcell_batch_rows_sum"),
        "runs": server.metric("streamcell_batch_rows_count"),
        "steps": server.metric("streamcell_steps_total"),
        "cpu_s": server.metric("process_cpu_seconds_total"),
    }


def stream(
    server: ServerProcess, model: str, sequences: Sequence[Floats], sessions: int, through: Through
) -> tuple[list[Floats], dict[str, Any]]:
    """Stream each sequence through its own session, `sessions` of them at a time.

    Returns:
        The result of `through` for each sequence, and figures for a report.

    Raises:
        StreamCellError: a session failed.
    """
    return asyncio.run(_stream(server, model, sequences, sessions, through))


async def _stream(
    server: ServerProcess, model: str, sequences: Sequence[Floats], sessions: int, through: Through
) -> tuple[list[Floats], dict[str, Any]]:
    from streamcell.client import connect_async

    found: dict[int, Floats] = {}
    waiting = iter(range(len(sequences)))

    async def player(client: AsyncClient) -> None:
        for index in waiting:
            async with client.session(model) as session:
                found[index] = await through(session, sequences[index])

    before = counters(server)
    began_s = time.perf_counter()
    async with connect_async(server.target) as client:
        await asyncio.gather(*(player(client) for _ in range(min(sessions, len(sequences)))))
    elapsed_s = time.perf_counter() - began_s
    counted = {name: value - before[name] for name, value in counters(server).items()}
    figures = {
        "sessions": sessions,
        "sequences": len(sequences),
        "steps": int(counted["steps"]),
        "steps_per_s": counted["steps"] / elapsed_s,
        "mean_batch": counted["rows"] / counted["runs"],
    }
    return [found[index] for index in range(len(sequences))], figures


def common_rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """The figures of `stream` as rows of a report."""
    return [
        ("concurrent sessions", f"{figures['sessions']}"),
        ("sequences, timesteps", f"{figures['sequences']}, {figures['steps']}"),
        ("steps per second", f"{figures['steps_per_s']:.0f}"),
        ("mean batch (server's /metrics)", f"{figures['mean_batch']:.1f} sessions per run"),
    ]
