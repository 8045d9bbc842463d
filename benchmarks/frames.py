"""Many sessions in one stream, through the client's pool: the load of a gateway or a simulator."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .load import Load, Window


def available() -> bool:
    """Whether this client has pools."""
    from streamcell.client import Client

    return hasattr(Client, "pool")


def run_frames(load: Load, window: Window) -> dict[str, Any]:
    """Step all `load.sessions` again and again, one frame at a time; latency is a frame's."""
    from streamcell.client import connect

    shape = (
        (load.sessions, load.steps, load.input_bytes // 4)
        if load.steps > 1
        else (
            load.sessions,
            load.input_bytes // 4,
        )
    )
    x = np.random.default_rng(5).standard_normal(shape, np.float32)
    client: Any = connect(load.target)
    with client, client.pool(load.model, load.sessions) as pool:
        until_s = time.perf_counter() + load.warm_up_s
        while time.perf_counter() < until_s:
            pool.step(x)
        latencies_s: list[float] = []
        window.begin()
        until_s = time.perf_counter() + load.measure_s
        while (began_s := time.perf_counter()) < until_s:
            pool.step(x)
            latencies_s.append(time.perf_counter() - began_s)
        frames = len(latencies_s)
        result = window.end(frames, latencies_s, frames * load.sessions * load.steps)
    result["total_messages"] = frames
    return result
