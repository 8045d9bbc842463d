"""What a session costs that outlives its server (`--durability process`), next to one that does not.

`python -m streamcell.benchmarks.durability` measures, in this order:

- a step, in this process: protocol, batcher and engine without gRPC. Ways of keeping a session take turns, block by
  block, and CPU time is counted, so a busy machine changes little;
- resuming detached sessions of a real server;
- a server's start with sessions that a killed one has left.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import structlog

from streamcell.benchmarks.load.usage import cpu_s
from streamcell.client.local_server import ServerProcess
from streamcell.proto import pb, rpc
from streamcell.service.access.identity import ANYONE
from streamcell.service.batching.inline import InlinePolicy
from streamcell.service.engine.device import Device
from streamcell.service.lifecycle.loaded_model import load
from streamcell.service.lifecycle.table import Models
from streamcell.service.metrics.server_metrics import ServerMetrics
from streamcell.service.protocols.common.call_context import CallContext
from streamcell.service.protocols.common.requests import Limits
from streamcell.service.protocols.common.scopes import Scopes
from streamcell.service.protocols.native.recovered import recover
from streamcell.service.protocols.native.stream import StreamSession
from streamcell.service.repository.model_file import open_model
from streamcell.service.sessions.kept_replies import KeptRoom
from streamcell.service.sessions.table import SessionTable
from streamcell.service.settings import Settings

from .specimens import INPUT, export

MODEL = "lstm"
WINDOW = 32  # what `streamcell.client` asks for
WAYS = ("plain", "none", "none again", "process")
_STEP = pb.StreamRequest(inputs=[np.ones(INPUT, np.float32).tobytes()]).SerializeToString()
_BLOCK_STEPS = 512
_IN_FLIGHT = 64  # openings of sessions at once


class _AlwaysShort(InlinePolicy):
    """Runs on the thread that brings the messages, whatever they take."""

    def __init__(self) -> None:
        super().__init__()
        self.short = True

    def ran(self, rows: int, cpu_s: float, read_apart: int = 0) -> None:
        """Nothing is learned."""


class _Wire:
    """A call without a transport, with its handler: it takes replies and drops them."""

    peer = "benchmark"
    caller = ANYONE
    again = False
    handler: Any

    def __init__(self, later: list[Callable[[], None]], context: CallContext[Any]) -> None:
        self._later = later
        self.replies = 0
        self.handler = StreamSession(self, context)  # type: ignore[arg-type]

    def run_after_arrivals(self, callback: Callable[[], None]) -> bool:
        """Put off `callback`."""
        self._later.append(callback)
        return True

    def reply(self, data: bytes, *, last: bool = True) -> None:
        self.replies += 1

    def hand_to(self, handler: Any) -> None:
        self.handler = handler

    def end(self, code: grpc.StatusCode, details: str, trailing: Any) -> None:
        raise RuntimeError(f"{code}: {details}")


class Sessions:
    """Sessions of one model, kept in one way, that are stepped on the calling thread."""

    def __init__(self, models: Path, count: int, way: str, journals: Path) -> None:
        settings = Settings.load(
            models=models,
            max_sessions=count,
            durability="process" if way == "process" else "none",
            journal_dir=journals,
        )
        self.model = load(open_model(models / f"{MODEL}.onnx", MODEL), settings, Device())
        self.model.batcher.inline.policy = _AlwaysShort()
        while not self.model.batcher.inline.asleep:  # from then on its own thread does nothing
            time.sleep(0.001)
        table = SessionTable(idle_timeout_s=0, linger_s=60)
        limits = Limits(1 << 20, 4096, allow_non_finite=False, max_generate_steps=100, max_beam_width=8)
        kept = KeptRoom(settings.kept_reply_bytes, settings.max_kept_reply_bytes, settings.queue_messages)
        context: CallContext[Any] = CallContext(Models([self.model]), table, ServerMetrics(), limits, kept)
        recover(self.model, Scopes(context))  # there are none, but from here on the journal counts
        self._later: list[Callable[[], None]] = []
        self._wires = [_Wire(self._later, context) for _ in range(count)]
        for wire in self._wires:
            opening = pb.OpenSession(model=MODEL) if way == "plain" else Owner().opening(resume=False)
            wire.handler.on_message(pb.StreamRequest(open=opening).SerializeToString())
        self.steps(2 * WINDOW)  # replies are kept in the places of older ones from here on
        assert all(wire.replies == 1 + 2 * WINDOW for wire in self._wires)

    def steps(self, count: int) -> None:
        """Step each session `count` times, all of them in each batch."""
        later = self._later
        for _ in range(count):
            for wire in self._wires:
                wire.handler.on_message(_STEP)
            while later:
                later.pop(0)()

    def block_us(self) -> float:
        """CPU time of a step, in µs, over some hundred steps."""
        each = max(1, _BLOCK_STEPS // len(self._wires))
        began_s = time.process_time()
        self.steps(each)
        return (time.process_time() - began_s) / each / len(self._wires) * 1e6

    def close(self) -> None:
        """End the model's thread, and delete its journal."""
        self.model.release()

    def leave(self) -> None:
        """End the model's thread, and leave its journal to another process."""
        assert self.model.journal is not None
        self.model.journal.kept = True
        self.model.release()


