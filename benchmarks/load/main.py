"""One load on one server, and the process that runs loads: a JSON line in, a JSON line out."""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

from streamcell.service.gc_tuning import tune_gc

from .dialects import Dialect
from .short import short_sessions
from .spec import Load, LoadError, Window
from .streams import Connection, PingPong, Pipelined, Run, Scheduled, Stream, UnaryCaller

_PATIENCE_S = 60.0


def run_load(load: Load) -> dict[str, Any]:
    """Run `load` and return what was measured.

    Raises:
        LoadError: a call failed, or answers are missing.
        WrongReply: a session's last answer is wrong, or shows that steps were lost.
    """
    if load.dialect == "frames":
        from .frames import run_frames

        return run_frames(load, Window(load))
    speech = load.speech()
    run = Run()
    targets = load.target.split(",")
    connections = [
        Connection(targets[number % len(targets)])
        for number in range(min(max(load.connections, len(targets)), load.sessions))
    ]
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
        time.sleep(max(load.warm_up_s, load.begin_s - time.time()))
        window = Window(load)
        before = len(run.latencies_s)
        window.begin()
        time.sleep(load.measure_s)
        _wait(lambda: len(run.latencies_s) > before, run, "a reply")
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
    if load.messages:
        return short_sessions(run, connection, speech, number, load.messages)
    if speech.unary:
        return UnaryCaller(run, connection, speech.method, speech.first(number))
    kind: type[Stream] = (
        Scheduled if load.rate or load.hold else PingPong if load.outstanding == 1 else Pipelined
    )
    first = speech.first(number)
    return kind(
        run, connection, speech.method, first, speech.then(number), load.outstanding, speech.metadata(first),
        speech.counts,
    )  # fmt: skip


def _schedule(load: Load, run: Run, streams: list[Any]) -> None:
    """Send to the streams in turn at even intervals; a late message is sent at once and counts from when it was due."""
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
    """Wait until every message is answered, end the sessions and check the last answers."""
    _wait(lambda: all(stream.replies == stream.sent for stream in streams), run, "the last answers")
    for number, stream in enumerate(streams):
        replies = (stream.replies - 1) % load.messages + 1 if load.messages else stream.replies
        speech.check(stream.last, replies, load.steps)
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
    tune_gc()  # a collector's pause here would count as the server's
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


if __name__ == "__main__":
    main()
