"""Costs without load: starting, waiting, and ten thousand open sessions."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from streamcell.benchmarks.load.spec import Load
from streamcell.benchmarks.load.usage import cpu_s, rss_bytes
from streamcell.benchmarks.targets.processes import Generator
from streamcell.client.local_server import ServerProcess

ACTIVE = 64


def ready_s(models: Path, *, starts: int = 3) -> float:
    """Median time from the start of the server's process until it is ready, in seconds."""
    taken = []
    for _ in range(starts):
        began_s = time.perf_counter()
        with ServerProcess(models):
            taken.append(time.perf_counter() - began_s)
    return statistics.median(taken)


def _cores(pid: int, seconds: float) -> float:
    before_s, began_s = cpu_s([pid]), time.perf_counter()
    time.sleep(seconds)
    return (cpu_s([pid]) - before_s) / (time.perf_counter() - began_s)


def measure(
    models: Path,
    *,
    sessions: int = 10_000,
    seconds: float = 3.0,
    rounds: int = 3,
    active: int = ACTIVE,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Open `sessions` sessions with one step each and leave them; measure memory, waiting and the active ones.

    Returns:
        idle_cores, idle_cores_with_sessions: CPU of the server with nothing to do, in cores.
        bytes_each: server memory a session beyond its state.
        state_bytes_each: what the server says a session's state takes.
        active_steps_ratio, active_cpu_ratio: `active` ping-pong sessions beside the idle ones over the same alone.
        open_s: how long opening them took.
    """  # fmt: skip
    with (
        ServerProcess(models, "--max-sessions", str(sessions + active)) as server,
        Generator() as keeper,
        Generator() as generator,
    ):
        load = Load(server.target, sessions=active, measure_s=1.0, pids=(server.pid,))
        held = Load(server.target, sessions=sessions, hold=True, pids=(server.pid,))
        generator.run(load)  # allocations of the first use are not a session's
        alone, beside = [generator.run(load) for _ in range(rounds)], []
        idle_cores = _cores(server.pid, seconds)
        before, began_s = rss_bytes([server.pid]), time.perf_counter()
        state_before = server.metric("streamcell_state_bytes")
        keeper.run(held)
        open_s = time.perf_counter() - began_s
        grown = rss_bytes([server.pid]) - before
        state = (server.metric("streamcell_state_bytes") - state_before) / sessions
        say(
            f"{sessions} sessions opened in {open_s:.1f} s, {grown / sessions / 1024:.1f} KiB each with their state"
        )
        with_sessions = _cores(server.pid, seconds)
        beside = [generator.run(load) for _ in range(rounds)]
        keeper.end_sessions()
        alone += [generator.run(load) for _ in range(rounds)]

    def ratio(figure: str) -> float:
        over, under = (statistics.median(float(r[figure]) for r in each) for each in (beside, alone))
        return over / under

    return {
        "sessions": sessions,
        "open_s": open_s,
        "idle_cores": idle_cores,
        "idle_cores_with_sessions": with_sessions,
        "bytes_each": grown / sessions - state,
        "state_bytes_each": state,
        "active_steps_ratio": ratio("steps_per_s"),
        "active_cpu_ratio": ratio("server_cpu_us_per_step"),
    }