class Owner:
    """Who opens a resumable session, and resumes it."""

    def __init__(self) -> None:
        self._session, self._token = secrets.token_bytes(16), secrets.token_bytes(32)
        self._attempt = 0

    def opening(self, *, resume: bool, received: int = 0) -> pb.OpenSession:
        """The next opening."""
        self._attempt += 1
        return pb.OpenSession(
            model=MODEL, session=self._session, token=self._token, window=WINDOW, attempt=self._attempt,
            resume=resume, received=received,
        )  # fmt: skip


def step_costs(models: Path, counts: Sequence[int], blocks: int, journals: Path) -> list[dict[str, Any]]:
    """CPU time of a step, for each number of sessions and each way of keeping them.

    Returns:
        For each number: `sessions`; µs a step, the median of the blocks, by way; and for each way but "none" `over`,
        the median of its blocks' differences to "none"'s block of the same turn, in µs a step. "none again" shows
        how far two that are the same differ.
    """
    found = []
    for count in counts:
        ways = {way: Sessions(models, count, way, journals) for way in WAYS}
        names = list(ways)
        taken: dict[str, list[float]] = {way: [] for way in names}
        gc.collect()
        gc.disable()
        try:
            for block in range(blocks):
                at = block % len(names)
                for name in names[at:] + names[:at]:
                    taken[name].append(ways[name].block_us())
        finally:
            gc.enable()
        for each in ways.values():
            each.close()
        over = {name: np.subtract(taken[name], taken["none"]) for name in names if name != "none"}
        found.append(
            {
                "sessions": count,
                "us": {name: statistics.median(each) for name, each in taken.items()},
                "over": {name: float(np.median(each)) for name, each in over.items()},
            }
        )
    return found


class _Streams:
    """Resumable sessions on a real server, each on a stream of one connection."""

    def __init__(self, target: str, owners: list[Owner]) -> None:
        self._target, self._owners = target, owners

    async def open(self, *, resume: bool) -> float:
        """Open or resume all sessions and, if they are new, step each once; break the connection. Seconds it took."""
        async with grpc.aio.insecure_channel(self._target) as channel:
            stub = rpc.StreamCellStub(channel)  # type: ignore[no-untyped-call]
            room = asyncio.Semaphore(_IN_FLIGHT)
            calls = []

            async def one(owner: Owner) -> None:
                async with room:
                    call = stub.Stream()
                    calls.append(call)
                    opening = owner.opening(resume=resume, received=int(resume))
                    await call.write(pb.StreamRequest(open=opening))
                    reply = await call.read()
                    assert reply.opened.applied == int(resume)
                    if not resume:
                        await call.write(pb.StreamRequest.FromString(_STEP))
                        await call.read()

            began_s = time.perf_counter()
            await asyncio.gather(*map(one, self._owners))
            taken_s = time.perf_counter() - began_s
            for call in calls:
                call.cancel()
        return taken_s


