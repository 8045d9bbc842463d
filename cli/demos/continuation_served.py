"""Continues chorales on a live server: each piece's first bars go into its own session, which generates the rest."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from streamcell.client.local_server import ServerProcess

if TYPE_CHECKING:
    from streamcell.cli.demos.shared.prepare import Trained
    from streamcell.client import AsyncClient

Floats = NDArray[np.float32]

# Quarter notes of a piece that the model gets, and those that it adds: four bars and sixteen.
PROMPT, STEPS = 16, 64
# Keys are sampled one by one. Otherwise keys with a probability below one half never sound, and chords thin out.
TEMPERATURE = 1.0


@dataclass(frozen=True)
class Continued:
    """One piece.

    Attributes:
        chords: float32[PROMPT + STEPS, 88]: the first bars, and what the server added.
        logits: float32[PROMPT + STEPS, 88]: the served outputs after each of them.
    """

    chords: Floats
    logits: Floats


def continue_served(trained: Trained, prompts: Sequence[Floats]) -> tuple[list[Continued], dict[str, Any]]:
    """Serve the model and continue all prompts [PROMPT, 88] at once; returns the pieces and figures.

    Raises:
        ServerProcessError: the server did not come up.
        StreamCellError: a session failed.
    """
    with ServerProcess(trained.models) as server:
        pieces = asyncio.run(_all(server.target, trained.name, prompts))
        figures = _compared(server.target, trained.name, prompts[0])
        rows, runs = (server.metric(f"streamcell_batch_rows_{what}") for what in ("sum", "count"))
        generated = server.metric("streamcell_generated_steps_total")
    return pieces, {**figures, "generated_steps": int(generated), "mean_batch": rows / runs}


async def _all(target: str, name: str, prompts: Sequence[Floats]) -> list[Continued]:
    from streamcell.client import connect_async

    async with connect_async(target) as client:
        pieces = (_one(client, name, prompt, seed) for seed, prompt in enumerate(prompts))
        return list(await asyncio.gather(*pieces))


async def _one(client: AsyncClient, name: str, prompt: Floats, seed: int) -> Continued:
    async with client.session(name) as session:
        first = await session.run(prompt)
        added = await session.generate(STEPS, temperature=TEMPERATURE, seed=seed).all()
    return Continued(np.concatenate((prompt, added.fed)), np.concatenate((first, added.outputs)))


def _compared(target: str, name: str, prompt: Floats, *, steps: int = 1000) -> dict[str, Any]:
    """Microseconds per step of one session: fed by the server, and fed by the client with a round trip per step."""
    from streamcell.client import connect

    figures: dict[str, Any] = {"compared_steps": steps}
    with connect(target) as client:
        with client.session(name) as session:
            session.run(prompt)
            began_s = time.perf_counter()
            by_server = [step.fed for step in session.generate(steps, output="none")]
            figures["us_a_step_by_server"] = (time.perf_counter() - began_s) / steps * 1e6
        with client.session(name) as session:
            y = session.run(prompt)[-1]
            by_client = []
            began_s = time.perf_counter()
            for _ in range(steps):
                x = (y > 0).astype(np.float32)
                by_client.append(x)
                y = session.step(x)
            figures["us_a_step_by_client"] = (time.perf_counter() - began_s) / steps * 1e6
    figures["steps_alike"] = sum(np.array_equal(a, b) for a, b in zip(by_server, by_client, strict=True))
    return figures
