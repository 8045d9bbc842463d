"""Idle time is what passed while the server paid attention: with a clock of the test's own."""

from __future__ import annotations

import random

from streamcell.service.sessions.attention import Attention


class Clock:
    def __init__(self) -> None:
        self.at_s = 1000.0

    def __call__(self) -> float:
        return self.at_s


def test_while_passes_come_in_time_idle_time_is_time() -> None:
    clock = Clock()
    attention = Attention(0.5, clock)
    for _ in range(100):
        clock.at_s += 0.6
        assert attention.passes()
    assert attention.before_s(10) == clock.at_s - 10


def test_a_stop_counts_as_nobodys_idle_time() -> None:
    clock = Clock()
    attention = Attention(0.5, clock)
    used_s = clock.at_s
    clock.at_s += 0.5
    assert attention.passes()
    clock.at_s += 3600  # SIGSTOP … SIGCONT
    assert not attention.passes()  # what was sent meanwhile has not been read
    idle_s = 1.0  # the two intervals
    assert attention.before_s(idle_s + 0.01) < used_s < attention.before_s(idle_s - 0.01)
    clock.at_s += 0.5
    assert attention.passes()
    assert attention.before_s(idle_s + 0.51) < used_s < attention.before_s(idle_s + 0.49)
    # Who was used after the stop is judged by the clock alone.
    assert attention.before_s(0.25) == clock.at_s - 0.25


def test_a_starved_server_counts_an_interval_a_pass() -> None:
    clock = Clock()
    attention = Attention(0.5, clock)
    used_s = clock.at_s
    for _ in range(1000):  # more gaps than are kept apart
        clock.at_s += 60
        assert not attention.passes()
    assert attention.before_s(500.01) < used_s


def test_before_is_the_inverse_of_attended_time() -> None:
    chance, clock = random.Random(1), Clock()
    attention = Attention(0.5, clock)
    attended = [(clock.at_s, 0.0)]  # the clock, and attended time, after each pass
    for _ in range(200):
        step_s = chance.choice([0.5, 0.5, 0.7, 30.0])
        clock.at_s += step_s
        late = not attention.passes()
        attended.append((clock.at_s, attended[-1][1] + (0.5 if late else step_s)))
    now = attended[-1][1]
    for at_s, total in attended[-60:]:
        idle_s = now - total
        assert attention.before_s(idle_s + 0.001) < at_s
        assert attention.before_s(idle_s - 0.001) > at_s or idle_s == 0
