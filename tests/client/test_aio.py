"""The asyncio client against a real server: what it gives is what the PyTorch modules compute."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import torch

from streamcell.client import (
    AsyncSession,
    InvalidInput,
    ModelNotFound,
    NotFound,
    SessionClosed,
    SessionNotFound,
    connect_async,
)
from streamcell.client.local_server import ServerProcess

Modules = dict[str, torch.nn.Module]
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


def sequence(steps: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal((steps, 3), dtype=np.float32)


def truth(module: torch.nn.Module, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with torch.inference_mode():
        y: np.ndarray[Any, Any] = module(torch.from_numpy(x[None]))[0][0].numpy()
    return y


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn", "mlp", "cnn", "tcn", "deep"])
def test_steps_chunks_and_streams_give_what_pytorch_gives(
    shared: bool, served: ServerProcess, modules: Modules, kind: str
) -> None:
    x = sequence(30)
    expected = truth(modules[kind], x)

    async def live() -> AsyncIterator[Any]:
        for row in x[20:]:
            await asyncio.sleep(0)
            yield row

    async def main() -> None:
        async with connect_async(served.target) as client, client.session(kind, multiplex=shared) as session:
            outputs = [await session.step(row) for row in x[:5]]
            outputs += list(await session.run(x[5:12]))
            outputs += [y async for y in session.stream(x[12:20], window=3)]
            outputs += [y async for y in session.stream(live())]
            np.testing.assert_allclose(outputs, expected, **TOLERANCE)
            assert (session.step_index, session.model, session.version) == (30, kind, "1")
            assert session.inputs[0].step_shape == (3,)
            assert session.outputs[0].step_shape == (2,)
            assert session.max_steps > 1
            assert session.idle_timeout_s > 0
            await session.send(x[0])
            await session.send(x[:2])
            assert session.pending == 2
            assert (await session.receive()).shape == (2,)
            assert (await session.receive()).shape == (2, 2)

    asyncio.run(main())


def test_many_sessions_in_one_loop_keep_to_themselves(
    shared: bool, served: ServerProcess, modules: Modules
) -> None:
    async def one(client: Any, seed: int) -> None:
        x = sequence(10, seed)
        async with client.session("lstm", multiplex=shared) as session:
            outputs = [await session.step(row) for row in x]
        np.testing.assert_allclose(outputs, truth(modules["lstm"], x), **TOLERANCE)

    async def main() -> None:
        async with connect_async(served.target) as client:
            await asyncio.gather(*(one(client, seed) for seed in range(50)))

    asyncio.run(main())


def test_everything_but_sessions(shared: bool, served: ServerProcess, modules: Modules) -> None:
    x = sequence(7)

    async def main() -> None:
        async with connect_async(served.target) as client:
            np.testing.assert_allclose(await client.predict("gru", x), truth(modules["gru"], x), **TOLERANCE)
            assert (await client.predict("gru", np.stack([x, x]), output="last")).shape == (2, 1, 2)
            assert await client.predict("gru", x, output="none") is None
            assert {model.name for model in await client.models()} == set(modules)
            assert (await client.model("gru")).kind == "gru"
            assert await client.ready("gru")
            with pytest.raises(NotFound):
                await client.ready("nothing")
            with pytest.raises(ModelNotFound):
                await client.predict("nothing", x)
            with pytest.raises(ModelNotFound):
                await client.session("nothing", multiplex=shared).open()
            async with client.session("gru", multiplex=shared) as session:
                await session.run(x)
                found = [each async for each in client.sessions("gru") if each.id == session.id]
                assert found[0].step_index == 7
                assert await client.close_session(session.id) == 7
                with pytest.raises(SessionClosed):
                    await session.step(x[0])
                with pytest.raises(SessionNotFound):
                    await client.close_session(session.id)

    asyncio.run(main())


def test_an_input_that_does_not_fit_does_no_harm_and_one_the_server_refuses_ends_it(
    shared: bool,
    served: ServerProcess,
) -> None:
    async def main() -> None:
        async with connect_async(served.target) as client, client.session("rnn", multiplex=shared) as session:
            with pytest.raises(InvalidInput, match="expected float32, got float64"):
                await session.step(np.zeros(3))
            assert (await session.step(np.zeros(3, np.float32))).shape == (2,)
            with pytest.raises(InvalidInput) as caught:
                await session.step([float("nan"), 0.0, 0.0])
            assert caught.value.reason == "NON_FINITE_INPUT"
            assert not session.alive

    asyncio.run(main())


def test_a_step_that_meets_the_end_of_its_session_is_told_why(shared: bool, served: ServerProcess) -> None:
    async def endless(session: AsyncSession) -> None:
        while True:
            await session.step(np.zeros(3, np.float32))

    async def one(client: Any) -> None:
        async with client.session("gru", multiplex=shared) as session:
            await session.step(np.zeros(3, np.float32))
            closing = asyncio.create_task(client.close_session(session.id))
            with pytest.raises(SessionClosed):
                await endless(session)
            await closing

    async def main() -> None:
        async with connect_async(served.target) as client:
            # gRPC's own timing decides which of them meet it while they write.
            for _ in range(20 if shared else 200):
                await one(client)

    asyncio.run(main())


def test_answers_before_an_error_are_received_though_messages_go_on_being_sent(
    shared: bool, served: ServerProcess
) -> None:
    x = sequence(120)
    x[60] = np.nan

    async def one(client: Any) -> None:
        async with client.session("gru", multiplex=shared) as session:
            for row in x:
                await session.send(row)
            for _ in range(60):
                await session.receive()
            with pytest.raises(InvalidInput) as caught:
                await session.receive()
            assert (caught.value.reason, session.step_index) == ("NON_FINITE_INPUT", 60)

    async def main() -> None:
        async with connect_async(served.target) as client:
            for _ in range(10 if shared else 50):
                await one(client)

    asyncio.run(main())