def resume_costs(models: Path, sessions: int, journals: Path, *flags: str) -> dict[str, float]:
    """Detach `sessions` sessions of a real server and resume them all, over one connection, 64 at once.

    Returns:
        wall_s: until the last one was resumed.
        cpu_us_each: CPU time of the server.
    """
    flags = ("--max-sessions", str(sessions), "--linger-s", "600", "--journal-dir", str(journals), *flags)
    owners = [Owner() for _ in range(sessions)]
    with ServerProcess(models, *flags) as server:
        streams = _Streams(server.target, owners)
        asyncio.run(streams.open(resume=False))
        _until_detached(server, sessions)
        before_s = cpu_s([server.pid])
        wall_s = asyncio.run(streams.open(resume=True))
        cpu = cpu_s([server.pid]) - before_s
    return {"wall_s": wall_s, "cpu_us_each": cpu / sessions * 1e6}


def recovery_costs(models: Path, sessions: int, journals: Path) -> dict[str, float]:
    """Start a server that finds `sessions` sessions, each with all the replies that its window has room for.

    Returns:
        recovery_s: what the start spent on the sessions, by its own clock.
        ready_s, ready_without_s: from the start of the process until it is ready, with and without sessions.
    """
    flags = (
        "--max-sessions", str(sessions), "--linger-s", "600", "--durability", "process", "--journal-dir", str(journals),
    )  # fmt: skip
    began_s = time.perf_counter()
    with ServerProcess(models, *flags):
        ready_without_s = time.perf_counter() - began_s
    Sessions(models, sessions, "process", journals).leave()
    gc.collect()  # its file is no longer locked
    began_s = time.perf_counter()
    with ServerProcess(models, *flags) as server:
        ready_s = time.perf_counter() - began_s
        assert server.metric("streamcell_sessions", state="detached") == sessions
        recovery_s = server.metric("streamcell_recovery_seconds")
    return {"recovery_s": recovery_s, "ready_s": ready_s, "ready_without_s": ready_without_s}


def _until_detached(server: ServerProcess, sessions: int) -> None:
    while server.metric("streamcell_sessions", state="detached") < sessions:
        time.sleep(0.05)


def show(found: dict[str, Any]) -> None:
    """Print what was found as Markdown."""
    print("| sessions | plain | `none` | `none` again | `process` | `process` over `none` |")
    print("|---:|---:|---:|---:|---:|---:|")
    for each in found["steps"]:
        cells = [f"{each['us'][way]:.2f}" for way in WAYS]
        print(f"| {each['sessions']} | {' | '.join(cells)} | {each['over']['process']:+.2f} |")
    for name, each in found["resume"].items():
        print(f"{name}: resumed in {each['wall_s']:.2f} s, {each['cpu_us_each']:.0f} µs of server CPU each")
    if each := found["recovery"]:
        print(
            f"recovered in {each['recovery_s']:.2f} s; ready in {each['ready_s']:.2f} s, without any in "
            f"{each['ready_without_s']:.2f} s"
        )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sessions", nargs="*", type=int, default=[1, 8, 64, 256], help="for the steps")
    parser.add_argument("--blocks", type=int, default=100, help="of some hundred steps, each way")
    parser.add_argument("--resume", type=int, default=1_000, help="sessions to resume; 0: none")
    parser.add_argument("--recover", type=int, default=10_000, help="sessions to recover; 0: none")
    parser.add_argument("--journal-dir", type=Path, help="where journals are made; a temporary folder")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory(dir=asked.journal_dir) as dir_:
        models, journals = Path(folder), Path(dir_)
        export(models, MODEL)
        found = {
            "steps": step_costs(models, asked.sessions, asked.blocks, journals / "steps"),
            "resume": {
                level: resume_costs(models, asked.resume, journals / level, "--durability", level)
                for level in ("none", "process")
                if asked.resume
            },
            "recovery": recovery_costs(models, asked.recover, journals / "recovery") if asked.recover else {},
        }
    if asked.json:
        json.dump(found, sys.stdout)
    else:
        show(found)


if __name__ == "__main__":
    main()
