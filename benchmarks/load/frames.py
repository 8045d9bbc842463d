"""Many sessions in one stream, through the client's pool: the load of a gateway or a simulator."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import numpy as np

from .dialects import WrongReply
from .spec import Load, Window


def run_frames(load: Load, window: Window) -> dict[str, Any]:
    """Step all `load.sessions` again and again, `load.outstanding` frames at a time; latency is a frame's."""
    from streamcell.client import connect

    shape: tuple[int, ...] = (load.sessions, load.steps, load.input_bytes // 4)
    if load.steps == 1:
        shape = (load.sessions, load.input_bytes // 4)
    x = np.random.default_rng(5).standard_normal(shape, np.float32)
    with connect(load.target) as client, client.pool(load.model, load.sessions) as pool:
        begun_s: deque[float] = deque()

        def send() -> None:
            begun_s.append(time.perf_counter())
            pool.send(x)

        def receive() -> float:
            pool.receive()
            return time.perf_counter() - begun_s.popleft()

        for _ in range(load.outstanding):
            send()
        until_s = time.perf_counter() + load.warm_up_s
        while time.perf_counter() < until_s:
            receive()
            send()
        latencies_s: list[float] = []
        window.begin()
        until_s = time.perf_counter() + load.measure_s
        while time.perf_counter() < until_s:
            latencies_s.append(receive())
            send()
        frames = len(latencies_s)
        result = window.end(frames, latencies_s, frames * load.sessions * load.steps)
        for _ in range(load.outstanding):
            receive()
        if (pool.step_indices != pool.step_indices[0]).any():
            raise WrongReply("the sessions of a pool have applied different numbers of steps")
    result["total_messages"] = frames
    return result
