"""One load on one server, and the process that runs loads: a JSON line in, a JSON line out."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from streamcell.service.gc_tuning import calm

from .dialects import Dialect, echo, predict, streamcell
from .streams import Connection, PingPong, Pipelined, Run, Scheduled, Stream, UnaryCaller
from .usage import cpu_s, rss_bytes

_PATIENCE_S = 60.0


class LoadError(RuntimeError):
    """The load could not be run as it was meant; the text says what the server did."""


@dataclass(frozen=True)
class Load:
    """What to do to a server.

    Attributes:
        target: "HOST:PORT".
        dialect: "streamcell", "predict", "echo" (as streamcell), "echo-unary" (as predict), "frames" or "oip".
        model: the model's name.
        input_bytes, output_bytes: of one timestep, for float32 tensors.
        sessions: streams, or callers of a unary method.
        outstanding: messages of a stream without an answer.
        steps: timesteps a message.
        rate: messages a second over all streams, sent on schedule; 0: each when the one before is answered.
        hold: only open the sessions, with one message each, and keep them until the next line of input.
        input_name, input_shape, output_name: of an "oip" model, batch axis included.
        connections: HTTP/2 connections that the streams are spread over.
        warm_up_s, measure_s: before and in the measured window.
        pids: processes whose CPU time is the server's; empty where it is elsewhere.
    """

    target: str
    dialect: str = "streamcell"
    model: str = "lstm"
    input_bytes: int = 128
    output_bytes: int = 32
    sessions: int = 64
    outstanding: int = 1
    steps: int = 1
    rate: float = 0.0
    hold: bool = False
    input_name: str = "x"
    input_shape: tuple[int, ...] = (1, 32)
    output_name: str = "y"
    connections: int = 1
    warm_up_s: float = 0.3
    measure_s: float = 1.0
    pids: tuple[int, ...] = field(default=())

    def speech(self) -> Dialect:
        """The dialect's messages.

        Raises:
            ValueError: there is no such dialect.
        """
        border = (self.model, self.input_bytes, self.output_bytes, self.steps)
        if self.dialect == "oip":
            from .oip import oip

            return oip(self.model, self.input_name, self.input_shape, self.output_name)
        make: dict[str, Callable[[str, int, int, int], Dialect]] = {
            "streamcell": streamcell,
            "echo": streamcell,
            "predict": predict,
            "echo-unary": predict,
        }
        if self.dialect not in make:
            raise ValueError(
                f"expected a dialect of {', '.join([*make, 'frames', 'oip'])}; got {self.dialect!r}"
            )
        plain = make[self.dialect](*border)
        return echo(plain) if self.dialect.startswith("echo") else plain


class Window:
    """Measures what happens between `begin` and `end`."""

    def __init__(self, load: Load) -> None:
        self._load = load

    def begin(self) -> None:
        """From here on."""
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
        if self._load.pids:
            result["server_cpu_us_per_step"] = server_s / steps * 1e6
            result["server_cores"] = server_s / took_s
            result["server_rss_mib"] = rss_bytes(self._load.pids) / 2**20
        return result


def run_load(load: Load) -> dict[str, Any]:
    """Run `load` and return what was measured.

    Raises:
        LoadError: a call failed, or answers are missing.
        WrongReply: a session's last answer shows that steps were lost, or is not what it should be.
    """
    if load.dialect == "frames":
        from .frames import run_frames

        return run_frames(load, Window(load))
    speech = load.speech()
    run = Run()
    connections = [Connection(load.target) for _ in range(min(load.connections, load.sessions))]
    try:
        streams = [
            _stream(load, run, connections[number % len(connections)], speech, number)
            for number in range(load.sessions)
        ]
        _wait(lambda: all(stream.replies for stream in streams), run, "the sessions to open")
        if load.rate:
            threading.Thread(target=_schedule, args=(load, run, streams), daemon=True).start()
        if load.hold:
            _say({"held": len(streams)})
            sys.stdin.readline()
            run.going = False
            _finish(run, streams, speech, load)
            return {"total_messages": len(streams)}
        time.sleep(load.warm_up_s)
        window = Window(load)
        before = len(run.latencies_s)
        window.begin()
        time.sleep(load.measure_s)
        after = len(run.latencies_s)
        result = window.end(after - before, run.latencies_s[before:after], (after - before) * load.steps)
        run.going = False
        _finish(run, streams, speech, load)
    finally:
        run.going = False
        for connection in connections:
            connection.close()
    result["total_messages"] = sum(stream.replies for stream in streams)
    return result


def _stream(
    load: Load, run: Run, connection: Connection, speech: Dialect, number: int
) -> Stream | UnaryCaller:
    if speech.unary:
        return UnaryCaller(run, connection, speech.method, speech.first(number))
    kind: type[Stream] = (
        Scheduled if load.rate or load.hold else PingPong if load.outstanding == 1 else Pipelined
    )
    return kind(run, connection, speech.method, speech.first(number), speech.then(number), load.outstanding)


def _schedule(load: Load, run: Run, streams: list[Any]) -> None:
    """Send to the streams in turn, evenly in time; what is late is sent at once and counts from when it was due."""
    intended_s = time.perf_counter()
    at = 0
    while run.going:
        ahead_s = intended_s - time.perf_counter()
        if ahead_s > 0:
            time.sleep(ahead_s)
        streams[at % len(streams)].send(intended_s)
        at += 1
        intended_s += 1 / load.rate


def _finish(run: Run, streams: list[Any], speech: Dialect, load: Load) -> None:
    """Let every message be answered, end the sessions and hold the last answers against what was sent."""
    _wait(lambda: all(stream.replies == stream.sent for stream in streams), run, "the last answers")
    for number, stream in enumerate(streams):
        speech.check(stream.last, stream.replies, load.steps)
        stream.end(speech.last(number) if speech.last is not None else None)
    _wait(lambda: all(stream.over.is_set() for stream in streams), run, "the streams to end")


def _wait(done: Any, run: Run, what: str) -> None:
    deadline_s = time.monotonic() + _PATIENCE_S
    while not done():
        if run.failures:
            raise LoadError(f"{len(run.failures)} calls failed; the first: {run.failures[0]}")
        if time.monotonic() > deadline_s:
            raise LoadError(f"waited {_PATIENCE_S:g} s for {what}")
        time.sleep(0.005)


def main() -> None:
    """Read loads as JSON lines from standard input until it ends; answer each with its result or its error."""
    calm()  # a pause here would count as the server's
    while line := sys.stdin.readline():
        given = json.loads(line)
        for name in ("pids", "input_shape"):
            given[name] = tuple(given[name])
        try:
            result = run_load(Load(**given))
        except (RuntimeError, ValueError) as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        _say(result)


def _say(result: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()


def as_line(load: Load) -> str:
    """`load` as `main` reads it."""
    return json.dumps(asdict(load)) + "\n"


if __name__ == "__main__":
    main()
