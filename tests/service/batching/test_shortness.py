"""Which runs are done where their messages were read: short ones, steadily, and without a flutter."""

from __future__ import annotations

from streamcell.service.batching.inline_policy import Shortness


def after(*runs: tuple[int, float, int]) -> Shortness:
    """(rows, seconds, times) in turn."""
    made = Shortness()
    for rows, took_s, times in runs:
        for _ in range(times):
            made.ran(rows, took_s)
    return made


def test_nothing_is_short_before_it_has_run() -> None:
    assert not Shortness().short
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
    near = (64, 0.9 * 380e-6, 200)
    assert not after(near).short
    assert after((64, 100e-6, 40), near).short
