"""What a session's write to the shared store costs: `python -m streamcell.benchmarks.store_writes`.

A replica's own store (service/store) writes the states of many sessions to a Valkey, again and again: one call a round,
fenced by lease, owner and fence as always. What is measured is the CPU time of Valkey's process and of this one for
each session that is written, and how long the call takes. Both are on this machine. The kinds are measured in turn.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue

from streamcell.client.local_cluster import valkey
from streamcell.client.local_programs import LocalProgram, free_port
from streamcell.service.errors import ServiceError
from streamcell.service.settings import Settings
from streamcell.service.store.connection import Connection, StoreAddress
from streamcell.service.store.store import Claim, Claimed, Store

from .load.usage import cpu_s
from .report.parts import put

ALONE, LOGGED, COPIED = "in memory", "append-only file", "append-only file, and a replica confirms"
KINDS = (ALONE, LOGGED, COPIED)


class _Session:
    """A session whose state is random bytes; as `Stored`."""

    def __init__(self, key: bytes, fence: int, state: bytes, written: threading.Semaphore) -> None:
        self.key = key
        self.fence = fence
        self.number = 0
        self._state = state
        self._written = written

    def image(self) -> tuple[int, int, bytes] | None:
        return self.number, 0, self._state

    def stored(self, number: int, steps: int) -> bool:
        self._written.release()
        return True

    def tell_durable(self) -> None: ...

    def lost(self) -> None:
        raise RuntimeError("the store gave this session to another replica")


class Writes:
    """Sessions of a replica in a store, which are written together."""

    def __init__(self, store: Store, valkey_pid: int, sessions: int, state_bytes: int) -> None:
        self._store = store
        self._pid = valkey_pid
        self._written = threading.Semaphore(0)
        self._sessions = [self._open(os.urandom(state_bytes)) for _ in range(sessions)]

    def _open(self, state: bytes) -> _Session:
        key, answers = os.urandom(16), Queue[Claimed | ServiceError]()
        claim = Claim(session=key, token_hash=b"", attempt=1, tenant="", model="m", may_create=True)
        self._store.claim(claim, answers.put)
        answer = answers.get(timeout=30)
        if isinstance(answer, ServiceError):
            raise answer
        session = _Session(key, answer.fence, state, self._written)
        self._store.enter(session)
        return session

    def round(self, times: int) -> tuple[float, float]:
        """Write all sessions so many times; CPU µs a session of Valkey and of this process."""
        before = cpu_s([self._pid]), time.process_time()
        for _ in range(times):
            for session in self._sessions:
                session.number += 1
                self._store.changed(session, sync=False)
            for _ in self._sessions:
                if not self._written.acquire(timeout=30):
                    raise TimeoutError("the store has not written all sessions within 30 s")
        writes = times * len(self._sessions) / 1e6
        return (cpu_s([self._pid]) - before[0]) / writes, (time.process_time() - before[1]) / writes


@dataclass
class Line:
    """Of one kind and number of sessions, a value a round each.

    Attributes:
        valkey_us, replica_us: CPU µs a session and write.
        call_ms: mean duration of a call.
    """

    kind: str
    sessions: int
    valkey_us: list[float] = field(default_factory=list)
    replica_us: list[float] = field(default_factory=list)
    call_ms: list[float] = field(default_factory=list)


def _wait_for_the_copy(follower: LocalProgram) -> None:
    connection = Connection(StoreAddress("127.0.0.1", follower.port), "benchmark", timeout_s=10)
    while b"master_link_status:up" not in connection.call(b"INFO", b"replication"):
        time.sleep(0.05)
    connection.close()


def measure(
    sessions: Sequence[int], rounds: int, times: int, state_bytes: int, key_file: Path | None = None
) -> list[Line]:
    """Measure all kinds in turn, round after round.

    Args:
        sessions: how many are written together, at most 256, which is a call.
        times: writes of each session in a round.
        key_file: encrypts states; None: they get a checksum.
    """
    lines = [Line(kind, count) for kind in KINDS for count in sessions]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))

        def start(name: str, *options: str) -> LocalProgram:
            copied_at_once = ("--repl-diskless-sync-delay", "0")
            return stack.enter_context(valkey(free_port(), folder / name, *copied_at_once, *options))

        servers = {
            kind: start(str(at), "--appendonly", "no" if kind == ALONE else "yes")
            for at, kind in enumerate(KINDS)
        }
        _wait_for_the_copy(start("copy", "--replicaof", f"127.0.0.1 {servers[COPIED].port}"))
        stores: dict[str, Store] = {}
        for kind, server in servers.items():
            store = Store.of(
                Settings(
                    models=folder, durability="store-async", store=f"valkey://127.0.0.1:{server.port}",
                    store_key_file=key_file,
                )
            )  # fmt: skip
            assert store is not None
            store.start()
            stack.callback(store.stop)
            stores[kind] = store
        writes = {
            (kind, count): Writes(stores[kind], servers[kind].process.pid, count, state_bytes)
            for kind in KINDS
            for count in sessions
        }
        for _ in range(rounds):
            for line in lines:
                before = stores[line.kind].figures.write_s.snapshot()
                valkey_us, replica_us = writes[line.kind, line.sessions].round(times)
                after = stores[line.kind].figures.write_s.snapshot()
                line.valkey_us.append(valkey_us)
                line.replica_us.append(replica_us)
                calls = after[0][-1][1] - before[0][-1][1]
                line.call_ms.append(1e3 * (after[1] - before[1]) / calls)
    return lines


def table(lines: Sequence[Line]) -> str:
    """The medians, as the page's table."""
    text = [
        "| Valkey | sessions a call | Valkey's CPU a write | writes a second and core | the replica's CPU | a call |",
        "|---|---|---|---|---|---|",
    ]
    for line in lines:
        valkey_us, replica_us, call_ms = (
            statistics.median(each) for each in (line.valkey_us, line.replica_us, line.call_ms)
        )
        text.append(
            f"| {line.kind} | {line.sessions} | {valkey_us:.1f} µs | {1e6 / valkey_us:,.0f} "
            f"| {replica_us:.1f} µs | {call_ms:.2f} ms |"
        )
    return "\n".join(text)


def main() -> None:
    """Print the table, or write it into docs/scale.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sessions", type=int, nargs="+", default=[64, 256], help="Sessions a call.")
    parser.add_argument("--rounds", type=int, default=5, help="Rounds; the table has medians.")
    parser.add_argument("--times", type=int, default=40, help="Writes of each session in a round.")
    parser.add_argument("--state-bytes", type=int, default=2048, help="Bytes of a session's state.")
    parser.add_argument("--encrypt", action="store_true", help="Encrypt states, as with --store-key-file.")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="Write the table into docs/scale.md.")
    asked = parser.parse_args()
    with tempfile.NamedTemporaryFile("w", suffix=".key") as key:
        key.write(os.urandom(32).hex())
        key.flush()
        key_file = Path(key.name) if asked.encrypt else None
        lines = measure(asked.sessions, asked.rounds, asked.times, asked.state_bytes, key_file)
    if asked.write:
        put(asked.write, "store", table(lines))
    else:
        print(table(lines))


if __name__ == "__main__":
    main()
