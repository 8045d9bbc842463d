"""Bounds that depend on the machine are measured: decisions are the same on a machine of another speed."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamcell.client.local_server import ServerProcess
from streamcell.service.batching.inline import InlinePolicy
from streamcell.service.machine import USUAL, Machine, hand_overs, measured, works
from streamcell.service.settings import Settings
from streamcell.service.transport.fast_lane import FastLane
from streamcell.service.transport.grpc_server import Transport
from tests.support.inline_rig import Rig


def slower(times: float) -> Machine:
    return Machine.of(times * USUAL.hand_over_s, times * USUAL.work_s)


def decisions(machine: Machine, times: float) -> list[bool]:
    """Whether runs are short on a machine where everything takes `times` as long as on the usual one."""
    found = []
    for rows, took_us in itertools.product((1, 2, 8, 24, 36), (10, 30, 50, 55, 80, 100, 150, 250, 350, 400)):
        policy = InlinePolicy(machine)
        for _ in range(60):
            policy.ran(rows, times * took_us * 1e-6)
        found.append(policy.short)
    return found


def test_the_bounds_are_as_much_longer_as_the_machine_is_slower() -> None:
    assert (USUAL.batch_s, USUAL.row_s, USUAL.spin_s) == pytest.approx((100e-6, 10e-6, 100e-6))
    twice = slower(2)
    assert (twice.batch_s, twice.row_s, twice.spin_s) == pytest.approx((200e-6, 20e-6, 200e-6))
    threads_alone = Machine.of(2 * USUAL.hand_over_s, USUAL.work_s)
    assert (threads_alone.batch_s, threads_alone.row_s) == pytest.approx((200e-6, 10e-6))


def test_threads_that_share_a_busy_core_when_they_are_measured_do_not_shorten_what_a_batch_may_take() -> None:
    busy = Machine.of(0.35 * USUAL.hand_over_s, 0.8 * USUAL.work_s)
    assert (busy.batch_s, busy.row_s, busy.spin_s) == pytest.approx((80e-6, 8e-6, 35e-6))


@pytest.mark.parametrize("times", [1e-6, 1e6])
def test_a_measurement_far_off_moves_no_bound_further_than_a_machine_can_be(times: float) -> None:
    bound = 4.0 if times > 1 else 1 / 3
    far = slower(times)
    assert (far.batch_s, far.row_s, far.spin_s) == pytest.approx(
        (bound * 100e-6, bound * 10e-6, bound * 100e-6)
    )


@pytest.mark.parametrize("times", [0.5, 2.0])
def test_what_runs_inline_is_the_same_on_a_machine_of_another_speed(times: float) -> None:
    usual = decisions(USUAL, 1.0)
    assert {True, False} == set(usual)
    assert decisions(slower(times), times) == usual
    # With the constants of the usual machine it is not.
    assert decisions(USUAL, times) != usual


def clock(step_s: float) -> Callable[[], float]:
    return itertools.count(0.0, step_s).__next__


def test_hand_overs_are_measured_between_two_threads_and_leave_none_behind() -> None:
    before = set(threading.enumerate())
    assert len(hand_overs(clock(1e-6))) == 64
    assert hand_overs(clock(1e-5)) == pytest.approx([1e-5] * 64)
    assert all(took_s > 0 for took_s in (*hand_overs(), *works()))
    assert set(threading.enumerate()) <= before


def test_on_a_busy_machine_a_few_hand_overs_must_do() -> None:
    assert len(hand_overs(clock(4e-3))) == 8
    assert len(hand_overs(clock(0.5e-3))) == 20


def test_a_machine_is_measured_once() -> None:
    assert measured() is measured()


def test_a_loaded_model_decides_by_what_was_measured(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies: list[Machine] = []

    class Noting(InlinePolicy):
        def __init__(self, machine: Machine) -> None:
            policies.append(machine)
            super().__init__(machine)

    monkeypatch.setattr("streamcell.service.batching.inline.InlinePolicy", Noting)
    Rig(models_dir, "lstm").stop()
    assert policies == [measured()]


@pytest.mark.parametrize(
    ("flag", "port", "spin_s"), [(None, None, 77e-6), (30, None, 30e-6), (0, None, 0.0), (None, 0, 0.0)]
)
def test_how_long_it_polls_is_measured_unless_the_flag_says_it(
    flag: int | None, port: int | None, spin_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane = FastLane()
    asked: list[float] = []
    server = lane.server

    def make(options: Any, *, spin_s: float) -> Any:
        asked.append(spin_s)
        return server(options, spin_s=spin_s)

    monkeypatch.setattr(lane, "server", make)
    settings = Settings.load(models=Path(), port=0, spin_us=flag)
    transport = Transport(settings, {}, lane, lambda error: None, port=port, spin_s=77e-6)
    assert asked == pytest.approx([spin_s])
    transport._grpc.stop(0)


def test_a_server_tells_what_it_measured(served: ServerProcess) -> None:
    (line,) = [line for line in served.log if line["event"] == "machine measured"]
    spin_s = served.metric("streamcell_machine_seconds", what="spin")
    assert 33e-6 < spin_s <= 400e-6
    assert line["spin_us"] == round(spin_s * 1e6)
    for what, name in (("hand_over", "hand_over_us"), ("inline_batch", "inline_batch_us")):
        told_s = served.metric("streamcell_machine_seconds", what=what)
        assert line[name] == pytest.approx(told_s * 1e6, abs=0.1)
