"""Beam search: the bookkeeping against brute force, and served against the same search in PyTorch."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from streamcell.client import Client, InvalidInput, SessionLimit, StreamCellError, connect, connect_async
from streamcell.client.local_server import ServerProcess
from streamcell.proto import pb
from streamcell.service.generation.beam_search import BeamSearch
from tests.support.resumable import Raw as StreamCall
from tests.support.waiting import waited

CONFORMANCE = pytest.mark.conformance
GO, SYMBOLS, END, CLASSES = 11, 7, 0, 9
Raw = Callable[[Any], Iterator[pb.StreamResponse]]


class Tree:
    """A made-up model: the logits behind every prefix of classes."""

    def __init__(self, classes: int, seed: int) -> None:
        self.classes = classes
        self.seed = seed

    def logits(self, prefix: tuple[int, ...]) -> Any:
        return np.random.default_rng((self.seed, *prefix)).normal(size=self.classes) * 2

    def log_probability(self, sequence: tuple[int, ...]) -> float:
        total = 0.0
        for at, each in enumerate(sequence):
            y = self.logits(sequence[:at])
            total += y[each] - np.log(np.exp(y).sum())
        return total

    def search(self, search: BeamSearch) -> list[tuple[tuple[int, ...], float, bool]]:
        while not search.done:
            search.grow(np.stack([self.logits(tuple(each.classes())) for each in search.live]))
        return [(tuple(each.classes()), search.score(each), each.stopped) for each in search.best()]


@pytest.mark.parametrize("power", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_beam_as_wide_as_the_tree_finds_what_trying_all_finds(seed: int, power: float) -> None:
    tree, steps, stop = Tree(4, seed), 4, 3
    every = [
        sequence
        for length in range(1, steps + 1)
        for sequence in itertools.product(range(4), repeat=length)
        if stop not in sequence[:-1] and (length == steps or sequence[-1] == stop)
    ]
    width = 4**steps
    scored = sorted(every, key=lambda s: tree.log_probability(s) / len(s) ** power, reverse=True)
    # With as many results as there are sequences nothing ends the search before its last step.
    search = BeamSearch(width=width, results=width, steps=steps, length_power=power, stop=frozenset((stop,)))
    found = tree.search(search)
    assert [sequence for sequence, _, _ in found] == scored
    for sequence, score, stopped in found:
        assert score == pytest.approx(tree.log_probability(sequence) / len(sequence) ** power)
        assert stopped == (sequence[-1] == stop)


def test_a_beam_of_one_is_the_greedy_choice() -> None:
    for seed in range(6):
        tree = Tree(5, seed)
        greedy: tuple[int, ...] = ()
        while len(greedy) < 8 and 0 not in greedy:
            greedy = (*greedy, int(tree.logits(greedy).argmax()))
        ((found, _, _),) = tree.search(
            BeamSearch(width=1, results=1, steps=8, length_power=0.0, stop=frozenset((0,)))
        )
        assert found == greedy


def test_classes_that_cannot_be_are_in_no_hypothesis() -> None:
    search = BeamSearch(width=4, results=4, steps=2, length_power=1.0, stop=frozenset())
    search.grow(np.array([[0.0, -np.inf, 1.0]]))
    assert [each.classes() for each in search.live] == [[2], [0]]
    search.grow(np.array([[0.0, np.nan, 1.0], [-np.inf, 5.0, -np.inf]]))
    assert search.done
    assert search.non_finite
    assert [each.classes() for each in search.best()] == [[0, 1]]
    dead = BeamSearch(width=2, results=2, steps=9, length_power=1.0, stop=frozenset())
    assert dead.grow(np.full((1, 3), np.nan)) == []
    assert (dead.done, list(dead.best())) == (True, [])


@torch.no_grad()
def in_torch(
    loop: Any, first: Any, encode: Callable[[int], Any], search: BeamSearch
) -> list[tuple[list[int], float, bool]]:
    """The search over one-row runs of the module, each hypothesis with a copy of its states."""
    model = loop.model
    states = [loop.states]
    inputs = [first]
    while not search.done:
        outputs, after = [], []
        for x, before in zip(inputs, states, strict=True):
            loop.states = before
            outputs.append(loop.step(x))
            after.append(loop.states)
        parents = search.grow(np.stack(outputs))
        states = [after[parent] for parent in parents]
        inputs = [encode(each.last) for each in search.live]
    assert loop.model is model
    return [(each.classes(), each.log_probability, each.stopped) for each in search.best()]


@pytest.mark.parametrize(
    ("width", "power"), [(1, 1.0), (2, 0.0), pytest.param(5, 1.0, marks=CONFORMANCE), (8, 0.5)]
)
def test_a_served_search_finds_what_the_search_in_pytorch_finds(
    client: Client, loop: Any, width: int, power: float
) -> None:
    several = 0
    for seed in range(5):
        letters = np.random.default_rng(seed).integers(0, GO, 5)
        model = loop("spell")
        for letter in letters:
            model.step(letter)
        search = BeamSearch(width=width, results=width, steps=12, length_power=power, stop=frozenset((END,)))
        wanted = in_torch(model, GO, lambda each: GO + each, search)
        with client.session("spell") as session:
            session.run(letters)
            found = session.beam_search(12, width=width, length_power=power)
            assert [list(each.classes) for each in found] == [classes for classes, _, _ in wanted]
            assert [each.stopped for each in found] == [stopped for _, _, stopped in wanted]
            for each, (classes, log_probability, _) in zip(found, wanted, strict=True):
                assert each.log_probability == pytest.approx(log_probability, abs=1e-3)
                assert each.score == pytest.approx(log_probability / len(classes) ** power, abs=1e-3)
            several += len(found)
            # The session is where it was: its own greedy choice is that of a session without a search.
            assert session.step_index == 5
            mine = session.generate(12).all().chosen.tolist()
        with client.session("spell") as other:
            other.run(letters)
            assert other.generate(12).all().chosen.tolist() == mine
    assert several > 5 or width == 1


def test_a_search_may_begin_from_the_last_output_or_at_the_initial_state(client: Client, loop: Any) -> None:
    hot = np.eye(CLASSES, dtype=np.float32)
    model = loop("words")
    with client.session("words") as session:
        initial = session.beam_search(6, width=3, first=4, stop=())
        search = BeamSearch(width=3, results=3, steps=6, length_power=1.0, stop=frozenset())
        wanted = in_torch(loop("words"), hot[4], lambda each: hot[each], search)
        assert [list(each.classes) for each in initial] == [classes for classes, _, _ in wanted]
        assert session.step_index == 0
        y = session.step(hot[2])
        from_output = session.beam_search(6, width=3, stop=())
        once = session.beam_search(1, width=3, stop=())
    model.step(hot[2])
    search = BeamSearch(width=3, results=3, steps=6, length_power=1.0, stop=frozenset())
    parents = search.grow(y[None])
    states = [model.states] * len(parents)
    while not search.done:
        outputs, after = [], []
        for each, before in zip(search.live, states, strict=True):
            model.states = before
            outputs.append(model.step(hot[each.last]))
            after.append(model.states)
        states = [after[parent] for parent in search.grow(np.stack(outputs))]
    assert [list(each.classes) for each in from_output] == [each.classes() for each in search.best()]
    assert [each.classes[0] for each in once] == np.argsort(-y)[:3].tolist()


@pytest.mark.parametrize("rows", [None, 12], ids=["a row for each", "few rows"])
def test_searches_share_batches_with_other_sessions_and_disturb_none(
    server: ServerProcess,
    client: Client,
    start_server: Callable[..., ServerProcess],
    folder: Path,
    rows: int | None,
) -> None:
    other = server
    if rows is not None:
        other = start_server(folder, "--slots", str(rows), "--max-sessions", "300")

    def words(seed: int) -> Any:
        return np.random.default_rng(seed).integers(0, GO, 4)

    def alone(seed: int) -> Any:
        with client.session("spell") as session:
            session.run(words(seed))
            best = session.beam_search(10, width=1 + seed % 6)
            return best, session.generate(10, seed=seed, stop=()).all().chosen.tolist()

    async def one(each: Any, seed: int) -> Any:
        async with each.session("spell") as session:
            await session.run(words(seed))
            best = await session.beam_search(10, width=1 + seed % 6)
            generated = await session.generate(10, seed=seed, stop=()).all()
            return best, generated.chosen.tolist()

    async def together() -> Any:
        async with connect_async(other.target) as each:
            return await asyncio.gather(*(one(each, seed) for seed in range(40)))

    for seed, (best, generated) in enumerate(asyncio.run(together())):
        wanted_best, wanted = alone(seed)
        assert [each.classes for each in best] == [each.classes for each in wanted_best]
        assert generated == wanted
    assert (other.metric("streamcell_spill_returns_total", model="spell") > 100) is (rows is not None)


def test_slots_are_given_back_however_a_search_ends(server: ServerProcess, client: Client, raw: Raw) -> None:
    def used() -> float:
        return server.metric("streamcell_slots_used", model="spell")

    letters = np.arange(5)
    start = used()
    with client.session("spell") as session:
        session.run(letters)
        session.beam_search(10, width=7)
        assert waited(lambda: used() == start + 1)
    opening = pb.StreamRequest(open=pb.OpenSession(model="spell"), inputs=[letters.tobytes()])
    search = pb.Generate(steps=5000, no_stop=True, beam=pb.BeamSearch(width=16))
    stopped = raw([opening, pb.StreamRequest(generate=search, tag=3), pb.StreamRequest(stop_generation=3)])
    _, reply = stopped
    assert reply.generated.stop_reason == pb.STOP_REASON_REQUEST
    assert len(reply.generated.hypotheses) in (0, 7, 16)  # stopped before, after its first step, or later
    bad = pb.StreamRequest(inputs=[np.array([99]).tobytes()], generate=search)
    with pytest.raises(StreamCellError) as caught:
        list(raw([opening, bad, bad]))
    assert caught.value.reason == "INDEX_OUT_OF_RANGE"
    call = StreamCall(server.target, opening, *[pb.StreamRequest(generate=search)] * 2)
    while used() < start + 33:
        pass
    call.cut()
    assert waited(lambda: used() == start)


def test_a_bad_first_input_ends_its_session_and_no_other(client: Client, raw: Raw) -> None:
    nan = np.full(CLASSES, np.nan, np.float32).tobytes()
    opening = pb.StreamRequest(
        open=pb.OpenSession(model="words"),
        inputs=[nan],
        generate=pb.Generate(steps=5, beam=pb.BeamSearch(width=4)),
    )
    with client.session("words") as session:
        for _ in range(5):
            session.send(np.eye(CLASSES, dtype=np.float32)[1])
            with pytest.raises(StreamCellError) as caught:
                list(raw([opening]))
            assert caught.value.reason == "NON_FINITE_INPUT"
            assert session.receive().shape == (CLASSES,)


@pytest.mark.parametrize(
    ("model", "generate", "text"),
    [
        ("words", {"beam": {}}, "width: expected 1 to 16, got 0"),
        ("words", {"beam": {"width": 17}}, "width: expected 1 to 16, got 17"),
        ("words", {"beam": {"width": 2, "results": 3}}, "results: expected at most the width"),
        ("words", {"beam": {"width": 2, "length_power": -1}}, "length_power"),
        ("words", {"beam": {"width": 2, "length_power": math.nan}}, "length_power"),
        ("chords", {"beam": {"width": 2}}, "a bernoulli head has no classes"),
        ("words", {"beam": {"width": 2}, "feedback": 3}, "neither samples"),
        ("words", {"beam": {"width": 2}, "steps_per_reply": 3}, "nor steps_per_reply"),
        ("words", {"beam": {"width": 2}}, "cannot generate yet"),
    ],
)
def test_a_bad_search_is_refused(raw: Raw, model: str, generate: Any, text: str) -> None:
    request = pb.StreamRequest(open=pb.OpenSession(model=model), generate=pb.Generate(steps=3, **generate))
    with pytest.raises(StreamCellError, match=text) as caught:
        list(raw([request]))
    assert caught.value.reason == "BAD_GENERATION"


def test_the_client_refuses_a_bad_search_first(client: Client) -> None:
    with client.session("words") as session:
        for bad in ({"width": 0}, {"width": 2, "results": 3}, {"width": 2, "first": 99}):
            with pytest.raises(InvalidInput):
                session.beam_search(3, **bad)
        assert session.alive
    with client.session("chords") as session, pytest.raises(InvalidInput, match="categorical head"):
        session.beam_search(3)


def test_where_there_is_no_room_for_the_hypotheses_the_session_limit_says_so(
    folder: Any, start_server: Callable[..., ServerProcess]
) -> None:
    server = start_server(folder, "--max-sessions", "6", "--max-beam-width", "8", "--max-batch", "7")
    with connect(server.target) as client:
        with client.session("spell") as session:
            assert len(session.beam_search(5, width=5, first=GO)) == 5
            with pytest.raises(SessionLimit):
                session.beam_search(5, width=6, first=GO)
            assert not session.alive
        with client.session("spell") as session, pytest.raises(InvalidInput, match="expected 1 to 7, got 8"):
            session.beam_search(5, width=8, first=GO)
        with client.session("spell") as session:
            assert len(session.beam_search(5, width=5, first=GO)) == 5
        assert waited(lambda: server.metric("streamcell_slots_used", model="spell") == 0)


@pytest.mark.parametrize("then", [{}, {"beam": {"width": 2}}])
def test_after_a_search_alone_there_is_no_output_to_begin_with(client: Client, raw: Raw, then: Any) -> None:
    searched = pb.StreamRequest(
        open=pb.OpenSession(model="words"),
        inputs=[np.eye(CLASSES, dtype=np.float32)[1].tobytes()],
        generate=pb.Generate(steps=3, beam=pb.BeamSearch(width=2)),
    )
    with client.session("words") as session:
        steps = session.generate(3000, first=1, stop=(), output="none")
        next(steps)
        with pytest.raises(StreamCellError, match="cannot generate yet") as caught:
            list(raw([searched, pb.StreamRequest(generate=pb.Generate(steps=3, **then))]))
        assert caught.value.reason == "BAD_GENERATION"
        assert len(list(steps)) == 2999  # whoever shared the batch goes on
