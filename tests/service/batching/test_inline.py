"""Which runs are done where their messages were read: short ones, steadily, and without a flutter."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from streamcell.service.batching.batch import Batch
from streamcell.service.batching.inline import InlinePolicy, InlineRuns
from streamcell.service.engine.engine import Engine
from tests.support.inline_rig import NotingPolicy, Rig


def after(*runs: tuple[int, float, int], read_apart: bool = False) -> InlinePolicy:
    """(rows, seconds, times) in turn."""
    made = InlinePolicy()
    for rows, cpu_s, times in runs:
        for _ in range(times):
            made.ran(rows, cpu_s, rows if read_apart else 0)
    return made


def test_nothing_is_short_before_it_has_run() -> None:
    assert not InlinePolicy().short
    assert not after((1, 20e-6, 1)).short


def test_short_runs_are_short_whether_single_or_many() -> None:
    assert after((1, 24e-6, 40)).short
    assert after((64, 170e-6, 40)).short
    assert after((256, 600e-6, 40)).short


def test_long_runs_are_not_short() -> None:
    assert not after((1, 200e-6, 40)).short
    assert not after((64, 4e-3, 40)).short
    assert not after((4096, 2e-3, 40)).short  # nothing would be read meanwhile


def test_one_stall_changes_nothing_and_a_slower_model_does() -> None:
    steady = after((64, 170e-6, 40), (64, 1.0, 1))
    assert steady.short
    assert not after((64, 170e-6, 40), (64, 4e-3, 20)).short


def test_between_the_bounds_it_stays_as_it_was() -> None:
    near = (64, 0.9 * (100e-6 + 64 * 10e-6), 200)
    assert not after(near).short
    assert after((64, 100e-6, 40), near).short


def test_rows_whose_messages_are_read_apart_count_twice() -> None:
    runs = (32, 450e-6, 40)
    assert not after(runs).short
    assert after(runs, read_apart=True).short
    assert not after((32, 800e-6, 40), read_apart=True).short
    assert not after((256, 1.2e-3, 40), read_apart=True).short  # nothing would be read meanwhile


def test_a_run_does_not_count_as_longer_because_its_thread_waits_for_the_interpreter(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, waits_s = Engine.run, 0.2

    def waits(engine: Engine, staged: Any) -> None:
        run(engine, staged)
        time.sleep(waits_s)  # as while another thread has the interpreter

    rig = Rig(models_dir, "lstm")
    try:
        monkeypatch.setattr(Engine, "run", waits)
        rig.model.batcher.inline.policy = policy = NotingPolicy()
        rig.streams(3)
    finally:
        rig.stop()
    ((rows, cpu_s, read_apart),) = policy.runs
    assert (rows, read_apart) == (3, 0)
    assert 0 < cpu_s < waits_s


def inline(*, short: bool = True, wakeup: threading.Semaphore | None = None) -> InlineRuns:
    """The engine's thread sleeps."""
    runs = InlineRuns(wakeup)
    runs.policy.short = short
    runs.serve(lambda batch: None)
    runs.asleep = True
    return runs


def test_a_run_is_booked_once_until_it_is_over() -> None:
    runs = inline()
    assert runs.reserve()
    assert not runs.asleep
    assert not runs.reserve()
    assert runs.finish(more=True)  # reserved again
    assert not runs.finish(more=False)
    assert runs.asleep


def test_nothing_is_booked_while_the_engines_thread_is_awake() -> None:
    runs = inline()
    runs.wake_engine()
    assert not runs.reserve()


def test_what_is_left_goes_to_the_engines_thread_once_runs_are_long() -> None:
    runs = inline()
    assert runs.reserve()
    runs.policy.short = False
    assert not runs.finish(more=True)
    assert runs.asleep


def test_no_run_is_inline_where_other_processes_can_wake_the_engines_thread() -> None:
    assert not inline(wakeup=threading.Semaphore(0)).reserve()


def test_no_run_is_inline_once_the_runner_has_stopped() -> None:
    runs = inline()
    runs.serve(None)
    assert not runs.reserve()
    runs.run(Batch([], 0, uniform=False))  # one that was reserved before does nothing
