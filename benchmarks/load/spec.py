"""Describes a load and the window in which it is measured."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from .dialects import Dialect, echo, predict, resumable, streamcell
from .usage import cpu_s, rss_bytes


class LoadError(RuntimeError):
    """The load could not be run as specified; the text says what the server did."""


@dataclass(frozen=True)
class Load:
    """One load on a server.

    Attributes:
        target: "HOST:PORT"; several with commas between them share the connections.
        dialect: "streamcell", "resumable" (the same with sessions that outlive their streams), "predict", "echo" (as
            streamcell), "echo-unary" (as predict), "frames", "oip" or "oip-unary" (sequences of unary calls:
            `messages` of them each).
        model: the model's name.
        input_bytes, output_bytes: of one timestep, for float32 tensors.
        sessions: streams, or callers of a unary method.
        outstanding: messages of a stream without an answer.
        steps: timesteps a message.
        messages: of a session, which then ends and is followed by a new one; 0: it lasts as long as the load.
        rate: messages a second over all streams, sent on schedule; 0: each when the previous one is answered.
        hold: only open the sessions, with one message each, and keep them until the next line of input.
        input_name, input_shape, output_name: of an "oip" model, batch axis included.
        connections: HTTP/2 connections that the streams are spread over.
        warm_up_s, measure_s: before and in the measured window, which goes on until it has a reply.
        begin_s: do not begin to measure before this `time.time()`, so that several generators measure together.
        quantiles: how many evenly spaced quantiles of the latencies to return as well.
        pids: processes whose CPU time is the server's; empty if it runs elsewhere.
    """

    target: str
    dialect: str = "streamcell"
    model: str = "lstm"
    input_bytes: int = 128
    output_bytes: int = 32
    sessions: int = 64
    outstanding: int = 1
    steps: int = 1
    messages: int = 0
    rate: float = 0.0
    hold: bool = False
    input_name: str = "x"
    input_shape: tuple[int, ...] = (1, 32)
    output_name: str = "y"
    connections: int = 1
    warm_up_s: float = 0.3
    measure_s: float = 1.0
    begin_s: float = 0.0
    quantiles: int = 0
    pids: tuple[int, ...] = field(default=())

    def speech(self) -> Dialect:
        """The dialect's messages.

        Raises:
            ValueError: there is no such dialect.
        """
        border = (self.model, self.input_bytes, self.output_bytes, self.steps)
        if self.dialect in ("oip", "oip-unary"):
            from .oip import oip

            unary = self.dialect == "oip-unary"
            return oip(self.model, self.input_name, self.input_shape, self.output_name, unary=unary)
        make: dict[str, Callable[[str, int, int, int], Dialect]] = {
            "streamcell": streamcell,
            "resumable": resumable,
            "echo": streamcell,
            "predict": predict,
            "echo-unary": predict,
        }
        if self.dialect not in make:
            raise ValueError(
                f"expected a dialect of {', '.join([*make, 'frames', 'oip', 'oip-unary'])}; got {self.dialect!r}"
            )
        plain = make[self.dialect](*border)
        return echo(plain) if self.dialect.startswith("echo") else plain


class Window:
    """Measures what happens between `begin` and `end`."""

    def __init__(self, load: Load) -> None:
        self._load = load

    def begin(self) -> None:
        """Start the window."""
        self._cpu_s, self._own_s, self._began_s = (
            cpu_s(self._load.pids),
            time.process_time(),
            time.perf_counter(),
        )

    def end(self, messages: int, latencies_s: list[float], steps: int) -> dict[str, Any]:
        """To here: `messages` answered with `steps` timesteps in all."""
        took_s = time.perf_counter() - self._began_s
        own_s = time.process_time() - self._own_s
        server_s = cpu_s(self._load.pids) - self._cpu_s
        if not messages:
            raise LoadError(f"no reply from {self._load.target} within {took_s:.1f} s")
        p50, p99, p999 = (float(v) * 1e3 for v in np.percentile(latencies_s, (50, 99, 99.9)))
        result: dict[str, Any] = {
            "messages": messages,
            "steps": steps,
            "seconds": took_s,
            "steps_per_s": steps / took_s,
            "p50_ms": p50,
            "p99_ms": p99,
            "p999_ms": p999,
            "client_cpu_us_per_step": own_s / steps * 1e6,
        }
        if self._load.quantiles:
            shares = np.linspace(0, 100, self._load.quantiles)
            result["quantiles_ms"] = [float(v) * 1e3 for v in np.percentile(latencies_s, shares)]
        if self._load.pids:
            result["server_cpu_us_per_step"] = server_s / steps * 1e6
            result["server_cores"] = server_s / took_s
            result["server_rss_mib"] = rss_bytes(self._load.pids) / 2**20
        return result


def as_line(load: Load) -> str:
    """`load` as `load.main` reads it."""
    return json.dumps(asdict(load)) + "\n"
