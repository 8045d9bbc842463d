"""Generations of servers killed with SIGKILL: the same choices and outputs as without kills, bit for bit."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

from streamcell.client import Client, connect, connect_async
from streamcell.proto import pb
from tests.support.life import Life
from tests.support.reconnecting import AT_ONCE
from tests.support.resumable import Owner, Raw, step, sums

STEPS = 400


def generated(
    client: Client, life: Life, kills: tuple[int, ...], **asked: Any
) -> tuple[list[int], list[Any], Any]:
    """The choices, the outputs and the output of the step behind a generation.

    `life` is killed each time the client has as many outputs as `kills` says.
    """
    chosen, outputs = [], []
    with client.session("dice", resume=True) as session:
        session.step([1.0, 0.0, 0.0, 0.0])
        for each in session.generate(STEPS, **asked):
            chosen.append(each.chosen)
            outputs.append(each.output)
            if len(chosen) in kills:
                life.again()
        assert session.resumes == len(kills)
        return chosen, outputs, session.step([0.0, 0.0, 0.0, 1.0])


@pytest.mark.conformance
@pytest.mark.parametrize(
    ("asked", "kills"),
    [({"seed": 7, "temperature": 2.0}, (1, 40, 299)), ({"steps_per_reply": 7, "seed": 8}, (40,))],
)
def test_a_generation_goes_on_at_its_step_with_the_same_choices(
    life: Life, asked: dict[str, Any], kills: tuple[int, ...]
) -> None:
    with connect(life.target, options=AT_ONCE) as client:
        chosen, outputs, behind = generated(client, life, kills, **asked)
        whole, all_outputs, expected = generated(client, life, (), **asked)
    assert len(set(whole)) > 1
    assert chosen == whole
    np.testing.assert_array_equal(outputs, all_outputs)
    np.testing.assert_array_equal(behind, expected)


def test_the_seed_that_the_server_drew_is_kept(life: Life) -> None:
    with connect(life.target, options=AT_ONCE) as client, client.session("dice", resume=True) as session:
        steps = session.generate(100, feedback="sample")
        chosen = [next(steps).chosen for _ in range(40)]
        life.again()
        chosen += [each.chosen for each in steps]
        seed = steps.seed
        with client.session("dice") as other:
            assert chosen == other.generate(100, seed=seed).all().chosen.tolist()


def test_an_asyncio_client_goes_on_as_well(life: Life) -> None:
    async def run() -> list[Any]:
        chosen: list[Any] = []
        async with (
            connect_async(life.target, options=AT_ONCE) as client,
            client.session("dice", resume=True) as session,
        ):
            async for each in session.generate(60, seed=3):
                chosen.append(each.chosen)
                if len(chosen) == 20:
                    await asyncio.to_thread(life.again)
        return chosen

    chosen = asyncio.run(run())
    with connect(life.target, options=AT_ONCE) as client, client.session("dice") as session:
        assert chosen == session.generate(60, seed=3).all().chosen.tolist()


def test_a_generation_from_the_last_output_knows_it_behind_a_kill(life: Life) -> None:
    with connect(life.target, options=AT_ONCE) as client:
        with client.session("dice", resume=True) as session:
            session.step([0.0, 1.0, 0.0, 0.0])
            life.again()
            chosen = session.generate(20, from_output=True, seed=5).all().chosen
        with client.session("dice") as session:
            session.step([0.0, 1.0, 0.0, 0.0])
            np.testing.assert_array_equal(chosen, session.generate(20, from_output=True, seed=5).all().chosen)


def test_a_beam_search_runs_again_from_its_start_and_gives_the_same_result(life: Life) -> None:
    with connect(life.target, options=AT_ONCE) as client:
        with client.session("dice", resume=True) as session:
            session.step([0.0, 1.0, 0.0, 0.0])
            while not session.resumes:  # a kill may come once it is over
                killer = threading.Thread(target=life.again)
                killer.start()
                found = session.beam_search(150, width=4, results=1)
                killer.join()
            after = session.step([0.0, 0.0, 1.0, 0.0])
            assert session.step_index == 2
        with client.session("dice") as session:
            session.step([0.0, 1.0, 0.0, 0.0])
            assert found == session.beam_search(150, width=4, results=1)
            np.testing.assert_array_equal(after, session.step([0.0, 0.0, 1.0, 0.0]))


def test_a_generation_waits_for_a_client_that_says_nothing_and_for_one_that_is_away(life: Life) -> None:
    owner = Owner(window=1, model="sum")
    raw = Raw(life.target, owner.opening(), step(1, generate=pb.Generate(steps=90)))
    raw.opened()
    found = [value for reply in raw.replies(20) for value in sums(reply)]
    life.again()
    raw.cut()
    opened = Raw(life.target, owner.resume(0, received_steps=20)).opened()
    assert 20 <= opened.applied_steps < 60
    raw = Raw(life.target, owner.resume(0, received_steps=20))
    assert raw.opened().applied_steps < 60
    while len(found) < 90:
        found += sums(raw.reply())
        raw.send(pb.StreamRequest(received=0, received_steps=len(found)))
    assert found == [2.0**n for n in range(90)]
