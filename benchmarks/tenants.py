"""What one tenant's flood does to another's latency: `python -m streamcell.benchmarks.tenants`.

A calm tenant steps a few sessions, one message at a time. In every other round a second tenant floods the server: each
of its sessions sends as many messages ahead as the server allows. One server has a policy with both tenants; another
server has no tenants. The clients run in separate processes.

The flood's client shares this machine with the server, which it would not do elsewhere. So it has the lowest priority,
and in a third kind of round it floods another server: what the calm tenant's steps take then is the machine's part. One
more server has a core of its own, away from all clients, as if these were on other machines.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streamcell.client import connect_async
from streamcell.client.local_server import ServerProcess

from .specimens import INPUT, export

MODEL = "lstm"
_AHEAD = 16
_LOWEST = 19  # niceness
# The rounds: without a flood, with one on the calm tenant's server, with one on another.
KINDS = ("quiet", "flooded", "elsewhere")


@dataclass(frozen=True)
class Setting:
    """How one of the servers runs.

    Attributes:
        flood: the flood's terms, lines of the policy file; None: the server has no tenants.
        apart: whether it has a core of its own; then there is no flood elsewhere, which would be on the clients' cores.
    """

    flood: str | None = ""
    apart: bool = False


SETTINGS: Mapping[str, Setting] = {
    "no tenants": Setting(flood=None),
    "tenants": Setting(),
    "tenants, the flood's max_batch_steps 8": Setting("max_batch_steps = 8"),
    "tenants, the flood at 2,000 steps/s": Setting("steps_per_s = 2000"),
    "tenants, the server on a core of its own": Setting(apart=True),
}


@contextmanager
def _on(cores: set[int]) -> Iterator[None]:
    """Processes that this thread starts run on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _metadata(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),) if token else ()


async def _calm(target: str, token: str, sessions: int, seconds: float) -> list[float]:
    """Seconds of each step of sessions that pause for 5 ms after it."""
    taken: list[float] = []
    x = np.ones(INPUT, np.float32)
    async with connect_async(target, metadata=_metadata(token)) as client:

        async def one() -> None:
            async with client.session(MODEL) as session:
                until_s = time.perf_counter() + seconds
                while (began_s := time.perf_counter()) < until_s:
                    await session.step(x)
                    taken.append(time.perf_counter() - began_s)
                    await asyncio.sleep(0.005)

        await asyncio.gather(*(one() for _ in range(sessions)))
    return taken


async def _flood(target: str, token: str, sessions: int) -> None:
    """Step sessions as fast as they go and other processes let it, until this process is ended."""
    os.nice(_LOWEST)
    x = np.ones(INPUT, np.float32)

    async def forever() -> Any:
        while True:
            yield x

    async with connect_async(target, metadata=_metadata(token)) as client:

        async def one() -> None:
            async with client.session(MODEL) as session:
                async for _ in session.stream(forever(), window=_AHEAD):
                    pass

        await asyncio.gather(*(one() for _ in range(sessions)))


