"""A model whose state shows each lost, doubled or swapped step for ever, and clients that check every output."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from streamcell.client import StreamCellError, connect_async

from .onnx_files import parsed, save

# Small whole numbers, exact in float32 in any batch: sum = (31 sum + x) mod 65521, count = count + 1. An output is the
# whole state, so each has its own number.
CHAIN = (
    "(float[b, 1] x, float[b, 1] sum, float[b, 1] count)"
    " => (float[b, 2] y, float[b, 1] sum_next, float[b, 1] count_next)"
    "<float base = {31}, float most = {65521}, float one = {1}>"
    "{ moved = Mul(sum, base) fed = Add(moved, x) sum_next = Mod<fmod = 1>(fed, most) count_next = Add(count, one)"
    " y = Concat<axis = 1>(sum_next, count_next) }"
)
SIDECAR = """
layout = "batch"
inputs = ["x"]
outputs = ["y"]
[[states]]
input = "sum"
output = "sum_next"
[[states]]
input = "count"
output = "count_next"
"""
NAME = "chain"
_REST_S = 0.005  # of a session after each reply: servers must get the time to start


def save_chain(folder: Path) -> Path:
    """Save the model as `chain` in `folder`."""
    save(parsed(CHAIN), folder / f"{NAME}.onnx", SIDECAR)
    return folder


class Chain:
    """What the model computes, in Python."""

    def __init__(self) -> None:
        self.sum = self.count = 0

    def step(self, x: int) -> tuple[int, int]:
        """The output of the next step."""
        self.sum = (31 * self.sum + x) % 65521
        self.count += 1
        return self.sum, self.count


class Violation(AssertionError):
    """An output is not what a run without faults gives."""


class Chained(threading.Thread):
    """Clients in a thread of their own: sessions that stream until the end of the `with`, and hold every output.

    Attributes:
        violations: outputs that are not those of a run without faults, as texts.
        errors: errors that the client library raised, as texts.
        steps: of all sessions together.
        resumes, moves: how often a session was resumed, and of these because the server said so.
    """

    def __init__(self, target: str, sessions: int, seed: int = 1, window: int = 4, life: int = 200) -> None:
        """`life`: messages of a session, at most; every fourth one lives as long as the clients."""
        super().__init__(daemon=True)
        self._target, self._window, self._life = target, window, life
        self._chances = [random.Random(seed * 1000 + at) for at in range(sessions)]
        self._replies = [0] * sessions
        self._task: asyncio.Task[None] | None = None
        self._over, self._still = threading.Event(), threading.Event()
        self.ids = [""] * sessions  # of the sessions that live
        self.sent = [0] * sessions  # messages
        self._durable = [0] * sessions  # of them, those that it knows are stored
        self._waiting = 0  # sessions that have all their replies and send nothing while they are to be still
        self.violations: list[str] = []
        self.errors: list[str] = []
        self.steps = self.resumes = self.moves = self.sessions = 0
        self.start()

    def run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(self._run())

    async def _run(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        async with connect_async(self._target) as client:
            await asyncio.gather(*(self._sessions(client, at) for at in range(len(self._replies))))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let all sessions receive what is due, and end; if something was wrong before, end at once."""
        if error is None:
            self._over.set()
            self.join(120)
            assert not self.is_alive(), "sessions have not ended two minutes after the last fault"
            assert not self.fault(), self.fault()
        elif self._task is not None:
            self._loop.call_soon_threadsafe(self._task.cancel)
            self.join(30)

    async def _sessions(self, client: Any, at: int) -> None:
        while not self._over.is_set():
            try:
                await self._one(client, at)
            except Violation as wrong:
                self.violations.append(str(wrong))
                return
            except StreamCellError as error:
                self.errors.append(f"{type(error).__name__} {error.reason}: {error}")
                return
            except Exception as error:
                self.violations.append(repr(error))
                return

    async def _one(self, client: Any, at: int) -> None:
        """One session, from its opening to its end."""
        chance, chain = self._chances[at], Chain()
        due: deque[list[tuple[int, int]]] = deque()
        left = chance.randint(1, self._life) if at % 4 else 1 << 60
        session = client.session(NAME, resume=True, resume_s=300)
        async with session:
            self.ids[at] = session.id
            self.sent[at] = self._durable[at] = 0
            try:
                while due or (left and not self._over.is_set()):
                    if not due and self._still.is_set():
                        await self._rest()
                        continue
                    while len(due) < self._window and left and not self._silent():
                        inputs = [chance.randrange(100) for _ in range(chance.randint(1, 3))]
                        due.append([chain.step(x) for x in inputs])
                        await session.send(np.array(inputs, np.float32)[:, None])
                        left -= 1
                        self.sent[at] += 1
                    found = [tuple(map(int, row)) for row in await session.receive()]
                    expected = due.popleft()
                    if found != expected or session.step_index != expected[-1][1]:
                        raise Violation(
                            f"session {at}: got {found} at step {session.step_index}, expected {expected}"
                        )
                    self._replies[at] += 1
                    self._durable[at] = session.durable
                    await asyncio.sleep(_REST_S)
                    self.steps += len(expected)
            finally:
                self.resumes += session.resumes
                self.moves += session.moves
        self.sessions += 1

    def _silent(self) -> bool:
        return self._over.is_set() or self._still.is_set()

    async def _rest(self) -> None:
        self._waiting += 1
        while self._still.is_set() and not self._over.is_set():
            await asyncio.sleep(0.01)
        self._waiting -= 1

    def know_stored(self, eventually: Callable[[Callable[[], bool]], bool], sent: list[int]) -> None:
        """Wait until each session knows that more than so many of its messages are stored: it keeps them no more."""
        assert eventually(
            lambda: bool(self.fault()) or all(has > was for has, was in zip(self._durable, sent, strict=True))
        )
        assert not self.fault(), self.fault()

    def be_still(self, eventually: Callable[[Callable[[], bool]], bool]) -> None:
        """Have all sessions receive what is due and send nothing, until `stir`."""
        self._still.set()
        assert eventually(lambda: bool(self.fault()) or self._waiting == len(self._replies))
        assert not self.fault(), self.fault()

    def stir(self) -> None:
        """Have them send again."""
        self._still.clear()

    def fault(self) -> str:
        """What has gone wrong so far; "" if nothing."""
        return "; ".join([*self.violations[:3], *self.errors[:3]])

    def go_on(self, eventually: Callable[[Callable[[], bool]], bool]) -> None:
        """Wait until each session has another reply; fails if something is wrong, or one has none for a minute."""
        before = list(self._replies)

        def all_have() -> bool:
            return bool(self.fault()) or all(
                now > was for now, was in zip(self._replies, before, strict=True)
            )

        came = eventually(all_have)
        assert not self.fault(), self.fault()
        stuck = [at for at, was in enumerate(before) if self._replies[at] == was]
        assert came, f"no reply for a minute: sessions {[(at, self.ids[at]) for at in stuck]}"
