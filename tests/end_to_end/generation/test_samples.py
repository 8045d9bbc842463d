"""Seeded samples, served: those of the same sampler over a loop in PyTorch, whatever else runs in the batch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from streamcell.client import Client, connect_async
from streamcell.client.local_server import ServerProcess
from tests.support.waiting import waited

KEYS, CLASSES, GO = 12, 9, 11
MASK = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15
Start = Callable[[str], Any]


def mix(word: int) -> int:
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & MASK
    word = (word ^ word >> 27) * 0x94D049BB133111EB & MASK
    return word ^ word >> 31


def uniform(seed: int, step_index: int, count: int) -> Any:
    state = mix(mix(seed) + step_index * GAMMA & MASK)
    return np.array([(mix(state + k * GAMMA & MASK) >> 11) / 2**53 for k in range(1, count + 1)])


def softmax(y: Any) -> Any:
    e = np.exp(y - y.max())
    return e / e.sum()


def hot(index: int) -> Any:
    return np.eye(CLASSES, dtype=np.float32)[index]


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (2.5, 3), (0.7, None)])
def test_classes(client: Client, loop: Start, temperature: float, top_k: int | None) -> None:
    model, seed = loop("words"), 2**63 + 17
    with client.session("words") as session:
        y = model.step(hot(2))
        session.step(hot(2))
        steps = session.generate(80, temperature=temperature, top_k=top_k, seed=seed, stop=())
        for step in steps:
            y = y.astype(float)
            if top_k:
                y[y < np.sort(y)[-top_k]] = -np.inf
            edges = np.cumsum(softmax(y / temperature))
            (u,) = uniform(seed, model.steps, 1)
            chosen = int(np.searchsorted(edges, u, "right"))
            np.testing.assert_array_equal(step.fed, hot(chosen))
            y = model.step(hot(chosen))
        assert steps.seed == seed


def test_keys(client: Client, loop: Start) -> None:
    model, x = loop("chords"), np.zeros(KEYS, np.float32)
    with client.session("chords") as session:
        for step in session.generate(60, first=x, temperature=1.5, top_k=6, seed=8):
            np.testing.assert_array_equal(step.fed, x)
            y = model.step(x).astype(float)
            p = 1 / (1 + np.exp(-y / 1.5))
            p[y < np.sort(y)[-6]] = 0
            x = (uniform(8, model.steps, KEYS) < p).astype(np.float32)
            np.testing.assert_array_equal(step.chosen, x)


def test_values(client: Client, loop: Start) -> None:
    model, x = loop("noise"), np.ones(3, np.float32)
    with client.session("noise") as session:
        for step in session.generate(40, first=x, feedback="sample", temperature=0.5, seed=8):
            np.testing.assert_allclose(step.fed, x, atol=1e-4)
            y = model.step(x)
            u = uniform(8, model.steps, 6)
            normal = np.sqrt(-2 * np.log1p(-u[:3])) * np.cos(2 * np.pi * u[3:])
            x = (y + 0.5 * np.array([0.1, 0.2, 0.3]) * normal).astype(np.float32)


def test_a_seed_that_the_server_draws_can_be_used_again(client: Client) -> None:
    with client.session("words") as first, client.session("words") as again, client.session("words") as other:
        one = first.generate(30, first=1, temperature=2.0, stop=()).all()
        assert one.seed != 0
        same = again.generate(30, first=1, temperature=2.0, seed=one.seed, stop=()).all()
        another = other.generate(30, first=1, temperature=2.0, stop=()).all()
    np.testing.assert_array_equal(one.chosen, same.chosen)
    assert one.chosen.tolist() != another.chosen.tolist()


def test_a_sequence_is_the_same_in_whatever_company(server: ServerProcess, client: Client) -> None:
    """Sixty generations at once, of different lengths and settings, beside clients' own steps, against each alone."""

    def settings(number: int) -> dict[str, Any]:
        asked: dict[str, Any] = {"seed": number, "temperature": 0.5 + number % 4, "stop": ()}
        return asked | ({"top_k": number % 5} if number % 5 else {})

    async def one(each: Any, number: int) -> Any:
        async with each.session("words") as session:
            await session.step(hot(number % CLASSES))
            return (await session.generate(20 + number, **settings(number)).all()).chosen

    async def ping(each: Any, done: asyncio.Event) -> None:
        async with each.session("words") as session:
            while not done.is_set():
                await session.run(np.stack([hot(1)] * (1 + session.step_index % 3)))

    async def together() -> Any:
        async with connect_async(server.target) as each:
            done = asyncio.Event()
            pings = [asyncio.create_task(ping(each, done)) for _ in range(3)]
            found = await asyncio.gather(*(one(each, number) for number in range(60)))
            done.set()
            await asyncio.gather(*pings)
            return found

    runs = server.metric("streamcell_batch_rows_count", model="words")
    steps = server.metric("streamcell_generated_steps_total", model="words")
    found = asyncio.run(together())
    made = sum(20 + number for number in range(60))
    assert waited(lambda: server.metric("streamcell_generated_steps_total", model="words") - steps == made)
    runs = server.metric("streamcell_batch_rows_count", model="words") - runs
    assert made / runs > 2  # they did share batches
    for number, chosen in enumerate(found):
        with client.session("words") as session:
            session.step(hot(number % CLASSES))
            alone = session.generate(20 + number, steps_per_reply=50, **settings(number)).all()
        np.testing.assert_array_equal(alone.chosen, chosen)