def _client(role: str, target: str, token: str, sessions: int, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "streamcell.benchmarks.tenants", "--role", role, "--target", target]
    command += ["--token", token, "--sessions", str(sessions), "--seconds", str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _round(
    server: ServerProcess, flooded: ServerProcess | None, tokens: tuple[str, str], flood: int, seconds: float
) -> tuple[list[float], float]:
    """One round, with `flood` sessions of the other tenant on `flooded`.

    Returns:
        The calm tenant's seconds a step on `server`; steps/s of `flooded` while the calm tenant's client lived.
    """
    flooding = None if flooded is None else _client("flood", flooded.target, tokens[1], flood, 0)
    steps, steps_per_s = "streamcell_steps_total", 0.0
    try:
        if flooded is not None:  # until it has its sessions
            before = flooded.metric(steps)
            while flooded.metric(steps) < before + 10 * flood:
                time.sleep(0.1)
            before, began_s = flooded.metric(steps), time.perf_counter()
        said, _ = _client("calm", server.target, tokens[0], 4, seconds).communicate()
        if flooded is not None:
            steps_per_s = (flooded.metric(steps) - before) / (time.perf_counter() - began_s)
    finally:
        if flooding is not None:
            flooding.kill()
            flooding.wait()
    found: list[float] = json.loads(said)
    return found, steps_per_s


def measure(
    models: Path, rounds: int, flood: int, seconds: float, settings: Mapping[str, Setting] = SETTINGS
) -> dict[str, Any]:
    """p50 and p99 of the calm tenant's steps in ms in each of `KINDS`, on servers with these settings.

    Args:
        models: a folder with an `lstm`.
        rounds: of each kind, in turn.
        flood: sessions of the flood.
        seconds: of a round.
        settings: by name. On a machine with one core, no server has one of its own.

    Returns:
        By server: the figures of each kind, medians of the rounds; of a kind with a flood the flooded server's steps/s,
        too. And medians of the rounds' ratios of p99, flooded over quiet (`p99_ratio`) and flooded over beside a flood
        elsewhere (`p99_over_elsewhere`).
    """
    from streamcell.service.access.static_tokens import sha256_of

    cores = os.sched_getaffinity(0)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokens = folder / "tokens.toml"
        tokens.write_text(
            "".join(
                f'[[tokens]]\nsha256 = "{sha256_of(name)}"\ntenant = "{name}"\nsubject = "{name}"\n'
                for name in ("calm", "flood")
            )
        )
        for number, (name, setting) in enumerate(settings.items()):
            own = {min(cores)} if setting.apart else cores
            if setting.apart and len(cores) == 1:
                continue
            flags: tuple[str, ...] = ()
            if setting.flood is not None:
                policy = folder / f"policy{number}.toml"
                policy.write_text(f"[tenants.calm]\n[tenants.flood]\n{setting.flood}\n")
                flags = ("--metrics-open", "--token-file", str(tokens), "--policy-file", str(policy))
            asked = ("", "") if setting.flood is None else ("calm", "flood")
            kinds = [kind for kind in KINDS if kind != "elsewhere" or not setting.apart]
            with _on(own):
                server, other = ServerProcess(models, *flags), ServerProcess(models, *flags)
            with server, other, _on(cores - own or cores):
                server.wait_until_up()
                other.wait_until_up()
                _round(server, None, asked, 0, seconds / 2)
                places = dict(zip(KINDS, (None, server, other), strict=True))
                taken: dict[str, list[tuple[list[float], float]]] = {kind: [] for kind in kinds}
                for _ in range(rounds):
                    for kind in kinds:
                        taken[kind].append(_round(server, places[kind], asked, flood, seconds))
            found[name] = _figures(taken)
    return found


def _figures(taken: dict[str, list[tuple[list[float], float]]]) -> dict[str, Any]:
    """What `measure` returns of one server, from what each round of each kind returned."""
    p50, p99 = (
        {kind: [float(np.percentile(each, at)) * 1e3 for each, _ in of] for kind, of in taken.items()}
        for at in (50, 99)
    )
    median = statistics.median
    found: dict[str, Any] = {
        kind: {"p50_ms": median(p50[kind]), "p99_ms": median(p99[kind])} for kind in taken
    }
    for name, base in (("p99_ratio", "quiet"), ("p99_over_elsewhere", "elsewhere")):
        if base in taken:
            found[name] = median(one / other for one, other in zip(p99["flooded"], p99[base], strict=True))
    for kind in taken.keys() - {"quiet"}:
        found[kind]["steps_per_s"] = median(steps_per_s for _, steps_per_s in taken[kind])
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print, or be one of the clients."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--flood", type=int, default=256, help="sessions of the flood")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a round")
    parser.add_argument("--role", choices=("calm", "flood"), help=argparse.SUPPRESS)
    for name in ("--target", "--token"):
        parser.add_argument(name, default="", help=argparse.SUPPRESS)
    parser.add_argument("--sessions", type=int, default=0, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.role == "calm":
        print(json.dumps(asyncio.run(_calm(asked.target, asked.token, asked.sessions, asked.seconds))))
    elif asked.role == "flood":
        asyncio.run(_flood(asked.target, asked.token, asked.sessions))
    else:
        with tempfile.TemporaryDirectory() as folder:
            export(Path(folder), MODEL)
            found = measure(Path(folder), asked.rounds, asked.flood, asked.seconds)
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
