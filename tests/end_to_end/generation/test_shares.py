"""A tenant's generations are counted: each takes room of its tenant once and gives it back once, whatever ends it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streamcell.service.access.access_errors import QuotaExceeded
from streamcell.service.access.grant import Grant
from streamcell.service.access.policy import Terms
from streamcell.service.batching.batcher import Batcher
from streamcell.service.engine.device import Device
from streamcell.service.errors import EngineFailed
from streamcell.service.generation.beam_search import BeamSearch
from streamcell.service.generation.search_work import Search
from streamcell.service.generation.work import Generating
from streamcell.service.lifecycle.loaded_model import LoadedModel, load
from streamcell.service.repository.model_file import open_model
from streamcell.service.settings import Settings

from .test_loop import WAIT_S, Listener, hot

ENDLESS = 10**9
Eventually = Callable[[Callable[[], bool]], bool]


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[LoadedModel]:
    settings = Settings(models=folder, max_sessions=10, max_batch=6)
    loaded = load(open_model(folder / "words.onnx", "words"), settings, Device())
    yield loaded
    loaded.runner.stop()


class Of(Listener):
    """A session of a tenant; its generations take room as the protocol has them take it."""

    def __init__(self, model: LoadedModel, grant: Grant, room: int = ENDLESS) -> None:
        super().__init__(model, room)
        self.grant = grant

    def generate(self, steps: int, **more: Any) -> Generating:
        self.grant.take_generation()
        work = self.make(steps, **more)
        work.owner = self.grant
        self.model.batcher.submit(self.session, work)
        return work

    def search(self, width: int) -> Search:
        self.grant.take_generation()
        beam = BeamSearch(width=width, results=1, steps=3, length_power=1.0, stop=frozenset())
        capacity = self.model.batcher.capacity
        work = Search(self.session, self, (hot(1),), beam, capacity, tag=0, arrived_s=time.perf_counter())
        work.owner = self.grant
        self.model.batcher.submit(self.session, work)
        return work


def finished(model: LoadedModel, each: Of) -> None:
    each.generate(3)
    assert each.ended.wait(WAIT_S)


def searched(model: LoadedModel, each: Of) -> None:
    each.search(2)
    assert each.ended.wait(WAIT_S)


def stopped(model: LoadedModel, each: Of) -> None:
    each.generate(ENDLESS).stopped = True
    assert each.ended.wait(WAIT_S)


def ended_while_it_runs(model: LoadedModel, each: Of) -> None:
    work = each.generate(ENDLESS)
    while not work.applied:
        time.sleep(0.001)
    model.batcher.end(each.session)


def ended_at_its_gate(model: LoadedModel, each: Of) -> None:
    each.room = 1
    each.generate(ENDLESS)
    while not each.session.gate:
        time.sleep(0.001)
    model.batcher.end(each.session)


def ended_behind_another(model: LoadedModel, each: Of) -> None:
    each.generate(ENDLESS)
    each.generate(ENDLESS)
    model.batcher.end(each.session)


def dropped_before_its_turn(model: LoadedModel, each: Of) -> None:
    work = each.generate(ENDLESS)
    each.generate(ENDLESS)
    while not work.applied:
        time.sleep(0.001)
    assert len(model.batcher.drop_waiting(each.session)) == 1
    assert each.grant.generations == 1
    model.batcher.end(each.session)


def queued_after_the_end(model: LoadedModel, each: Of) -> None:
    model.batcher.end(each.session)
    each.generate(ENDLESS)


def refused_by_its_first_input(model: LoadedModel, each: Of) -> None:
    each.generate(ENDLESS, payloads=(hot(1)[:-1],))
    assert each.ended.wait(WAIT_S)
    assert each.errors


def without_a_first_input(model: LoadedModel, each: Of) -> None:
    each.generate(ENDLESS, payloads=())
    assert each.ended.wait(WAIT_S)
    assert each.errors


def failed(model: LoadedModel, each: Of) -> None:
    each.generate(ENDLESS)
    each.fail(EngineFailed("the card is gone"))


ENDS = (
    finished, searched, stopped, ended_while_it_runs, ended_at_its_gate, ended_behind_another, dropped_before_its_turn,
    queued_after_the_end, refused_by_its_first_input, without_a_first_input, failed,
)  # fmt: skip


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
def test_however_a_generation_ends_its_room_is_free(
    end: Callable[[LoadedModel, Of], None], model: LoadedModel, eventually: Eventually
) -> None:
    grant = Grant("acme", lambda: Terms(max_generations=2))
    each = Of(model, grant)
    try:
        end(model, each)
        assert eventually(lambda: grant.generations == 0)
        for _ in range(2):
            grant.take_generation()
        with pytest.raises(QuotaExceeded, match="may have 2 generations and beam searches at a time"):
            grant.take_generation()
    finally:
        model.batcher.end(each.session)


@pytest.mark.interpreted("it replaces what compiled code calls directly")
@pytest.mark.parametrize("end", [finished, stopped, ended_while_it_runs, without_a_first_input])
def test_a_batcher_that_forgets_what_is_done_is_seen(
    end: Callable[[LoadedModel, Of], None], model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Batcher, "_drop_done", lambda self, rows: None)
    grant = Grant("acme")
    each = Of(model, grant)
    end(model, each)
    model.batcher.end(each.session)
    barrier = Listener(model)
    barrier.step()
    assert barrier.answered.wait(WAIT_S)
    model.batcher.end(barrier.session)
    assert grant.generations == 1
