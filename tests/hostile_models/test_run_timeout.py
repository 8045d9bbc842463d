"""A run that does not end is ended; its sessions are told so, and the server goes on."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

from streamcell.client import connect
from streamcell.client.errors import RowsRefused, ServerFault
from streamcell.service.engine.device import Device
from streamcell.service.engine.time_limit import TimeLimit
from streamcell.service.errors import RunTimeout
from streamcell.service.lifecycle.loaded_model import LoadedModel, load
from streamcell.service.repository.model_file import open_model
from streamcell.service.settings import Settings
from tests.support.onnx_files import save
from tests.support.waiting import waited

SIDECAR = """
layout = "batch"
inputs = ["x"]
outputs = ["y"]
[[states]]
input = "h"
output = "h_next"
"""
BAD = 1000.0
LIMIT_S = "2"  # longer than a busy machine holds up a good run


@pytest.fixture(scope="module")
def server(start_server: Any, endless: Any, tmp_path_factory: Any) -> Any:
    folder = tmp_path_factory.mktemp("endless")
    save(endless(), folder / "endless.onnx", SIDECAR)
    save(endless(), folder / "other.onnx", SIDECAR)
    return start_server(folder, "--run-timeout-s", LIMIT_S)


def ones(*shape: int, value: float = 1.0) -> np.ndarray:
    return np.full(shape, value, np.float32)


@pytest.mark.conformance
def test_a_session_whose_run_does_not_end_is_told_so(server: Any) -> None:
    """The engine's thread is free again for others of the model; sessions that had no step in the run keep theirs."""
    with connect(server.target) as client, client.session("endless") as good:
        assert good.step(ones(1)) == 1
        for _ in range(2):
            with client.session("endless") as bad:
                assert bad.step(ones(1)) == 1
                with pytest.raises(ServerFault, match=r"took longer than 2 s and was ended") as caught:
                    bad.step(ones(1, value=BAD))
            assert caught.value.reason == "RUN_TIMEOUT"
        assert good.step(ones(1)) == 2
        # A slot of theirs begins anew: what the run may have written is not read.
        with client.session("endless") as fresh:
            assert fresh.step(ones(1)) == 1
    assert waited(lambda: server.metric("streamcell_sessions_ended_total", reason="run_timeout") >= 2)
    assert waited(lambda: server.metric("streamcell_slots_used") == 0)


def test_other_models_are_served_while_one_hangs(server: Any) -> None:
    with connect(server.target) as client, client.session("other") as good:
        done = threading.Event()

        def hang() -> None:
            with client.session("endless") as bad, pytest.raises(ServerFault):
                bad.step(ones(1, value=BAD))
            done.set()

        thread = threading.Thread(target=hang)
        thread.start()
        steps = 0
        while not done.is_set() and steps < 100_000:
            steps += 1
            assert good.step(ones(1)) == steps
        thread.join()


def test_rows_of_a_frame_and_of_predict_are_told_so(server: Any) -> None:
    with connect(server.target) as client, client.pool("endless", 3) as pool:
        assert (pool.step(ones(3, 1)) == 1).all()
        values = ones(3, 1)
        values[1] = BAD
        with pytest.raises(RowsRefused) as caught:
            pool.step(values)
        # They were one run; all of it was ended.
        assert {error.reason for error in caught.value.errors.values()} == {"RUN_TIMEOUT"}
        assert sorted(caught.value.errors) == [0, 1, 2]
        with pytest.raises(ServerFault) as failed:
            client.predict("endless", ones(1, 1, 1, value=BAD))
        assert failed.value.reason == "RUN_TIMEOUT"
        np.testing.assert_array_equal(client.predict("endless", ones(2, 3, 1))[:, -1], ones(2, 1, value=3))


@pytest.fixture
def loaded(endless: Any, tmp_path: Any) -> Any:
    made: list[LoadedModel] = []

    def make(**settings: Any) -> LoadedModel:
        path = save(endless(), tmp_path / "endless.onnx", SIDECAR)
        given = Settings.load(models=tmp_path, max_sessions=4, max_batch=2, **settings)
        made.append(load(open_model(path, "endless"), given, Device()))
        return made[-1]

    yield make
    for model in made:
        model.release()


def test_the_engine_runs_as_before_after_one_that_was_ended(loaded: Any) -> None:
    """And what had been staged for other rows of the pool stays as it was."""
    engine = loaded(run_timeout_s=2).engine  # a busy machine may hold up the good runs, too
    first = engine.pool.first_slot
    staged = engine.stage(2, 1)

    def run(*slots: int, value: float = 1.0) -> None:
        staged.values[0][:] = value
        staged.read[:] = staged.write[:, 0] = np.array(slots) + first
        engine.run(staged)

    run(0, 1)
    run(0, 1)
    kept = engine.pool.read(first)[0].copy(), engine.pool.read(first + 1)[0].copy()
    with pytest.raises(RunTimeout):
        run(2, 3, value=BAD)
    for _ in range(3):  # the flag that ended it is down again
        run(2, 3)
    assert (engine.pool.read(first)[0], engine.pool.read(first + 1)[0]) == kept


def test_a_run_that_ends_in_time_is_never_taken_for_one_that_did_not(loaded: Any) -> None:
    """The watch looks between the end of one run and the beginning of the next: the next must not be ended for it."""
    engine = loaded(run_timeout_s=60).engine
    staged = engine.stage(1, 1)
    limit: TimeLimit = engine.limit
    looking = threading.Event()

    def look() -> None:
        while not looking.is_set():
            # What is due has been due for an hour; what is not, will be in a while.
            limit.look(time.monotonic())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(2000):
            engine.run(staged)
    finally:
        looking.set()
        thread.join()
    limit.due_s = time.monotonic() - 3600
    limit.look(time.monotonic())
    assert limit.ended
    assert limit.over()
    assert not limit.over()
    engine.run(staged)


def test_without_a_limit_nothing_watches() -> None:
    limit = TimeLimit(0)
    limit.begin(0)
    limit.look(float("1e300"))
    assert not limit.ended
